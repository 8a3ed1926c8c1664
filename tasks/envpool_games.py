"""Who plays in EnvPool's environments of several players: a policy for all of them, or one of them against random moves.

EnvPool has no opponents of its own: somebody has to choose every player's actions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from core.errors import unknown

OPPONENTS = ("self", "random")


class Seats:
    """One player in each environment, who acts at every step. The base of the others, which say who acts."""

    players = 1  # rows per environment that the policy acts in

    def rows(self, values: np.ndarray) -> np.ndarray:
        """From what every player sees or gets (N * P, ...) to the policy's rows."""
        return values

    def each(self, values: np.ndarray) -> np.ndarray:
        """From one value per environment (N,) to one for each of the policy's rows."""
        return values if self.players == 1 else np.repeat(values, self.players)

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """From the policy's actions to those that EnvPool takes."""
        return actions

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """From EnvPool's masks (N, A) to those of the policy's rows."""
        return masks

    def look(self, info: dict[str, Any]) -> None:
        """Called with EnvPool's info after every reset and step."""


class Together(Seats):
    """Several players who all act at every step, all of them the policy's: P rows per environment."""

    def __init__(self, players: int) -> None:
        self.players = players


class SelfPlay(Together):
    """Players who take turns, all of them the policy's. Rows of those who are not to move have one action, which is not carried out: its
    probability is 1, so that it teaches nothing, and the row's value goes on to the player's next move."""

    def look(self, info: dict[str, Any]) -> None:
        self.turn = np.asarray(info["current_player"])

    def actions(self, actions: np.ndarray) -> np.ndarray:
        return actions.reshape(-1, self.players)[np.arange(len(self.turn)), self.turn]

    def masks(self, masks: np.ndarray) -> np.ndarray:
        return only_first_unless(np.arange(self.players) == self.turn[:, None], np.repeat(masks[:, None], self.players, axis=1)).reshape(
            -1, masks.shape[1]
        )


class AgainstRandom(Seats):
    """Players who take turns: in environment i, player i modulo P is the policy's. The others choose evenly among the allowed actions, and
    while they are to move the policy has one action, which is not carried out."""

    def __init__(self, players: int, num_envs: int, seed: int) -> None:
        self.envs, self._all = np.arange(num_envs), players
        self.seat = self.envs % players
        self._rng = np.random.default_rng(seed)

    def look(self, info: dict[str, Any]) -> None:
        self.turn = np.asarray(info["current_player"])
        self.legal = np.asarray(info["legal_action_mask"], dtype=bool)

    def rows(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(len(self.envs), self._all, *values.shape[1:])[self.envs, self.seat]

    def actions(self, actions: np.ndarray) -> np.ndarray:
        drawn = np.where(self.legal, self._rng.random(self.legal.shape), -1.0).argmax(axis=1)
        return np.where(self.turn == self.seat, actions, drawn)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        return only_first_unless(self.turn == self.seat, masks)


def only_first_unless(moves: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """masks (..., A) where `moves` (...); elsewhere the first action only."""
    waiting = np.zeros(masks.shape[-1], dtype=bool)
    waiting[0] = True
    return np.where(moves[..., None], masks, waiting)


def seats(info: dict[str, Any], num_envs: int, opponent: str, seed: int) -> Seats:
    """Who acts, from EnvPool's first info. Raises UserError for an unknown opponent."""
    if opponent not in OPPONENTS:
        raise unknown("opponent", opponent, OPPONENTS, "task.opponent")
    players = len(info["players"]["env_id"]) // num_envs
    if players == 1:
        return Seats()
    if "current_player" not in info:
        return Together(players)
    return SelfPlay(players) if opponent == "self" else AgainstRandom(players, num_envs, seed)
