"""Adam over one flat tensor: clip and step are a handful of calls, however many layers the network has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from core.ranks import ALONE, Ranks


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
        self.lay_out(self.param_groups[0]["params"])

    def lay_out(self, order: Iterable[nn.Parameter]) -> None:
        """Has the parameters lie side by side in this order, which no state dict knows. Comes before the first step."""
        self.parameters: list[nn.Parameter] = list(order)
        first = self.parameters[0]
        self._flat = torch.empty(sum(p.numel() for p in self.parameters), dtype=first.dtype, device=first.device)
        for p, view in zip(self.parameters, self._views(self._flat), strict=True):
            view.copy_(p.detach())
            p.data = view
        self._places = [p.data_ptr() for p in self.parameters]
        self._grad, self._mean, self._square = (torch.zeros_like(self._flat) for _ in range(3))
        self._gradients = self._views(self._grad)
        self._in_step = True  # all parameters have taken the same number of steps
        self._steps = torch.zeros(len(self.parameters), dtype=torch.float32, device=first.device)
        self._count = self._steps[0]
        self._one, self._tiny = (torch.tensor(x, dtype=torch.float32, device=first.device) for x in (1.0, 1e-6))  # numbers made once
        self._link_state()

    def _link_state(self) -> None:
        """torch's own state dict, made of views into the flat tensors."""
        parts = zip(self.parameters, self._steps, self._views(self._mean), self._views(self._square), strict=True)
        for p, step, mean, square in parts:
            self.state[p] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}

    def _views(self, flat: Tensor) -> list[Tensor]:
        """One view per parameter, in its shape and memory order (channels_last kernels keep theirs)."""
        pieces = flat.split([p.numel() for p in self.parameters])
        return [piece.as_strided(p.shape, p.stride(), piece.storage_offset()) for piece, p in zip(pieces, self.parameters, strict=True)]

    @torch.no_grad()
    def step_clipped(self, max_norm: float | None) -> bool:
        """Clips the gradient to `max_norm` (None: not) and steps. Returns False, and does nothing, where it cannot be done at once."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if len(grads) < len(self.parameters) or not self.lies_flat():
            self._in_step = False
            return False
        torch._foreach_copy_(self._gradients, grads)
        self.step_in_place(max_norm)
        return True

    def gradients(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """Where the gradients of these parameters stand for `step_in_place`."""
        places = {id(p): gradient for p, gradient in zip(self.parameters, self._gradients, strict=True)}
        return [places[id(p)] for p in parameters]

    def step_in_place(self, max_norm: float | None, ranks: Ranks = ALONE) -> None:
        """Steps with what stands in `gradients`; all of them must have been written. They are averaged over the ranks before they are
        clipped."""
        ranks.mean_(self._grad)
        if max_norm is not None:
            norm = torch.linalg.vector_norm(self._grad)
            self._grad.mul_((max_norm / norm.add_(self._tiny)).clamp_(max=1.0))  # as torch.nn.utils.clip_grad_norm_
        group = self.param_groups[0]
        self._steps.add_(self._one)
        torch._fused_adam_(
            [self._flat], [self._grad], [self._mean], [self._square], [], [self._count],
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=False,
        )  # fmt: skip
        if self.parameters[0].grad is not self._gradients[0]:
            for p, grad in zip(self.parameters, self._gradients, strict=True):
                p.grad = grad  # what was stepped with, clipped

    def settle(self) -> None:
        """Sets means of gradients to 0 that are too small to move a weight. Where a unit has died they shrink on to numbers so small that
        processors take a hundred times as long for each."""
        self._mean.copy_(torch.hardshrink(self._mean, 1e-20))

    def lies_flat(self) -> bool:
        """Whether one step for all is right: the parameters are still views of the flat tensor (`model.to(...)` or an assignment to
        `data` takes them out), and none has ever been left out of a step."""
        return self._in_step and [p.data_ptr() for p in self.parameters] == self._places

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is None and self.step_clipped(None):
            return None
        return super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        loaded = [(p, self.state[p]) for p in self.parameters if p in self.state]
        self._link_state()
        for p, values in loaded:
            for name, own in self.state[p].items():
                own.copy_(values[name])
        self._in_step = bool((self._steps == self._steps[0]).all())
