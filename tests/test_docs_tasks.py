"""docs/tasks/own.md: what stands there trains."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.command import command

PAGE = (Path(__file__).parents[1] / "docs" / "tasks" / "own.md").read_text(encoding="utf-8")
QUICK = ("max_epochs=2", "num_envs=4", "train.params.config.horizon_length=32", "device=cpu")


def written(folder: Path) -> list[str]:
    """Writes every indented block that begins with `# path` there; returns the commands."""
    commands, block = [], ""
    for line in [*PAGE.splitlines(), "end"]:
        if line.startswith("    ") or not line:
            block += line[4:] + "\n"
            continue
        for part in block.split("\n# "):
            name, _, text = part.strip().removeprefix("# ").partition("\n")
            if name.endswith((".py", ".yaml")):
                text, _, rest = text.partition("\npython train.py")
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(textwrap.dedent(text), encoding="utf-8")
                if rest:
                    commands.append(rest.strip())
        block = ""
    return commands


@pytest.mark.parametrize("index", [0, 1], ids=["gymnasium", "batched"])
def test_the_example_trains(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = written(tmp_path)
    assert len(commands) == 2
    words = [word.strip("'") for word in commands[index].split()]
    assert command(*words, *QUICK, f"run_dir={tmp_path / 'run'}")["frames"] == 2 * 4 * 32


def test_how_many_lines_they_take() -> None:
    """The promise: a gym-like environment in about 10 lines of its own, a batched one in 30."""
    blocks = {name: PAGE.split(f"# {name}\n")[1].split("\n\n    python")[0].split("\n\n    # ")[0] for name in ("walk.py", "walks.py")}
    lines = {name: len([line for line in text.splitlines() if line.strip()]) for name, text in blocks.items()}
    assert lines["walk.py"] <= 14
    assert lines["walks.py"] <= 30
