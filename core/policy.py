"""What an agent and its player must agree on, stated once: model, normalizers, observations, actions, memory.

An algorithm that augments observations or changes the network's inputs subclasses `Policy` and names it in
`register_algo(..., policy=MyPolicy)`; its agent and its player then both use it, and cannot drift apart.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from rl_games.algos_torch import model_builder
from torch import nn

from core import registry
from core.errors import UserError
from core.models import MENDED
from core.normalizers import DictRunningMeanStd
from core.quiet import quiet
from core.vecenv import action_kind, as_tuple_space, tree_map

MODEL_OF = {"continuous": "continuous_a2c_logstd", "discrete": "discrete_a2c", "multi_discrete": "multi_discrete_a2c"}


class Policy:
    """Maps observations to actions for N rows at a time.

    Args:
        params: rl_games' `params` dict (algo, model, network, config).
        env_info: `VecEnv.get_env_info()`.
        num_envs: environments stepped together; N = num_envs * agents.
        device: where the model lives.
    """

    sees: str = "obs"  # of a frozen policy (`load_frozen`): the part of the task's observations, "obs" or "states", that it is shown
    model: Any  # rl_games' module: it has is_rnn() and get_default_rnn_state(), which nn.Module does not know

    def __init__(self, params: dict[str, Any], env_info: dict[str, Any], num_envs: int, device: str | torch.device) -> None:
        self.config: dict[str, Any] = params["config"]
        self.device = torch.device(device)
        self.num_envs = num_envs
        self.env_observation_space: spaces.Space = env_info["observation_space"]  # before augmentation
        self.env_info = self.augment_env_info(dict(env_info))
        self.observation_space: spaces.Space = self.env_info["observation_space"]
        self.action_space = as_tuple_space(self.env_info["action_space"])
        self.action_kind = action_kind(self.action_space)
        self.num_agents: int = self.env_info.get("agents", 1)
        self.normalize_input: bool = self.config["normalize_input"]
        self.normalize_value: bool = self.config.get("normalize_value", False)
        self.clip_actions: bool = self.config.get("clip_actions", True)
        self.obs_shape = space_shape(self.observation_space)
        if isinstance(self.action_space, spaces.Box):
            self._check_bounds(self.action_space)
            self.actions_low = torch.as_tensor(self.action_space.low.copy(), dtype=torch.float32, device=self.device)
            self.actions_high = torch.as_tensor(self.action_space.high.copy(), dtype=torch.float32, device=self.device)
            self._middle, self._half = (self.actions_high + self.actions_low) / 2.0, (self.actions_high - self.actions_low) / 2.0
            self._stretches = bool((self._half != 1.0).any() or (self._middle != 0.0).any())
        with quiet():
            self.model = self.build_model(load_network(params, self.action_kind, self.obs_shape)).to(self.device)
        self.is_rnn: bool = self.model.is_rnn()
        self.extra_modules = {name: module.to(self.device) for name, module in self.build_extra_modules().items()}

    # ---- what a subclass may change; agent and player both see it -------------------------------------------------

    def augment_env_info(self, env_info: dict[str, Any]) -> dict[str, Any]:
        """Called once, before the model is built, with the environment's own info. Returns the info that the model is built for.

        Default: unchanged. Example (a latent of 8 appended to the observation):
            low = np.append(space.low, [-1] * 8); env_info["observation_space"] = spaces.Box(low, ...)
        """
        return env_info

    def augment_obs(self, obs: Any) -> Any:
        """Called with every observation (N, ...) that the model will see: at reset, after each step, for terminal values,
        in the player. Must not depend on call order. Returns what the model gets. Default: unchanged."""
        return obs

    def network_build_config(self) -> dict[str, Any]:
        """The arguments of the network's constructor. Default: rl_games' own; add keys that your network's __init__ reads."""
        return {
            "actions_num": self.actions_num,
            "input_shape": self.obs_shape,
            "num_seqs": self.num_envs * self.num_agents,
            "value_size": self.env_info.get("value_size", 1),
            "normalize_value": self.normalize_value,
            "normalize_input": self.normalize_input,
        }

    def build_extra_modules(self) -> dict[str, nn.Module]:
        """Called once, after the model is built. Returns modules that acting needs beside the model (a frozen low-level
        controller, an encoder used by `augment_obs`), by name. Agent and player both load them from the checkpoint; in the
        agent they are registered under their names. Default: none."""
        return {}

    # ---- built once -------------------------------------------------------------------------------------------------

    def _check_bounds(self, space: spaces.Box) -> None:
        """Raises UserError where actions shall be stretched to bounds that are not finite: all of them would be NaN."""
        with np.errstate(over="ignore"):
            reach = space.high.astype(np.float32) - space.low.astype(np.float32)  # infinite also for the largest floats there are
        endless = np.flatnonzero(~np.isfinite(reach))
        if len(endless) and self.clip_actions:
            i = endless[0]
            raise UserError(
                f"task: action {i} has the bounds {space.low[i]:g} to {space.high[i]:g}, to which actions would be stretched from [-1, 1]: "
                "give the environment finite ones, or set train.params.config.clip_actions=false to hand over the policy's own actions"
            )

    @property
    def actions_num(self) -> Any:
        """A for continuous actions, the number of choices for discrete, a list of them for multi-discrete."""
        if isinstance(self.action_space, spaces.Box):
            return self.action_space.shape[0]
        if isinstance(self.action_space, spaces.Discrete):
            return self.action_space.n
        assert isinstance(self.action_space, spaces.Tuple)
        return [cast(spaces.Discrete, space).n for space in self.action_space.spaces]  # action_kind() checked that they are

    def build_model(self, builder: Any) -> nn.Module:
        """From rl_games' model builder to a module; Dict observations get a normalizer that works."""
        build_config = self.network_build_config()
        dict_norm = self.normalize_input and isinstance(self.obs_shape, dict)
        if dict_norm:
            build_config["normalize_input"] = False
        try:
            model = builder.build(build_config)
        except (RuntimeError, AssertionError, TypeError, KeyError, ValueError) as error:  # rl_games' builders check nothing
            raise UserError(
                f"train.params.network cannot be built for observations of shape {self.obs_shape}: {type(error).__name__}: {error}"
            ) from error
        if dict_norm:
            model.normalize_input = True
            model.running_mean_std = DictRunningMeanStd(self.obs_shape)
        return model

    # ---- used at every step -----------------------------------------------------------------------------------------

    def preprocess(self, obs: Any) -> Any:
        """Bytes (images) become floats in [0, 1]; everything else stays. Returns a fresh dict for Dict observations."""
        return tree_map(lambda x: x.float() / 255.0 if x.dtype == torch.uint8 else x, obs)

    @torch.no_grad()
    def act(self, obs: Any, rnn_states: Any = None, action_masks: torch.Tensor | None = None) -> dict[str, Any]:
        """One step of the policy for N rows. obs: (N, ...) already augmented.

        Returns rl_games' dict: actions (N, A) in [-1, 1] or (N,) or (N, k); neglogpacs (N,); values (N, V) in reward units;
        mus, sigmas (N, A) or logits; rnn_states.
        """
        if self.model.training:
            self.model.eval()
        inputs = {"is_train": False, "prev_actions": None, "obs": self.preprocess(obs), "rnn_states": rnn_states}
        if action_masks is not None:
            inputs["action_masks"] = action_masks
        result = self.model(inputs)
        n = _rows(obs)
        result["neglogpacs"] = result["neglogpacs"].reshape(n)  # rl_games squeezes a single row away
        if self.action_kind != "discrete":
            result["actions"] = result["actions"].reshape(n, -1)
        return result

    def best_actions(self, result: dict[str, Any]) -> torch.Tensor:
        """The most likely actions of `act`'s result: the mean, or the largest logit of each head."""
        if self.action_kind == "continuous":
            return result["mus"]
        if self.action_kind == "discrete":
            return result["logits"].argmax(dim=-1)
        return torch.stack([logits.argmax(dim=-1) for logits in result["logits"]], dim=-1)

    def env_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """From the model's actions to the environment's scale: clipped to [-1, 1] and stretched to the Box, unless
        `clip_actions` is false. A copy in any case: an environment may write into what it gets."""
        if self.action_kind != "continuous" or not self.clip_actions:
            return actions.clone()
        clipped = torch.clamp(actions, -1.0, 1.0)
        if not self._stretches:
            return clipped
        stretched = clipped.mul_(self._half).add_(self._middle)
        return torch.clamp(stretched, self.actions_low, self.actions_high, out=stretched)  # rounding may lead past a bound

    def initial_rnn_states(self) -> list[torch.Tensor] | None:
        """Zeros, each (layers, N, units), or None for a policy without memory."""
        if not self.is_rnn:
            return None
        return [state.to(self.device) for state in self.model.get_default_rnn_state()]

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Loads the model of a checkpoint (ours or stock rl_games'). Raises UserError naming the first tensor that does not fit."""
        weights = {key.removeprefix("_orig_mod."): value for key, value in checkpoint["model"].items()}
        own = self.model.state_dict()
        for key in own:
            if key not in weights:
                raise UserError(f"checkpoint does not fit this network: it has no '{key}'")
            if own[key].shape != weights[key].shape:
                raise UserError(
                    f"checkpoint does not fit this network: '{key}' is {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here"
                )
        extra = sorted(set(weights) - set(own))
        if extra:
            raise UserError(f"checkpoint does not fit this network: it also has '{extra[0]}'")
        self.model.load_state_dict(weights)
        parts = checkpoint.get("gamesmith", {}).get("extras", {}).get("parts", {})
        for name, module in self.extra_modules.items():
            if name not in parts:
                raise UserError(f"checkpoint does not fit this policy: it has no module '{name}'")
            module.load_state_dict(parts[name])


def space_shape(space: spaces.Space) -> Any:
    """() for Discrete, the shape for Box, {key: shape} for Dict."""
    if isinstance(space, spaces.Dict):
        return {key: sub.shape for key, sub in space.spaces.items()}
    return space.shape


# Mnih et al. 2015 (Nature), as rl_games' Atari configs write it: what `network.cnn: auto` means for pictures.
NATURE_CNN = {
    "type": "conv2d",
    "activation": "relu",
    "initializer": {"name": "default"},
    "convs": [
        {"filters": 32, "kernel_size": 8, "strides": 4, "padding": 0},
        {"filters": 64, "kernel_size": 4, "strides": 2, "padding": 0},
        {"filters": 64, "kernel_size": 3, "strides": 1, "padding": 0},
    ],
}
RL_GAMES_MLPS = ("actor_critic", "soft_actor_critic")


def fit_to_spaces(params: dict[str, Any], kind: str, obs_shape: Any) -> dict[str, Any]:
    """A copy of `params` that fits the task: `model.name: auto` is chosen by the action kind, of several entries in
    `network.space` the fitting one is kept, and `network.cnn: auto` becomes the Nature CNN for pictures and nothing otherwise.

    Raises UserError where the config states a model or space for other actions, or a network for other observations.
    """
    params = {**params, "model": dict(params.get("model") or {"name": "auto"}), "network": copy.deepcopy(params["network"])}
    if params["model"].get("name", "auto") == "auto":
        is_sac = params["network"]["name"] == "soft_actor_critic"
        params["model"]["name"] = "soft_actor_critic" if is_sac else MODEL_OF[kind]
    space = params["network"].get("space")
    if space is not None:
        if kind not in space:
            raise UserError(f"train.params.network.space has {', '.join(space)}, but the task's actions are {kind}: add '{kind}' there")
        params["network"]["space"] = {kind: space[kind]}
    name = params["model"]["name"]
    served = {"continuous_a2c": "continuous", "soft_actor_critic": "continuous"}
    served.update({model: action for action, model in MODEL_OF.items()})
    if served.get(name, kind) != kind:
        raise UserError(
            f"train.params.model.name is '{name}', for {served[name]} actions, but the task's actions are {kind}: "
            f"use '{MODEL_OF[kind]}' or 'auto'"
        )
    _fit_to_observations(params["network"], obs_shape)
    return params


def _fit_to_observations(network: dict[str, Any], obs_shape: Any) -> None:
    is_picture = isinstance(obs_shape, tuple) and len(obs_shape) == 3
    if network.get("cnn") == "auto":
        del network["cnn"]
        if is_picture and network["name"] == "actor_critic":
            channels_last = obs_shape[2] < obs_shape[0]
            network["cnn"] = {**copy.deepcopy(NATURE_CNN), "permute_input": channels_last}
    if network["name"] not in RL_GAMES_MLPS or network["name"] in registry.networks:
        return
    if isinstance(obs_shape, dict):
        raise UserError(
            f"network '{network['name']}' reads one array, but the task's observations are a Dict of {', '.join(obs_shape)}: "
            "flatten them (EnvPool: task.flatten_obs=true, others: task.wrappers=[{name: FlattenObservation}]) or use a network that "
            "reads them (docs/networks.md)"
        )
    if len(obs_shape) != 1 and "cnn" not in network:
        raise UserError(
            f"network '{network['name']}' without 'cnn' reads flat observations, but the task's have shape {obs_shape}: "
            "set train.params.network.cnn=auto, or give its layers"
        )


def load_network(params: dict[str, Any], kind: str, obs_shape: Any) -> Any:
    """rl_games' model builder for `params`, with the registered networks and models known to it. obs_shape: what the network reads.

    Raises UserError for an unknown network or model, naming the nearest.
    """
    for name in registry.networks:
        model_builder.register_network(name, registry.networks.get(name))
    for name in registry.models:
        model_builder.register_model(name, registry.models.get(name))
    builder = model_builder.ModelBuilder()
    for name, model in MENDED.items():
        builder.model_factory.register_builder(name, _with_network(model))
    params = fit_to_spaces(params, kind, obs_shape)
    known_networks = builder.network_builder.network_factory._builders
    known_models = builder.model_factory._builders
    network_name, model_name = params["network"]["name"], params["model"]["name"]
    if network_name not in known_networks:
        raise registry.networks.missing(network_name, known_networks, "train.params.network.name")
    if model_name not in known_models:
        raise registry.models.missing(model_name, known_models, "train.params.model.name")
    return builder.load(params)


def _with_network(model: Any) -> Any:
    return lambda network, **unused: model(network)


def _rows(obs: Any) -> int:
    while isinstance(obs, dict):
        obs = next(iter(obs.values()))
    return obs.shape[0]
