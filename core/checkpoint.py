"""Checkpoints: written atomically, read without ever executing what they hold.

A file is the dict that stock rl_games 1.6.5 writes (model, optimizer, epoch, frame, ...), so that its players read ours, and one
more key, `gamesmith`, with the manifest and everything that stock forgets. Stock files load too.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pickle
import random
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from core.errors import UserError, nearest
from core.policy import Policy

FORMAT = 1


def save(path: str | Path, state: dict[str, Any]) -> Path:
    """Writes `state` to a temporary name beside `path`, syncs it and renames it: whoever reads `path`, at whatever moment, finds
    the old file or the new one, whole. Raises UserError where the directory cannot be written."""
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UserError(f"cannot write checkpoint '{path}': {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write checkpoint '{path}': {error.strerror or error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return path


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint, ours or stock rl_games 1.6.5's, onto `device`.

    Raises UserError for a file that is missing, truncated, no checkpoint, or that would run code when unpickled.
    """
    path = Path(path)
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.pth")] if path.parent.is_dir() else []
        guess = nearest(path.name, beside)
        raise UserError(
            f"checkpoint '{path}' does not exist."
            + (f" Did you mean '{path.parent / guess}'?" if guess else "")
            + (f" There: {', '.join(sorted(beside))}" if beside else "")
        )
    if not zipfile.is_zipfile(path):
        raise UserError(f"'{path}' is not a checkpoint, or was cut off while it was written ({path.stat().st_size} bytes)")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"'{path}' holds more than tensors and plain values, so it is not loaded: {_reason(error)}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"'{path}' is damaged and cannot be read: {_reason(error)}") from error
    if not isinstance(state, dict) or not ("model" in state or "actor" in state):
        raise UserError(f"'{path}' is a torch file, but not a checkpoint of an agent: it has no 'model'")
    return state


def manifest(algo: str, kind: str, cfg: dict[str, Any], spaces: dict[str, str]) -> dict[str, Any]:
    """What a checkpoint says about itself: format, algorithm, action kind, task, spaces, versions, config and its hash."""
    packages = ("gamesmith", "torch", "rl_games", "gymnasium", "numpy")
    return {
        "format": FORMAT,
        "algo": algo,
        "kind": kind,
        "task": (cfg.get("task") or {}).get("name"),
        "spaces": spaces,
        "versions": {name: _version(name) for name in packages},
        "config": cfg,
        "config_hash": config_hash(cfg),
    }


def config_hash(cfg: dict[str, Any]) -> str:
    """The same for two configs exactly if they are equal."""
    return hashlib.sha256(json.dumps(cfg, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_config(path: str | Path) -> dict[str, Any] | None:
    """The resolved config that a checkpoint of ours carries; None for a stock file."""
    return load(path).get("gamesmith", {}).get("config")


def player_extras(state: dict[str, Any]) -> dict[str, Any]:
    """{name: state} of the parts that the agent registered with `player=True`."""
    extras = state.get("gamesmith", {}).get("extras", {})
    return {name: extras["parts"][name] for name in extras.get("for_player", [])}


def check_fits(state: dict[str, Any], algo: str, path: str | Path) -> None:
    """Raises UserError where the checkpoint was made by another algorithm. Stock files carry no name and pass."""
    made_by = state.get("gamesmith", {}).get("algo")
    if made_by is not None and made_by != algo:
        raise UserError(f"checkpoint '{path}' was made by algorithm '{made_by}', not by '{algo}': use train.params.algo.name={made_by}")


def frozen_policy(path: str | Path, env_info: dict[str, Any], num_envs: int, device: str | torch.device, sees: str = "obs") -> Policy:
    """The policy of one of our checkpoints, in eval mode and without gradients, for `num_envs` environments.

    sees: what of the present task it is shown, "obs" or, of a task that has one, the state that a central value sees, "states"; "either":
    whichever of the two it was made for. The policy tells as `policy.sees`.

    Raises UserError where the checkpoint was made for other actions or observations, naming both.
    """
    from core import registry
    from core.config import to_params

    state = load(path, device)
    cfg = state.get("gamesmith", {}).get("config")
    if cfg is None:
        raise UserError(f"checkpoint '{path}' is a stock rl_games file and does not say how its network is built")
    params = to_params(cfg)
    entry = registry.algos.get(params["algo"]["name"], "the checkpoint's config")
    made_for = state["gamesmith"]["spaces"]
    shown = {"obs": env_info["observation_space"], "states": env_info.get("state_space")}
    shown = {name: space for name, space in shown.items() if space is not None and sees in (name, "either")}
    problem: UserError | None = None
    for name, space in shown.items():
        try:
            policy = (entry.policy or Policy)(params, {**env_info, "observation_space": space}, num_envs, device)
        except UserError as error:
            problem = error
            continue
        if str(policy.env_info["action_space"]) != made_for["action"]:
            raise UserError(f"checkpoint '{path}' acts in {made_for['action']}, but the task's actions are {env_info['action_space']}")
        try:
            policy.load(state)
        except UserError as error:
            problem = error
            continue
        policy.model.eval().requires_grad_(False)
        policy.sees = name
        return policy
    there = " and ".join(f"'{name}' {space}" for name, space in shown.items()) or f"no '{sees}'"
    told = f" ({problem})" if problem else ""
    raise UserError(f"checkpoint '{path}' was made for observations {made_for['observation']}, but the task has {there}{told}")


# ---- random state ------------------------------------------------------------------------------------------------------------


def rng_state() -> dict[str, Any]:
    """The state of torch's, NumPy's and Python's global generators, as tensors and plain values."""
    numpy_state = np.random.get_state(legacy=False)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "name": numpy_state["bit_generator"],
            "keys": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "rest": [numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]],
        },
        "python": {"version": version, "internal": list(internal), "gauss": gauss},
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Continues the generators where `rng_state` found them; a different number of GPUs keeps their own."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    numpy_state = state["numpy"]
    position, has_gauss, cached = numpy_state["rest"]
    np.random.set_state((numpy_state["name"], numpy_state["keys"].cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    python_state = state["python"]
    random.setstate((python_state["version"], tuple(python_state["internal"]), python_state["gauss"]))


def set_generator(generator: torch.Generator, state: torch.Tensor) -> None:
    """Continues a generator where `state` was taken. A CPU's state means nothing to a GPU's generator, nor the other way: that is seeded
    from it, and so draws other numbers."""
    state = state.cpu()
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        generator.manual_seed(int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:7], "big"))


@contextlib.contextmanager
def kept_rng() -> Iterator[None]:
    """Whatever the block draws, the global generators stand afterwards where they stood before."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def plain(value: Any) -> Any:
    """The same value in types that `weights_only=True` accepts: NumPy arrays become tensors, NumPy scalars Python's, tuples stay."""
    if isinstance(value, dict):
        return {key: plain(sub) for key, sub in value.items()}
    if isinstance(value, list):
        return [plain(sub) for sub in value]
    if isinstance(value, tuple):
        return tuple(plain(sub) for sub in value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    return value


def _numpy_scalars() -> list[Any]:
    """Stock files hold the best reward as a NumPy scalar: harmless, so it is let through."""
    dtypes = [type(np.dtype(t)) for t in (np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)]
    return [multiarray.scalar, np.dtype, *dtypes]


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "GLOBAL" in line or "global" in line), lines[0] if lines else type(error).__name__)
    return told[:200]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
