"""Adam over one flat tensor: clip and step are a handful of calls, however many layers the network has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim


class FlatAdam(optim.Adam):
    """`torch.optim.Adam`, number for number, of parameters that lie side by side in one tensor.

    The parameters become views of that tensor and stay who they are; the optimizer's state is saved and loaded per parameter, as
    rl_games' is. Where a parameter has no gradient, or was given memory of its own since, torch's own step runs.

    Args:
        parameters: float parameters on one device.
        lr, eps, weight_decay: torch's.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr, eps=eps, weight_decay=weight_decay, fused=True)
        self._parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        self._flatten()

    def _flatten(self) -> None:
        first = self._parameters[0]
        self._flat = torch.empty(sum(p.numel() for p in self._parameters), dtype=first.dtype, device=first.device)
        for p, view in zip(self._parameters, self._views(self._flat), strict=True):
            view.copy_(p.detach())
            p.data = view
        self._places = [p.data_ptr() for p in self._parameters]
        self._grad, self._mean, self._square = (torch.zeros_like(self._flat) for _ in range(3))
        self._gradients = self._views(self._grad)
        self._steps = torch.zeros(len(self._parameters), dtype=torch.float32, device=first.device)
        self._link_state()

    def _link_state(self) -> None:
        """torch's own state dict, made of views into the flat tensors."""
        parts = zip(self._parameters, self._steps, self._views(self._mean), self._views(self._square), strict=True)
        for p, step, mean, square in parts:
            self.state[p] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}

    def _views(self, flat: Tensor) -> list[Tensor]:
        """One view per parameter, in its shape and memory order (channels_last kernels keep theirs)."""
        pieces = flat.split([p.numel() for p in self._parameters])
        return [piece.as_strided(p.shape, p.stride(), piece.storage_offset()) for piece, p in zip(pieces, self._parameters, strict=True)]

    def gather(self) -> Tensor | None:
        """All gradients as one tensor, or None where one is missing or the parameters no longer lie side by side."""
        grads = [p.grad for p in self._parameters]
        if any(g is None for g in grads) or [p.data_ptr() for p in self._parameters] != self._places:
            return None
        torch._foreach_copy_(self._gradients, grads)
        return self._grad

    @torch.no_grad()
    def step_clipped(self, max_norm: float | None) -> bool:
        """Clips the gradient to `max_norm` (None: not) and steps. Returns False, and does nothing, where it cannot be done at once."""
        grad = self.gather()
        if grad is None:
            return False
        if max_norm is not None:
            norm = torch.linalg.vector_norm(grad)
            grad.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))  # as torch.nn.utils.clip_grad_norm_
        group = self.param_groups[0]
        self._steps += 1
        torch._fused_adam_(
            [self._flat], [grad], [self._mean], [self._square], [], [self._steps[0]],
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=False,
        )  # fmt: skip
        return True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is None and self.step_clipped(None):
            return None
        return super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        loaded = [(p, self.state[p]) for p in self._parameters if p in self.state]
        self._link_state()
        for p, values in loaded:
            for name, own in self.state[p].items():
                own.copy_(values[name])
