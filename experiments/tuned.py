"""The best trial as a tuned pair: the file of cfg/tuned that train.py applies wherever its task and algorithm meet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from core.run_dir import write_text

# Where the shorthands stand for something that belongs to a pair; the others are of an invocation.
SHORT = {"num_envs": "num_actors", "max_frames": "max_frames", "precision": "precision"}


def write(
    folder: Path, label: str, config: dict[str, Any], plain: dict[str, Any], comments: list[str], overwrite: bool
) -> tuple[Path, bool]:
    """Writes `<label>.yaml` and returns (path, whether it counts). Where there is one already, and it may not be overwritten, the new one
    goes beside it as `<label>.yaml.new`, which nothing reads.

    Args:
        config: the whole config of the best trial's run.
        plain: that of the task and algorithm without a tuned pair and without overrides; the file holds what differs.
        comments: lines of its head.
    """
    path = folder / f"{label}.yaml"
    counts = overwrite or not path.exists()
    if not counts:
        path = path.with_name(f"{path.name}.new")
    head = ["# @package _global_", *(f"# {line}" for line in comments)]
    body = yaml.dump(difference(config, plain), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(head) + "\n" + body)
    return path, counts


def difference(config: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """{"task": ..., "train": ...}: what of both sections is not as in `plain`, shorthands at the places that they stand for."""
    result = {name: changed for name in ("task", "train") if (changed := _changed(config[name], plain[name]))}
    for short, long in SHORT.items():
        if config.get(short) is not None:
            result.setdefault("train", {}).setdefault("params", {}).setdefault("config", {})[long] = config[short]
    result.get("train", {}).get("params", {}).pop("torch_threads", None)  # of the machine
    return result


def _changed(now: Any, before: Any) -> Any:
    if not isinstance(now, Mapping) or not isinstance(before, Mapping):
        return now
    inner = {name: _changed(value, before.get(name)) for name, value in now.items() if name not in before or before[name] != value}
    return {name: value for name, value in inner.items() if value != {}}


class _Dumper(yaml.SafeDumper):
    """Sections as blocks and lists in a line, as the files of cfg/ are written."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True))
