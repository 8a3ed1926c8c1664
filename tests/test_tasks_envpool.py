"""EnvPool's families: whatever their spaces, a policy gets arrays that lie in its space, acts in one it knows, and hears of masks and success."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from core import registry
from core.build import make_env
from core.errors import UserError
from core.vecenv import action_kind
from tasks import envpool_families, envpool_task
from tasks.envpool_games import AgainstRandom, SelfPlay
from tasks.envpool_spaces import Actions, Observations
from tasks.envpool_task import EnvpoolVecEnv
from tests.command import SMALL, command

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "atari": ("Pong-v5", {}),
    "mujoco_gym": ("HalfCheetah-v4", {}),
    "dmc": ("CheetahRun-v1", {}),
    "procgen": ("CoinrunEasy-v0", {}),
    "minigrid": ("MiniGrid-Empty-5x5-v0", {}),
    "babyai": ("BabyAI-GoToRedBall-v0", {}),
    "box2d": ("LunarLander-v3", {}),
    "box2d_picture": ("CarRacing-v3", {}),
    "metaworld": ("MetaWorld/Reach-v3", {}),
    "myosuite": ("myoElbowPose1D6MRandom-v0", {}),
    "playground": ("Go1JoystickFlatTerrain-v1", {}),
    "jumanji": ("Game2048-v1", {}),
    "jumanji_combined": ("Tetris-v0", {}),
    "jumanji_several": ("RobotWarehouse-v0", {}),
    "vizdoom": ("D1Basic-v1", {}),
    "gfootball": ("gfootball/academy_empty_goal_close-v1", {}),
    "board_game": ("TicTacToe-v1", {}),
    "board_game_random": ("TicTacToe-v1", {"opponent": "random"}),
    "classic_control": ("CartPole-v1", {}),
    "toy_text": ("FrozenLake-v1", {}),
    "highway": ("Highway-v0", {}),
    "highway_several": ("IntersectionMultiAgent-v0", {}),
    "robotics": ("FetchReach-v4", {}),
    "robotics_nested": ("FrankaKitchen-v1", {}),
}


@pytest.fixture(autouse=True, scope="module")
def _shelves() -> None:
    registry.discover("tasks")


def build(id: str, num_envs: int = 3, seed: int | None = 0, render_mode: str | None = None, **options: Any) -> EnvpoolVecEnv:
    task = {"name": "t", "kind": "envpool", "id": id, "num_threads": 1, **options}
    try:
        return make_env({"task": task}, num_envs, seed, "cpu", render_mode)  # type: ignore[return-value]  # what the kind makes without pictures
    except UserError as error:
        if "Qt 5" not in str(error):
            raise
        pytest.skip(str(error))  # Procgen draws with the system's Qt, which a bare machine lacks


def allowed(env: EnvpoolVecEnv, rng: np.random.Generator) -> np.ndarray:
    """Random actions (N, ...) that the masks allow."""
    n, space = env.num_envs * env.num_agents, env.action_space
    if isinstance(space, spaces.Box):
        return rng.uniform(space.low, space.high, (n, *space.shape)).astype(np.float32)
    sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else [int(k) for k in space.nvec]  # type: ignore[attr-defined]
    masks = env.get_action_masks() if env.has_action_masks() else np.ones((n, sum(sizes)), dtype=bool)
    heads = np.split(masks, np.cumsum(sizes)[:-1], axis=1)
    drawn = [np.where(head, rng.random(head.shape), -1.0).argmax(axis=1) for head in heads]
    return drawn[0] if isinstance(space, spaces.Discrete) else np.stack(drawn, axis=1)


def inside(space: spaces.Space, obs: Any) -> bool:
    if isinstance(space, spaces.Dict):
        return set(obs) == set(space.spaces) and all(inside(space[key], obs[key]) for key in obs)
    return obs.dtype == space.dtype and all(space.contains(row) for row in obs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flatten", [True, False])
def test_every_family_keeps_to_the_spaces_that_it_states(family: str, flatten: bool) -> None:
    id, options = FAMILIES[family]
    env = build(id, flatten_obs=flatten, **options)
    rows = 3 * env.num_agents
    assert isinstance(env.observation_space, spaces.Box if flatten else (spaces.Box, spaces.Dict))
    action_kind(env.action_space)
    if env.has_action_masks():
        space = env.action_space
        choices = space.n if isinstance(space, spaces.Discrete) else int(space.nvec.sum())  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    obs = env.reset()
    for _ in range(20):
        assert inside(env.observation_space, obs)
        if env.has_action_masks():
            assert env.get_action_masks().shape == (rows, choices)
            assert env.get_action_masks().any(axis=1).all()
        obs, rewards, dones, infos = env.step(allowed(env, rng))
        assert rewards.shape == dones.shape == infos["time_outs"].shape == (rows,)
        assert rewards.dtype == np.float32
        assert not (infos["time_outs"] & ~dones).any()
    env.close()


# ---- observations ----------------------------------------------------------------------------------------------------


def test_a_state_is_one_hot_and_a_counter_is_a_number() -> None:
    state = Observations(spaces.Discrete(4, start=-1), True, None)
    assert state(np.array([-1, 2], np.int32)).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    parts = spaces.Dict(
        grid=spaces.Box(0, 9, (2, 2), np.int32), step_count=spaces.Discrete(50), on=spaces.MultiBinary(2), action_mask=spaces.MultiBinary(4)
    )
    given = {"grid": [[[1, 2], [3, 4]]], "step_count": [7], "on": [[True, False]], "action_mask": [[True] * 4]}
    values = {key: np.array(value) for key, value in given.items()}
    flat, kept = Observations(parts, True, None), Observations(parts, False, None)
    expected = {"grid": [1, 2, 3, 4], "step_count": [7], "on": [1, 0]}
    assert flat(values).tolist() == [[x for key in parts.spaces if key != "action_mask" for x in expected[key]]]
    assert flat.space.shape == (7,)
    assert {key: value.shape for key, value in kept(values).items()} == {"grid": (1, 2, 2), "step_count": (1, 1), "on": (1, 2)}


def test_frozen_lake_begins_in_its_first_state() -> None:
    env = build("FrozenLake-v1")
    obs = env.reset()
    assert obs.argmax(axis=1).tolist() == [0, 0, 0]
    assert obs.sum(axis=1).tolist() == [1, 1, 1]
    env.close()


def test_pictures_of_bytes_stay_pictures() -> None:
    env = build("CarRacing-v3")
    assert env.observation_space.shape == (96, 96, 3)
    assert env.reset().dtype == np.uint8
    env.close()


# ---- actions ---------------------------------------------------------------------------------------------------------


def test_actions_without_bounds_go_from_minus_one_to_one() -> None:
    env = build("LqrLqr21-v1")
    assert env.action_space.low.tolist() == [-1.0]  # type: ignore[attr-defined]  # a Box; EnvPool says -1e10
    env.close()


def test_combinations_become_one_discrete_in_the_order_of_the_mask() -> None:
    actions = Actions(spaces.Box(0, 9, (2,), np.int32), (4, 10))
    assert actions.space == spaces.Discrete(40)
    assert actions(np.array([0, 9, 10, 39])).tolist() == [[0, 0], [0, 9], [1, 0], [3, 9]]
    mask = np.zeros((2, 4, 10), dtype=bool)
    mask[0, 3, 9] = True
    flat = actions.mask(mask)
    assert np.flatnonzero(flat[0]).tolist() == [39]
    assert flat[1].all()  # nothing is allowed in an ended game, and no action of it is carried out


def test_agents_have_a_head_and_a_mask_each() -> None:
    actions = Actions(spaces.Box(0, 3, (3,), np.int32), (3, 4))
    assert actions.space == spaces.MultiDiscrete([4, 4, 4])
    assert actions(np.array([[1, 2, 3]])).tolist() == [[1, 2, 3]]


def test_a_box_of_two_dimensions_is_flat_for_the_policy() -> None:
    actions = Actions(spaces.Box(-1.0, 1.0, (2, 2), np.float32), None)
    assert actions.space.shape == (4,)
    assert actions(np.array([[0.1, 0.2, 0.3, 0.4]])).tolist() == [[[0.1, 0.2], [0.3, 0.4]]]


def test_the_cube_has_faces_depths_and_amounts() -> None:
    env = build("RubiksCube-v0")
    assert env.action_space == spaces.MultiDiscrete([6, 1, 3])  # EnvPool says 6 for all three
    env.close()


def test_an_action_that_is_not_finite_stops_the_run() -> None:
    env = build("HalfCheetah-v4")
    env.reset()
    actions = np.zeros((3, 6), np.float32)
    actions[1, 2] = np.nan
    with pytest.raises(UserError, match=r"not finite.*environment 1"):
        env.step(actions)
    env.close()


# ---- masks -----------------------------------------------------------------------------------------------------------


class Watched:
    """EnvPool, which fails where an action is sent that the mask of the observation before it forbids."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.sent = pool, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)

    def reset(self) -> Any:
        obs, info = self.pool.reset()
        self.mask, self.over = self._mask(obs, info), np.zeros(len(info["env_id"]), dtype=bool)
        return obs, info

    def step(self, actions: np.ndarray) -> Any:
        for mask, action, over in zip(self.mask, np.asarray(actions), self.over, strict=True):
            if over:
                continue  # this row only resets
            each = mask.ndim == 2 and np.ndim(action) == 1 and len(action) == len(mask)
            legal = mask[np.arange(len(action)), action].all() if each else mask[tuple(np.atleast_1d(action))]
            assert legal, f"{action} is forbidden by {mask}"
            self.sent += 1
        obs, rewards, terminated, truncated, info = self.pool.step(actions)
        self.mask, self.over = self._mask(obs, info), terminated | truncated
        return obs, rewards, terminated, truncated, info

    def _mask(self, obs: Any, info: Any) -> np.ndarray:
        return np.array(obs["action_mask"] if isinstance(obs, dict) else info["legal_action_mask"])


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every EnvPool that this test makes."""
    made: list[Watched] = []
    make_pool = envpool_task._make_pool

    def make(*arguments: Any) -> Any:
        made.append(Watched(make_pool(*arguments)))
        return made[-1]

    monkeypatch.setattr(envpool_task, "_make_pool", make)
    return made


@pytest.mark.parametrize(
    ("id", "options"),
    [
        ("Game2048-v1", {}),
        ("Tetris-v0", {}),
        ("Connector-v2", {}),
        ("TicTacToe-v1", {"opponent": "self"}),
        ("TicTacToe-v1", {"opponent": "random"}),
        ("SparrowMahjong-v1", {"opponent": "random"}),
    ],
)
def test_what_the_masks_allow_is_allowed(watched: list[Watched], id: str, options: dict[str, Any]) -> None:
    env = build(id, **options)
    env.reset()
    rng = np.random.default_rng(1)
    ended = 0
    for _ in range(80):
        ended += int(env.step(allowed(env, rng))[2].sum())
    assert watched[0].sent > 200 - ended  # reset rows are not watched
    env.close()


def test_the_watch_sees_a_forbidden_action(watched: list[Watched]) -> None:
    env = build("TicTacToe-v1", opponent="self")
    env.reset()
    env.step(np.zeros(6, int))
    with pytest.raises(AssertionError, match="is forbidden"):
        env.step(np.zeros(6, int))
    env.close()


def test_an_environment_without_masks_says_so() -> None:
    env = build("CartPole-v1")
    assert not env.has_action_masks()
    with pytest.raises(UserError, match="does not say which actions are allowed"):
        env.get_action_masks()
    env.close()


def test_training_and_playing_send_no_forbidden_action(watched: list[Watched], tmp_path: Path) -> None:
    task = ("task=envpool", "task.id=Minesweeper-v0", "task.num_threads=1", "train=PPO", *SMALL)
    result = command(*task, "train.params.config.use_action_masks=True", "max_epochs=2", f"run_dir={tmp_path / 'run'}")
    played = command("test=True", f"checkpoint={result['checkpoint']}", "player.games_num=4")
    assert played["episodes"] == 4
    assert len(watched) >= 2
    assert all(pool.sent > 0 for pool in watched)


# ---- players ---------------------------------------------------------------------------------------------------------


def test_who_is_not_to_move_has_one_action_that_is_not_carried_out() -> None:
    play = SelfPlay(2)
    play.look({"current_player": np.array([0, 1])})
    legal = np.array([[False, True, True], [True, False, True]])
    assert play.masks(legal).tolist() == [[False, True, True], [True, False, False], [True, False, False], [True, False, True]]
    assert play.actions(np.array([1, 0, 0, 2])).tolist() == [1, 2]
    assert play.each(np.array([True, False])).tolist() == [True, True, False, False]


def test_against_random_moves_the_policy_has_one_seat() -> None:
    play = AgainstRandom(2, 3, seed=0)  # seats 0, 1, 0
    play.look({"current_player": np.array([0, 0, 1]), "legal_action_mask": np.array([[1, 1, 1], [0, 0, 1], [0, 1, 0]], dtype=bool)})
    assert play.rows(np.arange(6)).tolist() == [0, 3, 4]
    assert play.actions(np.array([2, 0, 0])).tolist() == [2, 2, 1]  # only environment 0 is the policy's to move
    assert play.masks(play.legal).tolist() == [[True, True, True], [True, False, False], [True, False, False]]


def test_a_game_is_zero_sum_and_ends_for_both() -> None:
    env = build("TicTacToe-v1", num_envs=4)
    env.reset()
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(40):
        _, rewards, dones, _ = env.step(allowed(env, rng))
        assert rewards.reshape(4, 2).sum(axis=1).tolist() == [0, 0, 0, 0]
        assert (dones.reshape(4, 2)[:, 0] == dones.reshape(4, 2)[:, 1]).all()
        ends += int(dones.sum())
    assert ends
    env.close()


def test_a_won_game_is_a_success() -> None:
    env = build("TicTacToe-v1", num_envs=8, opponent="random")
    env.reset()
    rng = np.random.default_rng(0)
    won = lost = 0
    for _ in range(60):
        _, rewards, dones, infos = env.step(allowed(env, rng))
        assert infos["success"][dones].tolist() == (rewards[dones] > 0).tolist()
        won, lost = won + int((rewards > 0).sum()), lost + int((rewards < 0).sum())
    assert won > 0
    assert lost > 0
    env.close()


def test_an_unknown_opponent_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown opponent 'randm' at task\.opponent\. Did you mean 'random'"):
        build("TicTacToe-v1", opponent="randm")


# ---- success ---------------------------------------------------------------------------------------------------------


class Script:
    """A pool of two environments that reports what it is told: (terminated, is_success) of each step."""

    def __init__(self, env: EnvpoolVecEnv, steps: list[tuple[list[bool], list[float]]]) -> None:
        self.steps, self.pool = steps, env._pool
        self.obs, self.info = env._pool.reset()

    def step(self, actions: np.ndarray) -> Any:
        ended, success = self.steps.pop(0)
        info = {**self.info, "is_success": np.array(success)}
        return self.obs, np.zeros(2, np.float32), np.array(ended), np.zeros(2, dtype=bool), info

    def close(self) -> None:
        self.pool.close()


def test_success_is_an_episodes_and_a_row_that_resets_has_none() -> None:
    env: Any = build("FetchReach-v4", num_envs=2)
    env.reset()
    env._pool = Script(
        env,
        [
            ([False, False], [1.0, 0.0]),  # environment 0 is there, but
            ([True, False], [0.0, 0.0]),  # not when it ends
            ([False, False], [1.0, 0.0]),  # its reset: begins at the goal, which is no achievement
            ([True, True], [0.0, 1.0]),  # environment 1 is there in its last step
        ],
    )
    seen = []
    for _ in range(4):
        _, _, dones, infos = env.step(np.zeros((2, 4), np.float32))
        seen.append((dones.tolist(), infos["success"].tolist(), infos["success_at_end"].tolist()))
    assert seen[1] == ([True, False], [True, False], [False, False])
    assert seen[2] == ([False, False], [False, False], [False, False])
    assert seen[3] == ([True, True], [False, True], [False, True])
    env.close()


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("FetchReech-v4", {}, "Did you mean .*'FetchReach-v4'"),
        ("Cig-v1", {}, "over a network"),
        ("Sudoku-v0", {}, "cannot make 'Sudoku-v0' at task.id: failed to open Sudoku database"),
        ("VizdoomCustom-v1", {}, "cannot make 'VizdoomCustom-v1' at task.id: File"),
        ("CartPole-v1", {"num_envs": 0}, "task.num_envs=0: at least 1"),
        ("CartPole-v1", {"num_envs": -3}, "task.num_envs=-3: at least 1"),
        ("TicTacToe-v1", {"use_dict_obs_space": True}, "one player"),
    ],
)
def test_mistakes(id: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(id, **options)


def test_symbols_become_one_hot() -> None:
    """Against the same environment's numbers: cell (0, 0) first, of it object, colour, state."""
    for flatten in (True, False):
        plain = build("MiniGrid-MemoryS7-v0", obs_key="image", flatten_obs=False)
        ours = build("MiniGrid-MemoryS7-v0", obs_key="image", flatten_obs=flatten, one_hot=[11, 6, 4])
        assert ours.observation_space.shape == ((7 * 7 * 21,) if flatten else (7, 7, 21))
        numbers, obs = plain.reset(), ours.reset()
        for step in range(10):
            assert inside(ours.observation_space, obs)
            cells = obs.reshape(3, 7, 7, 21)
            assert (cells.sum(axis=-1) == 3).all()
            for channel, (start, end) in enumerate(((0, 11), (11, 17), (17, 21))):
                assert (cells[..., start:end].argmax(axis=-1) == numbers[..., channel]).all()
            actions = np.full(3, step % 3)
            numbers, obs = plain.step(actions)[0], ours.step(actions)[0]


