"""Every mistake in a config is found, named by its path, and answered with what would be right."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from core import config, registry
from core.errors import UserError
from tests.config_setup import STOCK, FakeOptions, names  # noqa: F401  (a fixture, used by name)

pytestmark = pytest.mark.usefixtures("names")


@functools.cache
def composed() -> DictConfig:
    with hydra.initialize_config_dir(str(config.CONFIG_DIR), version_base="1.3"):
        return hydra.compose("config", overrides=["~tuned"])


def valid(**changes: Any) -> dict[str, Any]:
    """A valid config of the stand-in task, with values set at dotted paths."""
    cfg = composed().copy()
    cfg.task = {"name": "Fake", "kind": "fake", "id": "x"}
    result = config.effective(cfg, [])
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return result


def mistakes(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        config.check(valid(**changes))
    return str(error.value)


NET = "train.params.network"
CONFIG = "train.params.config"


# ---- unknown keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("num_env", "num_envs"),
        ("player.game_num", "player.games_num"),
        ("tain", "train"),
        ("task.gravty", "task.gravity"),
        ("train.parms", "train.params"),
        ("train.params.sed", "train.params.seed"),
        ("train.params.algo.nam", "train.params.algo.name"),
        ("train.params.model.nme", "train.params.model.name"),
        (f"{CONFIG}.learning_rat", f"{CONFIG}.learning_rate"),
        (f"{CONFIG}.bootstrap_frm", f"{CONFIG}.bootstrap_from"),
        (f"{CONFIG}.reward_shaper.scale", f"{CONFIG}.reward_shaper.scale_value"),
        (f"{CONFIG}.player.game_num", f"{CONFIG}.player.games_num"),
        (f"{CONFIG}.central_value_config.mini_epoch", f"{CONFIG}.central_value_config.mini_epochs"),
        (f"{NET}.mpl", f"{NET}.mlp"),
        (f"{NET}.mlp.activatoin", f"{NET}.mlp.activation"),
        (f"{NET}.space.continuous.fixed_sigm", f"{NET}.space.continuous.fixed_sigma"),
        (f"{NET}.space.continuous.sigma_init.vall", f"{NET}.space.continuous.sigma_init.val"),
        # a valid key at the wrong place
        ("learning_rate", f"{CONFIG}.learning_rate"),
        ("train.params.gamma", f"{CONFIG}.gamma"),
        (f"{CONFIG}.units", f"{NET}.mlp.units"),
        (f"{CONFIG}.sperate", f"{NET}.separate"),
    ],
)
def test_misspelt_keys(wrong: str, right: str) -> None:
    assert f"unknown key '{wrong}'. Did you mean '{right}'?" in mistakes(**{wrong: 1})


def test_all_mistakes_are_told_at_once() -> None:
    told = mistakes(**{f"{CONFIG}.gama": 1, "num_env": 2, f"{CONFIG}.horizon_length": "abc"}).splitlines()
    assert told[0] == "3 mistakes in the config:"
    assert told[1:] == [  # in the order of the config
        f"  {CONFIG}.horizon_length is 'abc', but should be a valid integer, unable to parse string as an integer "
        "(steps per environment and epoch)",
        f"  unknown key '{CONFIG}.gama'. Did you mean '{CONFIG}.gamma'?",
        "  unknown key 'num_env'. Did you mean 'num_envs'?",
    ]


def test_a_key_that_resembles_nothing_gets_the_valid_ones() -> None:
    assert mistakes(**{f"{NET}.rnn": {"name": "lstm", "units": 8, "layers": 1, "qqq": 1}}).endswith(
        "Valid here: before_mlp, concat_input, concat_output, layer_norm, layers, name, units"
    )


def test_sac_and_ppo_do_not_share_their_keys() -> None:
    assert f"unknown key '{CONFIG}.batch_size'" in mistakes(**{f"{CONFIG}.batch_size": 1})
    assert f"unknown key '{CONFIG}.horizon_length'" in mistakes(**{"train.params.algo.name": "sac"})


# ---- wrong values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("num_envs", 0, "greater than or equal to 1"),
        ("seed", -1, "greater than or equal to 0"),
        ("max_frames", 1.5, "valid integer"),
        ("device", "gpu", "match pattern"),
        ("task.gravity", "heavy", "valid number"),
        ("task.num_envs", 0, "greater than or equal to 1"),
        ("player.games_num", True, "should be a number"),
        ("player", 3, "must be a section with deterministic, games_num, num_envs, seed"),
        (f"{CONFIG}.horizon_length", "abc", "valid integer"),
        (f"{CONFIG}.horizon_length", -16, "greater than or equal to 1"),
        (f"{CONFIG}.gamma", 1.5, "less than or equal to 1"),
        (f"{CONFIG}.learning_rate", float("nan"), "finite number"),
        (f"{CONFIG}.learning_rate", "3e-4x", "valid number"),
        (f"{CONFIG}.lr_schedule", "adaptiv", "Did you mean 'adaptive'?"),
        (f"{CONFIG}.bootstrap_from", "terminal", "Did you mean 'terminal_obs'?"),
        (f"{CONFIG}.normalize_input", "maybe", "valid boolean"),
        (f"{CONFIG}.clip_value", [], "valid boolean"),
        (f"{NET}.mlp.units", [64, 0], "greater than or equal to 1"),
        (f"{NET}.mlp.activation", "elo", "Did you mean 'elu'?"),
        (f"{NET}.mlp.initializer.name", "orthogonall", "Did you mean 'orthogonal'?"),
        (f"{NET}.cnn", {"type": "conv2d", "convs": 3, "activation": "elu", "initializer": {"name": "default"}}, "must be a list"),
        (f"{NET}.name", "rnd_curiosity", "rl_games 1.6.5 lists but has no code for"),
    ],
)
def test_wrong_values(path: str, value: Any, told: str) -> None:
    message = mistakes(**{path: value})
    assert path in message
    assert told in message


def test_what_must_be_given() -> None:
    cfg = valid()
    del cfg["train"]["params"]["config"]["tau"], cfg["train"]["params"]["config"]["minibatch_size_per_env"]
    del cfg["train"]["params"]["config"]["kl_threshold"], cfg["train"]["params"]["network"]["space"], cfg["task"]["id"]
    with pytest.raises(UserError) as error:
        config.check(cfg)
    told = str(error.value)
    for missing in (
        "task.id is missing",
        f"{NET}.space is missing",
        f"{CONFIG}.tau is missing (lambda of generalised advantage estimation)",
        f"{CONFIG}.kl_threshold is missing: lr_schedule is 'adaptive'",
        f"{CONFIG}: minibatch_size or minibatch_size_per_env is missing",
    ):
        assert missing in told
    assert "task.id must be given" in mistakes(**{"task.id": "???"})


def test_unknown_names() -> None:
    assert mistakes(**{"train.params.algo.name": "pp0"}).startswith(
        "unknown algorithm 'pp0' at train.params.algo.name. Did you mean 'ppo'?"
    )
    assert "unknown task kind 'fke' at task.kind. Did you mean 'fake'?" in mistakes(**{"task.kind": "fke"})
    assert "unknown observer 'nobody' at observers" in mistakes(observers=["nobody"])


def test_values_come_back_in_their_types() -> None:
    cfg = valid(**{"max_frames": 1e6, f"{CONFIG}.learning_rate": "3e-4", "modules": "a.b", f"{NET}.space.continuous.mu_activation": None})
    checked = config.check(cfg)
    assert isinstance(checked["max_frames"], int)
    assert checked["train"]["params"]["config"]["learning_rate"] == 3e-4
    assert checked["modules"] == ["a.b"]
    assert checked["train"]["params"]["network"]["space"]["continuous"]["mu_activation"] == "None"
    assert cfg["train"]["params"]["config"]["learning_rate"] == "3e-4"  # the argument is left alone


# ---- what registered classes bring --------------------------------------------------------------------------------------------


def test_algo_options() -> None:
    entry = registry.algos.get("fake")
    assert config.algo_options(entry, {"alpha": "0.25", "gamma": 0.9}) == FakeOptions(alpha=0.25)
    with pytest.raises(UserError, match=r"train.params.config.alpha is 'x', but should be a valid number"):
        config.algo_options(entry, {"alpha": "x"})
    with pytest.raises(UserError, match=r"train.params.config: alpha must be >= 0, is -1.0"):
        config.algo_options(entry, {"alpha": -1})
    with pytest.raises(UserError, match=r"train.params.config.sizes is 3, but should be a valid list"):
        config.algo_options(entry, {"sizes": 3})
    assert config.algo_options(dataclasses.replace(entry, config=None), {"gamma": 1}) is None


def test_an_algorithms_keys_are_checked_like_all_others() -> None:
    told = mistakes(**{"train.params.algo.name": "fake", f"{CONFIG}.alpa": 1, f"{CONFIG}.sizes": 3})
    assert f"unknown key '{CONFIG}.alpa'. Did you mean '{CONFIG}.alpha'?" in told
    assert f"{CONFIG}.sizes is 3" in told


@dataclasses.dataclass
class NetConfig:
    heads: int
    depth: int = 2


def test_a_registered_network_may_declare_its_keys() -> None:
    registry.register_network("declared")(type("Declared", (), {"Config": NetConfig}))
    registry.register_network("listed")(type("Listed", (), {"schema": {"heads": int}}))
    registry.register_network("free")(type("Free", (), {}))
    cfg = valid()
    for name in ("declared", "listed", "free"):
        cfg["train"]["params"]["network"] = {"name": name, "heads": 4}
        config.check(cfg)
    cfg["train"]["params"]["network"] = {"name": "free", "anything": 1}
    config.check(cfg)
    cfg["train"]["params"]["network"] = {"name": "declared", "dept": "x"}
    with pytest.raises(UserError) as error:
        config.check(cfg)
    assert f"unknown key '{NET}.dept'. Did you mean '{NET}.depth'?" in str(error.value)
    assert f"{NET}.heads is missing" in str(error.value)
    cfg["train"]["params"]["network"] = {"name": "listed", "heads": "x"}
    with pytest.raises(UserError, match=f"{NET}.heads is 'x', but should be a valid integer"):
        config.check(cfg)


def test_a_task_kind_that_takes_any_keyword_is_not_checked() -> None:
    def make_free(num_envs: int, **options: Any) -> None:
        pass

    registry.register_task("free")(make_free)
    config.check(valid(task={"name": "Free", "kind": "free", "anything": 1}))


# ---- rl_games' own YAMLs ----------------------------------------------------------------------------------------------------

CANNOT_RUN = {
    # rl_games 1.6.5 crashes on this one too: it has no such initializer
    "ppo_continuous_lstm.yaml": "mu_init.name is 'normc_initializer'",
}


def stock_files() -> list[Path]:
    return sorted(STOCK.rglob("*.yaml"))


def test_the_wheel_holds_the_files_that_this_was_written_for() -> None:
    assert len(stock_files()) == 157


@pytest.mark.parametrize("path", stock_files(), ids=lambda p: str(p.relative_to(STOCK)))
def test_stock_yaml(path: Path) -> None:
    cfg = composed().copy()
    cfg.file = str(path)

    def load(*overrides: str) -> dict[str, Any]:
        return config.effective(cfg, [f"++file={path}", *overrides])

    if path.parent.name == "env_configs":  # StarCraft maps: not for the runner
        with pytest.raises(UserError, match="is no rl_games config"):
            load()
        return
    loaded = load()
    name = str(path.relative_to(STOCK))
    if name in CANNOT_RUN:
        with pytest.raises(UserError, match=CANNOT_RUN[name]):
            config.check(loaded)
        return
    config.check(loaded)
    stock = loaded["train"]["params"]
    params = config.to_params(loaded)
    assert params["algo"] == stock["algo"]
    assert params["config"]["num_actors"] == stock["config"]["num_actors"]
    assert params["config"]["env_name"] == loaded["task"]["env_name"] == stock["config"]["env_name"]
    rates = [value for key, value in params["config"].items() if key == "learning_rate" or key.endswith("_lr")]
    assert rates
    assert all(isinstance(rate, float) for rate in rates)


def test_keys_without_effect_are_told() -> None:
    cfg = composed().copy()
    cfg.file = str(STOCK / "atari" / "ppo_pacman_torch_rnn.yaml")
    told = config.unread(config.effective(cfg, []))
    assert f"{CONFIG}.seq_len: seq_length is the key" in told
    assert not any(f"{CONFIG}.gamma" in line for line in told)


def test_an_older_name_becomes_the_one_that_rl_games_reads() -> None:
    cfg = composed().copy()
    cfg.file = str(STOCK / "ppo_pendulum.yaml")
    space = config.to_params(config.effective(cfg, []))["network"]["space"]
    assert space["continuous"]["sigma_init"] == {"name": "const_initializer", "val": 0}
