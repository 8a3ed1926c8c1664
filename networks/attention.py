"""Attention over the parts of an observation: the worked example of a network of your own.

A flat observation of n parts with d numbers each (joints, entities, sensors) becomes n tokens, which look at each other in
pre-norm transformer blocks (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Xiong et al. 2020 for the norm's place), and are
averaged. Written with einops: every line says its shapes.

    python train.py task=CartPole train=PPO train.params.network.name=attention train.params.network.token_size=1
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import UserError
from networks.base import ActorCritic, network


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each on normalized input and added to what came in. (B, n, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(self.norm_attention(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, n, d)
        x = x + self.to_out(rearrange(attended, "b h n d -> b n (h d)"))
        return x + self.feed_forward(self.norm_forward(x))


@network("attention")
class Attention(ActorCritic):
    @dataclasses.dataclass(kw_only=True)
    class Config:
        token_size: int = 1  # d: numbers of the observation that make one token
        width: int = 32  # size of a token inside
        heads: int = 2
        layers: int = 1

        def __post_init__(self) -> None:
            for name in ("token_size", "width", "heads", "layers"):
                if getattr(self, name) < 1:
                    raise ValueError(f"train.params.network.{name} is {getattr(self, name)}; valid: 1 or more")

    def build_encoder(self, obs_shape: Any) -> int:
        c = self.config
        if not isinstance(obs_shape, tuple) or len(obs_shape) != 1 or obs_shape[0] % c.token_size:
            raise UserError(f"network 'attention' needs flat observations in parts of token_size ({c.token_size}), not shape {obs_shape}")
        if c.width % c.heads:
            raise UserError(f"network 'attention': width ({c.width}) must be divisible by heads ({c.heads})")
        self.embed = nn.Linear(c.token_size, c.width)
        self.position = nn.Parameter(0.02 * torch.randn(obs_shape[0] // c.token_size, c.width))  # (n, width)
        self.blocks = nn.Sequential(*[Block(c.width, c.heads) for _ in range(c.layers)])
        self.norm = nn.LayerNorm(c.width)
        return c.width

    def encode(self, obs: Tensor) -> Tensor:
        tokens = self.embed(rearrange(obs, "b (n d) -> b n d", d=self.config.token_size)) + self.position  # (B, n, width)
        return reduce(self.norm(self.blocks(tokens)), "b n width -> b width", "mean")
