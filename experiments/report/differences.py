"""What differs between configs, key by key."""

from __future__ import annotations

import json
from typing import Any

from experiments.cells import NOT_IN_KEY

# Beside what changes no result: which of the equals a run is, and on what device it ran.
NEUTRAL = {*NOT_IN_KEY, "seed", "train.params.seed", "device", "train.params.config.device", "train.params.config.full_experiment_name"}

ABSENT = "—"


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{"train.params.config.gamma": "0.99"}: dotted keys, values as JSON (texts as they are), without the neutral ones."""
    found = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in NEUTRAL:
            continue
        if isinstance(value, dict) and value:
            found.update(flat(value, f"{key}."))
        else:
            found[key] = value if isinstance(value, str) else json.dumps(value)
    return found


def differing(configs: list[dict[str, Any]]) -> list[str]:
    """The keys that are not the same in all of them."""
    flats = [flat(config) for config in configs]
    keys = dict.fromkeys(key for one in flats for key in one)
    return [key for key in keys if len({one.get(key, ABSENT) for one in flats}) > 1]


def between(configs: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, str]]:
    """{algorithm: {task: config}} -> {key: {algorithm: value}}, for the keys in which algorithms differ on some task that several
    of them have. A value that is not the same on all tasks is told for each."""
    flats = {algo: {task: flat(config) for task, config in by_task.items()} for algo, by_task in configs.items()}
    tasks = dict.fromkeys(task for by_task in configs.values() for task in by_task)
    keys = dict.fromkeys(key for task in tasks for key in differing([c[task] for c in configs.values() if task in c]))
    return {key: {algo: _told({task: one.get(key, ABSENT) for task, one in flats[algo].items()}) for algo in configs} for key in keys}


def _told(by_task: dict[str, str]) -> str:
    values = list(dict.fromkeys(by_task.values()))
    if len(values) < 2:
        return values[0] if values else ABSENT
    return "; ".join(f"{value} ({', '.join(task for task, v in by_task.items() if v == value)})" for value in values)
