"""Environment steps per second of every kind of task: raw, with random actions, and while PPO trains on it.

    python -m experiments.bench.tasks                         # every row below whose packages are installed
    python -m experiments.bench.tasks rows=[warp,brax]        # some of them
    python -m experiments.bench.tasks ids=[Pong-v5,Highway-v0] training=false   # of EnvPool's, 16 environments each, raw only
    python -m experiments.bench.tasks seconds=10 out=my_dir   # longer, written elsewhere

Each row is measured in processes of its own, one after the other. Writes tasks.json and tasks.md into `out`. Nothing else should run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field

import train
from core.build import make_env
from core.cli import as_job, main_guard, read
from core.config import to_params
from core.errors import UserError, unknown
from core.schema import Count, Positive, Text
from core.vecenv import VecEnv, action_kind
from experiments.arguments import parse
from experiments.bench import report

ROWS: dict[str, tuple[str, ...]] = {
    "gymnasium": ("task=gymnasium", "task.id=HalfCheetah-v5", "num_envs=64"),
    "gymnasium-async": ("task=gymnasium", "task.id=HalfCheetah-v5", "num_envs=64", "task.vecenv=async"),
    "gymnasium-ray": ("task=gymnasium", "task.id=HalfCheetah-v5", "num_envs=64", "task.vecenv=ray"),
    "gym": ("task=gym", "task.id=CartPole-v1", "num_envs=64"),
    "envpool": ("task=HalfCheetah", "num_envs=64"),
    "envpool-atari": ("task=Pong",),
    "masked": ("task=ConnectFour", "num_envs=64", "train.params.config.use_action_masks=true"),
    "goal": ("task=FetchReach", "num_envs=16"),
    "torch": ("task=TorchCartPole", "num_envs=4096"),
    "torch-quadcopter": ("task=TorchQuadcopter", "num_envs=4096"),
    "pettingzoo": ("task=SimpleSpread", "num_envs=32"),
    "rl_games": ("task=from_train", "task.env_name=CartPole-v1", "task.vecenv=sync", "num_envs=64"),
    "warp": ("task=WarpAnt", "num_envs=64"),
    "mjlab": ("task=mjlab", "task.id=Mjlab-Cartpole-Balance", "num_envs=64"),
    "brax": ("task=BraxAnt", "num_envs=64"),
    "maniskill": ("task=maniskill", "task.id=PickCube-v1", "num_envs=1"),
}
SETTING = (  # of the training: the same for all, so that the environments make the difference
    "train=PPO",
    "~tuned",
    "train.params.config.horizon_length=32",
    "train.params.config.mini_epochs=4",
    "train.params.config.minibatch_size_per_env=8",
)
WARMUP = 2  # epochs that are not counted: memory is allocated, kernels are compiled


@dataclasses.dataclass(kw_only=True)
class Options:
    """The command's keys."""

    rows: Annotated[list[Text], Field(min_length=1)] | None = None
    ids: Annotated[list[Text], Field(min_length=1)] | None = None  # of EnvPool, instead of rows
    training: bool = True
    seconds: Positive = 3.0
    epochs: Count = 10
    out: Text = "runs/bench_tasks"


