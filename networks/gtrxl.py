"""GTrXL: the Gated Transformer-XL (Parisotto et al. 2019, https://arxiv.org/abs/1910.06764) as a policy's memory.

Each layer, with input E and the memory M of its last `memory_length` inputs (without gradients), as in the paper's sec. 3.2:

    Y  = g(E, relu(RelativeAttention(LayerNorm([M, E]))))          the norm on the submodule's input: "identity map reordering"
    E' = g(Y, relu(FeedForward(LayerNorm(Y))))
    g(x, y) = (1 - z) x + z tanh(W_g y + U_g (r x)),  r = sigmoid(W_r y + U_r x),  z = sigmoid(W_z y + U_z x - b_g)

and attention of step t to step s, over distances t - s from 0 to `memory_length` (Dai et al. 2019, https://arxiv.org/abs/1901.02860):

    score(t, s) = ((q_t + u) . k_s + (q_t + v) . W_r R_{t-s}) / sqrt(d),   R_i the sinusoids of i

b_g = 2 makes z small at the start, so that the untrained layers nearly hand their input on.

    python train.py task=CartPoleNoVel train=PPO train.params.network.name=gtrxl train.params.config.seq_length=16
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from networks import pictures
from networks.base import ActorCritic, network
from networks.memory import Memory


class Gate(nn.Module):
    """GRU-type gating of a residual connection: x (..., width) what came in, y (..., width) what the submodule made of it."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.of_y = nn.Linear(width, 3 * width, bias=False)  # W_r, W_z, W_g
        self.of_x = nn.Linear(width, 2 * width, bias=False)  # U_r, U_z
        self.of_kept = nn.Linear(width, width, bias=False)  # U_g
        self.bias = nn.Parameter(torch.full((width,), float(bias)))  # b_g

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        (r_y, z_y, g_y), (r_x, z_x) = self.of_y(y).chunk(3, dim=-1), self.of_x(x).chunk(2, dim=-1)
        r, z = torch.sigmoid(r_y + r_x), torch.sigmoid(z_y + z_x - self.bias)
        return torch.lerp(x, torch.tanh(g_y + self.of_kept(r * x)).to(x.dtype), z.to(x.dtype))  # under autocast they differ


