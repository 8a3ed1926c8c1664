"""How a config comes about: defaults, tuned pairs, rl_games YAMLs, a run's own config with the command line on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import CONFIG_DIR, check
from core.errors import UserError
from tests.config_setup import STOCK, effective, names  # noqa: F401  (a fixture, used by name)

pytestmark = pytest.mark.usefixtures("names")


def test_defaults() -> None:
    cfg = effective("task=Pendulum")
    assert cfg["task"]["name"] == "Pendulum"
    assert cfg["train"]["name"] == "PPO"
    assert cfg["seed"] == 42
    assert cfg["wandb"] == "off"
    assert check(cfg) == cfg


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "task").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_task_composes_with_ppo(path: Path) -> None:
    if path.stem == "from_train":
        with pytest.raises(UserError, match=r"give task=NAME, with one of .*Pendulum"):
            effective("task=from_train")
    else:
        assert check(effective(f"task={path.stem}"))["task"]["name"] == path.stem


def test_without_a_task_the_tasks_are_listed() -> None:
    with pytest.raises(UserError, match=r"no task: give task=NAME, with one of Acrobot, .*Pendulum"):
        effective()


def test_wandb_and_modules_are_normalised(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.touch()
    cfg = effective("task=Pendulum", "wandb=false", f"modules={module}")
    assert (cfg["wandb"], cfg["modules"]) == ("off", [str(module)])
    assert effective("task=Pendulum", "modules=[a.b,c]")["modules"] == ["a.b", "c"]
    with pytest.raises(UserError, match=r"wandb is 'onlin', but should be .*Did you mean 'online'"):
        effective("task=Pendulum", "wandb=onlin")


# ---- tuned pairs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tuned(tmp_path: Path) -> str:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "BipedalWalker-PPO.yaml").write_text(
        "# @package _global_\nmax_frames: 5\ntask: {num_envs: 3}\ntrain: {params: {config: {gamma: 0.5, tau: 0.6}}}"
    )
    return f"--config-dir={tmp_path}"


def test_a_tuned_pair_outranks_defaults_and_yields_to_the_command_line(tuned: str) -> None:
    cfg = effective(tuned, "task=BipedalWalker", "train.params.config.tau=0.7")
    config = cfg["train"]["params"]["config"]
    assert (cfg["max_frames"], cfg["task"]["num_envs"], config["gamma"], config["tau"]) == (5, 3, 0.5, 0.7)
    assert effective(tuned, "task=TorchCartPole")["max_frames"] is None


@pytest.mark.parametrize(("group", "name"), [("tuned", "Hopper-PPO"), ("task", "Hopper"), ("train", "PPO")])
def test_a_file_that_a_shipped_one_would_shadow_is_refused(group: str, name: str, tmp_path: Path) -> None:
    (tmp_path / group).mkdir()
    own = tmp_path / group / f"{name}.yaml"
    own.write_text("# @package _global_\nmax_frames: 5")
    with pytest.raises(UserError, match=rf"--config-dir: '{own}' has the name of a shipped file.*{group}=NAME"):
        effective(f"--config-dir={tmp_path}", "task=Hopper", "train=PPO")
    assert effective(f"--config-dir={tmp_path}", "task=Swimmer", "train=RPO")["task"]["name"] == "Swimmer"  # not asked for
    own.rename(tmp_path / group / "Hopper-mine.yaml")
    if group == "tuned":
        assert effective(f"--config-dir={tmp_path}", "task=Hopper", "train=PPO", "tuned=Hopper-mine")["max_frames"] == 5


def test_a_tuned_pair_is_not_for_another_yaml(tuned: str) -> None:
    assert effective(tuned, "task=BipedalWalker", f"--file={STOCK / 'ppo_cartpole.yaml'}")["max_frames"] is None


# ---- rl_games YAMLs -----------------------------------------------------------------------------------------------------------


def test_a_file_brings_its_environment_seed_and_player(tmp_path: Path) -> None:
    path = STOCK / "mujoco" / "sac_ant_envpool.yaml"
    stock = yaml.safe_load(path.read_text())["params"]
    stock["config"]["player"]["games_num"] = 7
    path = tmp_path / "ant.yaml"
    path.write_text(yaml.safe_dump({"params": stock}))
    cfg = effective("--file", str(path))
    task = cfg["task"]
    assert (task["name"], task["kind"], task["env_name"]) == ("Ant-v4", "rl_games", "envpool")
    assert task["env_config"] == stock["config"]["env_config"]
    assert cfg["train"]["params"] == stock
    assert cfg["seed"] == stock["seed"] != 42
    assert cfg["player"]["games_num"] == 7
    assert cfg["file"] is None


def test_the_command_line_goes_before_a_file() -> None:
    path = STOCK / "mujoco" / "ant_envpool.yaml"
    argv = ["-f", str(path), "seed=1", "player.games_num=7", "train.params.config.gamma=0.5", "task.vecenv=sync"]
    cfg = effective(*argv)
    assert (cfg["seed"], cfg["player"]["games_num"], cfg["train"]["params"]["config"]["gamma"]) == (1, 7, 0.5)
    assert cfg["task"]["vecenv"] == "sync"


def test_a_task_goes_before_the_environment_of_a_file() -> None:
    cfg = effective("-f", str(STOCK / "mujoco" / "ant_envpool.yaml"), "task=Pendulum")
    assert cfg["task"]["name"] == "Pendulum"


def test_a_stock_yaml_in_the_train_group(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "ant.yaml").write_text((STOCK / "mujoco" / "ant_envpool.yaml").read_text())
    dropped_in = effective(f"--config-dir={tmp_path}", "train=ant")
    by_file = effective("-f", str(STOCK / "mujoco" / "ant_envpool.yaml"))
    assert dropped_in["task"] == by_file["task"]
    assert dropped_in["seed"] == by_file["seed"]
    assert check(dropped_in)["train"] == check(by_file)["train"]  # Hydra's YAML reads 3e-4 as a float, rl_games' as text


def test_files_that_are_not_configs(tmp_path: Path) -> None:
    good = tmp_path / "ppo_ant.yaml"
    good.write_text("params: {}")
    with pytest.raises(UserError, match=r"ppo_atn.yaml' does not exist. Did you mean '.*ppo_ant.yaml'"):
        effective(f"file={tmp_path / 'ppo_atn.yaml'}")
    good.write_text("parms: {config: {}}")
    with pytest.raises(UserError, match=r"no section 'params' at the top \(found: parms\)"):
        effective(f"file={good}")
    good.write_text("params: [")
    with pytest.raises(UserError, match="is not valid YAML"):
        effective(f"file={good}")


# ---- a run's own config -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory as the runner leaves it, trained with seed=3 num_envs=4 on CartPole."""
    directory = tmp_path / "CartPole_PPO_1"
    (directory / "nn").mkdir(parents=True)
    (directory / "nn" / "best.pth").touch()
    cfg = effective("task=CartPole", "seed=3", "num_envs=4", "player.games_num=5", "train.params.config.gamma=0.9", "video=true")
    (directory / "config.yaml").write_text(yaml.safe_dump(cfg))
    return directory


