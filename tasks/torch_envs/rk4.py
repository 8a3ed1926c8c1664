"""One step of the classical Runge-Kutta method."""

from __future__ import annotations

from collections.abc import Callable

import torch


def rk4(derivative: Callable[[torch.Tensor], torch.Tensor], state: torch.Tensor, dt: float) -> torch.Tensor:
    """(N, S) after `dt` of `derivative`, (N, S) -> (N, S) per unit of time. The error of a step is of the order dt^5."""
    k1 = derivative(state)
    k2 = derivative(state + 0.5 * dt * k1)
    k3 = derivative(state + 0.5 * dt * k2)
    k4 = derivative(state + dt * k3)
    return state + dt / 6.0 * (k1 + 2.0 * (k2 + k3) + k4)
