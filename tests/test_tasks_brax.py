"""Brax's environments behind the contract. For the packages: docs/tasks/simulators.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import UserError
from tasks.brax_task import make
from tests.command import SMALL, command

pytest.importorskip("brax")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # each environment is compiled for half a minute or more

PENDULUM = "inverted_pendulum"


def build(num_envs: int = 4, seed: int | None = 1, **options: Any) -> Any:
    return make(num_envs=num_envs, seed=seed, device="cpu", **{"id": PENDULUM, "backend": "generalized", **options})


@pytest.fixture(scope="module")
def short() -> Any:
    return build(max_episode_steps=3)


def test_time_outs_and_terminal_obs(short: Any) -> None:
    first = short.reset()
    assert first.shape == (4, 4)
    assert short.observation_space.shape == (4,)
    for _ in range(2):
        obs, rewards, dones, infos = short.step(torch.zeros(4, 1))
        assert not dones.any()
        assert torch.equal(obs, infos["terminal_obs"])
    obs, rewards, dones, infos = short.step(torch.zeros(4, 1))
    assert dones.all()
    assert infos["time_outs"].all()
    assert (obs != infos["terminal_obs"]).any(dim=1).all()
    assert (obs != first).any(dim=1).all()  # drawn anew
    assert (rewards.dtype, dones.dtype, obs.dtype) == (torch.float32, torch.bool, torch.float32)
    assert rewards.tolist() == [1.0] * 4
    assert not short.step(torch.zeros(4, 1))[2].any()


def test_it_is_compiled_once(short: Any) -> None:
    short.reset()
    for _ in range(5):
        short.step(torch.zeros(4, 1))
    assert short._step._cache_size() == short._begin._cache_size() == 1


def test_arrays_are_shared_and_not_sent(short: Any) -> None:
    short.reset()
    array = short._state.obs
    assert short._given(array).data_ptr() == array.unsafe_buffer_pointer()


def test_what_was_returned_stays_as_it_was(short: Any) -> None:
    short.reset()
    obs, rewards, dones, infos = short.step(torch.ones(4, 1))
    kept = [value.clone() for value in (obs, rewards, dones, infos["terminal_obs"])]
    short.step(torch.ones(4, 1))
    assert all(torch.equal(a, b) for a, b in zip(kept, (obs, rewards, dones, infos["terminal_obs"]), strict=True))


def test_same_seed_same_transitions(short: Any) -> None:
    """One compiled environment, begun from the keys of two seeds."""
    import jax

    def play(seed: int) -> list[torch.Tensor]:
        short._key = jax.random.PRNGKey(seed)
        return [short.reset(), *(short.step(torch.full((4, 1), 0.1))[0] for _ in range(7))]

    first, again, other = play(3), play(3), play(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()
    assert (first[0][0] != first[0][1]).any()


def test_falling_is_no_time_out_and_cached_resets_begin_where_they_began() -> None:
    """Pushed to one side, every pole falls over (0.2 rad) long before 1000 steps."""
    env = build(resets="cached")
    first, seen = env.reset(), torch.zeros(4, dtype=torch.bool)
    for _ in range(60):
        obs, _, dones, infos = env.step(torch.ones(4, 1))
        assert not infos["time_outs"].any()
        assert (infos["terminal_obs"][dones, 1].abs() > 0.2).all()
        assert torch.equal(obs[dones], first[dones])
        assert torch.equal(obs[~dones], infos["terminal_obs"][~dones])
        seen |= dones
    assert seen.all()


def test_the_steps_are_braxs() -> None:
    """Ours against brax's own jitted environment from the same key."""
    import jax
    from brax import envs

    env = build(seed=5)
    theirs = envs.create(PENDULUM, episode_length=1000, auto_reset=False, batch_size=4, backend="generalized")
    state = jax.jit(theirs.reset)(jax.random.split(jax.random.PRNGKey(5))[1])
    step = jax.jit(theirs.step)
    actions = np.linspace(-0.2, 0.2, 4, dtype=np.float32)[:, None]
    going = np.ones(4, bool)  # theirs does not begin anew
    for _ in range(5):
        state = step(state, actions)
        _, rewards, dones, infos = env.step(torch.from_numpy(actions))
        assert np.allclose(infos["terminal_obs"].numpy()[going], np.asarray(state.obs)[going], atol=1e-5)
        assert np.allclose(rewards.numpy()[going], np.asarray(state.reward)[going])
        assert (dones.numpy()[going] == np.asarray(state.done, bool)[going]).all()
        going &= ~dones.numpy()
    assert 0 < going.sum() < 4


def test_groups_become_obs_and_states() -> None:
    """brax's own test environment with Dict observations and a privileged state."""
    env = build(id="fast", backend=None, options={"obs_mode": "dict_state", "asymmetric_obs": True})
    obs = env.reset()
    assert set(obs) == {"obs", "states"}
    assert (env.observation_space.shape, env.state_space.shape) == ((2,), (4,))


def test_it_trains_and_plays(tmp_path: Path) -> None:
    own = ("task=brax", f"task.id={PENDULUM}", "task.backend=generalized", "task.max_episode_steps=10", "train=PPO", "seed=1", *SMALL)
    result = command(*own, "max_epochs=2", f"run_dir={tmp_path / 'run'}")
    assert result["frames"] == 2 * 4 * 16
    played = command(*own, "test=True", f"checkpoint={tmp_path / 'run' / 'nn' / 'last.pth'}", "player.games_num=2", "player.num_envs=2")
    assert played["length"]["mean"] <= 10.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "antt"}, r"unknown brax environment 'antt' at task\.id\. Did you mean 'ant'"),
        ({"backend": "mjxx"}, r"unknown backend 'mjxx' at task\.backend\. Did you mean 'mjx'"),
        ({"resets": "new"}, r"unknown choice 'new' at task\.resets"),
        ({"options": {"gravty": 1}}, r"task\.options: brax refuses .*gravty"),
        ({"render_mode": "rgb_array"}, "not filmed"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)


def test_a_device_that_jax_does_not_see() -> None:
    with pytest.raises(UserError, match=r"device 'cuda:7': JAX does not see it"):
        make(num_envs=2, seed=0, device="cuda:7", id="fast")
