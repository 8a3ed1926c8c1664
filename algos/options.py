"""The base agent's own options. Each repairs one behaviour of rl_games 1.6.5; the default is the correct behaviour."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(kw_only=True)
class AgentOptions:
    """Keys under `train.params.config` beside rl_games' own. An algorithm's dataclass inherits from this one."""

    compat: Literal["none", "rl_games"] = "none"
    """`rl_games` sets every option below to what rl_games 1.6.5 does: weights then agree with it bit by bit."""

    bootstrap_from: Literal["terminal_obs", "current_obs"] = "terminal_obs"
    """A time-out bootstraps from V(terminal observation); rl_games takes V of the observation before it."""

    mask_reset_rows: bool = True
    """Rows in which a next-step environment merely resets are no transitions; rl_games trains on them."""

    shuffle: bool = True
    """Minibatches are drawn anew in every mini-epoch; rl_games takes the same contiguous slices each time."""

    mean_over_mask: bool = True
    """A masked loss is divided by the number of kept rows; rl_games divides by all rows."""

    update_normalizer_once: bool = True
    """The observation normalizer learns from an epoch's rows once, before the update, which then sees one normalization; rl_games
    counts each minibatch as it comes, again in every mini-epoch."""

    schedule_with_frames: bool = True
    """A linear schedule over `max_frames` anneals; rl_games passes it frames = 0, so it never does."""

    keep_best_on_resume: bool = True
    """The best return so far survives a resume; rl_games forgets it and overwrites a better checkpoint."""

    peek_values: bool = True
    """Asking a recurrent central value for the last values leaves its memory alone; rl_games advances it."""

    scale_bf16: bool = False
    """Mixed precision is bfloat16, which needs no gradient scaler; rl_games scales it."""

    check_finite: bool = True
    """A NaN or infinity in observations, rewards or losses stops the run and names the tensor."""

    fused: bool = True
    """The fast path (docs/speed.md): noise drawn once per rollout, what needs no stepping done once per epoch, gradients of plain MLPs
    and default losses written out. false: the plain path, step by step; both agree to float tolerance."""

    rollout_threads: int = 0
    """torch's threads during the rollout; 0: one where the policy is small and the environments need the cores, else all."""

    cuda_graphs: Literal["auto"] | bool = False
    """The whole rollout of environments written in torch, and the whole update, recorded once and replayed (docs/graphs.md): unmeasured,
    hence off. true: warns where one of them cannot be; auto: records what can be."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: networks compute in bfloat16 (autocast) in rollout and update; weights, losses and returns stay float32."""

    eval_every: int = 0
    """Epochs between evaluations during training on environments of their own; 0: none."""

    eval_games: int = 10
    """Episodes of such an evaluation."""

    def __post_init__(self) -> None:
        if self.compat == "rl_games":
            self.bootstrap_from = "current_obs"
            self.mask_reset_rows = False
            self.shuffle = False
            self.mean_over_mask = False
            self.update_normalizer_once = False
            self.schedule_with_frames = False
            self.keep_best_on_resume = False
            self.peek_values = False
            self.scale_bf16 = True
            self.check_finite = False
            self.fused = False
            self.cuda_graphs = False
        if self.eval_every < 0 or self.eval_games < 1:
            raise ValueError("eval_every must be >= 0 and eval_games >= 1")
        if self.rollout_threads < 0:
            raise ValueError("rollout_threads must be >= 0")
