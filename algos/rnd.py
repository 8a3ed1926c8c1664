"""RND: Exploration by Random Network Distillation, Burda et al. 2018 (https://arxiv.org/abs/1810.12894), sec. 2.2 to 2.4:

    i(s') = || predictor(s') - target(s') ||^2 / features,   target random and fixed, predictor trained on what was seen
    r_int = i / (running deviation of sum_k gamma_int^k i),   A = 2 A_ext + 1 A_int

Two streams of rewards, values and advantages: the task's, and the intrinsic one, which goes on where an episode ends. The policy's loss is
whatever it was, so RND joins any algorithm of this kind: `class RNDSPO(RND, SPO)`, with options of both and `policy=RNDPolicy`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from rl_games.algos_torch.running_mean_std import RunningMeanStd
from torch import Tensor, nn

from algos.agent import Agent
from algos.losses import gae, masked_mean
from algos.options import AgentOptions
from core.errors import UserError
from core.normalizers import Frozen, learn
from core.policy import Policy
from core.quiet import quiet
from core.ranks import ALONE, Ranks
from core.registry import register_algo
from core.vecenv import tree_map

SMALLEST_PICTURE = 36  # height and width that the three convolutions need; smaller ones are read as vectors


@dataclasses.dataclass(kw_only=True)
class RNDOptions(AgentOptions):
    gamma_int: float = 0.99
    """Discount of the intrinsic rewards; `gamma` is the task's."""

    extrinsic_coef: float = 2.0
    """Weight of the task's advantages."""

    intrinsic_coef: float = 1.0
    """Weight of the intrinsic advantages; 0: nothing is explored, and the predictor learns all the same."""

    update_proportion: float = 0.25
    """Share of a minibatch, drawn anew each time, that the predictor learns from: more environments would teach it too fast."""

    rnd_features: int = 512
    """Numbers that the target gives and the predictor has to meet."""

    rnd_units: list[int] = dataclasses.field(default_factory=lambda: [256])
    """Hidden layers of the target where observations are no pictures."""

    rnd_learning_rate: float = 1e-4
    """Of the predictor's own Adam."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma_int < 1:
            raise ValueError(f"gamma_int is {self.gamma_int}: it must be in [0, 1), since the intrinsic stream has no end")
        if not 0 < self.update_proportion <= 1:
            raise ValueError(f"update_proportion is {self.update_proportion}: it must be in (0, 1]")
        if min(self.extrinsic_coef, self.intrinsic_coef) < 0:
            raise ValueError(f"extrinsic_coef ({self.extrinsic_coef}) and intrinsic_coef ({self.intrinsic_coef}) must not be negative")
        if self.rnd_features < 1 or min(self.rnd_units, default=1) < 1:
            raise ValueError(f"rnd_features ({self.rnd_features}) and rnd_units ({self.rnd_units}) must be positive")
        if self.rnd_learning_rate <= 0:
            raise ValueError(f"rnd_learning_rate is {self.rnd_learning_rate}: it must be positive")


class RNDPolicy(Policy):
    """Two values: the task's and the intrinsic one."""

    def augment_env_info(self, env_info):
        if env_info.get("value_size", 1) > 1:
            raise UserError(f"'rnd' makes the second reward itself: the task has {env_info['value_size']} rewards (value_size), not 1")
        return super().augment_env_info({**env_info, "value_size": 2})


