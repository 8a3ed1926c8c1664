"""`task.hidden_obs`: what the policy does not see, and who still does. `task.obs_key`: one part of EnvPool's Dict observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from core import registry
from core.build import make_env
from core.errors import UserError
from core.vecenv import VecEnv
from tests.task_envs import register


@pytest.fixture(autouse=True, scope="module")
def _shelves() -> None:
    registry.discover("tasks")


def task(kind: str, num_envs: int = 3, **options: Any) -> VecEnv:
    return make_env({"task": {"name": "t", "kind": kind, **options}}, num_envs, 5, "cpu")


@pytest.mark.parametrize(("kind", "id"), [("envpool", "CartPole-v1"), ("gymnasium", "CartPole-v1"), ("torch", "CartPole")])
def test_the_rest_is_seen_and_the_whole_is_offered_as_state(kind: str, id: str) -> None:
    plain, hidden = task(kind, id=id), task(kind, id=id, hidden_obs=[1, -1])
    assert hidden.observation_space.shape == (2,)
    assert hidden.get_env_info()["state_space"].shape == (4,)
    before, now = plain.reset(), hidden.reset()
    ended = 0
    for step in range(60):
        np.testing.assert_array_equal(now["obs"], before[:, [0, 2]])
        np.testing.assert_array_equal(now["states"], before)
        actions = np.full(3, step % 3 > 0)  # falls over to the right
        given = torch.as_tensor(actions).long() if plain.is_torch else actions.astype(int)
        before, rewards, dones, infos = plain.step(given)
        now, same_rewards, same_dones, same_infos = hidden.step(given)
        np.testing.assert_array_equal(rewards, same_rewards)
        np.testing.assert_array_equal(dones, same_dones)
        if "terminal_obs" in infos and dones.any():
            rows = np.flatnonzero(dones)
            np.testing.assert_array_equal(same_infos["terminal_obs"]["obs"][rows], infos["terminal_obs"][rows][:, [0, 2]])
            np.testing.assert_array_equal(same_infos["terminal_obs"]["states"][rows], infos["terminal_obs"][rows])
        ended += int(dones.sum())
    assert ended  # the comparison went over the ends of episodes
    plain.close(), hidden.close()


def test_a_state_can_be_saved_where_the_environment_can() -> None:
    hidden = task("torch", id="CartPole", hidden_obs=[1])
    assert hidden.can_save_state
    hidden.reset()
    kept = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in hidden.get_env_state().items()}
    first = hidden.step(torch.ones(3, dtype=torch.long))[0]["obs"].clone()
    hidden.set_env_state(kept)
    assert torch.equal(hidden.step(torch.ones(3, dtype=torch.long))[0]["obs"], first)
    hidden.close()


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ([4], "hidden_obs has 4: an observation here has 4 numbers, 0 to 3"),
        ([1, -3], "each index once"),  # -3 is 1
        ([0, 1, 2, 3], "something has to be left of 4 numbers"),
    ],
)
def test_bad_indices_are_refused(hidden: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task("envpool", id="CartPole-v1", hidden_obs=hidden)


def test_pictures_have_no_numbers_to_hide() -> None:
    with pytest.raises(UserError, match="needs one flat vector"):
        task("envpool", id="MiniGrid-Empty-5x5-v0", obs_key="image", flatten_obs=False, hidden_obs=[0])


def test_a_custom_environment_can_hide_too() -> None:
    env = task("gymnasium", id=register("Counter-v0", length=3), hidden_obs=[0])
    whole = task("gymnasium", id=register("Counter-v0", length=3))
    np.testing.assert_array_equal(env.reset()["obs"], whole.reset()[:, 1:])
    env.close(), whole.close()


# ---- obs_key ---------------------------------------------------------------------------------------------------------


def test_one_part_of_a_dict_flat_or_as_it_is() -> None:
    flat = task("envpool", id="MiniGrid-Empty-5x5-v0", obs_key="image")
    picture = task("envpool", id="MiniGrid-Empty-5x5-v0", obs_key="image", flatten_obs=False)
    assert flat.observation_space.shape == (147,)
    assert picture.observation_space.shape == (7, 7, 3)
    one, other = flat.reset(), picture.reset()
    assert other.shape == (3, 7, 7, 3)
    np.testing.assert_array_equal(one, other.reshape(3, 147))
    one, other = flat.step(np.array([2, 1, 0]))[0], picture.step(np.array([2, 1, 0]))[0]
    np.testing.assert_array_equal(one, other.reshape(3, 147))
    flat.close(), picture.close()


def test_an_unknown_part_is_answered_with_those_that_are_there() -> None:
    with pytest.raises(UserError, match="Did you mean 'image'"):
        task("envpool", id="MiniGrid-Empty-5x5-v0", obs_key="imag")
    with pytest.raises(UserError, match="have no parts"):
        task("envpool", id="CartPole-v1", obs_key="image")
