"""Demonstration files: transitions of played episodes, as `record=FILE` writes them (docs/demonstrations.md).

A file is a .npz of plain arrays and one JSON text, `meta`. It holds what the environment gave and took, apart from the actions, which are
in the policy's scale; so it serves any algorithm on tasks of the same spaces. Nothing in it is executed when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from core.errors import UserError
from core.files import write_through
from core.policy import Policy
from core.vecenv import as_tuple_space, tree_map

FORMAT = 1
KIND = "gamesmith demonstrations"
ROWS = ("actions", "rewards", "terminated", "dones")  # beside obs and next_obs, which may be several arrays


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """M transitions in order, trajectory after trajectory, on the policy's device.

    A trajectory is one agent's way from a reset to `dones`; with one agent and one life it is an episode.
    """

    obs: Any  # (M, *O) what the policy sees before `preprocess` and normalization; a dict of tensors for Dict observations
    actions: Tensor  # (M, A) in the policy's scale, clipped to [-1, 1] where `clip_actions`; (M,) or (M, k) int64
    next_obs: Any  # (M, *O) the observation that followed; where `dones`, the last one of the trajectory
    rewards: Tensor  # (M,) as the environment gave them; of several components the first
    terminated: Tensor  # (M,) bool: it ended, and not by a time limit
    dones: Tensor  # (M,) bool: it ended
    episode_returns: Tensor  # (E,) sums of rewards, one per trajectory
    meta: dict[str, Any]

    def __len__(self) -> int:
        return self.actions.shape[0]

    @classmethod
    def load(cls, path: str | Path, policy: Policy) -> Demonstrations:
        """Reads a file for `policy`, whose `augment_obs` the observations pass through.

        Raises UserError for a file that is missing, damaged, empty, no demonstration file or of another version, that holds a NaN, or whose
        observations or actions are not those of the policy's task.
        """
        meta, arrays = read(path)
        _check_spaces(path, meta, policy)
        device = policy.device
        tensors: dict[str, Any] = tree_map(lambda a: torch.from_numpy(a).to(device), arrays)
        actions = tensors["actions"]
        return cls(
            obs=policy.augment_obs(tensors["obs"]),
            actions=actions.float() if policy.action_kind == "continuous" else actions.long(),
            next_obs=policy.augment_obs(tensors["next_obs"]),
            rewards=tensors["rewards"].float(),
            terminated=tensors["terminated"].bool(),
            dones=tensors["dones"].bool(),
            episode_returns=torch.tensor(meta["episode_returns"], dtype=torch.float32, device=device),
            meta=meta,
        )


# ---- writing -----------------------------------------------------------------------------------------------------------------


def check_target(path: str | Path) -> Path:
    """Where a file can be written, before anything is played for it; its directory is made. Raises UserError for a name without .npz,
    for a file that exists (it is never overwritten), and for a directory that cannot be written."""
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"record: '{path}' must end in .npz")
    if path.exists():
        raise UserError(f"record: '{path}' exists, and is not overwritten: give another name or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"record: cannot make the directory of '{path}': {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"record: cannot write into '{path.parent}'")
    return path


def write(path: Path, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Writes atomically. arrays: obs, next_obs (arrays or dicts of them) and ROWS, each with M rows; meta: what `record=` adds to
    the format. Raises UserError for a NaN or infinity, and where the directory cannot be written."""
    flat = flatten(arrays)
    _check_finite(path, flat)
    text = json.dumps({"kind": KIND, "format": FORMAT, **meta})

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # by name, NumPy would append another .npz
            np.savez_compressed(file, allow_pickle=False, meta=np.array(text), **flat)

    try:
        write_through(path, save)
    except OSError as error:
        raise UserError(f"record: cannot write '{path}': {error.strerror or error}") from error


def describe(space: spaces.Space) -> dict[str, Any]:
    """A space as JSON: its type, shape, dtype and bounds (one number where they are all equal), or its numbers of choices."""
    space = as_tuple_space(space)
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: describe(sub) for key, sub in space.spaces.items()}}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n)}
    if isinstance(space, spaces.Tuple):
        return {"type": "MultiDiscrete", "n": [int(cast(spaces.Discrete, sub).n) for sub in space.spaces]}
    result: dict[str, Any] = {"type": type(space).__name__, "shape": list(space.shape or ()), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Box):
        for name, bound in (("low", space.low), ("high", space.high)):
            result[name] = bound.ravel()[0].item() if bound.size and (bound == bound.ravel()[0]).all() else bound.tolist()
    return result


