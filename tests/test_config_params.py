"""From an effective config to rl_games' params: shorthands, devices, batch arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core import config
from core.errors import UserError
from tests.config_setup import STOCK, effective, names, params  # noqa: F401  (a fixture, used by name)

pytestmark = pytest.mark.usefixtures("names")


def test_our_ppo() -> None:
    made = params("task=Pendulum", "seed=7")
    assert made["seed"] == 7
    assert made["model"] == {"name": "auto"}
    assert made["config"]["name"] == "Pendulum_PPO"
    assert (made["config"]["env_name"], made["config"]["env_config"]) == ("Pendulum", {})
    config.check_batch(made)


@pytest.mark.parametrize(
    ("argv", "envs"),
    [
        ([], 3),
        (["train.params.config.num_actors=5"], 5),
        (["train.params.config.num_actors=5", "num_envs=6"], 6),
    ],
)
def test_num_envs_over_num_actors_over_the_task(argv: list[str], envs: int) -> None:
    assert params("task=BipedalWalker", "task.num_envs=3", *argv)["config"]["num_actors"] == envs


def test_no_number_of_environments() -> None:
    with pytest.raises(UserError, match="num_envs is missing"):
        params("task=BipedalWalker", "task.num_envs=null")


def test_limits() -> None:
    assert params("task=Pendulum")["config"]["max_frames"] == 1_000_000
    given = params("task=Pendulum", "max_frames=2_000", "max_epochs=3")["config"]
    assert (given["max_frames"], given["max_epochs"]) == (2000, 3)
    alias = params("task=Pendulum", "train.params.config.max_steps=3_000_000")["config"]
    assert alias["max_frames"] == 3_000_000
    assert "max_steps" not in alias  # rl_games 1.6.5 crashes on it


def test_a_stock_yaml_keeps_its_own_values() -> None:
    made = params("-f", str(STOCK / "mujoco" / "ant_envpool.yaml"))
    assert made["config"]["name"] == "Ant-v4_envpool"
    assert (made["config"]["env_name"], made["config"]["env_config"]["env_name"]) == ("envpool", "Ant-v4")
    assert made["model"] == {"name": "continuous_a2c_logstd"}
    assert made["config"]["learning_rate"] == pytest.approx(3e-4)


def test_a_default_of_the_algorithm_fills_what_rl_games_reads() -> None:
    cfg = effective("task=Pendulum", "train.params.algo.name=fake", "train.params.config.alpha=0.1", "~train.params.config.critic_coef")
    made = config.to_params(cfg)["config"]
    assert made["critic_coef"] == 1.5
    assert "sizes" not in made  # only what rl_games' own code reads from the dict


# ---- devices ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "asked", "in_train", "expected"),
    [
        (0, "auto", None, "cpu"),
        (0, "auto", "cuda", "cpu"),
        (2, "auto", None, "cuda:0"),
        (2, "auto", "cuda", "cuda:0"),
        (2, "auto", "cuda:1", "cuda:1"),
        (2, "auto", "cpu", "cpu"),
        (2, "cpu", "cuda:1", "cpu"),
        (2, "cuda", None, "cuda:0"),
        (2, "cuda:1", None, "cuda:1"),
        (0, "cuda", None, None),
        (2, "cuda:7", None, None),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, gpus: int, asked: str, in_train: str | None, expected: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected is None:
        with pytest.raises(UserError, match=f"device is '{asked}', but this machine has cpu"):
            config.resolve_device(asked, in_train)
    else:
        assert config.resolve_device(asked, in_train) == expected


# ---- batch arithmetic ---------------------------------------------------------------------------------------------------------


def batch(horizon: int, envs: int, network: dict[str, Any] | None = None, /, **part: Any) -> dict[str, Any]:
    return {"network": network or {}, "config": {"horizon_length": horizon, "num_actors": envs, **part}}


def refused(made: dict[str, Any], agents: int = 1) -> str:
    with pytest.raises(UserError) as error:
        config.check_batch(made, agents)
    return str(error.value)


def test_working_batches() -> None:
    config.check_batch(batch(16, 8, minibatch_size=64))
    config.check_batch(batch(16, 7, minibatch_size_per_env=4))  # 112 rows, minibatches of 28
    config.check_batch(batch(128, 8, minibatch_size=1536), num_agents=3)  # 3072 rows
    config.check_batch(batch(16, 8, minibatch_size=64, seq_length=5))  # sequences matter to memory only
    config.check_batch(batch(16, 8, {"rnn": {}}, minibatch_size=64, seq_length=8))
    config.check_batch({"network": {}, "config": {"batch_size": 256}})  # SAC has no rollout


def test_rows_that_do_not_divide() -> None:
    # divisors of 128 nearest to 100 by ratio: 128, 64, then 32, 16, 8, 4; 16 n is a multiple of 100 where n is one of 25
    assert refused(batch(16, 8, minibatch_size=100)) == (
        "train.params.config.minibatch_size: horizon_length 16 x num_actors 8 = 128 rows are not divisible by minibatch_size 100. "
        "Working values near it: 4, 8, 16, 32, 64, 128; or, with minibatch_size 100, num_envs: 25, 50, 75, 100, 125"
    )


def test_a_minibatch_larger_than_the_batch() -> None:
    assert "= 128 rows are not divisible by minibatch_size 256" in refused(batch(16, 8, minibatch_size=256))


def test_agents_count_as_rows() -> None:
    assert "horizon_length 4 x num_actors 2 x 3 agents = 24 rows are not divisible by minibatch_size 16" in refused(
        batch(4, 2, minibatch_size=16), agents=3
    )


def test_rows_per_environment() -> None:
    # 10 steps: 1, 2, 5 or 10 of them
    assert refused(batch(10, 3, minibatch_size_per_env=4)) == (
        "train.params.config.minibatch_size_per_env: horizon_length 10 x num_actors 3 = 30 rows are not divisible by "
        "minibatch_size_per_env 4 x num_actors 3 = 12. Working values near it: 1, 2, 5, 10"
    )


def test_sequences() -> None:
    memory = {"rnn": {"name": "lstm"}}
    assert refused(batch(16, 8, memory, minibatch_size=64, seq_length=5)) == (
        "train.params.config.seq_length: horizon_length 16 is not divisible by seq_length 5, and a recurrent network is trained on whole "
        "sequences. Working values near it: 1, 2, 4, 8, 16"
    )
    # 4 of 48 rows is half a sequence: multiples of 8 among the divisors of 48
    assert refused(batch(16, 3, memory, minibatch_size=4, seq_length=8)) == (
        "train.params.config.minibatch_size: minibatch_size 4 rows are not divisible by seq_length 8. Working values near it: 8, 16, 24, 48"
    )
    assert "seq_length 4" in refused(batch(6, 2, memory, minibatch_size=12))  # rl_games' default


def test_central_value() -> None:
    central = {"network": {}, "minibatch_size": 100}
    assert refused(batch(16, 8, minibatch_size=64, central_value_config=central), agents=2).startswith(
        "train.params.config.central_value_config.minibatch_size: horizon_length 16 x num_actors 8 = 128 rows are not divisible"
    )


@pytest.mark.parametrize("horizon", [1, 7, 60, 97])
@pytest.mark.parametrize("envs", [1, 6, 11])
@pytest.mark.parametrize("name", ["minibatch_size", "minibatch_size_per_env"])
def test_values_that_are_offered_work(horizon: int, envs: int, name: str) -> None:
    told = refused(batch(horizon, envs, **{name: 13}))
    offered, *other = told.split("near it: ")[1].split("; or, with minibatch_size 13, num_envs: ")
    for value in offered.split(", "):
        config.check_batch(batch(horizon, envs, **{name: int(value)}))
    for value in other[0].split(", ") if other else []:
        config.check_batch(batch(horizon, int(value), **{name: 13}))


def test_precision_is_a_shorthand_of_algorithms_that_have_it():
    assert "precision" not in params("task=Pendulum")["config"]
    with pytest.raises(UserError, match="precision is 'bf16', but algorithm 'ppo' has no such option"):  # the stand-in of these tests
        params("task=Pendulum", "precision=bf16")


def test_an_environment_of_rl_games_that_the_task_alone_names():
    made = params("task=from_train", "num_envs=4", "task.env_name=CartPole-v1", "task.env_config={a: 1}")
    assert (made["config"]["env_name"], made["config"]["env_config"]) == ("CartPole-v1", {"a": 1})
