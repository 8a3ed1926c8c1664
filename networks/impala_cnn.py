"""The residual network of IMPALA (Espeholt et al. 2018, https://arxiv.org/abs/1802.01561, the "large" one of fig. 3), without its LSTM,
which `rnn` adds.

    python train.py task=Breakout train=PPO train.params.network.name=impala_cnn
    python train.py task=Breakout train.params.network.name=impala_cnn 'train.params.network.rnn={name: lstm, units: 256, layers: 1}'

rl_games' `resnet_actor_critic` is close to it, with `cnn.conv_depths` and the YAML's `mlp`; here are the paper's sizes by themselves, and
pictures either way round.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from networks import pictures
from networks.base import ActorCritic, network


@network("impala_cnn")
class ImpalaCNN(ActorCritic):
    """(B, C, H, W) or (B, H, W, C) of any size -> three stages of [conv 3x3, max-pool 3x3/2, two residual blocks] -> ReLU -> (B, units),
    ReLU -> heads."""

    reads_mlp = False

    @dataclasses.dataclass(kw_only=True)
    class Config:
        width: int = 1  # multiplies the channels
        channels: list[int] = dataclasses.field(default_factory=lambda: [16, 32, 32])  # of the stages
        units: int = 256  # of the linear layer

        def __post_init__(self) -> None:
            if self.width < 1 or self.units < 1 or not self.channels or min(self.channels) < 1:
                raise ValueError(
                    f"train.params.network: width ({self.width}), units ({self.units}) and each of channels ({self.channels}) must be >= 1"
                )

    def build_encoder(self, obs_shape: Any) -> int:
        c = self.config
        self.convolutions = pictures.impala_cnn("impala_cnn", obs_shape, c.width, tuple(c.channels), c.units)
        return self.convolutions.size

    def encode(self, obs: Tensor) -> Tensor:
        return self.convolutions(obs)