def sinusoids(count: int, width: int) -> Tensor:
    """R (count, width) of the distances 0 .. count - 1: sines, then cosines, of geometrically falling frequencies."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(count)[:, None] * frequency  # (count, width / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def shifted(by_distance: Tensor) -> Tensor:
    """Scores by distance M, ..., 1, 0, (..., T, M + 1) -> by item, (..., T, M + T): row t moves t places to the right.

    Rows that are T longer, read as rows that are T - 1 longer (Dai et al., appendix B). What else stands in a row is of no visible item.
    """
    steps, width = by_distance.shape[-2:]
    grown = nn.functional.pad(by_distance, (0, steps))
    return grown.flatten(-2)[..., : steps * (width + steps - 1)].unflatten(-1, (steps, width + steps - 1))


class RelativeAttention(nn.Module):
    """items (S, M + T, width), the memory and then the sequence; visible (S, T, M + T) bool -> (S, T, width)."""

    distances: Tensor  # R of the distances memory_length, ..., 1, 0

    def __init__(self, width: int, heads: int, memory_length: int) -> None:
        super().__init__()
        self.heads, self.memory_length = heads, memory_length
        self.to_q, self.to_kv, self.to_out = (nn.Linear(width, n * width, bias=False) for n in (1, 2, 1))
        self.to_r = nn.Linear(width, width, bias=False)
        self.content_bias, self.distance_bias = (nn.Parameter(torch.zeros(heads, 1, width // heads)) for _ in range(2))  # u, v
        self.register_buffer("distances", sinusoids(memory_length + 1, width).flip(0), persistent=False)

    def forward(self, items: Tensor, visible: Tensor) -> Tensor:
        q = rearrange(self.to_q(items[:, self.memory_length :]), "b t (h d) -> b h t d", h=self.heads)
        k, v = rearrange(self.to_kv(items), "b s (two h d) -> two b h s d", two=2, h=self.heads)
        r = rearrange(self.to_r(self.distances), "n (h d) -> h n d", h=self.heads)
        content = einsum(q + self.content_bias, k, "b h t d, b h s d -> b h t s")
        by_distance = einsum(q + self.distance_bias, r, "b h t d, h n d -> b h t n")
        scores = (content + shifted(by_distance)) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(dim=-1)
        return self.to_out(rearrange(weights @ v, "b h t d -> b t (h d)"))


class Layer(nn.Module):
    """x (S, T, width), memory (S, M, width), visible (S, T, M + T) -> (S, T, width)."""

    def __init__(self, width: int, heads: int, memory_length: int, feed_forward: int, gate_bias: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = RelativeAttention(width, heads, memory_length)
        self.feed_forward = nn.Sequential(nn.Linear(width, feed_forward), nn.ReLU(), nn.Linear(feed_forward, width))
        self.gate_attention, self.gate_forward = Gate(width, gate_bias), Gate(width, gate_bias)

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        items = self.norm_attention(torch.cat([memory, x], dim=1))
        y = self.gate_attention(x, torch.relu(self.attention(items, visible)))
        return self.gate_forward(y, torch.relu(self.feed_forward(self.norm_forward(y))))


class TransformerMemory(Memory):
    """A linear embedding and the layers. (B, I) -> (B, width).

    States: each layer's last inputs, newest last, (layers, N, memory_length * width); and how many of them there are, (1, N, 1). Zeroing
    both at an episode's end, as the agent does, leaves nothing to attend to.
    """

    def __init__(self, inputs: int, width: int, layers: int, heads: int, memory_length: int, feed_forward: int, gate_bias: float) -> None:
        super().__init__()
        self.size, self.memory_length = width, memory_length
        self.embed = nn.Linear(inputs, width)
        self.layers = nn.ModuleList([Layer(width, heads, memory_length, feed_forward, gate_bias) for _ in range(layers)])

    def empty(self, rows: int) -> tuple[Tensor, ...]:
        return torch.zeros(len(self.layers), rows, self.memory_length * self.size), torch.zeros(1, rows, 1)

    def forward(self, x: Tensor, features: Tensor, states: Any, steps: int, dones: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        m = self.memory_length
        memories = rearrange(states[0].detach(), "l s (m w) -> l s m w", m=m)
        count = states[1].detach()[0, :, 0].long()  # (S,)
        ended = None if dones is None else rearrange(dones, "(s t) -> s t", t=steps) > 0
        visible = self.visible(count, steps, ended)
        x = rearrange(self.embed(x), "(s t) w -> s t w", t=steps)
        after = []
        for layer, memory in zip(self.layers, memories, strict=True):
            after.append(torch.cat([memory, x], dim=1)[:, -m:])
            x = layer(x, memory, visible)
        kept = torch.stack(after)  # (layers, S, M, width)
        count = count + steps
        if ended is not None:
            last = torch.where(ended, torch.arange(steps, device=x.device), -1).amax(dim=1)  # (S,) the last step that begins an episode
            count = torch.where(last >= 0, steps - last, count)
            kept = kept * (torch.arange(m, device=x.device) >= m - count[:, None])[None, :, :, None]
        states = rearrange(kept, "l s m w -> l s (m w)"), count.clamp(max=m).to(x.dtype)[None, :, None]
        return rearrange(x, "s t w -> (s t) w"), states

    def visible(self, count: Tensor, steps: int, ended: Tensor | None) -> Tensor:
        """Which of the M + T items each step may look at, (S, T, M + T) bool: itself and the `memory_length` before it, back to where
        its episode began. count (S,): how many the memory holds; ended (S, T): the memory is emptied before the step."""
        m, device = self.memory_length, count.device
        step, other = torch.arange(m, m + steps, device=device)[:, None], torch.arange(m + steps, device=device)
        within = (other <= step) & (step - other <= m)  # (T, M + T)
        filled = other >= m - count[:, None]  # (S, M + T): what the memory has not yet been given is no step
        visible = within & filled[:, None]
        if ended is not None:
            episode = ended.long().cumsum(dim=1)  # (S, T), 0 for the one that the memory comes from
            of_item = torch.cat([episode.new_zeros(len(count), m), episode], dim=1)
            visible = visible & (episode[:, :, None] == of_item[:, None])
        return visible


@network("gtrxl")
class GTrXL(ActorCritic):
    """(B, O), or pictures through `impala_cnn`'s convolutions, -> memory (B, width) -> layers of `mlp` -> heads.

    An encoder of your own: override `build_encoder` and `encode` in a subclass.
    """

    has_memory = True

    @dataclasses.dataclass(kw_only=True)
    class Config:
        width: int = 64  # of a step inside; the paper's is 256
        layers: int = 2  # the paper's: 12
        heads: int = 4
        memory_length: int = 32  # steps that each layer looks back; the paper's: 512
        feed_forward: int = 128  # units of the feed-forward submodule
        gate_bias: float = 2.0  # b_g

        def __post_init__(self) -> None:
            for name in ("width", "layers", "heads", "memory_length", "feed_forward"):
                if getattr(self, name) < 1:
                    raise ValueError(f"train.params.network.{name} is {getattr(self, name)}; valid: 1 or more")
            if self.width % self.heads or self.width % 2:
                raise ValueError(f"train.params.network.width ({self.width}) must be even and divisible by heads ({self.heads})")

    def build_encoder(self, obs_shape: Any) -> int:
        if isinstance(obs_shape, tuple) and len(obs_shape) == 1:
            self.encoder: nn.Module = nn.Identity()
            return obs_shape[0]
        convolutions = pictures.impala_cnn("gtrxl", obs_shape)
        self.encoder = convolutions
        return convolutions.size

    def encode(self, obs: Tensor) -> Tensor:
        return self.encoder(obs)

    def build_memory(self, rnn: dict[str, Any] | None, features: int, hidden: int) -> tuple[Memory | None, bool]:
        if rnn is not None:
            raise ValueError("network 'gtrxl' is a memory itself: leave train.params.network.rnn out")
        c = self.config
        return TransformerMemory(features, c.width, c.layers, c.heads, c.memory_length, c.feed_forward, c.gate_bias), True
