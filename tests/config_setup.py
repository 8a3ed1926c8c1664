"""What the config tests share: registered names that no other test sees, and a config from a command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import hydra
import pytest
import rl_games
from hydra.core.global_hydra import GlobalHydra

from core import config, registry
from core.cli import translate

STOCK = Path(next(iter(rl_games.__path__))) / "configs"


@dataclasses.dataclass(kw_only=True)
class BaseOptions:
    shuffle: bool = True
    bootstrap_from: Literal["terminal_obs", "current_obs"] = "terminal_obs"


@dataclasses.dataclass(kw_only=True)
class FakeOptions(BaseOptions):
    alpha: float = 0.5
    critic_coef: float = 1.5  # rl_games' key, which this algorithm gives a default
    sizes: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ValueError(f"alpha must be >= 0, is {self.alpha}")


def make_fake(*, num_envs: int, seed: int | None, device: str, id: str, gravity: float = 9.8) -> None:
    """A task kind with one option that must be given."""


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped task kinds, and stand-ins for the algorithms."""
    registry.discover("tasks")
    for shelf in (registry.algos, registry.tasks, registry.networks, registry.observers):
        monkeypatch.setattr(shelf, "_entries", dict(shelf._entries))
    registry.algos._entries.clear()
    for name in ("ppo", "sac", "a2c_continuous", "a2c_discrete"):
        registry.register_algo(name, config=BaseOptions)(type(name, (), {}))
    registry.register_algo("fake", config=FakeOptions)(type("Fake", (), {}))
    registry.register_task("fake")(make_fake)


def effective(*argv: str, read_checkpoint_config: Any = None) -> dict[str, Any]:
    """`python train.py ARGV` up to the effective config."""
    args = translate(list(argv))
    extra = []
    if "--config-dir" in args:
        extra = [f"hydra.searchpath=['file://{Path(args[args.index('--config-dir') + 1]).resolve()}']"]
    overrides = [a for a in args if "=" in a or a.startswith("~")]
    with hydra.initialize_config_dir(str(config.CONFIG_DIR), version_base="1.3"):
        cfg = hydra.compose("config", overrides=overrides + extra)
        own = [o for o in overrides if not o.startswith(("hydra.", "hydra/"))]
        result = config.effective(cfg, own, read_checkpoint_config)
    assert not GlobalHydra.instance().is_initialized()
    return result


def params(*argv: str) -> dict[str, Any]:
    return config.to_params(effective(*argv))
