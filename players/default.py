"""Evaluates a policy: an exact number of episodes, the same share from every environment, whatever their lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import first_obs
from core.errors import UserError
from core.policy import Policy
from core.registry import register_player
from core.vecenv import Obs, VecEnv, to_tensor, tree_map

RESERVED = frozenset({"episodes", "deterministic", "return", "length", "per_episode"})


@register_player("default")
class Player:
    """Plays `games_num` games and describes them. Subclasses override the hooks; `run` is the driver and stays.

    `run()`
      ├ env.reset
      ├ on_eval_start()
      ├ until every environment has played its share:
      │   ├ act(obs, rnn_states, masks)
      │   ├ env.step
      │   ├ on_eval_step(obs, rewards, dones, infos)
      │   └ on_episode_end(env_index, episode)          for each game that counts
      └ on_eval_end() -> more keys of the result

    With E environments each plays games_num // E games, the first games_num % E one more; what it plays beyond is not counted.
    Taking the first games_num that finish would favour short games.

    Args:
        policy: built for as many environments as `env` has, weights loaded.
        env: E environments of `env.num_agents` agents each; N = E * num_agents rows.
        games_num: games to count.
        deterministic: the most likely action instead of a sampled one.
        seed: of the environments and of the sampling.
        n_game_life: episodes that make one game (lives in Atari): their returns and lengths are summed.

    Raises UserError for games_num or n_game_life below 1.
    """

    def __init__(
        self,
        policy: Policy,
        env: VecEnv,
        *,
        games_num: int,
        deterministic: bool,
        seed: int,
        n_game_life: int = 1,
    ) -> None:
        for name, value in (("games_num", games_num), ("n_game_life", n_game_life)):
            if value < 1:
                raise UserError(f"player.{name} is {value}: it must be at least 1")
        self.policy = policy
        self.env = env
        self.games_num = games_num
        self.deterministic = deterministic
        self.seed = seed
        self.n_game_life = n_game_life
        self.num_agents = env.num_agents
        self.num_rows = env.num_envs * env.num_agents
        self.rnn_states: Any = None
        self.seen: Obs = None  # the last observations (N, ...) before augmentation
        self.chosen: Any = None  # the last actions (N, ...) in the policy's scale
        self.per_episode: list[dict[str, Any]] = []

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def act(self, obs: Obs, rnn_states: Any, masks: torch.Tensor | None) -> dict[str, Any]:
        """Called at every step, before the environments move.

        obs: (N, ...) on the policy's device, augmented; rnn_states: each (layers, N, units), or None; masks: action masks
        (N, choices) bool, or None. Returns `Policy.act`'s dict, of which "actions" (or what `Policy.best_actions` reads) and
        "rnn_states" are used. Default: `self.policy.act`. Example (half the noise):
            result = super().act(obs, rnn_states, masks)
            result["actions"] = (result["actions"] + result["mus"]) / 2; return result
        """
        return self.policy.act(obs, rnn_states, masks)

    def restore_extras(self, extras: dict[str, Any]) -> None:
        """Called once, after the weights are loaded, with {name: state} of what the agent registered with `player=True`.
        Default: nothing. Example: self.disc.load_state_dict(extras["disc"])"""

    def on_eval_start(self) -> None:
        """Called once, after the first reset, before the first action. Default: nothing.
        Example: self.heights = []"""

    def on_eval_step(self, obs: Obs, rewards: torch.Tensor, dones: torch.Tensor, infos: dict[str, Any]) -> None:
        """Called after every step of the environments, also for rows whose share is played.

        obs: (N, ...) what the policy sees next; rewards: (N,) or (N, V) as the environment gave them; dones: (N,) bool;
        infos: the environment's. In next-step reset `self.reset_rows` (N,) bool marks the rows that are no transition.
        Default: nothing. Example: self.heights.append(infos["torso_height"].max())
        """

    def on_episode_end(self, env_index: int, episode: dict[str, Any]) -> None:
        """Called for each game that counts, when it ended. episode: {"return", "length", "seed", "env"} and, where the
        environment tells, "success" and "score"; keys added here appear in eval.json. Default: nothing.
        Example: episode["height"] = max(self.heights)"""

    def on_eval_end(self) -> dict[str, Any]:
        """Called once, after the last game. Returns keys to add to the result. Default: none.
        Example: return {"height_max": max(self.heights)}"""
        return {}

    @classmethod
    def record(
        cls,
        policy: Policy,
        env: VecEnv,
        path: str | Path,
        episodes: int,
        *,
        deterministic: bool,
        seed: int,
        extras: dict[str, Any] | None = None,
    ) -> Path:
        """Films episodes of this player: see `players.video.record`."""
        from players.video import record  # video.py builds on this class

        return record(cls, policy, env, path, episodes, deterministic=deterministic, seed=seed, extras=extras)

    @classmethod
    def recording(cls) -> type[Player]:
        """This player, keeping the transitions of its counted episodes: see `players.recorder.recording`."""
        from players.recorder import recording  # recorder.py builds on this class

        return recording(cls)

    # ---- driver -----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Plays and returns eval.json's content: {"episodes", "deterministic", "return", "length", "per_episode"} and, where
        the environment's infos have them, "success_rate" and "scores_mean".

        "return" of an environment with several agents is the mean over its agents; with several reward components, the first.
        "seed" of an episode is `seed` + its environment's index: by convention what that environment was started with.
        The global random state is left as it was found. Raises UserError where `on_eval_end` returns a key that is taken.
        """
        devices = [self.policy.device] if self.policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            self.env.seed(self.seed)
            self._play()
        result = {
            "episodes": len(self.per_episode),
            "deterministic": self.deterministic,
            "return": statistics([e["return"] for e in self.per_episode]),
            "length": statistics([e["length"] for e in self.per_episode]),
        }
        for key, name in (("success", "success_rate"), ("score", "scores_mean")):
            values = [e[key] for e in self.per_episode if key in e]
            if values:
                result[name] = float(np.mean(values))
        result["per_episode"] = self.per_episode
        more = self.on_eval_end()
        taken = sorted(RESERVED & set(more))
        if taken:
            raise UserError(f"{type(self).__name__}.on_eval_end returns '{taken[0]}', which eval.json already has: rename it")
        return {**result, **more}

    def quotas(self) -> list[int]:
        """Games that count, per environment."""
        share, rest = divmod(self.games_num, self.env.num_envs)
        return [share + (index < rest) for index in range(self.env.num_envs)]

    def _play(self) -> None:
        left = self.quotas()
        lives = [self.n_game_life] * self.env.num_envs
        device = self.env.device if self.env.is_torch else "cpu"
        returns = torch.zeros(self.num_rows, dtype=torch.float64, device=device)
        lengths = torch.zeros(self.num_rows, dtype=torch.long, device=device)
        self.reset_rows = torch.zeros(self.num_rows, dtype=torch.bool, device=device)
        self.per_episode = []
        self.rnn_states = self.policy.initial_rnn_states()
        obs = self._see(first_obs.reset(self.env))
        self.on_eval_start()
        while any(left):
            obs_new, rewards, dones, infos = self.env.step(self._actions(obs))
            obs = self._see(obs_new)
            rewards, dones = to_tensor(rewards, device), to_tensor(dones, device).bool()
            real = ~self.reset_rows
            returns += torch.where(real, rewards.reshape(self.num_rows, -1)[:, 0], 0.0)
            lengths += real
            self.on_eval_step(obs, rewards, dones, infos)
            if dones.any():
                for env_index in self._ended(dones):
                    lives[env_index] -= 1
                    if lives[env_index] == 0:
                        lives[env_index] = self.n_game_life
                        rows = slice(env_index * self.num_agents, (env_index + 1) * self.num_agents)
                        if left[env_index] > 0:
                            left[env_index] -= 1
                            self._count(env_index, returns[rows], lengths[rows], infos)
                        returns[rows] = 0.0
                        lengths[rows] = 0
            self._forget(dones)

    def _actions(self, obs: Obs) -> Any:
        """From what the policy sees to what `env.step` takes; keeps the memory for the next step."""
        masks = None
        if self.env.has_action_masks():
            masks = to_tensor(self.env.get_action_masks(), self.policy.device).bool()
        with torch.no_grad():
            result = self.act(obs, self.rnn_states, masks)
        self.rnn_states = result.get("rnn_states")
        self.chosen = self.policy.best_actions(result) if self.deterministic else result["actions"]
        actions = self.policy.env_actions(self.chosen)
        return actions.to(self.env.device) if self.env.is_torch else actions.cpu().numpy()

    def _see(self, obs: Obs) -> Obs:
        """The policy's part of an observation, as tensors on its device, augmented."""
        obs = self.without_states(obs)
        self.seen = tree_map(lambda leaf: to_tensor(leaf, self.policy.device), obs)
        tree_map(self._check_finite, self.seen)
        return self.policy.augment_obs(self.seen)

    def _check_finite(self, leaf: torch.Tensor) -> None:
        finite = torch.isfinite(leaf)
        if not finite.all():
            row = int((~finite).nonzero()[0][0])
            raise UserError(f"an observation is not finite: {leaf[~finite][0]:g} in environment {row // self.num_agents}, while playing")

    def without_states(self, obs: Obs) -> Obs:
        """Of {"obs", "states"} the former; "states" is the central value's."""
        beside = isinstance(obs, dict) and "obs" in obs and "states" in obs and not first_obs.has_part(self.env.observation_space, "obs")
        return obs["obs"] if beside else obs

    def _ended(self, dones: torch.Tensor) -> list[int]:
        """The environments whose episode ended. All agents of one end together (VecEnv's contract)."""
        per_env = dones.reshape(-1, self.num_agents)
        if self.num_agents > 1 and not torch.equal(per_env.any(dim=1), per_env.all(dim=1)):
            raise UserError(f"{type(self.env).__name__} ends an episode for some agents of an environment and not for the others")
        return per_env[:, 0].nonzero().reshape(-1).tolist()

    def _forget(self, dones: torch.Tensor) -> None:
        """Zeroes the memory of rows that see a new episode next. With next-step reset that is one step later than `dones`: the
        step in between is acted on with the last observation, and what it leaves in the memory must go too."""
        if self.env.reset_mode == "next_step":
            fresh, self.reset_rows = self.reset_rows, dones
        else:
            fresh = dones
        if self.rnn_states is not None and fresh.any():
            rows = fresh.to(self.policy.device)
            for state in self.rnn_states:
                state[:, rows] = 0.0

    def _count(self, env_index: int, returns: torch.Tensor, lengths: torch.Tensor, infos: dict[str, Any]) -> None:
        episode: dict[str, Any] = {
            "return": float(returns.mean()),
            "length": int(lengths[0]),
            "seed": self.seed + env_index,
            "env": env_index,
        }
        for key, names in (("success", ("success", "is_success")), ("score", ("scores", "battle_won"))):
            value = next((infos[name] for name in names if name in infos), None)
            if value is not None:
                episode[key] = self._entry(value, env_index)
        self.on_episode_end(env_index, episode)
        self.per_episode.append(episode)

    def _entry(self, column: Any, env_index: int) -> float:
        """An environment's entry of an info given per environment, per row or once for all."""
        values = to_tensor(column, "cpu").reshape(-1)
        if len(values) == 1:
            return float(values[0])
        return float(values[env_index * len(values) // self.env.num_envs])


def statistics(values: list[float]) -> dict[str, float]:
    """{"mean", "std", "median", "iqm", "min", "max"}; std is the population's (divided by n)."""
    array = np.asarray(values, dtype=float)
    return {
        "mean": float(array.mean()),
        "std": float(array.std()),
        "median": float(np.median(array)),
        "iqm": interquartile_mean(array),
        "min": float(array.min()),
        "max": float(array.max()),
    }


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half: floor(n / 4) values are cut off at either end (Agarwal et al. 2021, arXiv:2108.13264)."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())
