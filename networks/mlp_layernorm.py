"""The plain MLP with a LayerNorm (Ba et al. 2016, https://arxiv.org/abs/1607.06450) after every hidden linear layer, before its activation.

    python train.py task=Pendulum train=PPO train.params.network.name=mlp_layernorm

rl_games' `normalization: layer_norm` does nothing to the MLP of its `actor_critic`: 1.6.5 passes None on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from networks.base import ActorCritic, flat_size, network


@network("mlp_layernorm")
class MLPLayerNorm(ActorCritic):
    """(B, O) -> for each of `mlp.units`: linear, LayerNorm, `mlp.activation` -> heads. There are no keys beside rl_games'."""

    def build_encoder(self, obs_shape: Any) -> int:
        return flat_size("mlp_layernorm", obs_shape)

    def encode(self, obs: Tensor) -> Tensor:
        return obs

    def build_layers(self, size: int, mlp: dict[str, Any]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for units in mlp["units"]:
            layers += [nn.Linear(size, units), nn.LayerNorm(units), self.activations_factory.create(mlp["activation"])]
            size = units
        return layers