def test_evaluation_repeats_nothing(run: Path) -> None:
    cfg = effective("test=True", f"checkpoint={run / 'nn' / 'best.pth'}", "player.deterministic=false")
    assert cfg["task"]["name"] == "CartPole"
    assert (cfg["seed"], cfg["num_envs"], cfg["train"]["params"]["config"]["gamma"]) == (3, 4, 0.9)
    assert cfg["player"] == {"games_num": 5, "deterministic": False, "num_envs": None, "seed": None}
    assert (cfg["test"], cfg["video"]) == (True, False)  # video belongs to an invocation, not to the run


def test_resume_takes_overrides_on_top(run: Path) -> None:
    cfg = effective(f"resume={run}", "max_frames=9", "train.params.config.gamma=0.8", "++train.params.config.tau=0.1")
    config = cfg["train"]["params"]["config"]
    assert (cfg["resume"], cfg["seed"], cfg["max_frames"], config["gamma"], config["tau"]) == (str(run), 3, 9, 0.8, 0.1)


def test_the_long_form_of_a_saved_shorthand_counts(run: Path) -> None:
    cfg = effective(f"resume={run}", "train.params.config.num_actors=16", "train.params.seed=8")
    assert cfg["num_envs"] is None
    assert cfg["seed"] == 8


