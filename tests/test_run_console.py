"""What a user sees, at 80 columns, with a terminal and without."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core import console
from core.console import Progress, batch_arithmetic, count, duration, number
from core.errors import UserError
from core.observers import Run
from core.run_dir import RunDir


def page() -> Console:
    return Console(file=io.StringIO(), width=80)


def text(page: Console) -> str:
    assert isinstance(page.file, io.StringIO)
    return page.file.getvalue()


def epoch(number: int, **more: Any) -> dict[str, float]:
    return {"epoch": number, "frames": 1000 * number, "fps": 500.0, **more}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(RunDir.create(str(tmp_path), "A_B"), {}, max_frames=10_000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: now.seconds)
    return now


def test_numbers_are_short() -> None:
    assert [number(v) for v in (None, 0.0, -151.23, 0.0123, 12_345.0, 9999.96)] == [
        "-",
        "0.0",
        "-151.2",
        "0.012",
        "12.3k",
        "10.0k",
    ]
    assert [count(v) for v in (7, 999.6, 999_499, 999_999, 1_234_567, 8e6, 1e9)] == [
        "7",
        "1.00k",
        "999k",
        "1.00M",
        "1.23M",
        "8.00M",
        "1.00B",
    ]
    assert [duration(s) for s in (None, 59.9, 3600 + 62, 101 * 3600)] == ["-", "0:00:59", "1:01:02", "4d 05h"]


def test_batch_arithmetic() -> None:
    assert batch_arithmetic(64, 1, 32, 512, 4) == "64 envs x 32 steps = 2048 rows = 4 minibatches x 512, 4 mini-epochs"
    assert batch_arithmetic(8, 2, 16, 64, 1).startswith("8 envs x 2 agents x 16 steps = 256 rows = 4 minibatches x 64")


def test_run_table_folds_and_takes_brackets_literally() -> None:
    out = page()
    sections = {"task": {"observations": "Box[3]", "actions": "z" * 200}, "run": {"seed": "1"}}
    console.print_run_table(sections, title="A_B", console=out)
    lines = text(out).splitlines()
    assert max(map(len, lines)) <= 80
    assert "Box[3]" in text(out)
    assert text(out).count("z") == 200
    assert lines[0].split() == ["A_B"]
    assert lines[-1].split() == ["run", "seed", "1"]


EXTREMES = {"fps": 999_400.0, "return_mean": -9999.9, "best_return": -9999.9}


def test_the_widest_line_fits_into_80_columns(run: Run) -> None:
    wide = Run(run.dir, {}, max_frames=999_000_000)
    line = "  ".join(console._fields(wide, {"epoch": 1, "frames": 998_000_000, **EXTREMES}, 359_999))
    assert line == "998M/999M frames  100%  999k fps  return -9999.9  best -9999.9  left 99:59:59"
    assert len(line) <= 80


def test_plain_lines_first_last_and_at_most_one_every_five_seconds(
    run: Run, clock: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(run)
    progress.on_train_start(None)
    for number_, seconds in enumerate([101, 102, 103, 106.5, 107, 108], start=1):
        clock.seconds = seconds
        progress.on_epoch(epoch(number_))
    progress.close()
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1.00k/10.0k", "4.00k/10.0k", "6.00k/10.0k"]
    # epoch 1 -> 6: 5000 frames in 7 s; 4000 are left: 5.6 s
    assert lines[-1] == "6.00k/10.0k frames   60%  500 fps  return -  best -  left 0:00:05"


def test_the_last_line_is_not_printed_twice(run: Run, clock: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(run)
    progress.on_train_start(None)
    progress.on_epoch(epoch(1, return_mean=-3.0, best_return=-2.0))
    progress.close()
    assert capsys.readouterr().out == "1.00k/10.0k frames   10%  500 fps  return -3.0  best -2.0  left -\n"


@pytest.mark.parametrize(
    ("limits", "fraction", "left"),
    [
        ({"max_frames": 4000}, 0.75, 1.0),
        ({"max_epochs": 5}, 0.6, 2.0),
        ({"max_frames": 4000, "max_epochs": 30}, 0.75, 1.0),  # the budget that ends first
        ({}, None, None),
    ],
)
def test_time_left(run: Run, clock: types.SimpleNamespace, limits: dict[str, int], fraction: float | None, left: float | None) -> None:
    progress = Progress(Run(run.dir, {}, **limits))
    progress.on_train_start(None)
    for number_ in (1, 2, 3):  # one second and 1000 frames each
        clock.seconds += 1
        progress.on_epoch(epoch(number_))
    assert console.fraction_done(progress.run, progress.last) == fraction
    assert progress._seconds_left() == left
    progress.close()


def test_a_run_that_failed_before_its_first_epoch_closes_quietly(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Progress(run).close()
    started = Progress(run)
    started.on_train_start(None)
    started.close()
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_for(monkeypatch: pytest.MonkeyPatch) -> Terminal:  # no fixture: pytest sets sys.stdout again after those
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return out


def test_a_terminal_gets_a_live_bar_and_its_cursor_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    progress = Progress(run)
    progress.on_train_start(None)
    progress.on_epoch(epoch(5, return_mean=-1.0, best_return=2.0))
    print("said in between")
    progress.close()
    shown = terminal.getvalue()
    assert "━" in shown
    assert "5.00k/10.0k frames   50%" in shown
    assert "said in between" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown after it was hidden
    assert sys.stdout is terminal


def test_lines_on_request_in_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    progress = Progress(run, mode="lines")
    progress.on_train_start(None)
    progress.on_epoch(epoch(5))
    progress.close()
    assert terminal.getvalue() == "5.00k/10.0k frames   50%  500 fps  return -  best -  left -\n"


def test_progress_modes(run: Run) -> None:
    with pytest.raises(UserError, match=r"unknown mode 'line' at progress. Did you mean 'lines'"):
        Progress(run, mode="line")


def test_eval_table() -> None:
    out = page()
    row = {"mean": -151.23, "std": 80.0, "median": -130.0, "iqm": 1.0, "min": -99_999.9, "max": 0.0}
    console.print_eval_table({"episodes": 100, "deterministic": False, "return": row, "length": row, "success_rate": 0.831}, out)
    lines = text(out).splitlines()
    assert "100 episodes, sampled actions" in lines[0]
    assert [cell.strip() for cell in lines[4].split("│")[1:-1]] == [
        "return",
        "-151.2",
        "80.0",
        "-130.0",
        "1.0",
        "-99999.9",
        "0.0",
    ]
    assert lines[-1] == "success rate 0.83"
    assert max(map(len, lines)) <= 80


def test_result_ends_with_a_command_that_can_be_pasted(run: Run) -> None:
    run.dir.last.touch()
    out = page()
    command = f"python train.py test=True checkpoint={run.dir.last} player.games_num=100"
    result = {
        "exit_reason": "interrupted",
        "return_mean": None,
        "return_best": None,
        "frames": 12_345,
        "seconds": 61.0,
        "epochs": 9,
    }
    console.print_result(result, run.dir, command, out)
    lines = text(out).splitlines()
    assert lines[-1] == command  # on one line, however long
    assert "12,345 in 0:01:01, 9 epochs" in text(out)
    assert "last" in text(out)
    assert "best.pth" not in text(out)
