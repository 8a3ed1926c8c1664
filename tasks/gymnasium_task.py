"""Any gymnasium environment: `task=gymnasium task.id=CartPole-v1`, in this process, in processes of its own, or in Ray workers."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import inspect
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import VecEnv
from tasks import offscreen
from tasks.spaces import normalize_spaces
from tasks.vecenvs import check_choice, make_vecenv

EXTRAS = ("mujoco", "box2d", "toy_text", "classic_control")  # gymnasium's packages that need more than gymnasium


@register_task("gymnasium", ids_of_kind=lambda: gymnasium.registry)
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    vecenv: str = "sync",
    wrappers: list[dict[str, Any] | str] | None = None,
    options: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    num_workers: int | None = None,
    ray_config: dict[str, Any] | None = None,
    ray_address: str | None = None,
) -> VecEnv:
    """N copies of one gymnasium environment, reset in the step in which they end.

    Args:
        id: as registered with gymnasium, or `module:Id-v0` to import a module that registers it.
        vecenv: sync (this process), async (several processes) or ray (workers, also on other machines).
        wrappers: applied in order: {name: of gymnasium.wrappers or a dotted path, and the wrapper's own arguments}.
        options: keyword arguments of gymnasium.make.
        max_episode_steps: replaces the registered time limit; -1: none.
        num_workers: processes of async or workers of ray; default: one per CPU, at most one per environment.
        ray_config: keyword arguments of ray.init; with vecenv=ray only.
        ray_address: a Ray cluster that runs already (`ray start`): host:port or auto; with vecenv=ray only.

    Raises UserError for an unknown id, wrapper or option, for a package that is not installed and for spaces no policy can use.
    """
    check_choice(vecenv, num_workers, ray_config, ray_address)
    maker = GymMaker(find_spec(id), resolve_wrappers(wrappers or []), dict(options or {}), max_episode_steps)
    return make_vecenv(
        maker, num_envs, seed, render_mode, vecenv=vecenv, num_workers=num_workers, ray_config=ray_config, ray_address=ray_address
    )


@dataclasses.dataclass
class GymMaker:
    """Builds one environment; travels to other processes."""

    spec: EnvSpec
    wrappers: list[tuple[Any, dict[str, Any]]]
    options: dict[str, Any]
    max_episode_steps: int | None

    def __call__(self, index: int, render_mode: str | None) -> gymnasium.Env:
        """Environment `index`; only the first is checked against gymnasium's API, as all are alike."""
        options = {"disable_env_checker": index > 0, **self.options}
        if render_mode is not None:
            options["render_mode"] = render_mode
            offscreen.prepare(".mujoco." in str(self.spec.entry_point))
        try:
            env = gymnasium.make(self.spec, max_episode_steps=self.max_episode_steps, **options)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UserError(f"task.id '{self.spec.id}' needs a package: {_install_hint(self.spec, error)}") from error
        except TypeError as error:
            if "keyword argument 'render_mode'" in str(error):
                raise UserError(f"task.id '{self.spec.id}' cannot render: its __init__ takes no render_mode") from error
            if "keyword argument" in str(error):
                raise UserError(f"task.options: {error}") from error
            raise
        except gymnasium.error.Error as error:
            raise UserError(f"task.id '{self.spec.id}': {error}") from error
        return normalize_spaces(apply_wrappers(env, self.wrappers))


def find_spec(id: str | None, where: str = "task.id") -> EnvSpec:
    """The registered EnvSpec of an id, importing its module if it has one. Raises UserError with the nearest ids."""
    if not id:
        raise UserError(f"{where} is missing: which gymnasium environment? Example: {where}=CartPole-v1")
    module, _, name = str(id).rpartition(":")
    if name.startswith("ALE/") and name not in gymnasium.registry:
        module = module or "ale_py"
    if module:
        import_module_of(str(id), module, where)
    if name not in gymnasium.registry:
        close = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.5)
        guess = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        raise UserError(
            f"unknown gymnasium environment '{id}' at {where}. {guess}"
            "An environment of your own has to be registered first: name its module with `modules=[...]` or as `module:Id-v0`"
        )
    spec = copy.copy(gymnasium.registry[name])
    spec.entry_point = portable_entry_point(spec.entry_point)
    return spec


