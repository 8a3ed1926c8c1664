"""SimBa (Lee et al. 2024, https://arxiv.org/abs/2410.09754): a residual MLP whose simplest path from input to output is linear.

    python train.py task=HalfCheetah train=PPO train.params.network.name=simba train.params.network.separate=true

Of the paper's three parts, the running normalization of observations is the model's own (`config.normalize_input: true`, which
cfg/train/PPO.yaml has); the residual blocks and the last LayerNorm are here. The paper keeps actor and critic apart and makes the critic
larger: `separate: true`. Without it the actor's trunk serves both.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from networks.base import ActorCritic, flat_size, network


class Block(nn.Module):
    """x + linear(relu(linear(norm(x)))), 4 times as wide inside. (B, width) -> the same."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide, self.back = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        for layer in (self.wide, self.back):  # the authors' own: He-normal in the blocks
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.relu(self.wide(self.norm(x))))


@network("simba")
class SimBa(ActorCritic):
    """(B, O) -> linear (B, width) -> `blocks` residual blocks -> LayerNorm -> heads."""

    reads_mlp = False

    @dataclasses.dataclass(kw_only=True)
    class Config:
        width: int = 128  # of the actor, and of both where they are not separate
        blocks: int = 1
        critic_width: int = 512
        critic_blocks: int = 2
        expansion: int = 4  # how much wider a block is inside

        def __post_init__(self) -> None:
            for field in dataclasses.fields(self):
                if getattr(self, field.name) < 1:
                    raise ValueError(f"train.params.network.{field.name} is {getattr(self, field.name)}; valid: 1 or more")

    def build_encoder(self, obs_shape: Any) -> int:
        c = self.config
        width, blocks = (c.critic_width, c.critic_blocks) if self.is_critic else (c.width, c.blocks)
        self.embed = nn.Linear(flat_size("simba", obs_shape), width)
        nn.init.orthogonal_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.blocks = nn.Sequential(*[Block(width, c.expansion) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        return width

    def encode(self, obs: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(obs)))
