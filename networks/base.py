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
`mlp`, then value and action heads as `space` describes them; `rnn` puts an LSTM or a GRU after `mlp` or before it, and `separate: true`
gives the critic an encoder, a memory and layers of its own. Another memory is a method more (`build_memory`, networks/memory.py). For
anything else, subclass rl_games' `NetworkBuilder` and register it with `core.registry.register_network`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from rl_games.algos_torch.network_builder import NetworkBuilder
from torch import Tensor, nn

from core.errors import UserError
from core.registry import register_network
from networks.memory import Memory, Recurrent

RNN = {"layer_norm": False, "before_mlp": False, "concat_input": False, "concat_output": False}  # rl_games' defaults


class ActorCritic(NetworkBuilder.BaseNetwork):
    """Encoder, then the layers of `mlp` (memory before or after them), then the heads: one trunk shared by actor and critic, or two.

    forward: {"obs": (B, *obs_shape)} -> for continuous actions mu (B, A), log sigma (B, A), value (B, V), states; for discrete ones
    logits (B, choices) or a list of them, value (B, V), states. With memory the input also holds "rnn_states", and for B = S * T rows of
    S sequences (row = s * T + t) "seq_length" T and "dones" (B,): 1 where the memory is emptied before the row. `states` are those after
    the last step, the actor's and then the critic's; None where there is no memory.
    """

    @dataclasses.dataclass(kw_only=True)
    class Config:
        """The network's own keys, beside `mlp`, `rnn` and `space`."""

    config: Any  # an instance of the subclass's own Config
    reads_mlp: ClassVar[bool] = True  # False: the heads read the feature vector itself, and the YAML's `mlp` has no meaning
    has_memory: ClassVar[bool] = False  # True: there is memory without `rnn` in the YAML
    is_critic: bool  # this is the critic's trunk of a network with `separate: true`; known in build_encoder

    def __init__(self, params: dict[str, Any], build: dict[str, Any], is_critic: bool = False) -> None:
        super().__init__()
        self.config = self.Config(**{f.name: params[f.name] for f in dataclasses.fields(self.Config) if f.name in params})
        self.build_info = build
        self.is_critic = is_critic
        self.separate = bool(params.get("separate", False)) and not is_critic
        mlp, (self.kind, head) = params["mlp"], next(iter(params["space"].items()))
        size = features = self.build_encoder(build["input_shape"])
        hidden = mlp["units"][-1] if self.reads_mlp and mlp["units"] else features
        self.memory, self.memory_first = self.build_memory(params.get("rnn"), features, hidden)
        if self.memory is not None and self.memory_first:
            size = self.memory.size
        layers = self.build_layers(size, mlp) if self.reads_mlp else []
        self.mlp = nn.Sequential(*layers)
        size = mlp["units"][-1] if layers else size
        if self.memory is not None and not self.memory_first:
            size = self.memory.size
        if not self.separate:
            self.value = nn.Linear(size, build["value_size"])
        init = self.init_factory.create(**(mlp.get("initializer") if self.reads_mlp else None) or {"name": "default"})
        for layer in [*self.mlp, *([] if self.separate else [self.value])]:
            if isinstance(layer, nn.Linear):
                init(layer.weight)
                nn.init.zeros_(layer.bias)
        if not is_critic:
            self._build_heads(size, build["actions_num"], head or {})
        if self.separate:
            self.critic = type(self)(params, build, is_critic=True)

    # ---- yours ----------------------------------------------------------------------------------------------------------

    def build_encoder(self, obs_shape: Any) -> int:
        """Called once (with `separate: true`, once for each trunk). Makes the encoder's layers for observations of `obs_shape`
        ({key: shape} for Dict observations) and returns F, the size of the feature vector that `encode` gives."""
        raise NotImplementedError(f"{type(self).__name__} needs build_encoder(obs_shape) -> int")

    def encode(self, obs: Any) -> Tensor:
        """Called in every forward pass. obs: (B, *obs_shape), normalized where `normalize_input`. Returns (B, F)."""
        raise NotImplementedError(f"{type(self).__name__} needs encode(obs) -> tensor (B, F)")

    def build_memory(self, rnn: dict[str, Any] | None, features: int, hidden: int) -> tuple[Memory | None, bool]:
        """Called once per trunk. rnn: rl_games' section of the YAML, or None; features: F; hidden: numbers that `mlp`'s layers give out.

        Returns the memory (None: there is none) and whether it stands before `mlp`'s layers (and reads F numbers) or after them.
        Default: an LSTM or a GRU where the YAML has `rnn`.
        """
        if rnn is None:
            return None, False
        rnn = {**RNN, **rnn}
        first = rnn["before_mlp"]
        beside = features if rnn["concat_input"] and not first else 0  # rl_games: not where they are the input
        after = features if rnn["concat_output"] else 0
        inputs = features if first else hidden
        return Recurrent(rnn["name"], inputs, rnn["units"], rnn["layers"], rnn["layer_norm"], beside, after), first

    def build_layers(self, size: int, mlp: dict[str, Any]) -> list[nn.Module]:
        """Called once where `reads_mlp`. Returns the layers between `size` numbers and the heads. Default: as rl_games, one linear layer
        and activation for each of `mlp.units`. `mlp.initializer` is applied to the linear ones afterwards."""
        return list(self._build_mlp(size, mlp["units"], mlp["activation"], nn.Linear))

    # ---- rl_games' protocol ---------------------------------------------------------------------------------------------

    def forward(self, obs_dict: dict[str, Any]) -> tuple[Any, ...]:
        obs, states = obs_dict["obs"], obs_dict.get("rnn_states")
        asked = obs_dict.get("seq_length", 1), obs_dict.get("dones")
        half = len(states) // 2 if self.separate and states is not None else None
        hidden, after = self.trunk(obs, None if states is None else states[:half], *asked)
        if self.separate:
            of_critic, critic_after = self.critic.trunk(obs, None if states is None else states[half:], *asked)
            value = self.critic.value(of_critic)
            after = None if after is None else (*after, *critic_after)
        else:
            value = self.value(hidden)
        if self.kind == "discrete":
            return self.logits(hidden), value, after
        if self.kind == "multi_discrete":
            return [head(hidden) for head in self.logits], value, after
        mu = self.mu_act(self.mu(hidden))
        sigma = self.sigma_act(self.sigma if self.fixed_sigma else self.sigma(hidden))
        return mu, mu * 0 + sigma, value, after

    def trunk(self, obs: Any, states: Any = None, steps: int = 1, dones: Tensor | None = None) -> tuple[Tensor, Any]:
        """What the heads read, (B, size), and the memory after the last step, from observations (B, *obs_shape)."""
        x = features = self.encode(obs)
        if self.memory is None:
            return self.mlp(x), None
        if self.memory_first:
            x, states = self.memory(x, features, states, steps, dones)
            return self.mlp(x), states
        return self.memory(self.mlp(x), features, states, steps, dones)

    def is_separate_critic(self) -> bool:
        return self.separate

    def get_value_layer(self) -> nn.Module:
        return self.critic.value if self.separate else self.value

    def is_rnn(self) -> bool:
        return self.memory is not None

    def get_default_rnn_state(self) -> tuple[Tensor, ...] | None:
        """Empty memory for N rows, each tensor (layers, N, units)."""
        memories = [trunk.memory for trunk in [self, *([self.critic] if self.separate else [])] if trunk.memory is not None]
        return tuple(state for memory in memories for state in memory.empty(self.build_info["num_seqs"])) or None

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


