"""What docs/tasks/torch.md shows, run as it stands there: an environment of one's own, and learning by gradients of the simulator."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core import registry
from core.errors import UserError
from tasks.torch_task import ENVS, TorchVecEnv, make, register_torch_env
from tests.command import SMALL, command

PAGE = Path(__file__).parent.parent / "docs" / "tasks" / "torch.md"


def block(name: str) -> str:
    """The code block of the page that begins with `# name`, without its indentation."""
    lines = PAGE.read_text().splitlines()
    start = lines.index(f"    # {name}")
    end = next(i for i in range(start, len(lines)) if (lines[i] and not lines[i].startswith("    ")) or lines[i].startswith("    python "))
    return textwrap.dedent("\n".join(lines[start:end])) + "\n"


@pytest.fixture
def registered() -> Iterator[None]:
    """What a test registers is gone after it."""
    names = set(ENVS)
    yield
    for name in set(ENVS) - names:
        del ENVS[name]


@pytest.fixture
def module(tmp_path: Path, registered: None) -> Path:
    file = tmp_path / "my_env.py"
    file.write_text(block("my_env.py"))
    return file


def test_it_is_thirty_lines() -> None:
    assert len(block("my_env.py").strip().splitlines()) <= 40  # with its imports, comments and empty lines
    assert len([line for line in block("my_env.py").splitlines() if line.strip() and not line.startswith(("#", "import", "from"))]) <= 30


def test_the_pages_environment_trains_resumes_and_plays(module: Path, tmp_path: Path) -> None:
    words = [f"modules=[{module}]", "task=torch", "task.id=Dock", *SMALL, "train.params.config.minibatch_size_per_env=8", "device=cpu"]
    run = tmp_path / "run"
    command(*words, "task.options.drag=0.3", "max_epochs=2", f"run_dir={run}")
    resumed = command(f"resume={run}", "max_epochs=3")
    assert resumed["frames"] == 3 * 16 * 4
    played = command("test=True", f"checkpoint={run}/nn/last.pth", "player.games_num=4")
    assert played["episodes"] == 4
    assert -10.1 < played["return"]["mean"] <= 10.0


def test_the_pages_environment_keeps_the_contract(module: Path) -> None:
    registry.import_outside([str(module)])
    env: Any = make(num_envs=4, seed=0, device="cpu", id="Dock", max_episode_steps=3, options={"drag": 0.0})
    env.reset()
    env.state = torch.tensor([[0.5, 0.0], [0.1, 0.05], [0.1, 0.5], [0.25, -0.15]])
    obs, rewards, dones, infos = env.step(torch.tensor([2, 1, 1, 0]))
    assert torch.allclose(infos["terminal_obs"][0], torch.tensor([0.51, 0.1]))  # v = 0.1 * 1, x = 0.5 + 0.1 * 0.1
    assert rewards.tolist() == pytest.approx([-0.1, 10.0, -0.1, -0.1])
    assert dones.tolist() == [False, True, False, False]  # too fast; too fast
    assert not infos["time_outs"].any()
    assert not env.can_render
    assert not make(num_envs=1, seed=0, device="cpu", id="Dock", render_mode="rgb_array").can_render
    with pytest.raises(UserError, match=r"unknown option 'darg' at task.options of Dock. Did you mean 'drag'"):
        make(num_envs=4, seed=0, device="cpu", id="Dock", options={"darg": 0.0})
    with pytest.raises(UserError, match="Did you mean 'Dock'"):
        make(num_envs=4, seed=0, device="cpu", id="Dok")
    registry.import_outside([str(module)])  # once more: a reload


@pytest.mark.long
def test_ppo_learns_the_pages_environment(module: Path, tmp_path: Path) -> None:
    words = [f"modules=[{module}]", "task=torch", "task.id=Dock", "max_frames=200_000", "device=cpu", "train.params.torch_threads=1"]
    command(*words, f"run_dir={tmp_path}/run")
    played = command("test=True", f"checkpoint={tmp_path}/run/nn/last.pth", "player.games_num=50")
    assert played["return"]["mean"] > 5  # 10 less 0.1 per step; never docking is -10


def test_the_pages_gradient_descent_learns() -> None:
    def mean_return(policy: Any) -> float:
        env = make(num_envs=256, seed=1, device="cpu", id="PointMass")
        obs, total = env.reset(), torch.zeros(256)
        with torch.no_grad():
            for _ in range(100):
                obs, rewards, _, _ = env.step(policy(obs))
                total += rewards
        return float(total.mean())

    names: dict[str, Any] = {}
    exec(compile(block("first_order.py"), "first_order.py", "exec"), names)
    assert mean_return(lambda obs: torch.zeros(256, 2)) < -100
    assert mean_return(names["policy"]) > -20  # the best linear feedback has -13.7


# ---- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_taken_name_is_refused() -> None:
    class Mine(TorchVecEnv):
        state_size, time_limit = 1, 10
        observation_space = action_space = spaces.Box(-1, 1, (1,), np.float32)

        def _initial(self, uniform: Any) -> Any:
            return uniform

        def _advance(self, state: Any, actions: Any) -> Any:
            return state, state[:, 0], state[:, 0] > 2

        def _observe(self, state: Any) -> Any:
            return state

    with pytest.raises(UserError, match=r"torch environment name 'CartPole' is taken by tasks.torch_envs.cartpole.CartPole"):
        register_torch_env("CartPole")(Mine)


@pytest.mark.parametrize("wrong", ["state", "rewards", "terminated"])
def test_results_of_another_shape_are_named(wrong: str) -> None:
    """Rewards (N, 1) beside flags (N,) would become (N, N) without a word."""

    class Wide(TorchVecEnv):
        state_size, time_limit = 1, 10
        observation_space = action_space = spaces.Box(-1, 1, (1,), np.float32)

        def _initial(self, uniform: Any) -> Any:
            return uniform

        def _advance(self, state: Any, actions: Any) -> Any:
            result = {"state": state, "rewards": state[:, 0], "terminated": state[:, 0] > 2}
            return tuple(value.unsqueeze(1) if name == wrong else value for name, value in result.items())

        def _observe(self, state: Any) -> Any:
            return state

    env = Wide(4, 0, "cpu")
    env.reset()
    with pytest.raises(UserError, match=rf"Wide\._advance returned {wrong} of shape .*; wanted is \(4"):
        env.step(torch.zeros(4, 1))


def test_what_lacks_is_named() -> None:
    class Half(TorchVecEnv):
        def _initial(self, uniform: Any) -> Any:
            return uniform

    with pytest.raises(UserError, match="Half has no _advance, _observe, time_limit"):
        register_torch_env("Half")(Half)
    with pytest.raises(UserError, match="int is no TorchVecEnv"):
        register_torch_env("Half")(int)  # type: ignore[type-var]  # the mistake
    assert "Half" not in ENVS