@pytest.mark.parametrize(
    ("id", "options"),
    [
        ("MiniGrid-MemoryS7-v0", {"obs_key": "image", "one_hot": [11, 6]}),
        ("MiniGrid-MemoryS7-v0", {"obs_key": "image", "one_hot": [11, 6, 0]}),
        ("MiniGrid-MemoryS7-v0", {"one_hot": [11, 6, 4]}),
        ("CartPole-v1", {"one_hot": [2]}),
    ],
)
def test_symbols_that_are_none(id: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"task\.one_hot=\[.*\] needs a picture of symbols.*task\.obs_key=image"):
        build(id, **options)


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_an_epoch_and_plays(family: str, tmp_path: Path) -> None:
    id, options = FAMILIES[family]
    build(id, **options).close()  # skips where a library lacks
    task = ["task=envpool", f"task.id={id}", *(f"task.{key}={value}" for key, value in options.items()), "task.num_threads=1"]
    limit = "max_episode_steps" in envpool_families.load(id).make_spec(id).config._fields
    short = ["+task.options.max_episode_steps=30"] if limit else []
    masks = ["train.params.config.use_action_masks=True"] if family.startswith(("board", "jumanji")) else []
    result = command(*task, *short, *masks, "train=PPO", *SMALL, "max_epochs=1", f"run_dir={tmp_path / 'run'}")
    assert result["exit_reason"] != "failed"
    played = command("test=True", f"checkpoint={result['checkpoint']}", "player.games_num=2")
    assert played["episodes"] == 2
    assert np.isfinite(played["return"]["mean"])


@pytest.mark.parametrize("id", ["MiniGrid-Empty-5x5-v0", "Game2048-v1", "TicTacToe-v1", "Highway-v0", "D1Basic-v1", "CoinrunEasy-v0"])
def test_families_that_draw_without_opengl_draw_their_own_pictures(id: str) -> None:
    env = build(id, render_mode="rgb_array")
    env.reset()
    first = env.render().copy()
    for _ in range(5):
        env.step(allowed(env, np.random.default_rng(0)))
    assert first.dtype == np.uint8
    assert first.ndim == 3
    assert first.shape[2] == 3
    assert first.std() > 0
    env.close()
