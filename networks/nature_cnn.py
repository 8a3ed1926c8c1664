"""The network of DQN (Mnih et al. 2015, https://doi.org/10.1038/nature14236), with the heads of actor and critic on its 512 units.

    python train.py task=Breakout train=PPO train.params.network.name=nature_cnn

`network.cnn: auto` of `actor_critic` puts the same convolutions before the YAML's `mlp`, and runs faster where that is enough; this one is
the whole network of the paper whatever `mlp` says, and can have an LSTM (`rnn`) or be made in two (`separate`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from networks import pictures
from networks.base import ActorCritic, network


@network("nature_cnn")
class NatureCNN(ActorCritic):
    """(B, C, H, W) or (B, H, W, C), at least 36 x 36 -> 32 filters 8x8/4 -> 64 4x4/2 -> 64 3x3/1 -> (B, units) -> heads; ReLU each."""

    reads_mlp = False

    @dataclasses.dataclass(kw_only=True)
    class Config:
        units: int = 512  # of the linear layer

        def __post_init__(self) -> None:
            if self.units < 1:
                raise ValueError(f"train.params.network.units is {self.units}; valid: 1 or more")

    def build_encoder(self, obs_shape: Any) -> int:
        self.convolutions = pictures.nature_cnn("nature_cnn", obs_shape, self.config.units)
        return self.convolutions.size

    def encode(self, obs: Tensor) -> Tensor:
        return self.convolutions(obs)