def flatten(arrays: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """{"obs": {"image": a}} -> {"obs/image": a}"""
    result: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if isinstance(value, dict):
            result.update(flatten(value, f"{prefix}{name}/"))
        else:
            result[prefix + name] = value
    return result


# ---- reading -----------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The meta data and the arrays of a file, whatever its task. Raises UserError as `Demonstrations.load` does, apart from spaces."""
    path = Path(path)
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.npz")) if path.parent.is_dir() else []
        raise UserError(f"demonstration file '{path}' does not exist" + (f". There: {', '.join(beside)}" if beside else ""))
    if not zipfile.is_zipfile(path):
        raise UserError(f"'{path}' is not a demonstration file, or was cut off while it was written ({path.stat().st_size} bytes)")
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = _meta(path, file)
            flat = {name: file[name] for name in file.files if name != "meta"}
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"'{path}' is damaged, or not a demonstration file: {error}") from error
    _check_rows(path, meta, flat)
    _check_finite(path, flat)
    return meta, _nested(flat)


def _meta(path: Path, file: Any) -> dict[str, Any]:
    try:
        meta = json.loads(str(file["meta"]))
    except (KeyError, ValueError):
        meta = None
    if not isinstance(meta, dict) or meta.get("kind") != KIND:
        found = ", ".join(file.files[:6])
        raise UserError(
            f"'{path}' is not a demonstration file (it holds {found}): python train.py test=True checkpoint=... record=FILE writes one"
        )
    if meta.get("format") != FORMAT:
        raise UserError(
            f"'{path}' is a demonstration file of format {meta.get('format')}, and this version reads format {FORMAT}: record it anew"
        )
    return meta


def _check_rows(path: Path, meta: dict[str, Any], flat: dict[str, np.ndarray]) -> None:
    names = set(flat)
    missing = [n for n in ("obs", "next_obs", *ROWS) if not any(name == n or name.startswith(f"{n}/") for name in names)]
    if missing:
        raise UserError(f"'{path}' is damaged: it has no '{missing[0]}'")
    rows = {name: len(value) if value.ndim else -1 for name, value in flat.items()}
    if len(set(rows.values())) > 1:
        raise UserError(f"'{path}' is damaged: its arrays differ in length: {', '.join(f'{k} {v}' for k, v in sorted(rows.items()))}")
    if not len(flat["actions"]):
        raise UserError(f"'{path}' is empty: it holds no transition")
    ends, returns = int(flat["dones"].sum()), len(meta.get("episode_returns", ()))
    if ends != returns or not flat["dones"][-1]:
        raise UserError(f"'{path}' is damaged: it has {ends} ends of trajectories and {returns} returns, and must end with an end")


def _check_finite(path: Path, flat: dict[str, np.ndarray]) -> None:
    for name, value in flat.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            row = int(np.argwhere(~np.isfinite(value))[0][0])
            raise UserError(f"demonstrations '{path}': '{name}' of transition {row} is not finite")


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return result


def _check_spaces(path: str | Path, meta: dict[str, Any], policy: Policy) -> None:
    theirs, ours = meta["observation_space"], describe(policy.env_observation_space)
    if _seen(theirs) != _seen(ours):
        raise UserError(
            f"demonstrations '{path}' (task {meta['task']['name']}) have observations {_told(theirs)}, but the task's are {_told(ours)}"
        )
    theirs, ours = meta["action_space"], describe(policy.action_space)
    if {**theirs, "dtype": ""} != {**ours, "dtype": ""}:
        raise UserError(
            f"demonstrations '{path}' (task {meta['task']['name']}) have actions {_told(theirs)}, but the task's are {_told(ours)}"
        )
    if policy.action_kind == "continuous" and meta["clip_actions"] != policy.clip_actions:
        raise UserError(
            f"demonstrations '{path}' were recorded with clip_actions {meta['clip_actions']}, but train.params.config.clip_actions is "
            f"{policy.clip_actions}: their actions are in another scale"
        )


def _seen(space: dict[str, Any]) -> Any:
    """What a network must agree with: shapes, and whether it is bytes (pictures), which `preprocess` scales."""
    if space["type"] == "Dict":
        return {key: _seen(sub) for key, sub in space["spaces"].items()}
    return space["type"], space.get("shape"), space.get("n"), space.get("dtype") == "uint8"


def _told(space: dict[str, Any]) -> str:
    if space["type"] == "Dict":
        return "{" + ", ".join(f"{key}: {_told(sub)}" for key, sub in space["spaces"].items()) + "}"
    if "n" in space:
        return f"{space['type']}({space['n']})"
    bounds = f", [{space['low']}, {space['high']}]" if "low" in space and len(str(space["low"])) < 80 else ""
    return f"{space['type']} of shape {tuple(space['shape'])} ({space['dtype']}{bounds})"