def main(argv: Sequence[str]) -> None:
    """Raises UserError for an unknown row or word."""
    if argv and argv[0] == "--raw":
        print(json.dumps(raw(argv[2:], float(argv[1]))))
        return
    options, overrides, _ = parse(argv, Options)
    rows = chosen(options)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {**report.about([]), "rows": {}}
    for name, words in rows.items():
        result["rows"][name] = measure([*words, *overrides], options)
        print(f"{name}: {_line(result['rows'][name])}", flush=True)
        (out / "tasks.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (out / "tasks.md").write_text(table(result), encoding="utf-8")
    print(f"in {out}: tasks.json, tasks.md")


def chosen(options: Options) -> dict[str, tuple[str, ...]]:
    """The rows to measure, and train.py's words for each. Raises UserError for an unknown row."""
    if options.ids and options.rows:
        raise UserError("rows= and ids= are two commands")
    if options.ids:
        return {id: ("task=envpool", f"task.id={id}", "num_envs=16") for id in options.ids}
    for name in options.rows or ():
        if name not in ROWS:
            raise unknown("row", name, ROWS, "rows=")
    return {name: ROWS[name] for name in options.rows or ROWS}


def measure(words: list[str], options: Options) -> dict[str, Any]:
    """{"command", "raw", "training"} in steps per second over all environments, or {"command", "not_measured"} with the reason."""
    command = "python train.py " + " ".join(words)
    bare = subprocess.run(
        [sys.executable, "-m", "experiments.bench.tasks", "--raw", str(options.seconds), *words], capture_output=True, text=True
    )
    if bare.returncode:
        return {"command": command, "not_measured": bare.stderr.strip().splitlines()[-1]}
    figures = json.loads(bare.stdout.strip().splitlines()[-1])
    if not options.training:
        return {"command": command, **figures}
    with tempfile.TemporaryDirectory() as folder:
        epochs = WARMUP + options.epochs
        argv = ["train.py", *words, *SETTING, f"max_epochs={epochs}", "max_frames=-1", f"run_dir={folder}/run", "progress=off"]
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True)
        if done.returncode:
            return {"command": command, **figures, "not_measured": done.stderr.strip().splitlines()[-1]}
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[WARMUP - 1], lines[-1]
    return {"command": command, **figures, "training": (last["frames"] - first["frames"]) / (last["seconds"] - first["seconds"])}


def raw(words: Sequence[str], seconds: float) -> dict[str, Any]:
    """Steps the task's environments with random actions: {"num_envs", "raw": steps per second over all of them}."""
    composed = read(list(words))[1]
    if composed is None:
        raise UserError("neither hydra.* keys nor Hydra's flags here")
    cfg = train.resolved(as_job(composed))
    params = to_params(cfg)
    with contextlib.closing(make_env(cfg, params["config"]["num_actors"], params["seed"], params["config"]["device"])) as env:
        env.reset()
        actions = random_actions(env)
        env.step(actions())  # the first one compiles
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            env.step(actions())
            steps += 1
        if env.device != "cpu":
            torch.cuda.synchronize(env.device)
        return {"num_envs": env.num_envs, "raw": steps * env.num_envs / (time.perf_counter() - start)}


def random_actions(env: VecEnv) -> Callable[[], Any]:
    """What gives one action for each row: always the same ones, as the drawing is not what is measured; where there are masks, the
    allowed ones are drawn anew in every step."""
    rng, rows, space = np.random.default_rng(0), env.num_envs * env.num_agents, env.action_space
    if env.has_action_masks():
        sizes = [int(n) for n in space.nvec] if isinstance(space, spaces.MultiDiscrete) else [int(space.n)]  # type: ignore[attr-defined]
        ends = np.cumsum(sizes)[:-1]

        def allowed() -> np.ndarray:
            likings = rng.random((rows, sum(sizes))) * env.get_action_masks()
            heads = [head.argmax(axis=1) for head in np.split(likings, ends, axis=1)]
            return np.stack(heads, axis=1) if isinstance(space, spaces.MultiDiscrete) else heads[0]

        return allowed
    if action_kind(space) == "continuous":
        drawn: Any = rng.uniform(space.low, space.high, (rows, *space.low.shape)).astype(np.float32)  # type: ignore[attr-defined]  # a Box
    else:
        drawn = np.stack([space.sample() for _ in range(rows)])
    drawn = torch.as_tensor(drawn, device=env.device) if env.is_torch else drawn
    return lambda: drawn


def table(result: dict[str, Any]) -> str:
    """tasks.md: a row for each kind."""
    lines = ["| kind | environments | raw, steps/s | training, steps/s | command |", "|---|---|---|---|---|"]
    for name, row in result["rows"].items():
        figures = [_figure(row.get(key)) for key in ("num_envs", "raw", "training")]
        note = f" (not measured: {row['not_measured']})" if "not_measured" in row else ""
        lines.append(f"| {name} | {' | '.join(figures)} | `{row['command']}`{note} |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _line(row: dict[str, Any]) -> str:
    return f"{_figure(row.get('raw'))} raw, {_figure(row.get('training'))} training {row.get('not_measured', '')}".rstrip()


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