def flat_size(network: str, obs_shape: Any) -> int:
    """O, for networks that read flat observations (O,). Raises UserError for others."""
    if not isinstance(obs_shape, tuple) or len(obs_shape) != 1:
        raise UserError(
            f"network '{network}' reads flat observations, not {_words(obs_shape)}: use nature_cnn, impala_cnn or gtrxl for pictures, "
            "or task.wrappers=[{name: FlattenObservation}] (train.params.network.name, docs/networks.md)"
        )
    return obs_shape[0]


def _words(obs_shape: Any) -> str:
    return f"a Dict of {', '.join(obs_shape)}" if isinstance(obs_shape, dict) else f"shape {obs_shape}"


def network(name: str) -> Callable[[type[ActorCritic]], type[ActorCritic]]:
    """Class decorator: registers an ActorCritic as a network, its `Config` and rl_games' `mlp` and `space` as its YAML keys."""

    def wrap(cls: type[ActorCritic]) -> type[ActorCritic]:
        class Builder(NetworkBuilder):
            Config = cls.Config
            rl_games_keys = ("separate", "mlp", "space", "rnn")
            has_memory = cls.has_memory

            def load(self, params: dict[str, Any]) -> None:
                self.params = params

            def build(self, name: str, **build: Any) -> nn.Module:
                return cls(self.params, build)

        Builder.__module__, Builder.__qualname__ = cls.__module__, cls.__qualname__
        register_network(name)(Builder)
        return cls

    return wrap
