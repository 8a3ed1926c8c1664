"""The evaluation protocol, the same for every run: final and best checkpoint, deterministic and sampled, on seeds no training reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import UserError
from core.evaluation import evaluate_checkpoint
from core.run_dir import RunDir
from experiments.progress import CHECKPOINTS, MODES

MAX_ENVS = 128  # stepped together: with one episode each, an evaluation takes as many steps as its longest episode


def evaluate(folder: Path, protocol: dict[str, Any]) -> dict[str, Any]:
    """Plays nn/last.pth (`final`) and nn/best.pth (`best`, where there is one) with the algorithm's own player and writes eval.json:

        {"protocol": {"games_num", "seed"}, "seconds": ..., "checkpoints": {"final": {"deterministic": E, "sampled": E}, "best": ...}}

    E is what docs/evaluate.md describes. Raises UserError where there is no checkpoint.
    """
    files = {name: folder / "nn" / file for name, file in CHECKPOINTS.items()}
    if not files["final"].is_file():
        raise UserError(f"'{folder}' has no nn/last.pth to evaluate")
    games = protocol["games_num"]
    played = {
        name: {
            mode: evaluate_checkpoint(
                file, games_num=games, deterministic=mode == "deterministic", seed=protocol["seed"], num_envs=min(games, MAX_ENVS)
            )
            for mode in MODES
        }
        for name, file in files.items()
        if file.is_file()
    }
    seconds = sum(one["seconds"] for modes in played.values() for one in modes.values())
    result = {"protocol": protocol, "seconds": seconds, "checkpoints": played}
    RunDir(folder).write_eval(result)
    return result
