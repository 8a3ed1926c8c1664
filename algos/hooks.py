"""The hooks: everything an algorithm may override, each with the default that makes PPO. The driver is algos/agent.py.

Shapes: T horizon, N rows (environments x agents), L = T * N rows of the batch, B minibatch, A action size, V value size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn, optim

from algos import losses, rank_sync
from algos.batch import Batch
from algos.flat_adam import FlatAdam
from algos.heads import Output, read_output
from algos.rollout import Rollout, Transition
from core.policy import Policy
from core.vecenv import VecEnv

if TYPE_CHECKING:
    from rl_games.common.a2c_common import A2CBase as Base  # untyped: every attribute of the agent is allowed
else:
    Base = object


class Hooks(Base):
    """Mixed into `algos.agent.Agent`, whose docstring draws the timeline. `self.options` holds the algorithm's dataclass."""

    @classmethod
    def check_run(cls, options: Any, policy: Policy, env: VecEnv) -> None:
        """Called once, before there is a run directory or an agent, with the algorithm's options, the policy as it will be built (on the
        CPU) and the environments. Raises UserError for what the algorithm cannot serve: memory, a file that does not fit.

        Default: nothing. Example: if policy.is_rnn: raise UserError("... cannot train a network with memory")
        """

    # ---- built once ---------------------------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """Called once, before the optimizers. Returns the model that acts and is trained.

        Default: the policy's, built from `train.params.network`. To change what the network is given, override
        `Policy.network_build_config` instead, which the player shares.
        """
        return self.policy.model

    def build_optimizers(self) -> dict[str, optim.Optimizer]:
        """Called once, after `build_model`. Returns optimizers by name; 'policy' steps the model.

        Default: {'policy': Adam(model, learning_rate, weight_decay)}, as rl_games; on the fast path over one flat tensor.
        """
        lr, decay = float(self.config["learning_rate"]), self.weight_decay
        if self.options.fused:
            return {"policy": FlatAdam(self.model.parameters(), lr, weight_decay=decay)}
        return {"policy": optim.Adam(self.model.parameters(), lr, weight_decay=decay, fused=True)}

    def setup(self) -> None:
        """Called once, when model, optimizers, environment info and options are there. Register what you add:

        net = Discriminator(...)
        self.disc = self.register("disc", net, optimizer=torch.optim.Adam(net.parameters(), 1e-4))
        """

    def rollout_fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Called once, before the first epoch. Returns {name: (shape of one row, dtype)}; `on_step` fills them, and they are
        carried into the batch and its minibatches.

        Default: none. Example: return {"disc_obs": ((12,), torch.float32)}
        """
        return {}

    # ---- rollout: T times per epoch ------------------------------------------------------------------------------------

    def before_epoch(self) -> None:
        """Called before the rollout of each epoch; `self.epoch_num` counts from 1."""

    def before_step(self, n: int) -> None:
        """Called before step n (0 .. T-1) of the rollout: draw latents, set curricula."""

    def act(self, obs: Any) -> dict[str, Any]:
        """Called with the observations (N, ...), already augmented. Returns at least actions, neglogpacs (N,), values (N, V)
        and, for continuous actions, mus and sigmas (N, A); `rnn_states` where there is memory.

        Default: samples from the policy. Example (more noise while collecting):
            result = super().act(obs); result["actions"] += 0.1 * torch.randn_like(result["actions"]); return result
        """
        return self.policy.act(obs, self.rnn_states, self.action_masks)

    def on_step(self, transition: Transition) -> None:
        """Called after each step. May edit `transition.rewards` (N, V) and `transition.dones` (N,), and fills
        `transition.fields` with what `rollout_fields` declared.

        Default: nothing. Example: transition.fields["disc_obs"] = transition.infos["amp_obs"]
        """

    def on_episode_end(self, rows: Tensor, transition: Transition) -> None:
        """Called after `on_step` where episodes ended; rows: indices (k,) into N. Default: nothing."""

    def episode_mask(self, transition: Transition) -> Tensor | None:
        """Called after each step. Returns (N,) bool: whose finished episodes count in the statistics (return, best checkpoint).

        Default: None, all. Example (only the evaluation block counts): return torch.arange(N) < 64
        """
        return None

    # ---- from rollout to batch: once per epoch --------------------------------------------------------------------------

    def combine_rewards(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Called after the rollout, before the advantages. Returns the rewards (T, N, V) to learn from and named components,
        whose means are logged as `rewards/<name>`.

        Default: the shaped rewards, no components. Example:
            bonus = self.rnd(rollout.obs); return rollout.rewards + bonus, {"bonus": bonus}
        """
        return rollout.rewards, {}

    def advantages(self, rollout: Rollout, rewards: Tensor, last_values: Tensor) -> Tensor:
        """Called once per epoch with rewards (T, N, V) that hold the bootstrap of time-outs, and the values (N, V) of the
        observations after the last step. Returns advantages (T, N, V). Default: GAE(gamma, tau)."""
        return losses.gae(rewards, rollout.values, last_values, rollout.dones_after, self.gamma, self.tau)

    def combine_advantages(self, advantages: Tensor) -> Tensor:
        """Called with the advantages (L, V) of all value streams. Returns (L,): what the policy learns from. Default: their sum."""
        return advantages.sum(dim=1)

    def normalize_advantages(self, advantages: Tensor, mask: Tensor | None) -> Tensor:
        """Called with advantages (L,) where `normalize_advantage` is true; mask (L,) marks the rows that count, or is None.

        Default: mean 0 and standard deviation 1 over the batch; with `normalize_rms_advantage`, by moving statistics.
        """
        if self.advantage_stats is not None:
            return self.advantage_stats(advantages, mask)
        if self.ranks.world > 1:
            return rank_sync.normalized(self.ranks, advantages, mask)
        return losses.normalized(advantages, mask)

    def steps_together(self) -> int:
        """Called when the batch is made. Returns how many successive steps of one environment its minibatches keep together, in their
        order, reset rows (mask 0) included; `horizon_length` must be a multiple of it.

        Default: seq_length with memory, else 1: rows alone. Example (whole rollouts, as V-trace needs): return self.horizon_length
        """
        return self.seq_length if self.is_rnn else 1

    def transform_batch(self, batch: Batch) -> Batch:
        """Called with the finished batch before the update. May add, replace or drop rows and fields.

        Default: unchanged. Example: return batch.replace(advantages=batch.advantages + 0.1 * batch.novelty)
        """
        return batch

    # ---- update: once per epoch, its parts once per minibatch ---------------------------------------------------------------

    def update(self, batch: Batch) -> dict[str, float]:
        """Called once per epoch. Returns metrics. Override it to replace the whole update (TRPO, PPG, distillation).

        Default: `mini_epochs` passes over `num_minibatches` minibatches, each `minibatch_step`.
        """
        return self.ppo_update(batch)

    def evaluate_actions(self, mb: Batch) -> Output:
        """Called for each minibatch. Returns an Output: neglogp, entropy (B,), values (B, V), mus and sigmas (B, A) or logits.

        Default: the model's forward pass on mb.obs and mb.actions. Example (RPO): recompute out.neglogp under perturbed means.
        """
        return self.fast.evaluate(mb) if self._updating else read_output(self.model(self.model_inputs(mb)))

    def policy_loss(self, mb: Batch, out: Output) -> Tensor:
        """Called for each minibatch. Returns the loss per sample (B,); mask, mean and logging follow in the driver.

        Default: PPO's clipped surrogate (smooth with `use_smooth_clamp`; policy gradient with `ppo: false`).
        """
        if not self.ppo:
            return losses.a2c_loss(out.neglogp, mb.advantages)
        loss = losses.smooth_ppo_loss if self.use_smooth_clamp else losses.ppo_loss
        return loss(mb.old_neglogp, out.neglogp, mb.advantages, self.e_clip)

    def value_loss(self, mb: Batch, out: Output) -> Tensor:
        """Called for each minibatch where the policy network has a critic. Returns (B, V); weighted by critic_coef / 2.

        Default: squared error to the returns, clipped where `clip_value`.
        """
        return losses.value_loss(mb.old_values, out.values, mb.returns, self.e_clip, self.clip_value)

    def extra_losses(self, mb: Batch, out: Output) -> dict[str, Tensor]:
        """Called for each minibatch. Returns {name: loss per sample (B,) or scalar}, added with the coefficient
        `<name>_coef` of the algorithm's options (1 if there is none) and logged as `losses/<name>`.

        Default: none. Example: return {"small": (out.mus**2).sum(-1)}
        """
        return {}

    def entropy_weight(self, mb: Batch) -> float | Tensor:
        """Called for each minibatch. Returns the entropy coefficient: a number, or one per sample (B,).

        Default: `entropy_coef`, as the schedule leaves it.
        """
        return self.entropy_coef

    def policy_kl(self, mb: Batch, out: Output) -> Tensor:
        """Called for each minibatch after its step. Returns the KL divergence per sample (B,), which drives the adaptive
        learning rate. Default: exact for Gaussians, sampled for categorical actions."""
        return self.head.kl(mb, out)

    def optimizer_step(self, loss: Tensor, group: str = "policy") -> None:
        """Called with a scalar loss; steps the optimizer of that name ('policy', or what was registered with one).

        Default: zero gradients, backward, clip to `grad_norm` where `truncate_grads`, step.
        """
        self.default_optimizer_step(loss, group)

    def extra_update(self, batch: Batch) -> dict[str, float]:
        """Called once per epoch after `update`: train discriminators, predictors, buffers. Returns metrics. Default: none."""
        return {}

    # ---- around the epochs ----------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Called once, before the first epoch of this process (after a checkpoint was loaded, if any)."""

    def after_epoch(self, metrics: dict[str, float]) -> None:
        """Called with the epoch's metrics before they are written; may add to them (`metrics["amp/acc"] = ...`)."""

    def should_stop(self) -> bool:
        """Called after each epoch. True ends training with exit reason 'should_stop'. Default: False."""
        return False

    def best_metric(self) -> float | None:
        """Called after each epoch. Returns what `best.pth` maximises, or None while there is nothing to compare.

        Default: the mean return of the last `games_to_track` finished episodes.
        """
        return float(self.game_rewards.get_mean()[0]) if len(self.game_rewards) else None

    def evaluate(self) -> dict[str, float]:
        """Called every `eval_every` epochs, after the update. Returns metrics.

        Default: plays `eval_games` episodes with the algorithm's player on environments of their own.
        """
        return self.play_evaluation()


def overrides(agent: Any, name: str, base: type) -> bool:
    """Whether an agent has its own version of a method of `base`: by its class, or by a function that `setup` gave it."""
    own = getattr(agent, name)
    return getattr(own, "__func__", own) is not getattr(base, name)
