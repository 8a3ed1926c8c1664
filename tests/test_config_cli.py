"""The command line: flags, quoting, Hydra's errors, exit statuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from core.cli import translate
from core.config import CONFIG_DIR
from core.errors import UserError

REPOSITORY = CONFIG_DIR.parent


def own(*argv: str) -> list[str]:
    """The translated arguments without those that silence Hydra."""
    return [a for a in translate(list(argv)) if not a.startswith(("hydra.", "hydra/"))]


def value_of(argument: str) -> object:
    """What Hydra will make of a translated override."""
    return OverridesParser.create().parse_override(argument).value()


def test_groups_are_chosen_and_keys_are_forced() -> None:
    assert own("task=Pendulum", "train=PPO", "player.games_num=3") == ["task=Pendulum", "train=PPO", "++player.games_num=3"]
    assert own("++seed=1", "+x=2", "hydra.verbose=true") == ["++seed=1", "+x=2"]


def test_hydra_is_silenced() -> None:
    arguments = translate(["task=Pendulum"])
    assert {"hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"} <= set(arguments)


def test_underscored_numbers_arrive_as_int() -> None:
    assert value_of(own("max_frames=2_000_000")[0]) == 2_000_000


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--play", "--checkpoint", "a.pth"], ["++checkpoint=a.pth", "++test=true"]),
        (["-p", "-c", "a.pth"], ["++checkpoint=a.pth", "++test=true"]),
        (["--checkpoint=a.pth", "--train"], ["++checkpoint=a.pth"]),
        (["--file", "x.yaml", "-t"], ["++file=x.yaml", "~tuned"]),
        (["--seed", "5", "--num_actors", "8", "--sigma", "-1.5"], ["++seed=5", "++num_envs=8", "++sigma=-1.5"]),
        (["--track", "--wandb-project-name", "p"], ["++wandb_project=p", "++wandb=online"]),
        (["-t", "-p"], []),  # rl_games trains when told both
        (["--cfg", "job", "seed=1"], ["--cfg", "job", "++seed=1"]),
        (["--info", "all"], ["--info", "all"]),
        (["--info"], ["++info=true"]),
    ],
)
def test_rl_games_and_hydra_flags(argv: list[str], expected: list[str]) -> None:
    assert own(*argv) == expected


@pytest.mark.parametrize(
    "text",
    [
        "runs/x/nn/last_Foo_ep_10_rew_[12.3].pth",
        "runs/a=b,c/nn/it's {here}.pth",
        "C:\\runs\\best.pth",
        "ends with backslash\\",
        'a "quoted" \\\' name',
        " (1) #2 @3 !.pth",
        "123",
        "true",
    ],
)
def test_paths_survive_hydras_grammar(text: str) -> None:
    arguments = own(f"--checkpoint={text}", f"resume={text}", f"++run_dir={text}", f"experiment={text}")
    assert [value_of(a) for a in arguments] == [text] * 4


def test_what_is_no_plain_text_stays() -> None:
    assert value_of(own("checkpoint=null")[0]) is None
    assert own("checkpoint='a b'") == ["++checkpoint='a b'"]
    assert own("run_dir=${runs_dir}/a") == ["++run_dir=${runs_dir}/a"]
    assert value_of(own("modules=[a.py,b.c]")[0]) == ["a.py", "b.c"]
    assert own("-m", "checkpoint=a.pth,b.pth") == ["--multirun", "++checkpoint=a.pth,b.pth"]
    assert value_of(own("checkpoint=a.pth,b.pth")[0]) == "a.pth,b.pth"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["task=Pendulm"], "unknown task 'Pendulm' at task=. Did you mean 'Pendulum'?"),
        (["train=PPOO"], "unknown algorithm config 'PPOO' at train=. Did you mean 'PPO'?"),
        (["tuned=nothing"], "unknown tuned pair 'nothing'"),
        (["--chekpoint", "x"], "unknown option '--chekpoint'. Did you mean '--checkpoint'?"),
        (["task"], "'task' is neither an option nor key=value"),
        (["--checkpoint"], "expected one argument"),
        (["task.id=[", "seed=1"], "cannot parse '++task.id=['"),
        (["seed=1,2"], "Ambiguous value for argument '++seed=1,2'"),
        (["task=null"], "must be a string"),
        (["--config-dir", "nowhere"], "nowhere' is not a directory"),
        (["--config-path", "nowhere"], "nowhere' is not a directory"),
        (["--config-name", "nowhere"], "nowhere"),
        (["-m", "task=Pendulum,CartPol"], "unknown task 'CartPol'"),
    ],
)
def test_mistakes(argv: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        translate(argv)
    assert told in str(error.value)


def test_a_config_dir_outside_the_repository(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "Mine.yaml").write_text("params: {algo: {name: mine}}")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "Pendulum-Mine.yaml").write_text("# @package _global_\nnum_envs: 4")
    argv = ["--config-dir", str(tmp_path), "train=Mine", "tuned=Pendulum-Mine"]
    assert own(*argv) == argv
    with pytest.raises(UserError, match="Did you mean 'Mine'"):
        own("--config-dir", str(tmp_path), "train=Mien")


def test_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "Mine.yaml").write_text("params: [")
    with pytest.raises(UserError, match=r"Mine.yaml"):
        own("--config-dir", str(tmp_path), "train=Mine")


PROGRAM = f"""
import sys
import hydra
from core.cli import main_guard, translate
from core.errors import UserError

@hydra.main(version_base="1.3", config_path={str(CONFIG_DIR)!r}, config_name="config")
def run(cfg):
    with main_guard():
        if cfg.seed == 1:
            raise UserError("seed 1 is bad")
        if cfg.seed == 2:
            raise RuntimeError("boom")
        if cfg.seed == 3:
            raise KeyboardInterrupt
        print("ran", cfg.checkpoint)

@main_guard()
def main(argv):
    sys.argv[1:] = translate(argv)
    run()

for argv in (["checkpoint=a [1]=2.pth"], ["seed=1"], ["task=Pendulm"], ["seed=2"], ["seed=3"]):
    try:
        main(argv)
        print("status 0")
    except SystemExit as end:
        print("status", end.code)
"""


def test_exit_statuses(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["ran a [1]=2.pth", "status 0", "status 2", "status 2", "status 1", "status 130"], done.stderr
    errors = done.stderr.splitlines()
    assert errors[0] == "error: seed 1 is bad"
    assert errors[1].startswith("error: unknown task 'Pendulm'")
    assert "RuntimeError: boom" in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert list(tmp_path.iterdir()) == []  # Hydra left nothing behind
