"""Everything an algorithm adds to the model: modules, optimizers, states. Registered in one call, then saved, restored, moved,
switched between train and eval, and (if asked) handed to the player."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn


class Stateful(Protocol):
    """Anything with rl_games' and torch's way of saving: a module, an optimizer, a buffer, a schedule.

    Its state must be made of tensors, numbers, strings, lists and dicts, so that it loads with `weights_only=True`.
    """

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


@dataclasses.dataclass
class Group:
    """An optimizer, the parameters that it steps, and the norm to which their gradient is clipped (None: not)."""

    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    grad_norm: float | None = None


class Extras:
    """The registered parts, by name."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, Stateful] = {}
        self.groups: dict[str, Group] = {}
        self.for_player: set[str] = set()

    def add(self, name: str, part: Any, optimizer: Any = None, grad_norm: float | None = None, player: bool = False) -> Any:
        """See `Agent.register`. Raises ValueError for a taken name or a part that cannot be saved."""
        if name in self.parts or name in self.groups:
            raise ValueError(f"register('{name}'): the name is taken by {type(self.parts.get(name)).__name__}")
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise ValueError(f"register('{name}'): {type(part).__name__} has no state_dict and load_state_dict, so it could not be saved")
        if isinstance(part, nn.Module):
            part = part.to(self.device)
        self.parts[name] = part
        if optimizer is not None:
            self.groups[name] = Group(optimizer, [p for g in optimizer.param_groups for p in g["params"]], grad_norm)
        if player:
            self.for_player.add(name)
        return part

    @property
    def modules(self) -> Iterable[nn.Module]:
        return [part for part in self.parts.values() if isinstance(part, nn.Module)]

    def of_each_rank(self) -> list[tuple[str, Stateful]]:
        """Parts that are another one on every rank (`of_each_rank = True`); all others are the same everywhere, and saved by the first."""
        return [(name, part) for name, part in self.parts.items() if getattr(part, "of_each_rank", False)]

    def train(self, mode: bool = True) -> None:
        for module in self.modules:
            module.train(mode)

    def _own_groups(self) -> list[tuple[str, Group]]:
        """All but the policy's, which stands in a checkpoint under rl_games' own key."""
        return [(name, group) for name, group in self.groups.items() if name != "policy"]

    def state_dict(self) -> dict[str, Any]:
        return {
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "optimizers": {name: group.optimizer.state_dict() for name, group in self._own_groups()},
            "for_player": sorted(self.for_player),
        }

    def load_state_dict(self, state: dict[str, Any], modules_only: bool = False) -> None:
        """`modules_only`: optimizers and what a run has collected (every part that is no module) stay as they are, for a new run from
        another one's weights. Raises KeyError naming a registered part that the checkpoint lacks."""
        for name, part in self.parts.items():
            if name not in state["parts"]:
                raise KeyError(name)
            if isinstance(part, nn.Module) or not modules_only:
                part.load_state_dict(state["parts"][name])
        for name, group in self._own_groups() if not modules_only else ():
            group.optimizer.load_state_dict(state["optimizers"][name])
