"""Stable-Baselines3's PPO as RL Baselines3 Zoo tunes it, on gymnasium: `python -m experiments.bench.sb3_zoo CartPole SEED FILE`.

Settings: hyperparams/ppo.yml of github.com/DLR-RM/rl-baselines3-zoo (HalfCheetah-v3's for v4). Writes a line per rollout into FILE:
{"frames", "episodes": so far, "return_mean": of the last `EPISODES`}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from experiments import leash

EPISODES = {"CartPole": 100, "HalfCheetah": 10}


def linear(start: float) -> Callable[[float], float]:
    """Falls from `start` to 0 over the run."""
    return lambda left: left * start


SETTINGS: dict[str, dict[str, Any]] = {
    "CartPole": {
        "id": "CartPole-v1",
        "envs": 8,
        "frames": 100_000,
        "normalize": False,
        "ppo": {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98, "ent_coef": 0.0,
                "learning_rate": linear(0.001), "clip_range": linear(0.2)},
    },
    "HalfCheetah": {
        "id": "HalfCheetah-v4",
        "envs": 1,
        "frames": 1_000_000,
        "normalize": True,
        "ppo": {"n_steps": 512, "batch_size": 64, "n_epochs": 20, "gae_lambda": 0.92, "gamma": 0.98, "ent_coef": 0.000401762,
                "learning_rate": 2.0633e-05, "clip_range": 0.1, "max_grad_norm": 0.8, "vf_coef": 0.58096,
                "policy_kwargs": {"log_std_init": -2, "ortho_init": False, "activation_fn": nn.ReLU,
                                  "net_arch": {"pi": [256, 256], "vf": [256, 256]}}},
    },
}  # fmt: skip


class Lines(BaseCallback):
    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.episodes = 0

    def _on_step(self) -> bool:
        self.episodes += sum("episode" in info for info in self.locals["infos"])
        return True

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        if returns:
            line = {"frames": self.num_timesteps, "episodes": self.episodes, "return_mean": float(sum(returns) / len(returns))}
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def main(task: str, seed: int, file: str) -> None:
    settings = SETTINGS[task]
    env: VecEnv = make_vec_env(settings["id"], n_envs=settings["envs"], seed=seed)
    if settings["normalize"]:
        env = VecNormalize(env, gamma=settings["ppo"]["gamma"])
    model = PPO("MlpPolicy", env, seed=seed, device="cpu", stats_window_size=EPISODES[task], **settings["ppo"])
    model.learn(settings["frames"], callback=Lines(file))


if __name__ == "__main__":
    leash.hold()
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
