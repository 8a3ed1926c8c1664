"""Properties of every registered algorithm, network and action kind: what is added to a shelf is tested without an edit here."""

from __future__ import annotations

import pytest

from core import checkpoint, registry
from core.config import CONFIG_DIR
from core.errors import UserError
from core.run_dir import read_metrics
from tests.command import SMALL, command, resolve
from tests.experts import demonstrations, teacher

registry.discover()

TASK_OF = {
    "continuous": ("task=TorchPendulum",),
    "discrete": ("task=TorchCartPole",),
    "multi_discrete": ("task=gymnasium", "task.id=MultiChoice-v0"),
}
BY_NAME = sorted(name for name in registry.algos if registry.algos.get(name).cls.__module__.startswith("algos."))
ALIASES = ("a2c_continuous", "a2c_discrete")  # rl_games' names of PPO


def by_name(names, fast=lambda name: name not in ALIASES):
    """Cases by algorithm; those that are told by others too are for `make test-long`."""
    return [pytest.param(name, marks=() if fast(name) else pytest.mark.long) for name in names]


CASES = [
    pytest.param(name, kind, marks=pytest.mark.long if name in ALIASES else ())
    for name in BY_NAME
    for kind in registry.algos.get(name).actions
]
EXTRA = {"sac": (f"file={CONFIG_DIR.parent}/tests/data/sac.yaml", "train.params.config.num_warmup_steps=8")}
NEEDS = {  # what it cannot do without, by task
    **dict.fromkeys(("amp", "gail"), lambda *task: (f"train.params.config.demos={demonstrations(*task)}",)),
    "dapg": lambda *task: (f"train.params.config.demos={demonstrations(*task)}",),
    "dagger": lambda *task: (f"train.params.config.teacher={teacher(*task)}",),
}
FITTING_SIZE = {"sac": ("num_envs=4",)}


@pytest.fixture(autouse=True)
def multi_choice():
    import gymnasium as gym

    if "MultiChoice-v0" not in gym.registry:
        gym.register("MultiChoice-v0", entry_point="tests.task_envs:MultiChoice", max_episode_steps=20)
        gym.register("Picture-v0", entry_point="tests.task_envs:Picture", max_episode_steps=20)


def arguments(name, kind, tmp_path, run="run"):
    size = FITTING_SIZE.get(name, SMALL)
    train = EXTRA.get(name, (f"train.params.algo.name={name}",))
    needed = NEEDS.get(name, lambda *task: ())(*TASK_OF[kind])
    return [*TASK_OF[kind], *size, *train, *needed, f"run_dir={tmp_path}/{run}"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_trains_saves_resumes_and_plays(name, kind, tmp_path):
    result = command(*arguments(name, kind, tmp_path), "max_epochs=4")
    assert result["exit_reason"] == "max_epochs"
    assert result["algo"] == name
    for file in ("config.yaml", "run.json", "metrics.jsonl", "result.json", "learning_curve.png", "nn/last.pth"):
        assert (tmp_path / "run" / file).stat().st_size, file
    assert command(f"resume={tmp_path}/run", "max_epochs=5")["epochs"] == 5
    for counter in ("epoch", "frames", "seconds", "episodes"):  # which a resume does not begin anew
        counted = [line[counter] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
        assert counted == sorted(counted), counter
    played = command("test=True", f"checkpoint={result['checkpoint']}", "player.games_num=3", "player.num_envs=2")
    assert played["episodes"] == 3
    assert len(played["per_episode"]) == 3
    assert (tmp_path / "run" / "eval.json").exists()


@pytest.mark.parametrize("name", by_name(BY_NAME))
def test_deterministic_evaluation_repeats(name, tmp_path):
    kind = registry.algos.get(name).actions[0]
    result = command(*arguments(name, kind, tmp_path), "max_epochs=2")
    ask = ["test=True", f"checkpoint={result['checkpoint']}", "player.games_num=2"]
    first, second = command(*ask), command(*ask)
    assert first["per_episode"] == second["per_episode"]
    other = command(*ask, "player.seed=5")
    assert first["per_episode"] != other["per_episode"] or first["return"]["std"] == 0


@pytest.mark.parametrize("name", BY_NAME)
def test_an_action_space_that_it_cannot_handle_is_refused_before_training(name, tmp_path):
    able = registry.algos.get(name).actions
    for kind in set(TASK_OF) - set(able):
        with pytest.raises(UserError, match=f"'{name}' needs .* actions"):
            command(*arguments(name, kind, tmp_path), "max_epochs=1")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [n for n in BY_NAME if n != "sac"])
def test_a_misspelt_key_is_refused_with_the_nearest(name, tmp_path):
    kind = registry.algos.get(name).actions[0]
    with pytest.raises(UserError, match=r"train\.params\.config\.learning_rat.*learning_rate"):
        resolve(*arguments(name, kind, tmp_path), "train.params.config.learning_rat=0.1")


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "train").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_train_config_composes_and_its_algorithm_is_there(path):
    cfg = resolve(f"train={path.stem}", "task=TorchPendulum")
    assert cfg["train"]["params"]["algo"]["name"] in registry.algos
    assert cfg["train"].get("name", path.stem) == path.stem


@pytest.mark.parametrize("name", [n for n in registry.networks if registry.networks.get(n).__module__.startswith("networks.")])
@pytest.mark.parametrize("kind", TASK_OF)
def test_every_network_trains_on_every_action_kind(name, kind, tmp_path):
    """On pictures where it says that it reads nothing else."""
    words = [*SMALL, f"train.params.network.name={name}", f"run_dir={tmp_path}/run", "max_epochs=2"]
    picture = ("task=gymnasium", "task.id=Picture-v0", f"+task.options.actions={kind}")
    try:
        command(*TASK_OF[kind], *words)
    except UserError as error:
        if "reads pictures" not in str(error):
            raise
        command(*picture, *words)
    weights = checkpoint.load(tmp_path / "run" / "nn" / "last.pth")["model"]
    assert all(w.isfinite().all() for w in weights.values())


@pytest.mark.parametrize("name", [n for n in registry.networks if registry.networks.get(n).__module__.startswith("networks.")])
@pytest.mark.parametrize("key", ["unitz", "mlp.unitz", "space.continuous.mu_inti"])
def test_a_misspelt_network_key_is_refused(name, key):
    with pytest.raises(UserError, match=rf"train\.params\.network\.{key}"):
        resolve("task=TorchPendulum", f"train.params.network.name={name}", f"train.params.network.{key}=1")
