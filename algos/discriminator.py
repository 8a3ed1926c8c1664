"""What GAIL and AMP share: a discriminator that tells the policy's transitions from demonstrated ones, and what it thinks as a reward.

    minimise over D:  loss(D(policy), D(demos)) + w_gp / 2 E_demos[ |grad D|^2 ] + w_logit |head|^2 + w_decay |weights|^2
    reward of the policy:  w_task r_task + w_imitation reward(D)

An algorithm says in a subclass of `Discriminator` what is judged, by which loss it learns and what it pays (algos/gail.py, algos/amp.py).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar

import torch
from rl_games.algos_torch.running_mean_std import RunningMeanStd
from torch import Tensor, nn

from algos.agent import Agent
from algos.batch import Batch
from algos.options import AgentOptions
from algos.rollout import Rollout
from core import registry
from core.demos import Demonstrations
from core.errors import UserError
from core.normalizers import learn
from core.policy import Policy
from core.quiet import quiet
from core.validate import algo_options
from core.vecenv import tree_map
from players.default import Player


@dataclasses.dataclass(kw_only=True)
class DiscriminatorOptions(AgentOptions):
    demos: str | None = None
    """Demonstration file (docs/demonstrations.md); training needs one."""

    task_reward_coef: float = 0.0
    """Weight of the task's rewards; 0: learned from demonstrations alone."""

    imitation_reward_coef: float = 1.0
    """Weight of the discriminator's reward."""

    disc_units: list[int] = dataclasses.field(default_factory=lambda: [128, 128])
    """Hidden layers (ReLU); []: a linear discriminator."""

    disc_learning_rate: float = 3e-4
    """Adam's, for the discriminator."""

    disc_steps: int = 10
    """Its optimizer steps per epoch."""

    disc_batch_size: int = 256
    """Transitions of either side in one of them: demonstrated ones, and the policy's, of which the replay buffer gives half."""

    disc_grad_penalty: float = 10.0
    """w_gp: of the squared gradient of D at the demonstrations, with respect to its normalized input."""

    disc_logit_reg: float = 0.0
    """w_logit: of the squared weights of D's last layer."""

    disc_weight_decay: float = 0.0
    """w_decay: of all its squared weights."""

    disc_replay_size: int = 0
    """Transitions of past policies that D goes on seeing; 0: those of this epoch alone."""

    disc_replay_keep: float = 1.0
    """Share of an epoch's transitions that go into a replay buffer that is full."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, valid, told in (
            ("disc_units", all(n >= 1 for n in self.disc_units), "at least 1 each"),
            ("disc_learning_rate", self.disc_learning_rate > 0, "positive"),
            ("disc_steps", self.disc_steps >= 1, "at least 1"),
            ("disc_batch_size", self.disc_batch_size >= 2, "at least 2"),
            ("disc_grad_penalty", self.disc_grad_penalty >= 0, "at least 0"),
            ("disc_logit_reg", self.disc_logit_reg >= 0, "at least 0"),
            ("disc_weight_decay", self.disc_weight_decay >= 0, "at least 0"),
            ("disc_replay_size", self.disc_replay_size >= 0, "at least 0"),
            ("disc_replay_keep", 0 < self.disc_replay_keep <= 1, "above 0 and at most 1"),
        ):
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {told}")


class Discriminator(nn.Module):
    """A score per transition, (..., F) -> (...): high for demonstrated ones. Normalizes its input by statistics of its own, which learn
    only in `Imitator.extra_update`. Raises UserError from `input_size` for observations or actions that it cannot judge."""

    def __init__(self, policy: Policy, options: Any) -> None:
        super().__init__()
        self.policy, self.options = policy, options
        sizes = [self.input_size(policy, options), *options.disc_units]
        with quiet():  # it prints its shape
            self.stats = RunningMeanStd((sizes[0],))
        layers = [(nn.Linear(i, o), nn.ReLU()) for i, o in itertools.pairwise(sizes)]
        self.trunk = nn.Sequential(*(part for layer in layers for part in layer))
        self.head = nn.Linear(sizes[-1], 1)

    # ---- what a subclass says -----------------------------------------------------------------------------------------

    @staticmethod
    def input_size(policy: Policy, options: Any) -> int:
        """F: how many numbers describe a transition."""
        raise NotImplementedError

    def inputs(self, obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        """Transitions as D sees them: obs, next_obs (..., O), actions (..., A), (...) or (..., k) -> (..., F)."""
        raise NotImplementedError

    def read(self, path: str) -> Tensor:
        """The transitions of a demonstration file, as D sees them (M, F). Raises UserError where it does not fit the task."""
        demos = Demonstrations.load(path, self.policy)
        return self.inputs(demos.obs, demos.actions, demos.next_obs)

    def loss(self, policy: Tensor, demos: Tensor) -> Tensor:
        """Scores of the policy's and of demonstrated transitions, (B,) each -> a scalar."""
        raise NotImplementedError

    def reward(self, scores: Tensor) -> Tensor:
        """What a score pays, element by element."""
        raise NotImplementedError

    # ---- the same for all -----------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Discriminator:
        super().train(mode)
        self.stats.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        return self.score(self.stats(inputs.flatten(0, -2)).view_as(inputs))

    def score(self, normalized: Tensor) -> Tensor:
        return self.head(self.trunk(normalized)).squeeze(-1)

    def objective(self, policy: Tensor, demos: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs (B, F) of either side -> what D minimises, and its parts, detached."""
        o, seen = self.options, self.stats(demos).detach().requires_grad_()
        scores = self.score(self.stats(policy)), self.score(seen)
        loss = self.loss(*scores)
        parts = {
            "losses/disc": loss,
            "disc/policy_score": scores[0].mean(),
            "disc/demo_score": scores[1].mean(),
            "disc/policy_accuracy": (scores[0] < 0).float().mean(),
            "disc/demo_accuracy": (scores[1] > 0).float().mean(),
        }
        if o.disc_grad_penalty:
            parts["disc/grad_penalty"] = gradient_penalty(scores[1], seen).mean()
            loss = loss + 0.5 * o.disc_grad_penalty * parts["disc/grad_penalty"]
        weights = [part.weight for part in (*self.trunk, self.head) if isinstance(part, nn.Linear)]
        loss = loss + o.disc_logit_reg * self.head.weight.square().sum()
        loss = loss + o.disc_weight_decay * torch.stack([w.square().sum() for w in weights]).sum()
        return loss, {name: value.detach() for name, value in parts.items()}


def gradient_penalty(scores: Tensor, inputs: Tensor) -> Tensor:
    """|grad of the score with respect to its input|^2, differentiable once more. scores (B,) of inputs (B, F) -> (B,)."""
    return torch.autograd.grad(scores.sum(), inputs, create_graph=True)[0].square().sum(-1)


class Replay:
    """The last `size` rows (F,) that were added; full, only a share `keep` of the new ones replaces the oldest."""

    of_each_rank = True  # several processes: each has the transitions of its own environments

    def __init__(self, size: int, width: int, keep: float, device: torch.device) -> None:
        self.data = torch.zeros((size, width), device=device)
        self.keep, self.count, self.position = keep, 0, 0

    def __len__(self) -> int:
        return self.count

    @property
    def rows(self) -> Tensor:
        """(len, F)"""
        return self.data[: self.count]

    def add(self, rows: Tensor) -> None:
        size = len(self.data)
        if self.count == size and self.keep < 1:
            rows = rows[torch.rand(len(rows), device=rows.device) < self.keep]
        rows = rows[-size:]
        self.data[(self.position + torch.arange(len(rows), device=rows.device)) % size] = rows
        self.position = (self.position + len(rows)) % size
        self.count = min(self.count + len(rows), size)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows.clone(), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A buffer of another size takes the rows that fit."""
        rows = state["rows"][: len(self.data)]
        self.count = len(rows)
        self.data[: self.count] = rows
        self.position = state["position"] if len(rows) == len(state["rows"]) else 0
        if self.count < len(self.data):
            self.position = self.count


def drawn(rows: Tensor, count: int) -> Tensor:
    """`count` of the rows (M, F), with replacement."""
    return rows[torch.randint(len(rows), (count,), device=rows.device)]


def flat_size(policy: Policy, judge: str) -> int:
    """Numbers of an observation. Raises UserError where it is not one flat array."""
    shape = policy.obs_shape
    if not isinstance(shape, tuple) or len(shape) != 1:
        told = f"a Dict of {', '.join(shape)}" if isinstance(shape, dict) else f"arrays of shape {shape}"
        raise UserError(
            f"{judge}'s discriminator reads flat observations, but the task's are {told}: flatten them "
            "(task.wrappers=[{name: FlattenObservation}]) or choose a part (task.obs_key)"
        )
    return int(shape[0])


class Imitator(Agent):
    """An agent that a discriminator pays. A subclass names its `Discriminator`."""

    discriminator: ClassVar[type[Discriminator]]

    @classmethod
    def check_run(cls, options: Any, policy: Policy, env: Any) -> None:
        super().check_run(options, policy, env)
        cls.demonstrations(options, policy, cls.discriminator(policy, options))

    @classmethod
    def demonstrations(cls, options: Any, policy: Policy, disc: Discriminator) -> Tensor:
        """The demonstrations as D sees them (M, F). Raises UserError where there are none or they do not fit."""
        if options.demos is None:
            raise UserError(f"train.params.config.demos is missing: {cls.__name__} learns from demonstrations (docs/demonstrations.md)")
        return disc.read(options.demos)

    def setup(self) -> None:
        super().setup()
        o = self.options
        disc = self.discriminator(self.policy, o)
        optimizer = torch.optim.Adam(disc.parameters(), o.disc_learning_rate)
        self.disc = self.register("disc", disc, optimizer=optimizer, player=True)
        self.demos = self.demonstrations(o, self.policy, self.disc)  # (M, F)
        self.replay = Replay(o.disc_replay_size, self.demos.shape[1], o.disc_replay_keep, self.policy.device)
        if o.disc_replay_size:
            self.register("replay", self.replay)

    def judged(self, rollout: Rollout) -> Tensor:
        """The rollout's transitions as D sees them, (T, N, F)."""
        return self.disc.inputs(rollout.obs, rollout.actions, rollout.fields.get("next_obs"))

    def combine_rewards(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, o = self.judged(rollout), self.options
        self.played = inputs[rollout.valid]  # (L, F)
        imitation = self.disc.reward(self.disc(inputs))  # (T, N)
        rewards = o.task_reward_coef * rollout.rewards
        rewards[..., 0] += o.imitation_reward_coef * imitation * rollout.valid  # a mere reset earns nothing
        return rewards, {"imitation": imitation[rollout.valid]}

    def extra_update(self, batch: Batch) -> dict[str, float]:
        o, told = self.options, []
        learn(self.disc.stats, torch.cat([self.played, drawn(self.demos, len(self.played))]), self.ranks)
        for _ in range(o.disc_steps):
            past = drawn(self.replay.rows, o.disc_batch_size // 2) if len(self.replay) else self.played[:0]
            policy = torch.cat([drawn(self.played, o.disc_batch_size - len(past)), past])
            loss, parts = self.disc.objective(policy, drawn(self.demos, o.disc_batch_size))
            self.optimizer_step(loss, group="disc")
            told.append(torch.stack(list(parts.values())))
        if o.disc_replay_size:
            self.replay.add(self.played)
        return dict(zip(parts, torch.stack(told).mean(0).tolist(), strict=True))


class ImitationPlayer(Player):
    """The default player, which also tells what the discriminator thinks of what is played: the means of its score and of its reward over
    all transitions, whether their episodes count or not."""

    algo: ClassVar[str]  # as it is registered

    def restore_extras(self, extras: dict[str, Any]) -> None:
        entry = registry.algos.get(self.algo)
        self.disc = entry.cls.discriminator(self.policy, algo_options(entry, self.policy.config)).to(self.policy.device).eval()
        try:
            self.disc.load_state_dict(extras["disc"])
        except RuntimeError as error:
            raise UserError(f"checkpoint does not fit this algorithm's settings: {' '.join(str(error).split())}") from error

    def on_eval_start(self) -> None:
        self.scores: list[Tensor] = []  # one per step, of the rows that are transitions
        self.rewards: list[Tensor] = []

    def act(self, obs: Any, rnn_states: Any, masks: Tensor | None) -> dict[str, Any]:
        self.before = tree_map(torch.clone, obs)
        return super().act(obs, rnn_states, masks)

    def judged(self, obs: Any, dones: Tensor, infos: dict[str, Any]) -> Tensor:
        """This step's transitions as D sees them (N, F)."""
        after = obs
        if self.env.reset_mode == "same_step" and "terminal_obs" in infos and bool(dones.any()):
            seen = self.seen
            after = torch.where(dones.to(obs.device).unsqueeze(1), self._see(infos["terminal_obs"]), obs)
            self.seen = seen
        return self.disc.inputs(self.before, self.chosen, after)

    @torch.no_grad()
    def on_eval_step(self, obs: Any, rewards: Tensor, dones: Tensor, infos: dict[str, Any]) -> None:
        scores = self.disc(self.judged(obs, dones, infos))[~self.reset_rows.to(self.policy.device)]
        self.scores.append(scores)
        self.rewards.append(self.disc.reward(scores))

    def on_eval_end(self) -> dict[str, Any]:
        return {
            "discriminator_score_mean": torch.cat(self.scores).mean().item(),
            "imitation_reward_mean": torch.cat(self.rewards).mean().item(),
        }
