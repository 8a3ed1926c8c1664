"""`python train.py task=... --info`: what a task is, found out by building it."""

from __future__ import annotations

import contextlib
from typing import Any

from gymnasium import spaces

from core import registry
from core.build import make_env
from core.config import to_params
from core.console import print_run_table
from core.errors import UserError
from core.vecenv import VecEnv, action_kind

ENVS = 2  # enough to ask
RESETS = {
    "same_step": "same step: the observation after an episode's end is the next one's first, infos hold the last",
    "next_step": "next step: the last observation comes first; the row that begins the next episode is left out of everything",
}
Sections = dict[str, dict[str, str]]


def show(cfg: dict[str, Any]) -> Sections:
    """Prints the task's spaces, episodes and abilities, and returns them as texts: {section: {name: text}}.

    The environments are built and closed again; nothing is written. Raises UserError as a run would.
    """
    sections = describe(cfg)
    print_run_table(sections, title=f"task {cfg['task']['name']}")
    return sections


def describe(cfg: dict[str, Any]) -> Sections:
    """See `show`."""
    task, params = cfg["task"], to_params(cfg)
    with contextlib.closing(make_env(cfg, ENVS, params["seed"], params["config"]["device"])) as env:
        return {
            "task": _present({"kind": task["kind"], "id": task.get("id") or task.get("env_name"), "envs": params["config"]["num_actors"]}),
            "spaces": _spaces(env),
            "episodes": {"reset": RESETS[env.reset_mode], "time limit": _time_limit(env)},
            "can": {
                "render": _render(cfg, params["seed"]),
                "save state": "yes: a resumed run goes on bit by bit" if env.can_save_state else "no: a resumed run starts new episodes",
                "run on a GPU": f"yes: steps on the run's device, here {env.device}" if env.is_torch else "no: steps on the CPU",
            },
            "trains": {"with": _algorithms(env)},
        }


def _spaces(env: VecEnv) -> dict[str, str]:
    space = env.observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    rows = {f"observation {name}".strip(): short(part) for name, part in parts.items()}
    rows["action"] = short(env.action_space)
    if env.state_space is not None:
        rows["state"] = f"{short(env.state_space)}, for a central value"
    if env.has_action_masks():
        rows["action masks"] = "yes: train.params.config.use_action_masks=true"
    if env.num_agents > 1:
        rows["agents"] = f"{env.num_agents} for each environment, with one policy"
    if env.value_size > 1:
        rows["rewards"] = f"{env.value_size} for each step"
    return rows


def short(space: spaces.Space) -> str:
    """A space without the bounds of each of its numbers: 'Box (17,) float32, -inf to inf'."""
    if not isinstance(space, spaces.Box):
        return str(space)
    return f"Box {space.shape} {space.dtype}, {space.low.min():g} to {space.high.max():g}"


def _time_limit(env: VecEnv) -> str:
    return f"{env.max_episode_steps} steps" if env.max_episode_steps else "none that is known"


def _render(cfg: dict[str, Any], seed: int) -> str:
    """Whether one environment can be built that draws. Drawing may need libraries, so asking is the only way to know."""
    try:
        with contextlib.closing(make_env(cfg, 1, seed, "cpu", render_mode="rgb_array")):
            return "yes: video=True"
    except UserError as error:
        return f"no: {error}"


def _algorithms(env: VecEnv) -> str:
    try:
        kind = action_kind(env.action_space)
    except ValueError as error:
        return f"no algorithm: {error}"
    return f"{', '.join(name for name in registry.algos if kind in registry.algos.get(name).actions)} ({kind} actions)"


def _present(rows: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in rows.items() if value is not None}
