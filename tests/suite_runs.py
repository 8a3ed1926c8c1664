"""Run directories of a suite with known numbers, as training and evaluation leave them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

PACKAGES = {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6", "rl_games": "1.6.5"}
HARDWARE = {"cpu": "A CPU", "cores": 2, "memory_gib": 16.0, "gpus": []}


def played(mean: float, episodes: int = 100) -> dict[str, Any]:
    figures = {"mean": mean, "std": 1.0, "median": mean, "iqm": mean, "min": mean - 2, "max": mean + 2}
    return {"episodes": episodes, "deterministic": True, "return": figures, "length": figures, "per_episode": []}


def run(
    runs_dir: Path,
    algo: str,
    task: str,
    seed: int,
    score: float,
    *,
    suite: str = "mine",
    budget: int = 1000,
    key: str = "",
    config: dict[str, Any] | None = None,
    lines: list[dict[str, Any]] | None = None,
    done: bool = True,
    seconds: float = 10.0,
    commit: str = "0123456789abcdef",
    errors: tuple[str, ...] = (),
) -> Path:
    """One run whose final checkpoint scores `score` (sampled: 1 less; the best one: 1 more), and whose training return rises
    from 0 to `score` in ten epochs of a tenth of the budget each. `done`: false leaves it at half of them."""
    key = key or f"{seed:010x}"
    path = runs_dir / suite / task / algo / f"seed{seed}-{key}"
    path.mkdir(parents=True)
    cell = {"suite": suite, "task": task, "algo": algo, "seed": seed, "key": key, "frames": budget, "attempts": 1, "errors": list(errors)}
    _write(path / "cell.json", {**cell, "overrides": []})
    if lines is None:
        part = np.arange(1, 11 if done else 6) / 10
        lines = [
            {"epoch": i + 1, "frames": int(p * budget), "seconds": p * seconds, "fps": 100.0, "return_mean": p * score}
            for i, p in enumerate(part)
        ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "run_dir": str(path), **(config or {"train": {"name": algo}})}))
    about = {"command": ["train.py", f"train={algo}", f"task={task}"], "git": {"commit": commit, "differs": False}, "git_here": None}
    about.update(packages=PACKAGES, hardware=HARDWARE, start="2026-01-02T03:04:05+00:00", end=None)
    _write(path / "run.json", {"task": task, "algo": algo.lower(), "seed": seed, **about, "sessions": [about]})
    if done:
        result = {"frames": budget, "seconds": seconds, "fps": budget / seconds, "return_mean": score, "exit_reason": "max_frames"}
        _write(path / "result.json", result)
        final = {"deterministic": played(score), "sampled": played(score - 1)}
        best = {"deterministic": played(score + 1), "sampled": played(score)}
        _write(path / "eval.json", {"protocol": {"games_num": 100, "seed": 1_000_000}, "checkpoints": {"final": final, "best": best}})
    return path


def suite_yaml(folder: Path, tasks: tuple[str, ...], name: str = "mine", grid: int = 10, references: tuple[str, ...] | None = None) -> Path:
    """A suite's file; `references` (default: all of `tasks`) have random 0 and reference 100."""
    chosen = tasks if references is None else references
    found = {task: {"random": 0.0, "reference": 100.0, "source": "made up"} for task in chosen}
    path = folder / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump({"name": name, "tasks": {t: {"frames": 1000} for t in tasks}, "grid": grid, "references": found}, sort_keys=False)
    )
    return path


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
