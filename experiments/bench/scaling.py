"""Frames per second against the number of environments: EnvPool's CartPole, and CartPole in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.bench import measure
from experiments.bench.sides import Side
from experiments.bench.stats import summary
from experiments.bench.workloads import Workload, envpool_cartpole, torch_cartpole

COUNTS = {"envpool": (1, 4, 16, 64, 256, 1024, 4096), "torch": (1, 16, 256, 4096, 16_384, 65_536)}
FRAMES = 400_000  # about as many are measured per run


def workload(kind: str, num_envs: int, device: str, epochs: int | None = None) -> Workload:
    """B's settings at `num_envs` environments, with as many epochs as make about FRAMES frames: 1 to 60."""
    epochs = epochs or max(1, min(60, FRAMES // (32 * num_envs)))
    warmup = max(1, min(5, epochs // 4))
    return torch_cartpole(num_envs, epochs, warmup, device) if kind == "torch" else envpool_cartpole(num_envs, epochs, warmup)


def measure_all(
    sides: list[Side], rounds: int, counts: dict[str, tuple[int, ...]], device: str, out: Path, epochs: int | None
) -> dict[str, Any]:
    """{"device", kind: {side: {number of environments: median frames/s}}}, "raw" among the sides of EnvPool. Logs go to `out/logs`."""
    result: dict[str, Any] = {"device": device}
    for kind, numbers in counts.items():
        result[kind] = {}
        for num_envs in numbers:
            load = workload(kind, num_envs, device, epochs)
            figures = []
            for number in range(rounds):
                figures.append(measure.round_of(load, sides, number + 1, out / "logs" / f"{kind}{num_envs}_{number}", load.epochs))
            medians = {name: f["fps"] for name, f in summary(figures, {}, with_raw=True).items()}
            for name, fps in medians.items():
                result[kind].setdefault(name, {})[str(num_envs)] = fps
            print(f"{kind}, {num_envs:,} environments: " + ", ".join(f"{name} {fps:,.0f}" for name, fps in medians.items()), flush=True)
    return result


def table(scaling: dict[str, Any]) -> str:
    """A Markdown table per kind: a line per number of environments, a column per side; frames/s."""
    parts = []
    for kind in COUNTS:
        sides = scaling.get(kind)
        if not sides:
            continue
        counts = sorted({int(n) for points in sides.values() for n in points})
        lines = [f"| {kind} environments | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
        lines += [f"| {n:,} | {' | '.join(f'{points[str(n)]:,.0f}' for points in sides.values())} |" for n in counts]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
