"""MuJoCo Warp: `task=WarpAnt`, or an MJCF file and a class of one's own. docs/tasks/simulators.md"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gymnasium

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import VecEnv
from tasks.warp_envs import ENVS
from tasks.warp_vecenv import WarpVecEnv

SHIPPED = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
ENUMS = {"solver": "mjtSolver.mjSOL_", "integrator": "mjtIntegrator.mjINT_", "cone": "mjtCone.mjCONE_", "jacobian": "mjtJacobian.mjJAC_"}


@register_task("warp", needs_modules=("mujoco_warp", "warp"), extra="warp")
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    mjcf: str | None = None,
    max_episode_steps: int | None = None,
    frame_skip: int | None = None,
    params: dict[str, Any] | None = None,
    physics: dict[str, Any] | None = None,
    nconmax: int | None = None,
    njmax: int | None = None,
) -> VecEnv:
    """N worlds of an MJCF model on `device`.

    Args:
        id: Ant, Humanoid, or a class registered with `tasks.warp_envs.register_warp` in one of `modules`.
        mjcf: replaces the class's model: a path, or the name of one of gymnasium's models.
        max_episode_steps, frame_skip: replace the class's.
        params: replace its numbers, e.g. {ctrl_cost_weight: 0.1}.
        physics: replace attributes of MJCF's <option>, e.g. {solver: CG, iterations: 10, timestep: 0.01}.
        nconmax, njmax: contacts and constraints that there is room for, per world. Null: MuJoCo Warp's guess, which it prints to be
            too few where it is.

    Raises UserError for an unknown id, model or parameter, and for a model that MuJoCo Warp cannot simulate.
    """
    if id not in ENVS:
        raise unknown("warp environment", str(id), ENVS, "task.id")
    import warp

    warp.config.log_level = warp.LOG_WARNING  # not a line per kernel
    cls = _with_params(ENVS[id], params or {})
    model = load_model(mjcf or cls.mjcf, cls)
    set_options(model, {**cls.physics, **(physics or {})})
    return cls(model, num_envs, seed, device, render_mode, max_episode_steps, frame_skip, nconmax, njmax)


def load_model(mjcf: str, cls: type[WarpVecEnv]) -> Any:
    """mujoco.MjModel of XML, of a file here or beside the class's module, or of one of gymnasium's. Raises UserError."""
    import mujoco

    try:
        if mjcf.lstrip().startswith("<"):
            return mujoco.MjModel.from_xml_string(mjcf)
        for path in (Path(mjcf), Path(inspect.getfile(cls)).parent / mjcf, SHIPPED / mjcf, SHIPPED / f"{mjcf}.xml"):
            if path.is_file():
                return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise UserError(f"task.mjcf: MuJoCo refuses the model: {error}") from error
    raise unknown("MJCF file", mjcf, (path.name for path in SHIPPED.glob("*.xml")), "task.mjcf (or give a path)")


def set_options(model: Any, options: dict[str, Any]) -> None:
    """Writes attributes of <option> into the model. Raises UserError for an unknown one or a value that it cannot have."""
    import mujoco

    valid = [name for name in dir(model.opt) if not name.startswith("_")]
    for name, value in options.items():
        if name not in valid:
            raise unknown("physics option", name, valid, "task.physics")
        if name in ENUMS and isinstance(value, str):
            kind, prefix = ENUMS[name].split(".")
            members = {key.removeprefix(prefix): member for key, member in getattr(mujoco, kind).__members__.items()}
            if value.upper() not in members:
                raise unknown(name, value, members, f"task.physics.{name}")
            value = members[value.upper()]
        try:
            setattr(model.opt, name, value)
        except (TypeError, ValueError) as error:
            raise UserError(f"task.physics.{name}: MuJoCo refuses {value!r}: {error}") from error


def _with_params(cls: type[WarpVecEnv], params: dict[str, Any]) -> type[WarpVecEnv]:
    """The class with some of its own numbers replaced."""
    if not params:
        return cls
    ours = {name for base in cls.__mro__ if issubclass(base, WarpVecEnv) and base is not WarpVecEnv for name in vars(base)}
    valid = [name for name in ours if isinstance(getattr(cls, name), int | float | tuple) and name not in vars(WarpVecEnv)]
    for name, value in params.items():
        if name not in valid:
            raise unknown("parameter", name, valid, "task.params")
        like = getattr(cls, name)
        fits = isinstance(value, list | tuple) and len(value) == len(like) if isinstance(like, tuple) else isinstance(value, int | float)
        if not fits:
            raise UserError(f"task.params.{name} is {value!r}; it is {like!r} by default, and has to be of that kind")
    return type(cls.__name__, (cls,), {**params, "__module__": cls.__module__})
