"""Suites, the identity of runs and what their directories tell, without running any."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from rich.console import Console

from core.config import CONFIG_DIR
from core.errors import UserError
from experiments import board, cells, claims, progress, suite, suites
from experiments.arguments import parse
from experiments.pace import Pace
from experiments.progress import Progress

TINY = {"name": "tiny", "tasks": {"TorchPendulum": {"frames": 1000}}}


def write(tmp_path, **changes):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return str(path)


def plan(tmp_path, *overrides, algos=("PPO",), seeds=(0,), **changes):
    frames, config_dir = changes.pop("frames", None), changes.pop("config_dir", None)
    loaded = suites.load(write(tmp_path, **changes))
    return cells.plan(loaded, algos, seeds, tmp_path / "runs", frames=frames, overrides=overrides, config_dir=config_dir)


def text(renderable, width=160):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


# ---- suites -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", suites.names())
def test_shipped_suites(name, tmp_path):
    shipped = suites.load(name)
    planned = cells.plan(shipped, ["PPO"], [0], tmp_path)
    assert [cell.task for cell in planned] == list(shipped.tasks)
    assert len({cell.key for cell in planned}) == len(planned)
    assert {task.task for task in shipped.tasks.values()} <= set(shipped.references)
    assert shipped.name == name


def test_what_the_shipped_suites_hold():
    assert list(suites.load("classic").tasks) == [
        "CartPole", "Acrobot", "MountainCarContinuous", "Pendulum", "LunarLander", "LunarLanderContinuous"
    ]  # fmt: skip
    mujoco = suites.load("mujoco")
    assert list(mujoco.tasks) == ["HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "Swimmer"]
    assert {task.frames for task in mujoco.tasks.values()} == {1_000_000}
    ids = [yaml.safe_load((CONFIG_DIR / "task" / f"{task.task}.yaml").read_text())["id"] for task in mujoco.tasks.values()]
    assert all(id.endswith("-v4") for id in ids)


def test_a_suite_of_ones_own(tmp_path):
    own = suites.load(write(tmp_path, references={"TorchPendulum": {"random": -1200, "reference": -150, "source": "mine"}}))
    assert own.tasks["TorchPendulum"].task == "TorchPendulum"  # the label, where no task is named
    assert own.references["TorchPendulum"].source == "mine"
    assert "CartPole" in own.references  # beside the shipped ones
    assert own.protocol.model_dump() == {"games_num": 100, "seed": 1_000_000}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": {"A": {"frame": 1}}}, r"unknown key 'frame' at tasks.A.frame. Did you mean 'frames'"),
        ({"evaluation": {"games": 1}}, r"Did you mean 'games_num'"),
        ({"taks": {}}, r"unknown key 'taks' at taks. Did you mean 'tasks'"),
        ({"tasks": {"A": {}}}, r"tasks.A.frames is missing"),
        ({"tasks": {"A": {"frames": 0}}}, r"tasks.A.frames is 0, but should be greater"),
        ({"tasks": {"a b": {"frames": 1}}}, r"tasks.a b is 'a b'"),
        ({"tasks": {}}, r"tasks is \{\}"),
        ({"tasks": 3}, r"tasks is 3"),
        ({"grid": 1}, r"grid is 1"),
        ({"variants": {"X": {"overrides": []}}}, r"variants.X.train is missing"),
    ],
)
def test_mistakes_in_a_suite(changes, told, tmp_path):
    with pytest.raises(UserError, match=told):
        suites.load(write(tmp_path, **changes))


def test_suites_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"unknown suite 'mujco' at suite=. Did you mean 'mujoco'"):
        suites.load("mujco")
    write(tmp_path)
    with pytest.raises(UserError, match=r"Did you mean '.*tiny.yaml'"):
        suites.load(str(tmp_path / "tinny.yaml"))
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match="must be a mapping"):
        suites.load(str(tmp_path / "list.yaml"))
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "mine.yaml").write_text(yaml.safe_dump({**TINY, "name": "mine"}))
    assert suites.load("mine", tmp_path).name == "mine"


# ---- cells ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "algos", "told"),
    [
        ({}, ["PPOO"], r"unknown algorithm 'PPOO' at algos=. Did you mean 'PPO'"),
        ({"tasks": {"A": {"task": "Pendulm", "frames": 1}}}, ["PPO"], r"unknown task 'Pendulm' at tasks.A.task. Did you mean 'Pendulum'"),
        ({"variants": {"X": {"train": "RPOO"}}}, ["X"], r"unknown algorithm 'RPOO' at variants.X.train. Did you mean 'RPO'"),
        ({"overrides": ["train.params.config.gama=1"]}, ["PPO"], r"TorchPendulum with PPO: unknown key 'train.params.config.gama'"),
        ({"overrides": ["seed=1"]}, ["PPO"], r"'seed=1' cannot be .*seeds="),
        ({"overrides": ["+max_frames=1"]}, ["PPO"], r"frames="),
        ({"overrides": ["hydra.mode=RUN"]}, ["PPO"], r"hydra"),
    ],
)
def test_mistakes_are_told_before_anything_runs(changes, algos, told, tmp_path):
    with pytest.raises(UserError, match=told):
        plan(tmp_path, algos=algos, **changes)
    assert not (tmp_path / "runs").exists()


def test_the_key_follows_what_decides_the_result(tmp_path):
    def key(*overrides, seeds=(0,), **changes):
        return plan(tmp_path, *overrides, seeds=seeds, **changes)[0].key

    same = key()
    assert re.fullmatch("[0-9a-f]{10}", same)
    unimportant = ["wandb=offline", "wandb_project=x", "experiment=x", "progress=off", "save_interval=1", "profile=true", "observers=[scores]",
                   "++train.params.torch_threads=3", "runs_dir=elsewhere"]  # fmt: skip
    assert key(*[word for word in unimportant if not word.startswith("runs_dir")]) == same
    assert key(evaluation={"games_num": 3}) == same  # evaluated again, not trained again
    others = [key(seeds=(1,)), key(frames=2000), key("train.params.config.gamma=0.5"), key("num_envs=4"), key("torch_deterministic=true"),
              key(algos=("RPO",)), key(tasks={"TorchPendulum": {"frames": 1000, "overrides": ["train.params.config.tau=0.9"]}})]  # fmt: skip
    assert len({same, *others}) == 1 + len(others)


def test_the_key_is_the_same_everywhere_and_later():
    config = {"seed": 0, "device": "cuda:0", "modules": ["/home/a/algo.py"], "train": {"params": {"torch_threads": 1}}}
    elsewhere = {**config, "device": "cuda:1", "modules": ["/srv/b/algo.py"], "train": {"params": {"torch_threads": 8}}, "new_key": None}
    assert cells.config_key(config) == cells.config_key(elsewhere)
    assert cells.config_key(config) != cells.config_key({**config, "device": "cpu"})
    # sha256 of {"device": "cuda", "modules": ["algo.py"], "seed": 0, "train": {"params": {}}}
    assert cells.config_key(config) == "159bda965d"


def test_where_a_cell_lies_and_what_it_asks_of_train(tmp_path):
    first, second = plan(tmp_path, "num_envs=4", "wandb=offline", algos=["big", "PPO"], seeds=[7], frames=500,
                         variants={"big": {"train": "PPO", "overrides": ["train.params.network.mlp.units=[256]"]}})  # fmt: skip
    assert first.path == tmp_path / "runs" / "tiny" / "TorchPendulum" / "big" / f"seed7-{first.key}"
    assert first.config["train"]["params"]["network"]["mlp"]["units"] == [256]
    assert (first.config["seed"], first.config["max_frames"], first.config["num_envs"]) == (7, 500, 4)
    assert second.overrides == ("task=TorchPendulum", "train=PPO", "num_envs=4", "max_frames=500", "seed=7")
    assert cells.resolve([*second.overrides, *second.passing], "it")["seed"] == 7
    resolved = cells.resolve([*first.overrides, *first.passing], "it")
    identity = {key: resolved[f"wandb_{key}"] for key in ("group", "job_type", "tags")}
    assert identity == {"group": "tiny/TorchPendulum/big", "job_type": "train", "tags": ["tiny", "TorchPendulum", "big", "seed7"]}
    assert resolved["wandb"] == "offline"


def test_the_first_seed_of_all_comes_first(tmp_path):
    order = [(cell.seed, cell.algo) for cell in plan(tmp_path, algos=["RPO", "PPO"], seeds=[3, 1])]
    assert order == [(3, "RPO"), (3, "PPO"), (1, "RPO"), (1, "PPO")]


# ---- states -----------------------------------------------------------------------------------------------------------------

PROTOCOL = {"games_num": 2, "seed": 1_000_000}
BOTH = {"deterministic": {}, "sampled": {}}


def make(folder, *, result=None, played=None, errors=(), checkpoints=("last.pth", "best.pth")):
    (folder / "nn").mkdir(parents=True, exist_ok=True)
    for file in checkpoints:
        (folder / "nn" / file).touch()
    (folder / "cell.json").write_text(json.dumps({"errors": list(errors), "attempts": 1 + len(errors)}))
    if result:
        (folder / "result.json").write_text(json.dumps({"exit_reason": result}))
    if played:
        (folder / "eval.json").write_text(json.dumps({"protocol": PROTOCOL, "seconds": 2.0, "checkpoints": played}))


@pytest.mark.parametrize(
    ("made", "state"),
    [
        (None, "left"),
        ({"checkpoints": ()}, "left"),
        ({}, "interrupted"),
        ({"result": "interrupted"}, "interrupted"),
        ({"result": "max_frames"}, "interrupted"),  # not evaluated
        ({"result": "max_frames", "played": {"final": BOTH}}, "interrupted"),  # best.pth was not played
        ({"result": "max_frames", "played": {"final": BOTH, "best": {"sampled": {}}}}, "interrupted"),
        ({"result": "max_frames", "played": {"final": BOTH, "best": BOTH}}, "done"),
        ({"result": "should_stop", "played": {"final": BOTH}, "checkpoints": ("last.pth",)}, "done"),
        ({"result": "failed", "errors": ["a", "b"]}, "interrupted"),
        ({"result": "failed", "errors": ["a", "b", "c"]}, "failed"),
        ({"result": "failed", "errors": ["a", "b", "c"], "checkpoints": ()}, "failed"),
    ],
)
def test_states(made, state, tmp_path):
    if made is not None:
        make(tmp_path / "cell", **made)
    assert progress.look(tmp_path / "cell", PROTOCOL, retries=2).state == state


def test_another_protocol_asks_for_another_evaluation(tmp_path):
    make(tmp_path, result="max_frames", played={"final": BOTH, "best": BOTH})
    assert progress.look(tmp_path, {**PROTOCOL, "games_num": 3}, 2).state == "interrupted"


def test_damaged_files_are_no_results(tmp_path):
    make(tmp_path, result="max_frames", played={"final": BOTH, "best": BOTH})
    for name in ("eval.json", "result.json", "cell.json"):
        (tmp_path / name).write_text('{"half')
    assert progress.look(tmp_path, PROTOCOL, 2).state == "interrupted"


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert progress.last_epoch(file) is None
    file.write_text('{"frames": 1}\n{"frames": 2, "return_mean": 3.5, "seconds": 4.0}\n{"frames": 3')
    assert progress.last_epoch(file) == {"frames": 2, "return_mean": 3.5, "seconds": 4.0}
    seen = progress.look(tmp_path, PROTOCOL, 2)
    assert (seen.frames, seen.return_mean, seen.seconds) == (2, 3.5, 4.0)
    file.write_text('{"fra')
    assert progress.last_epoch(file) is None
    file.write_text("".join(json.dumps({"frames": n, "fill": "x" * 1000}) + "\n" for n in range(200)))
    assert progress.last_epoch(file)["frames"] == 199


# ---- claims -----------------------------------------------------------------------------------------------------------------


def test_a_claim_holds_while_its_process_lives(tmp_path):
    code = f"from pathlib import Path; from experiments import claims; print(claims.take(Path({str(tmp_path)!r})), flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=suite.worker.ROOT)
    assert other.stdout.readline() == "None\n"
    assert claims.take(tmp_path)["pid"] == other.pid
    assert progress.look(tmp_path, PROTOCOL, 2).state == "running"
    other.kill()
    deadline = time.monotonic() + 10  # still a zombie, which counts as dead
    while claims.holder(tmp_path) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert claims.take(tmp_path) is None
    assert claims.holder(tmp_path)["pid"] == os.getpid()
    other.communicate()
    claims.drop(tmp_path)
    assert claims.holder(tmp_path) is None


def test_a_process_with_a_dead_ones_number_has_no_claim(tmp_path):
    started = psutil.Process().create_time()
    host = claims.socket.gethostname()
    (tmp_path / "claim.json").write_text(json.dumps({"host": host, "pid": os.getpid(), "started": started}))
    assert claims.holder(tmp_path) is not None
    (tmp_path / "claim.json").write_text(json.dumps({"host": host, "pid": os.getpid(), "started": started - 1000}))
    assert claims.holder(tmp_path) is None


def test_a_claim_of_another_host_grows_stale(tmp_path):
    file = tmp_path / "claim.json"
    file.write_text(json.dumps({"host": "another", "pid": 1, "started": 0.0}))
    assert claims.holder(tmp_path)["host"] == "another"
    old = time.time() - 2 * claims.STALE_SECONDS
    os.utime(file, (old, old))
    assert claims.holder(tmp_path) is None
    claims.keep(tmp_path)
    assert claims.holder(tmp_path) is not None


# ---- command line -----------------------------------------------------------------------------------------------------------


def test_words():
    options, overrides, flags = parse(
        ["suite=smoke", "algos=[PPO,RPO]", "seeds=3,7", "cpus_per_run=0.5", "frames=1e6", "num_envs=8", "train.params.config.gamma=0.9", "--status"],
        suite.Options,
        suite.FLAGS,
    )  # fmt: skip
    assert (options.algos, options.seed_list, options.cpus_per_run, options.frames) == (["PPO", "RPO"], [3, 7], 0.5, 1_000_000)
    assert (overrides, flags) == (["num_envs=8", "train.params.config.gamma=0.9"], {"--status"})
    options, _, _ = parse(["suite=a", "algos=RPO", "seeds=3", "--config-dir", "x"], suite.Options, suite.FLAGS)
    assert (options.algos, options.seed_list, options.config_dir) == (["RPO"], [0, 1, 2], "x")
    assert parse(["suite=a", "seeds=[4]"], suite.Options)[0].seed_list == [4]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["algos=PPO"], "suite= is missing"),
        (["suite=a", "seds=3"], "unknown key 'seds' at seds=3. Did you mean 'seeds'"),
        (["suite=a", "seeds=0"], "seeds is '0'"),
        (["suite=a", "seeds=[-1]"], "seeds is"),
        (["suite=a", "algos=[]"], "algos is"),
        (["suite=a", "retries=-1"], "retries is '-1', but should be greater"),
        (["suite=a", "cpus_per_run=0"], "cpus_per_run is '0'"),
        (["suite=a", "cpus_per_run=many"], "cpus_per_run is 'many'"),
        (["suite=a", "--statu"], "unknown option '--statu'. Did you mean '--status'"),
        (["suite=a", "status"], "neither an option nor key=value"),
    ],
)
def test_mistakes_in_words(words, told):
    with pytest.raises(UserError, match=re.escape(told)):
        parse(words, suite.Options, suite.FLAGS)


# ---- what is shown ----------------------------------------------------------------------------------------------------------


def rows(tmp_path):
    done = Progress("done", 1000, -150.0, 100.0, 20.0)
    states = [
        done,
        Progress("running", 500, -300.0, 123.0, 5.0),
        Progress("failed", errors=("x", "Traceback\nValueError: on purpose")),
        Progress("left"),
    ]
    return list(zip(plan(tmp_path, seeds=range(4)), states, strict=True))  # fmt: skip


def test_time_left_from_what_was_measured(tmp_path):
    all_rows = rows(tmp_path)
    pace = Pace(all_rows)
    assert [pace.left(*row) for row in all_rows] == [0.0, 10.0, 0.0, 20.0]  # the finished run took 20 ms a frame
    assert pace.total(all_rows, 1) == 30.0
    assert pace.total(all_rows, 2) == 20.0  # not less than the longest run
    assert Pace(all_rows[1:]).left(*all_rows[3]) == 10.0  # 5 s for 500 frames, of a run that goes on
    assert Pace(all_rows[2:]).total(all_rows, 2) is None
    other = plan(tmp_path, tasks={"TorchCartPole": {"frames": 100}})[0]
    assert pace.left(other, Progress("left")) == 2.0  # another task: as any


def test_status_names_what_runs_and_why_something_failed(tmp_path):
    shown = text(board.status(rows(tmp_path), 2))
    assert re.search(r"TorchPendulum +PPO +1 +1 +- +1 +1 +0:00:30", shown)
    assert "running:  TorchPendulum PPO seed 1  500/1.00k frames  return -300.0  123 fps  left 0:00:10" in shown
    assert "failed 2 times: TorchPendulum PPO seed 2: ValueError: on purpose" in shown
    assert "1 done, 1 running, 1 failed, 1 left; about 0:00:20 to go with 2 at a time" in shown


def test_the_live_table_fits_and_shows_running_ones_first(tmp_path):
    shown = text(board.view(rows(tmp_path), 2, height=7)).splitlines()
    assert shown[0].split() == ["task", "algo", "seed", "state", "frames", "return", "fps", "time", "left"]
    assert shown[1].split() == ["TorchPendulum", "PPO", "1", "running", "500/1.00k", "-300.0", "123", "0:00:10"]
    assert "ValueError: on purpose" in shown[2]
    assert shown[3].split()[3] == "done"
    assert shown[4].endswith("(1 more rows)")
    assert len(shown) <= 6


def test_plain_lines_tell_changes_once(tmp_path):
    planned = plan(tmp_path)
    console = Console(width=200, record=True, file=io.StringIO())
    with board.Board(planned, 2, console) as shown:
        shown.show(1)
        make(planned[0].path, result="failed", errors=["ValueError: x"] * 3)
        shown.show(1)
        shown.show(1)
    assert console.export_text().splitlines() == ["TorchPendulum PPO seed 0  failed  ValueError: x"]


def test_the_command_tells_mistakes_and_status(tmp_path, capsys):
    path = write(tmp_path)
    assert suite.main([f"suite={path}", "--status", f"runs_dir={tmp_path}/runs", "seeds=3"]) == 0
    assert "3 left; time left: not known before a first run" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not a directory"):
        suite.main([f"suite={path}", "--config-dir", "/nowhere"])
    assert suite.main(["--help"]) == 0
    assert "--retry-failed" in capsys.readouterr().out


def test_the_command_takes_some_of_the_tasks(tmp_path, capsys):
    tasks = {"TorchPendulum": {"frames": 1000}, "TorchCartPole": {"frames": 1000}, "short": {"task": "TorchPendulum", "frames": 500}}
    path = write(tmp_path, tasks=tasks)
    words = [f"suite={path}", "--status", f"runs_dir={tmp_path}/runs", "seeds=1"]
    assert suite.main(words) == 0
    assert "3 left" in capsys.readouterr().out
    assert suite.main([*words, "tasks=[short,TorchCartPole]"]) == 0
    shown = capsys.readouterr().out
    assert "2 left" in shown
    assert shown.index("TorchCartPole") < shown.index("short")  # the suite's order
    assert "TorchPendulum" not in shown
    with pytest.raises(UserError, match=r"unknown task 'Short' at tasks=.*Did you mean 'short'"):
        suite.main([*words, "tasks=Short"])
