"""AMP: Adversarial Motion Priors, Peng et al. 2021 (https://arxiv.org/abs/2104.02180), eq. 6 to 8:

    min over D:  E_demos[ (D(s, s') - 1)^2 ] + E_pi[ (D(s, s') + 1)^2 ] + w_gp / 2 E_demos[ |grad D|^2 ]
    style reward of the policy:  max(0, 1 - 0.25 (D(s, s') - 1)^2),   reward = w_task r_task + w_style r_style

D sees features of states, not actions: a motion can be demonstrated by somebody who has no actions of this task.
"""

from __future__ import annotations

import dataclasses
import zipfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algos.discriminator import Discriminator, DiscriminatorOptions, ImitationPlayer, Imitator, flat_size
from core.errors import UserError
from core.policy import Policy
from core.registry import register_algo, register_player
from core.vecenv import to_tensor


@dataclasses.dataclass(kw_only=True)
class AMPOptions(DiscriminatorOptions):
    disc_logit_reg: float = 0.05
    disc_weight_decay: float = 1e-4
    disc_replay_size: int = 50_000
    disc_replay_keep: float = 0.1

    amp_features: list[int] | None = None
    """Indices of the observation that D sees; null: all. Not read where the task gives `amp_obs` itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.amp_features
        if given is not None and (not given or len(set(given)) < len(given) or min(given) < 0):
            raise ValueError(f"amp_features is {given}: it must hold different indices of the observation, from 0")


class AMPDiscriminator(Discriminator):
    @staticmethod
    def input_size(policy: Policy, options: Any) -> int:
        given = policy.env_info.get("amp_observation_space")
        if given is not None:
            return int(np.prod(given.shape))
        size = flat_size(policy, "AMP")
        features = options.amp_features or range(size)
        if max(features) >= size:
            raise UserError(
                f"train.params.config.amp_features has {max(features)}, but the task's observations have {size} numbers, from 0"
            )
        return 2 * len(features)

    def inputs(self, obs: Tensor, actions: Any, next_obs: Tensor) -> Tensor:
        if self.options.amp_features is not None:
            obs, next_obs = obs[..., self.options.amp_features], next_obs[..., self.options.amp_features]
        return torch.cat([obs, next_obs], dim=-1).float()

    def read(self, path: str) -> Tensor:
        if "amp_observation_space" not in self.policy.env_info:
            return super().read(path)
        return read_amp_obs(path, self.stats.running_mean.numel()).to(self.policy.device)

    def loss(self, policy: Tensor, demos: Tensor) -> Tensor:
        return (demos - 1).square().mean() + (policy + 1).square().mean()

    def reward(self, scores: Tensor) -> Tensor:
        return (1 - 0.25 * (scores - 1).square()).clamp_min(0.0)


def read_amp_obs(path: str, size: int) -> Tensor:
    """The array `amp_obs` (M, F) of a .npz: transitions as the task describes them. Raises UserError where there is none that fits."""
    try:
        with np.load(path, allow_pickle=False) as file:
            rows = file["amp_obs"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"demonstrations '{path}': the task gives amp_obs, so an array of that name is needed: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != size or not len(rows):
        raise UserError(
            f"demonstrations '{path}': 'amp_obs' has shape {rows.shape}, but the task's has {size} numbers: (M, {size}) is needed"
        )
    return torch.as_tensor(rows, dtype=torch.float32)


@register_algo("amp", config=AMPOptions, player="amp")
class AMP(Imitator):
    discriminator = AMPDiscriminator

    def setup(self):
        super().setup()
        self.of_task = "amp_observation_space" in self.policy.env_info  # as IsaacGymEnvs' tasks: infos["amp_obs"] describes transitions
        self.keeps_next_obs = not self.of_task
        if self.of_task:
            self.on_step = self.keep_amp_obs  # type: ignore[method-assign]  # an own on_step plays the plain rollout: only here

    def rollout_fields(self):
        return {"amp_obs": ((self.demos.shape[1],), torch.float32)} if self.of_task else {}

    def keep_amp_obs(self, transition):
        transition.fields["amp_obs"] = to_tensor(transition.infos["amp_obs"], self.policy.device)

    def judged(self, rollout):
        return rollout.amp_obs if self.of_task else super().judged(rollout)


@register_player("amp")
class AMPPlayer(ImitationPlayer):
    algo = "amp"

    def judged(self, obs, dones, infos):
        if "amp_observation_space" in self.policy.env_info:
            return to_tensor(infos["amp_obs"], self.policy.device)
        return super().judged(obs, dones, infos)
