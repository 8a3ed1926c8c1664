"""PettingZoo's parallel environments: a team with one policy. `task=SimpleSpread`, or `task=pettingzoo task.id=mpe2.simple_spread_v3`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
import re
from typing import Any

import numpy as np
from gymnasium import spaces

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import VecEnv
from tasks import offscreen
from tasks.env_group import NUMBERS
from tasks.vecenvs import make_vecenv

PACKAGES = ("mpe2", "pettingzoo.butterfly", "pettingzoo.sisl", "pettingzoo.atari")  # whose modules `python -m tasks list` knows


def known_ids() -> list[str]:
    """The environments of the packages that are installed, as `module.name_v0`; nothing is imported but the packages."""
    found = []
    for package in PACKAGES:
        parent = package.partition(".")[0]
        if importlib.util.find_spec(parent) is None or (spec := importlib.util.find_spec(package)) is None:
            continue
        modules = pkgutil.iter_modules(spec.submodule_search_locations)
        found += [f"{package}.{module.name}" for module in modules if re.search(r"_v\d+$", module.name)]
    return found


@register_task("pettingzoo", needs_modules=("pettingzoo",), extra="pettingzoo", ids_of_kind=known_ids)
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    options: dict[str, Any] | None = None,
    agent_id: bool = False,
    vecenv: str = "sync",
    num_workers: int | None = None,
    ray_config: dict[str, Any] | None = None,
    ray_address: str | None = None,
) -> VecEnv:
    """N copies of one PettingZoo parallel environment: k agents each, one shared policy, N * k rows, reset in the step in which they end.

    Args:
        id: a module with `parallel_env`, e.g. mpe2.simple_spread_v3.
        options: keyword arguments of its `parallel_env`, e.g. {N: 5, max_cycles: 50}.
        agent_id: append a one-hot of the agent's number to its observation, so that agents that see alike can act differently.
        vecenv, num_workers, ray_config, ray_address: as of kind gymnasium.

    `env.state()`, where it is there, is the state that a central value sees. Raises UserError for an unknown id or option, and for agents
    whose spaces differ.
    """
    maker = TeamMaker(_module(id), dict(options or {}), agent_id)
    return make_vecenv(
        maker, num_envs, seed, render_mode, vecenv=vecenv, num_workers=num_workers, ray_config=ray_config, ray_address=ray_address
    )


def _module(id: str | None) -> str:
    if not id:
        raise UserError("task.id is missing: which PettingZoo environment? Example: task.id=mpe2.simple_spread_v3")
    try:
        if id.startswith("."):
            raise ModuleNotFoundError(name=id)
        module = importlib.import_module(id)
    except ModuleNotFoundError as error:
        if id.startswith(str(error.name)):  # the environment itself, and not something that it needs
            raise unknown("PettingZoo environment", id, known_ids(), "task.id") from error
        raise UserError(f"task.id '{id}' needs a package: {error}") from error
    except (ImportError, SyntaxError) as error:
        raise UserError(f"task.id '{id}' cannot be imported: {error}") from error
    if not hasattr(module, "parallel_env"):
        raise UserError(f"task.id '{id}' has no parallel_env: only PettingZoo's parallel environments can be stepped together")
    return id


@dataclasses.dataclass
class TeamMaker:
    """Builds one team; travels to other processes."""

    module: str
    options: dict[str, Any]
    agent_id: bool

    def __call__(self, index: int, render_mode: str | None) -> Team:
        if render_mode is not None:
            offscreen.prepare(needs_mujoco=False)
        try:
            env = importlib.import_module(self.module).parallel_env(render_mode=render_mode, **self.options)
        except (TypeError, AssertionError) as error:
            raise UserError(f"task.options {self.options} of '{self.module}': {error}") from error
        return Team(env, self.agent_id)


class Team:
    """A parallel environment with the members that `tasks.one_env.OneEnv` knows: arrays over agents, in the order of `possible_agents`.

    An agent that is out before the others has zeros for observations and rewards, and any action, until the episode ends for all: its value
    is learned to be 0, so that nothing follows its end. The episode is over when no agent is left. It timed out for the agents that were
    truncated in its last step.
    """

    def __init__(self, env: Any, agent_id: bool = False) -> None:
        self.env_of_agents = env
        self.names: list[Any] = list(env.possible_agents)
        self.metadata, self.render_mode = env.metadata, getattr(env, "render_mode", None)
        self._alike("action", [env.action_space(name) for name in self.names])
        observation = self._alike("observation", [env.observation_space(name) for name in self.names])
        self._masked = isinstance(observation, spaces.Dict) and "action_mask" in observation.spaces
        self._seen: spaces.Space = observation.spaces["observation"] if self._masked else observation  # type: ignore[attr-defined]  # a Dict
        self.action_space = env.action_space(self.names[0])
        if not isinstance(self.action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.Box):
            raise UserError(f"task.id: actions {self.action_space} are none of Discrete, MultiDiscrete, Box")
        self._one_hot = np.eye(len(self.names), dtype=np.float32) if agent_id else None
        self.observation_space = self._declared()
        self.state_space = getattr(env, "state_space", None)
        self.use_central_value = self.state_space is not None and len(self.state_space.shape) == 1
        self._masks = np.ones((len(self.names), 0), bool)

    def get_number_of_agents(self) -> int:
        return len(self.names)

    def has_action_mask(self) -> bool:
        return self._masked

    def get_action_mask(self) -> np.ndarray:
        """(agents, choices); all of them for an agent that is out."""
        return self._masks

    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        obs, infos = self.env_of_agents.reset(seed=seed)
        return self._gather(obs), {}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """actions: (agents, ...)."""
        chosen = dict(zip(self.names, actions, strict=True))
        given = {name: self._action(chosen[name]) for name in self.env_of_agents.agents}
        obs, rewards, terminations, truncations, infos = self.env_of_agents.step(given)
        paid = np.array([float(rewards.get(name, 0.0)) for name in self.names], np.float32)
        over = not self.env_of_agents.agents
        truncated = np.array([over and bool(truncations.get(name, False)) and not terminations.get(name, False) for name in self.names])
        return self._gather(obs), paid, over & ~truncated, truncated, self._infos(infos)

    def render(self) -> Any:
        return self.env_of_agents.render()

    def close(self) -> None:
        self.env_of_agents.close()

    # ---- between dicts and arrays ------------------------------------------------------------------------------------

    def _action(self, action: Any) -> Any:
        if isinstance(self.action_space, spaces.Box):
            return np.asarray(action, self.action_space.dtype)
        action = action + self.action_space.start  # the policy counts from 0
        return int(action) if isinstance(self.action_space, spaces.Discrete) else np.asarray(action, self.action_space.dtype)

    def _gather(self, obs: dict[Any, Any]) -> Any:
        if self._masked:
            self._masks = np.stack([self._mask_of(obs.get(name)) for name in self.names])
        rows = np.stack([self._row(obs.get(name)) for name in self.names])
        if self._one_hot is not None:
            rows = np.concatenate([rows, self._one_hot], axis=1)
        return {"obs": rows, "state": np.asarray(self.env_of_agents.state(), np.float32)} if self.use_central_value else rows

    def _row(self, obs: Any) -> np.ndarray:
        if obs is None:  # out
            return np.zeros(self._flat.shape, self._flat.dtype)
        obs = obs["observation"] if self._masked else obs
        return np.asarray(obs if isinstance(self._seen, spaces.Box) else spaces.flatten(self._seen, obs))

    def _mask_of(self, obs: Any) -> np.ndarray:
        return np.ones(int(self.action_space.n), bool) if obs is None else np.asarray(obs["action_mask"], bool)

    def _infos(self, infos: dict[Any, dict[str, Any]]) -> dict[str, Any]:
        """(agents,) of every number that an agent reports; 0 for the agents that do not."""
        keys = {key for info in infos.values() for key, value in info.items() if isinstance(value, NUMBERS)}
        return {key: np.array([infos.get(name, {}).get(key, 0) for name in self.names]) for key in keys}

    # ---- spaces ------------------------------------------------------------------------------------------------------

    def _alike(self, what: str, found: list[spaces.Space]) -> spaces.Space:
        for name, space in zip(self.names, found, strict=True):
            if space != found[0]:
                raise UserError(
                    f"task.id: one policy for all agents needs equal {what} spaces, and '{self.names[0]}' has {found[0]}, '{name}' {space}"
                    ": pad them in a module of your own with a parallel_env (supersuit's pad_observations_v0, pad_action_space_v0)"
                )
        return found[0]

    def _declared(self) -> spaces.Box:
        flat = self._seen if isinstance(self._seen, spaces.Box) else spaces.flatten_space(self._seen)
        assert isinstance(flat, spaces.Box)
        self._flat = flat
        if self._one_hot is None:
            return flat
        if len(flat.shape) != 1:
            raise UserError(f"task.agent_id=true appends to one flat vector, and the observations are {flat}")
        agents = len(self.names)
        return spaces.Box(np.append(flat.low, np.zeros(agents)), np.append(flat.high, np.ones(agents)), dtype=np.float32)
