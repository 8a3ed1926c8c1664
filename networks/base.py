"""A network of your own: write the encoder, and the heads for all action kinds stand already.

    @network("my_encoder")
    class MyEncoder(ActorCritic):
        @dataclass(kw_only=True)
        class Config:
            width: int = 64

        def build_encoder(self, obs_shape):         # called once
            self.layer = nn.Linear(obs_shape[0], self.config.width)
            return self.config.width                # F, the size of a feature vector

        def encode(self, obs):                      # (B, *obs_shape) -> (B, F)
            return torch.relu(self.layer(obs))

In a YAML: `network: {name: my_encoder, width: 128, mlp: {...}, space: {...}}`. What follows the encoder is rl_games' own: the layers of
`mlp`, then value and action heads as `space` describes them. For anything else (memory, several encoders), subclass rl_games'
`NetworkBuilder` and register it with `core.registry.register_network`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from rl_games.algos_torch.network_builder import NetworkBuilder
from torch import Tensor, nn

from core.errors import UserError
from core.registry import register_network


class ActorCritic(NetworkBuilder.BaseNetwork):
    """Encoder, then an MLP shared by actor and critic, then the heads.

    forward: {"obs": (B, *obs_shape)} -> for continuous actions mu (B, A), log sigma (B, A), value (B, V), states; for discrete ones
    logits (B, choices) or a list of them, value (B, V), states. `states` is None: there is no memory.
    """

    @dataclasses.dataclass(kw_only=True)
    class Config:
        """The network's own keys, beside `mlp` and `space`."""

    config: Any  # an instance of the subclass's own Config

    def __init__(self, params: dict[str, Any], build: dict[str, Any]) -> None:
        super().__init__()
        self.config = self.Config(**{f.name: params[f.name] for f in dataclasses.fields(self.Config) if f.name in params})
        self.build_info = build
        mlp, (self.kind, head) = params["mlp"], next(iter(params["space"].items()))
        features = self.build_encoder(build["input_shape"])
        self.mlp = self._build_mlp(features, mlp["units"], mlp["activation"], nn.Linear)
        size = mlp["units"][-1] if mlp["units"] else features
        self.value = nn.Linear(size, build["value_size"])
        init = self.init_factory.create(**mlp.get("initializer", {"name": "default"}))
        for layer in [*self.mlp, self.value]:
            if isinstance(layer, nn.Linear):
                init(layer.weight)
                nn.init.zeros_(layer.bias)
        self._build_heads(size, build["actions_num"], head or {})

    # ---- yours ----------------------------------------------------------------------------------------------------------

    def build_encoder(self, obs_shape: Any) -> int:
        """Called once. Makes the encoder's layers for observations of `obs_shape` ({key: shape} for Dict observations) and returns
        F, the size of the feature vector that `encode` gives."""
        raise NotImplementedError(f"{type(self).__name__} needs build_encoder(obs_shape) -> int")

    def encode(self, obs: Any) -> Tensor:
        """Called in every forward pass. obs: (B, *obs_shape), normalized where `normalize_input`. Returns (B, F)."""
        raise NotImplementedError(f"{type(self).__name__} needs encode(obs) -> tensor (B, F)")

    # ---- rl_games' protocol ---------------------------------------------------------------------------------------------

    def forward(self, obs_dict: dict[str, Any]) -> tuple[Any, ...]:
        hidden = self.mlp(self.encode(obs_dict["obs"]))
        value = self.value(hidden)
        if self.kind == "discrete":
            return self.logits(hidden), value, None
        if self.kind == "multi_discrete":
            return [head(hidden) for head in self.logits], value, None
        mu = self.mu_act(self.mu(hidden))
        sigma = self.sigma_act(self.sigma if self.fixed_sigma else self.sigma(hidden))
        return mu, mu * 0 + sigma, value, None

    def _build_heads(self, size: int, actions_num: Any, head: dict[str, Any]) -> None:
        if self.kind == "discrete":
            self.logits: Any = nn.Linear(size, actions_num)
        elif self.kind == "multi_discrete":
            self.logits = nn.ModuleList([nn.Linear(size, n) for n in actions_num])
        else:
            self.fixed_sigma = head["fixed_sigma"]
            self.mu = nn.Linear(size, actions_num)
            self.init_factory.create(**head["mu_init"])(self.mu.weight)
            self.mu_act = self.activations_factory.create(head["mu_activation"])
            self.sigma_act = self.activations_factory.create(head["sigma_activation"])
            init_sigma = self.init_factory.create(**head["sigma_init"])
            if self.fixed_sigma:
                self.sigma: Any = nn.Parameter(torch.zeros(actions_num))
                init_sigma(self.sigma)
            else:
                self.sigma = nn.Linear(size, actions_num)
                init_sigma(self.sigma.weight)


def network(name: str) -> Callable[[type[ActorCritic]], type[ActorCritic]]:
    """Class decorator: registers an ActorCritic as a network, its `Config` and rl_games' `mlp` and `space` as its YAML keys."""

    def wrap(cls: type[ActorCritic]) -> type[ActorCritic]:
        class Builder(NetworkBuilder):
            Config = cls.Config
            rl_games_keys = ("separate", "mlp", "space")

            def load(self, params: dict[str, Any]) -> None:
                self.params = params

            def build(self, name: str, **build: Any) -> nn.Module:
                if self.params.get("separate"):
                    raise UserError(f"network '{cls.__name__}' shares its layers between actor and critic: separate must be false")
                return cls(self.params, build)

        Builder.__module__, Builder.__qualname__ = cls.__module__, cls.__qualname__
        register_network(name)(Builder)
        return cls

    return wrap
