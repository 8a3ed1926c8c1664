"""`python train.py ...` within the test's process: the same path from arguments to results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra

from core import checkpoint, evaluation, registry, runner
from core.cli import translate
from core.config import CONFIG_DIR, check, effective


def resolve(*argv: str) -> dict[str, Any]:
    """The checked config of a command line."""
    overrides = [o for o in translate(list(argv)) if not o.startswith(("hydra", "--"))]
    searched = [argv[i + 1] for i, a in enumerate(argv) if a == "--config-dir"]
    paths = [f"hydra.searchpath=[file://{Path(p).resolve()}]" for p in searched]
    skip = set(searched)
    overrides = [o for o in overrides if o not in skip]
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = hydra.compose("config", overrides=overrides + paths)
        registry.discover()
        cfg = effective(composed, overrides, checkpoint.read_config)
        registry.import_outside(cfg["modules"])
        return check(cfg)


def command(*argv: str) -> dict[str, Any]:
    """Trains or evaluates, and returns result.json's or eval.json's content."""
    cfg = resolve("progress=off", *argv)
    return evaluation.evaluate(cfg) if cfg["test"] else runner.train(cfg)


SMALL = ("train.params.config.horizon_length=16", "train.params.config.mini_epochs=2", "num_envs=4", "train.params.torch_threads=1")