@register_algo("rnd", config=RNDOptions, policy=RNDPolicy)
class RND(Agent):
    def setup(self):
        super().setup()
        o, shape = self.options, self.policy.obs_shape
        self.seen: Any = None  # (L, ...) observations s' of the epoch
        self.intrinsic: Any = None  # (T, N, 1) their rewards
        size = sum(space.numel() for space in map(torch.Size, shape.values() if isinstance(shape, dict) else [shape]))
        picture = shape if isinstance(shape, tuple) and len(shape) == 3 and sorted(shape)[1] >= SMALLEST_PICTURE else None
        target = FeatureNet(size, picture, o.rnd_units, o.rnd_features, depth=0)
        self.target = self.register("rnd_target", target.requires_grad_(False))
        predictor = FeatureNet(size, picture, o.rnd_units, o.rnd_features, depth=2).to(self.policy.device)
        optimizer = torch.optim.Adam(predictor.parameters(), o.rnd_learning_rate, fused=True)
        self.predictor = self.register("rnd", predictor, optimizer=optimizer)
        with quiet():
            self.seen_stats = self.register("rnd_obs", RunningMeanStd((size,)))
            self.scale = self.register("rnd_scale", ReturnScale(self.num_actors * self.num_agents, o.gamma_int))
        self.normalize_seen = Frozen(self.seen_stats)

    def combine_rewards(self, rollout):
        rewards, parts = super().combine_rewards(rollout)
        self.seen = successors(rollout.obs, self.obs["obs"])
        for rows in self.seen.split(self.minibatch_size):
            learn(self.seen_stats, self.policy.preprocess(rows).flatten(1), self.ranks)
        self.normalize_seen.refresh()
        novelty = torch.cat([self.novelty(rows) for rows in self.seen.split(self.minibatch_size)]).view(rewards.shape[:2])
        self.intrinsic = self.scale(novelty, self.ranks).unsqueeze(2)
        rollout.raw_rewards[..., 1:] = self.intrinsic  # their episodes' sums are `return_mean_1`
        return torch.cat([rewards[..., :1], self.intrinsic], dim=2), {**parts, "intrinsic": self.intrinsic, "novelty": novelty}

    def advantages(self, rollout, rewards, last_values):
        extrinsic = super().advantages(rollout, rewards, last_values)[..., :1]
        never = torch.zeros_like(rollout.dones_after)  # and no bootstrap of time-outs, which `rewards` has
        intrinsic = gae(self.intrinsic, rollout.values[..., 1:], last_values[:, 1:], never, self.options.gamma_int, self.tau)
        return torch.cat([extrinsic, intrinsic], dim=2)

    def combine_advantages(self, advantages):
        return self.options.extrinsic_coef * advantages[:, 0] + self.options.intrinsic_coef * advantages[:, 1]

    def extra_update(self, batch):
        metrics, losses = super().extra_update(batch), []
        for _ in range(self.mini_epochs_num):
            for index in torch.randperm(len(self.seen), device=self.seen.device).tensor_split(self.num_minibatches):
                loss = self.predictor_loss(self.novelty(self.seen[index]))
                self.optimizer_step(loss, group="rnd")
                losses.append(loss.detach())
        self.seen = None
        return {**metrics, "losses/rnd": torch.stack(losses).mean().item()}

    def novelty(self, rows: Tensor) -> Tensor:
        """(B, ...) raw observations -> (B,) mean squared error of the predictor's features."""
        x = self.normalize_seen(self.policy.preprocess(rows).flatten(1))
        return (self.predictor(x) - self.target(x)).square().mean(-1)

    def predictor_loss(self, novelty: Tensor) -> Tensor:
        """(B,) -> the mean over a random share of the rows, 0 where none was drawn."""
        return masked_mean(novelty, torch.rand_like(novelty) < self.options.update_proportion)


class ReturnScale(nn.Module):
    """Intrinsic rewards in units of the running deviation of their discounted sums, one sum per row, which never ends."""

    sums: Tensor

    def __init__(self, rows: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("sums", torch.zeros(rows))
        self.stats = RunningMeanStd(())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if state_dict[f"{prefix}sums"].shape != self.sums.shape:  # a run of another number of environments begins new sums
            state_dict[f"{prefix}sums"] = self.sums
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, rewards: Tensor, ranks: Ranks = ALONE) -> Tensor:
        """(T, N) -> (T, N)."""
        sums = []
        for row in rewards:
            self.sums.copy_(self.gamma * self.sums + row)
            sums.append(self.sums.clone())
        learn(self.stats, torch.cat(sums), ranks)
        return rewards / (self.stats.running_var.float() + 1e-8).sqrt()


class FeatureNet(nn.Module):
    """(B, size) -> (B, features): the paper's convolutions where `picture` is the observation's shape, else an MLP. depth: further layers,
    which the predictor has and the target has not."""

    def __init__(self, size: int, picture: tuple[int, ...] | None, units: list[int], features: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if picture is not None:
            last = picture[2] < picture[0]  # channels
            channels = picture[2] if last else picture[0]
            layers += [nn.Unflatten(1, picture), *([Permute()] if last else [])]
            for filters, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                layers += [nn.Conv2d(channels, filters, kernel, stride), nn.LeakyReLU()]
                channels = filters
            layers.append(nn.Flatten())
            size = nn.Sequential(*layers)(torch.zeros(1, size)).shape[1]
        else:
            for width in units:
                layers += [nn.Linear(size, width), nn.LeakyReLU()]
                size = width
        layers.append(nn.Linear(size, features))
        for _ in range(depth):
            layers += [nn.ReLU(), nn.Linear(features, features)]
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.orthogonal_(layer.weight, 2**0.5)
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Permute(nn.Module):
    """(B, H, W, C) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def successors(obs: Any, last: Any) -> Tensor:
    """obs (T, N, ...), last (N, ...) -> (T * N, ...): the observation after each step. A Dict's parts become one vector each row."""
    after = tree_map(lambda x, end: torch.cat([x[1:], end.unsqueeze(0)]).flatten(0, 1), obs, last)
    leaves: list[Tensor] = []
    tree_map(lambda x: leaves.append(x.flatten(1).float()), after) if isinstance(after, dict) else leaves.append(after)
    return torch.cat(leaves, dim=1) if isinstance(after, dict) else after
