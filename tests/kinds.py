"""One case for every kind of environment: what the tests of all kinds (test_tasks_kinds.py) start it with.

A new kind is one more `Case` here. Where a kind takes environments of one's own, it counts: the observation begins with the step of the
episode and the reward is that step. Where it does not, it is given one whose every step pays 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tasks.torch_vecenv import ENVS, TorchVecEnv
from tests.task_envs import LENGTH, Counter


@dataclasses.dataclass(frozen=True)
class Case:
    """How the tests start a kind.

    Args:
        kind: the name that it is registered under.
        random: options of an environment that draws its first states, for the seeds.
        cut_off: options of an environment whose every episode is truncated after LENGTH steps; {}: the kind has none.
        ends: of one that terminates after LENGTH steps; None: the kind has none.
        counts: whether these two count, see above.
        needs: a package without which the tests are skipped.
        agents: rows for each environment.
        register: makes the kind's own environments known, where that imports what other kinds do without.
        marks: of pytest, for kinds that are slow.
    """

    kind: str
    random: dict[str, Any]
    cut_off: dict[str, Any]
    ends: dict[str, Any] | None = None
    counts: bool = True
    needs: str | None = None
    agents: int = 1
    register: Callable[[], None] | None = None
    marks: tuple[Any, ...] = ()


class TorchCounter(TorchVecEnv):
    """`Counter` in torch: observation [step], reward the step; `ends` where the number of an episode's steps is reached."""

    state_size, time_limit, ends_at = 1, 1000, 1000

    def __init__(self, **kwargs: Any) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        super().__init__(**kwargs)

    def _initial(self, uniform: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(uniform)

    def _advance(self, state: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        state = state + 1
        return state, state[:, 0], state[:, 0] >= self.ends_at

    def _observe(self, state: torch.Tensor) -> torch.Tensor:
        return state


class TorchEnding(TorchCounter):
    ends_at = LENGTH


def register() -> None:
    """Makes the cases' own environments known, but for those of `Case.register`."""
    from rl_games.common import env_configurations

    endless = {"length": 1000}
    for id, options, limit in (("Counts-v0", endless, LENGTH), ("CountsToEnd-v0", {"length": LENGTH}, None)):
        gymnasium.registry.pop(id, None)
        gymnasium.register(id, entry_point=Counter, kwargs=options, max_episode_steps=limit)
    with contextlib.suppress(ImportError):
        _register_with_gym()
    ENVS.update(Counter=TorchCounter, Ending=TorchEnding)
    for name in ("Counts-v0", "CountsToEnd-v0"):
        env_configurations.register(name, {"vecenv_type": "RAY", "env_creator": lambda name=name, **_: gymnasium.make(name)})


@functools.cache
def _register_with_warp() -> None:
    """A body that slides without friction, one metre a step, too heavy for the action to push: its position counts."""
    from tasks.warp_envs import register_warp
    from tasks.warp_vecenv import WarpVecEnv

    class Slides(WarpVecEnv):
        mjcf = """<mujoco><option timestep="0.01" gravity="0 0 0" integrator="Euler"/>
          <worldbody><body> <joint name="slide" type="slide" axis="1 0 0"/> <geom type="sphere" size=".1" mass="1e6"/> </body></worldbody>
          <actuator> <motor joint="slide" gear="1" ctrlrange="-1 1"/> </actuator></mujoco>"""
        frame_skip = 1
        time_limit = 1000
        ends_at = 1000.0

        def observe(self, data: Any) -> torch.Tensor:
            return data.qpos

        def reward(self, data: Any, actions: torch.Tensor, before: Any) -> torch.Tensor:
            return data.qpos[:, 0]

        def terminated(self, data: Any) -> torch.Tensor:
            return data.qpos[:, 0] >= self.ends_at - 0.5

        def initial(self) -> tuple[torch.Tensor, torch.Tensor]:
            return 0.0 * self.uniform(1), 0.0 * self.uniform(1) + 100.0  # 100 m/s over steps of 0.01 s

    class SlidesToEnd(Slides):
        ends_at = float(LENGTH)

    register_warp("Slides")(Slides)
    register_warp("SlidesToEnd")(SlidesToEnd)


@functools.cache
def _register_with_brax() -> None:
    import jax.numpy as jnp
    from brax import envs

    class Counts(envs.Env):
        """No physics: the observation is the step of the episode, and so is the reward."""

        observation_size, action_size, backend = 1, 1, "generalized"

        def __init__(self, ends_at: int = 1000) -> None:
            self.ends_at = ends_at

        def reset(self, rng: Any) -> Any:
            return envs.State(None, obs=jnp.zeros(1), reward=jnp.zeros(()), done=jnp.zeros(()))

        def step(self, state: Any, action: Any) -> Any:
            obs = state.obs + 1
            return state.replace(obs=obs, reward=obs[0], done=(obs[0] >= self.ends_at).astype(jnp.float32))

    envs.register_environment("counts", Counts)


@functools.cache
def _register_with_mjlab() -> None:
    """mjlab's cart-pole, whose terms count: what is observed and paid is the step of the episode."""
    from mjlab.managers.observation_manager import ObservationGroupCfg, ObservationTermCfg
    from mjlab.managers.reward_manager import RewardTermCfg
    from mjlab.managers.termination_manager import TerminationTermCfg
    from mjlab.tasks.registry import load_env_cfg, register_mjlab_task

    def step(env: Any) -> torch.Tensor:
        return env.episode_length_buf[:, None].float()

    def paid(env: Any) -> torch.Tensor:
        return env.episode_length_buf.float()

    def ended(env: Any) -> torch.Tensor:
        return env.episode_length_buf >= LENGTH

    for id, ends in (("Counts", False), ("CountsToEnd", True)):
        cfg = load_env_cfg("Mjlab-Cartpole-Balance")
        cfg.observations = {"actor": ObservationGroupCfg({"step": ObservationTermCfg(func=step)})}
        cfg.rewards = {"step": RewardTermCfg(func=paid, weight=1.0)}
        cfg.scale_rewards_by_dt = False
        if ends:
            cfg.terminations["ended"] = TerminationTermCfg(func=ended)
        register_mjlab_task(id, cfg, cfg, None)


def _register_with_gym() -> None:
    from tasks.gym_task import _gym

    registry = _gym().envs.registry
    for name in ("Counts-v0", "CountsToEnd-v0"):
        spec = gymnasium.registry[name]
        registry.pop(name, None)
        _gym().register(name, entry_point=Counter, kwargs=spec.kwargs, max_episode_steps=spec.max_episode_steps)


def _gymnasium(vecenv: str) -> Case:
    own: dict[str, Any] = {"vecenv": vecenv} if vecenv == "sync" else {"vecenv": vecenv, "num_workers": 2}
    return Case("gymnasium", {"id": "CartPole-v1", **own}, {"id": "Counts-v0", **own}, {"id": "CountsToEnd-v0", **own})


SLOW = (pytest.mark.long, pytest.mark.timeout(900))  # what they compile, they compile where no test ran before
CASES: dict[str, Case] = {
    "gymnasium": _gymnasium("sync"),
    "gymnasium-async": _gymnasium("async"),
    "gymnasium-ray": _gymnasium("ray"),
    "gym": Case("gym", {"id": "CartPole-v1"}, {"id": "Counts-v0"}, {"id": "CountsToEnd-v0"}, needs="gym"),
    "pettingzoo": Case(
        "pettingzoo",
        {"id": "mpe2.simple_spread_v3"},
        {"id": "tests.counting_team", "options": {"cut_off": True}},
        {"id": "tests.counting_team"},
        needs="pettingzoo",
        agents=2,
    ),
    "envpool": Case("envpool", {"id": "CartPole-v1"}, {"id": "CartPole-v1", "options": {"max_episode_steps": LENGTH}}, counts=False),
    "torch": Case("torch", {"id": "Pendulum"}, {"id": "Counter", "max_episode_steps": LENGTH}, {"id": "Ending"}),
    "torch-quadcopter": Case("torch", {"id": "Quadcopter"}, {"id": "Counter", "max_episode_steps": LENGTH}, {"id": "Ending"}),
    "warp": Case(
        "warp",
        {"id": "Ant"},
        {"id": "Slides", "max_episode_steps": LENGTH},
        {"id": "SlidesToEnd"},
        needs="mujoco_warp",
        register=_register_with_warp,
        marks=SLOW,
    ),
    "mjlab": Case(
        "mjlab",
        {"id": "Mjlab-Cartpole-Swingup"},
        {"id": "Counts", "episode_length_s": 0.05 * LENGTH},  # a step is 0.05 s
        {"id": "CountsToEnd"},
        needs="mjlab",
        register=_register_with_mjlab,
        marks=SLOW,
    ),
    "brax": Case(
        "brax",
        {"id": "inverted_pendulum", "backend": "generalized"},
        {"id": "counts", "max_episode_steps": LENGTH},
        {"id": "counts", "options": {"ends_at": LENGTH}},
        needs="brax",
        register=_register_with_brax,
        marks=SLOW,
    ),
    # these three on stand-ins, tests/sim_stand_ins.py
    "isaaclab": Case("isaaclab", {"id": "Isaac-Drawn-v0"}, {"id": "Isaac-Steps-v0"}, {"id": "Isaac-StepsToEnd-v0"}),
    "maniskill": Case("maniskill", {"id": "Drawn-v1"}, {"id": "Steps-v1"}, {"id": "StepsToEnd-v1"}),
    "isaacgymenvs": Case("isaacgymenvs", {"id": "Drawn"}, {"id": "Steps"}, {"id": "StepsToEnd"}),
    "rl_games": Case(
        "rl_games",
        {"env_name": "CartPole-v1", "vecenv": "sync"},
        {"env_name": "Counts-v0", "vecenv": "sync"},
        {"env_name": "CountsToEnd-v0", "vecenv": "sync"},
    ),
    "rl_games-envpool": Case(
        "rl_games",
        {"env_name": "envpool", "env_config": {"env_name": "CartPole-v1"}},
        {"env_name": "envpool", "env_config": {"env_name": "CartPole-v1", "max_episode_steps": LENGTH}},
        counts=False,
    ),
}