def test_an_explicit_group_replaces_its_section(run: Path) -> None:
    cfg = effective("test=True", f"checkpoint={run / 'nn' / 'best.pth'}", "task=Pendulum")
    assert cfg["task"]["name"] == "Pendulum"
    assert cfg["train"]["params"]["config"]["gamma"] == 0.9
    cfg = effective(f"resume={run}", "train=PPO")
    assert cfg["train"]["params"]["config"]["gamma"] == 0.99
    assert cfg["task"]["name"] == "CartPole"


def test_a_file_on_top_of_a_run_brings_its_environment(run: Path) -> None:
    cfg = effective("--play", "-c", str(run / "nn" / "best.pth"), "-f", str(STOCK / "mujoco" / "ant_envpool.yaml"))
    assert cfg["task"]["env_name"] == "envpool"
    assert cfg["train"]["params"]["config"]["env_config"]["env_name"] == "Ant-v4"


def test_starting_from_weights_uses_the_command_lines_config(run: Path) -> None:
    cfg = effective(f"checkpoint={run / 'nn' / 'best.pth'}", "task=Pendulum")
    assert (cfg["task"]["name"], cfg["seed"]) == ("Pendulum", 42)


def test_a_config_inside_the_checkpoint(tmp_path: Path) -> None:
    loose = tmp_path / "sent_by_mail.pth"
    loose.touch()
    inside = effective("task=CartPole", "seed=11")

    def read(path: Path) -> dict[str, Any] | None:
        return inside if path == loose else None

    cfg = effective("test=True", f"checkpoint={loose}", read_checkpoint_config=read)
    assert (cfg["task"]["name"], cfg["seed"], cfg["test"]) == ("CartPole", 11, True)
    assert inside["test"] is False  # the caller's copy is left alone


def test_a_stock_checkpoint_needs_its_yaml(tmp_path: Path) -> None:
    stock = tmp_path / "Ant.pth"
    stock.touch()
    with pytest.raises(UserError, match=r"carries no config .* file=\.\.\., or task="):
        effective("test=True", f"checkpoint={stock}", read_checkpoint_config=lambda path: None)
    cfg = effective("-p", "-c", str(stock), "-f", str(STOCK / "mujoco" / "ant_envpool.yaml"))
    assert cfg["task"]["env_name"] == "envpool"


def test_runs_and_checkpoints_that_are_not_there(run: Path) -> None:
    with pytest.raises(UserError, match=r"CartPole_PPO_2' does not exist. Did you mean '.*CartPole_PPO_1'"):
        effective(f"resume={run.parent / 'CartPole_PPO_2'}")
    with pytest.raises(UserError, match=r"has no config.yaml, so it is not a run directory"):
        effective(f"resume={run / 'nn'}")
    with pytest.raises(UserError, match=f"is a file; give the run's directory, e.g. resume={run}"):
        effective(f"resume={run / 'nn' / 'best.pth'}")
    for missing in ("nn/bets.pth", "bets.pth", "no/such/bets.pth"):
        with pytest.raises(UserError, match=r"bets.pth' does not exist. There are: .*best.pth"):
            effective("test=True", f"checkpoint={run / missing}")
    with pytest.raises(UserError, match=r"is a directory. There are: .*best.pth"):
        effective("test=True", f"checkpoint={run}")
    with pytest.raises(UserError, match="resume and test exclude each other"):
        effective("test=True", f"resume={run}")


def test_a_tuned_pair_cannot_be_laid_over_a_run(run: Path, tuned: str) -> None:
    with pytest.raises(UserError, match="tuned= has no meaning on top of a run's own config"):
        effective(tuned, f"resume={run}", "tuned=BipedalWalker-PPO")


def test_a_broken_saved_config(run: Path) -> None:
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml' cannot be read"):
        effective(f"resume={run}")
    (run / "config.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="is not a run's config: it has no task and train"):
        effective(f"resume={run}")


def test_the_minibatch_given_last_stays() -> None:
    config = effective("task=Pendulum", "train.params.config.minibatch_size=32")["train"]["params"]["config"]
    assert config["minibatch_size"] == 32
    assert "minibatch_size_per_env" not in config


def test_an_unresolvable_interpolation() -> None:
    with pytest.raises(UserError, match="runs_dirr"):
        effective("task=Pendulum", "run_dir=${runs_dirr}/x")
