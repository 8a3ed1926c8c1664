"""Search spaces: what is refused before anything starts, and what a trial is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from algos.agent import Agent
from core.config import CONFIG_DIR, check, check_batch, to_params
from core.errors import UserError
from experiments import child, pbt, space, tuned
from experiments.space import Knob
from tests.command import SMALL, command, resolve

RATE = "train.params.config.learning_rate"


@pytest.fixture(scope="module")
def cfg() -> dict[str, Any]:
    return resolve("task=CartPole", "train=PPO")


def load(tmp_path: Path, text: str, cfg: dict[str, Any]) -> list[Knob]:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return space.load(path, cfg)


def test_every_distribution(tmp_path, cfg):
    knobs = load(
        tmp_path,
        """
        train.params.config.learning_rate: {loguniform: [1e-5, 1e-2]}
        train.params.config.gamma: {uniform: [0.9, 1]}
        train.params.config.tau: {quniform: [0.9, 1.0, 0.05]}
        train.params.config.mini_epochs: {randint: [1, 5]}
        train.params.config.horizon_length: {lograndint: [8, 65]}
        train.params.network.mlp.units: {choice: [[64, 64], [32]]}
        train.params.config.lr_schedule: {choice: [linear, constant]}
        num_envs: {choice: [4, 8]}
        """,
        cfg,
    )
    ends = {knob.key.rpartition(".")[2]: knob.ends for knob in knobs}
    assert ends["learning_rate"] == (1e-5, 1e-2)  # which YAML reads as text
    assert ends["mini_epochs"] == (1, 4)  # the upper end is left out
    assert ends["horizon_length"] == (8, 64)
    for knob in knobs:
        drawn = [knob.domain().sample() for _ in range(20)]
        if knob.kind == "choice":
            assert set(drawn) <= set(knob.texts)
        else:
            assert all(knob.ends[0] <= value <= knob.ends[1] for value in drawn)


def test_a_trial_gets_what_train_py_understands():
    assert child.words({"a.b": True, "c": None, "d": 1e-05, "e": "linear"}) == ["a.b=true", "c=null", "d=1e-05", "e=linear"]
    units = Knob("train.params.network.mlp.units", "choice", ([64, 32], [8]))
    values = {units.key: units.texts[0], RATE: 1.25e-05, "train.params.config.clip_value": True}
    cfg = resolve("task=CartPole", "train=PPO", *child.words(values))
    assert cfg["train"]["params"]["network"]["mlp"]["units"] == [64, 32]
    assert cfg["train"]["params"]["config"]["learning_rate"] == 1.25e-05
    assert cfg["train"]["params"]["config"]["clip_value"] is True


def test_the_newest_value_of_a_metric_that_not_every_epoch_has(tmp_path):
    assert child.last_value(tmp_path, "eval/return_mean") is None
    lines = [{"epoch": 1, "eval/return_mean": 3}, {"epoch": 2, "eval/return_mean": None}, {"epoch": 3, "note": "eval/return_mean"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"epoch": 4, "eval/ret')  # a line that is being written
    assert child.last_value(tmp_path, "eval/return_mean") == 3
    assert child.last_metrics(tmp_path) == lines[-1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "train.params.config.learning_rat: {uniform: [0, 1]}",
            r"learning_rat: unknown key .*Did you mean 'train\.params\.config\.learning_rate'",
        ),
        ("gama: {uniform: [0, 1]}", r"unknown key 'gama'\. Did you mean 'train\.params\.config\.gamma'"),
        (f"{RATE}: {{loguniorm: [1e-5, 1e-2]}}", "unknown distribution 'loguniorm' .*Did you mean 'loguniform'"),
        (f"{RATE}: 1e-3", "must be one distribution in braces"),
        (f"{RATE}: {{uniform: [0, 1], choice: [1]}}", "must be one distribution in braces"),
        (f"{RATE}: {{uniform: 3}}", r"uniform takes \[low, high\], not 3"),
        (f"{RATE}: {{uniform: [1, 2, 3]}}", r"uniform takes \[low, high\]"),
        (f"{RATE}: {{uniform: [a, b]}}", r"uniform takes \[low, high\]"),
        (f"{RATE}: {{uniform: [1e-2, 1e-5]}}", "low >= high"),
        (f"{RATE}: {{uniform: [1, 1]}}", "low >= high"),
        (f"{RATE}: {{loguniform: [0, 1]}}", "has to begin above 0"),
        (f"{RATE}: {{quniform: [0, 1, 0.3]}}", "multiples of the step"),
        (f"{RATE}: {{choice: []}}", "nothing to choose from"),
        (f"{RATE}: {{choice: [{{a: 1}}]}}", "takes numbers, texts"),
        (f"{RATE}: {{uniform: [-1, 1]}}", "greater than or equal to 0"),
        ("train.params.config.gamma: {uniform: [0.9, 1.1]}", "less than or equal to 1"),
        ("train.params.config.mini_epochs: {uniform: [1, 4.5]}", "mini_epochs is 4.5"),
        ("train.params.config.mini_epochs: {randint: [1, 4.5]}", "whole numbers"),
        ("train.params.config.lr_schedule: {choice: [linear, lineaer]}", "lr_schedule is 'lineaer'"),
        ("train.params.config.seq_len: {choice: [4, 8]}", "has no effect: seq_length is the key"),
        ("seed: {randint: [0, 9]}", "given by the search itself"),
        ("{", "not valid YAML"),
        ("", "has no keys"),
    ],
)
def test_mistakes_name_the_key_and_what_would_work(text, told, tmp_path, cfg):
    with pytest.raises(UserError, match=told) as error:
        load(tmp_path, text, cfg)
    assert "space.yaml" in str(error.value)


def test_a_space_is_a_file_or_a_shipped_name(tmp_path):
    assert space.find("ppo") == CONFIG_DIR / "space" / "ppo.yaml"
    with pytest.raises(UserError, match=r"unknown space 'pp0'.*Did you mean 'ppo'"):
        space.find("pp0")
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(UserError, match=r"does not exist. Did you mean '.*/mine\.yaml'"):
        space.find(str(tmp_path / "mne.yaml"))


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "space").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_spaces_make_whole_batches(path, cfg):
    """For every combination of choices and ends that the batch depends on."""
    for task in ("Ant", "CartPole"):
        cfg = resolve(f"task={task}", "train=PPO")
        knobs = {knob.key: knob for knob in space.load(path, cfg)}
        horizons = getattr(knobs.get("train.params.config.horizon_length"), "ends", (64,))
        sizes = getattr(knobs.get("train.params.config.minibatch_size_per_env"), "ends", (16,))
        for horizon in horizons:
            for size in sizes:
                values = {"train.params.config.horizon_length": horizon, "train.params.config.minibatch_size_per_env": size}
                check_batch(to_params(check(space.with_values(cfg, values))))


# ---- populations ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name"),
    [(("task=Ant",), "ppo_pbt"), (("task=Ant", "~tuned"), "ppo_pbt_adaptive"), (("task=CartPole",), "ppo_pbt")],
)
def test_a_population_without_a_space_gets_the_one_that_fits(words, name):
    cfg = resolve(*words, "train=PPO")
    assert pbt.shipped_space(cfg) == name
    path = space.find(name)
    pbt.check_changeable(space.load(path, cfg), cfg, path)


@pytest.mark.parametrize(
    ("words", "key", "told"),
    [
        (
            (),
            "train.params.config.horizon_length",
            r"cannot change train\.params\.config\.horizon_length\. .*It can change: .*learning_rate",
        ),
        ((), "train.params.network.mlp.units", "It can change"),
        (("train.params.config.lr_schedule=adaptive",), RATE, "adaptive.*search that, or add train.params.config.lr_schedule=constant"),
        (("train.params.config.lr_schedule=linear",), "train.params.config.kl_threshold", "search learning_rate"),
        (("train.params.config.truncate_grads=false",), "train.params.config.grad_norm", "truncate_grads is not true"),
        (("task=Pendulum", "train=PPO"), "train.params.config.rpo_alpha", "cannot change train.params.config.rpo_alpha"),
    ],
)
def test_what_a_running_agent_cannot_change_is_refused(words, key, told):
    cfg = resolve("task=CartPole", "train=PPO", *words)
    with pytest.raises(UserError, match=told):
        pbt.check_changeable([Knob(key, "uniform", (0.1, 0.2))], cfg, Path("mine.yaml"))


def test_a_resumed_agent_takes_over_all_that_may_change(tmp_path, monkeypatch):
    seen = {}

    def look(agent):
        config = {"kl_threshold": agent.scheduler.kl_threshold, "learning_rate": agent.last_lr, "mini_epochs": agent.mini_epochs_num}
        seen.update({name: config.get(name, getattr(agent, name, None)) for name in pbt.CHANGEABLE}, rpo_alpha=agent.options.rpo_alpha)
        return agent.summary("max_epochs")

    words = ("task=TorchPendulum", "train=RPO", *SMALL, f"run_dir={tmp_path}/run", "max_epochs=1", "train.params.config.kl_threshold=1e9")
    command(*words, "train.params.config.learning_rate=1e-4", "train.params.config.mini_epochs=1")  # which adapts it once, to 1.5e-4
    monkeypatch.setattr(Agent, "train", look)
    values = {name: 0.125 + 0.01 * index for index, name in enumerate((*pbt.CHANGEABLE, "rpo_alpha"))}
    values |= {"mini_epochs": 7, "learning_rate": 2e-4}
    command(f"resume={tmp_path}/run", *(f"train.params.config.{name}={value}" for name, value in values.items()))
    assert seen == pytest.approx(values | {"learning_rate": 3e-4})


def test_an_algorithm_without_our_agent_is_refused():
    cfg = resolve("task=Pendulum", "--file", "tests/data/sac.yaml")
    with pytest.raises(UserError, match="algorithm 'sac' cannot take part"):
        pbt.check_changeable([Knob("train.params.config.gamma", "uniform", (0.9, 0.99))], cfg, Path("mine.yaml"))


def test_an_algorithms_own_knobs_may_change():
    cfg = resolve("task=Pendulum", "train=RPO", "train.params.config.lr_schedule=constant")
    knobs = [Knob(f"train.params.config.{name}", "uniform", (0.1, 0.2)) for name in ("rpo_alpha", "learning_rate")]
    pbt.check_changeable(knobs, cfg, Path("mine.yaml"))


def test_mutations_stay_within_the_space():
    knobs = [Knob("a", "uniform", (0.5, 1.0)), Knob("b", "randint", (1, 5)), Knob("c", "choice", (0.9, 0.99))]
    within = pbt.Within(knobs)
    assert within({"a": 1.2, "b": 5, "c": 0.99, "job": {}}) == {"a": 1.0, "b": 4, "c": 0.99, "job": {}}
    assert within({"a": 0.4, "b": 0, "c": 0.9})["a"] == 0.5


# ---- the tuned pair ---------------------------------------------------------------------------------------------------------


def test_a_tuned_pair_makes_the_run_that_it_was_taken_from(tmp_path):
    """Also where the best trial stood on another tuned pair, of which it changes a part."""
    run = resolve("task=HalfCheetah", "train=PPO", "num_envs=8", "max_frames=5_000", f"{RATE}=0.002", "train.params.network.mlp.units=[32]")
    plain = resolve("task=HalfCheetah", "train=PPO", "~tuned")
    path, counts = tuned.write(tmp_path / "tuned", "HalfCheetah-mine", run, plain, ["found by: x"], overwrite=False)
    assert counts
    assert path.read_text().startswith("# @package _global_\n# found by: x\n")
    assert "units: [32]" in path.read_text()
    again = resolve("--config-dir", str(tmp_path), "task=HalfCheetah", "train=PPO", "tuned=HalfCheetah-mine")
    params, wanted = to_params(again), to_params(run)
    assert params["config"] == wanted["config"]
    assert params["network"] == wanted["network"]


def test_a_tuned_pair_that_is_there_stays(tmp_path, cfg):
    (tmp_path / "CartPole-PPO.yaml").write_text("mine")
    run = space.with_values(cfg, {RATE: 0.5})
    path, counts = tuned.write(tmp_path, "CartPole-PPO", run, cfg, [], overwrite=False)
    assert (path.name, counts) == ("CartPole-PPO.yaml.new", False)
    assert (tmp_path / "CartPole-PPO.yaml").read_text() == "mine"
    assert "learning_rate: 0.5" in path.read_text()
    assert tuned.write(tmp_path, "CartPole-PPO", run, cfg, [], overwrite=True) == (tmp_path / "CartPole-PPO.yaml", True)
    assert "mine" not in (tmp_path / "CartPole-PPO.yaml").read_text()