def import_module_of(id: str, module: str, where: str) -> None:
    """Imports what stands before the colon of an id, which registers the environment. Raises UserError where that cannot be done."""
    try:
        importlib.import_module(module)
    except SyntaxError as error:
        raise UserError(f"{where} '{id}': cannot read '{module}': {error}") from error
    except (ImportError, TypeError) as error:
        if isinstance(error, TypeError) and not module.startswith("."):  # the module's own
            raise
        hint = "pip install ale-py" if module == "ale_py" else "is the module on the path?"
        raise UserError(f"{where} '{id}': cannot import '{module}': {error} ({hint})") from error


def portable_entry_point(entry_point: Any) -> Any:
    """The class itself where a module of `modules=[FILE]` is named, which has no name in other processes."""
    if not isinstance(entry_point, str) or not entry_point.startswith("outside_"):
        return entry_point
    owner, _, attribute = entry_point.partition(":")
    return getattr(importlib.import_module(owner), attribute)


def resolve_wrappers(entries: list[dict[str, Any] | str]) -> list[tuple[Any, dict[str, Any]]]:
    """From the YAML's entries to classes and arguments. Raises UserError naming the entry."""
    resolved = []
    for position, entry in enumerate(entries):
        where = f"task.wrappers[{position}]"
        arguments = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = arguments.pop("name", None)
        if not name:
            raise UserError(f"{where} has no name. Example: {{name: FrameStackObservation, stack_size: 4}}")
        wrapper = _wrapper_class(name, where)
        if wrapper is gymnasium.wrappers.Autoreset:
            raise UserError(f"{where}: Autoreset would hide where episodes end; this task resets environments itself (docs/tasks.md)")
        if wrapper.__module__.startswith("gymnasium."):
            arguments = {key: _as_wanted(value, f"{where}.{key}") for key, value in arguments.items()}
        resolved.append((wrapper, arguments))
    return resolved


def apply_wrappers(env: gymnasium.Env, wrappers: list[tuple[Any, dict[str, Any]]]) -> gymnasium.Env:
    """`env` in the wrappers that `resolve_wrappers` found, the first innermost. Raises UserError naming the one that refuses."""
    for position, (wrapper, arguments) in enumerate(wrappers):
        try:
            env = wrapper(env, **arguments)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UserError(f"task.wrappers[{position}] {wrapper.__name__} needs a package: {error}") from error
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"task.wrappers[{position}] {wrapper.__name__}({arguments}): {error}") from error
    return env


def _as_wanted(value: Any, where: str) -> Any:
    """A YAML's value as gymnasium's wrappers take it: sizes are tuples, bounds are arrays; a function is named by its dotted path."""
    if isinstance(value, list):
        return np.array(value, np.float32) if any(isinstance(x, float) for x in value) else tuple(value)
    if where.endswith(".func"):
        found = _imported(value) if isinstance(value, str) and "." in value and " " not in value else None
        if not callable(found):
            raise UserError(
                f"{where}='{value}' is no function: a config cannot hold one, but name one that can be imported: numpy.tanh, "
                "my_module.my_function (its file in `modules=[...]` or on the path). Or write a wrapper of your own and name it"
            )
        return found
    return value


def _imported(path: str) -> Any:
    """What stands at a dotted path; None where nothing does."""
    module, _, attribute = path.rpartition(".")
    for name in (module, f"outside_{module}"):  # `modules=[my_module.py]` is known as the latter
        try:
            return getattr(importlib.import_module(name), attribute)
        except (ImportError, AttributeError):
            continue
    return None


def _wrapper_class(name: str, where: str) -> Any:
    if "." not in name and ":" not in name:
        known = [key for key, value in vars(gymnasium.wrappers).items() if inspect.isclass(value)]
        if name not in known:
            raise unknown("wrapper", name, known, where)
        return getattr(gymnasium.wrappers, name)
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: no wrapper '{name}': {error}") from error


def _install_hint(spec: EnvSpec, error: Exception) -> str:
    for extra in EXTRAS:
        if f".{extra}." in str(spec.entry_point):
            return f"{error}. Try: pip install 'gymnasium[{extra.replace('_', '-')}]'"
    return str(error)
