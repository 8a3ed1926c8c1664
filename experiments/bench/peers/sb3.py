"""Stable-Baselines3's PPO on EnvPool."""

from __future__ import annotations

import time

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from experiments.bench.peers.pool import Job


class Pool(VecEnv):
    """EnvPool behind SB3's interface."""

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(job.num_envs, job.observation_space, job.action_space)

    def reset(self):
        return self.job.pool.reset()[0]

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        obs, rewards, terminated, truncated = self.job.step(self.actions)
        dones = terminated | truncated
        infos: list[dict] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            infos[i] = {"terminal_observation": obs[i], "TimeLimit.truncated": bool(truncated[i] and not terminated[i])}
        return obs, rewards, dones, infos

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError("EnvPool's environments have no attributes to set")

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError("EnvPool's environments have no methods to call")

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


class Shared(BaseFeaturesExtractor):
    """One MLP below actor and critic, as rl_games' `separate: False`."""

    def __init__(self, observation_space, job: Job) -> None:
        super().__init__(observation_space, job.units[-1])
        self.layers = job.mlp()

    def forward(self, observations):
        return self.layers(observations)


class Watch(BaseCallback):
    """An epoch is a rollout and its update: it ends where the next rollout begins."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.began = self.played = 0.0

    def _on_rollout_start(self) -> None:
        self._finish()
        self.began = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.played = time.perf_counter()

    def _on_training_end(self) -> None:
        self._finish()

    def _finish(self) -> None:
        if self.played:
            self.job.epoch(self.played - self.began, time.perf_counter() - self.played)

    def _on_step(self) -> bool:
        return True


def main() -> None:
    job = Job()
    config = job.config
    env: VecEnv = VecMonitor(Pool(job))
    pictures = len(job.observation_space.shape) == 3
    if config["normalize_input"] and not pictures:  # SB3 divides pictures by 255
        env = VecNormalize(env, norm_reward=False)
    if pictures:
        layers = {}
    elif job.separate:
        layers = {"net_arch": {"pi": job.units, "vf": job.units}, "activation_fn": job.activation}
    else:
        layers = {"net_arch": [], "features_extractor_class": Shared, "features_extractor_kwargs": {"job": job}}
    model = PPO(
        "CnnPolicy" if pictures else "MlpPolicy",
        env,
        n_steps=job.horizon,
        batch_size=config["minibatch_size"],
        n_epochs=config["mini_epochs"],
        learning_rate=config["learning_rate"],
        gamma=config["gamma"],
        gae_lambda=config["tau"],
        clip_range=config["e_clip"],
        clip_range_vf=config["e_clip"] if config["clip_value"] else None,
        ent_coef=config["entropy_coef"],
        vf_coef=config["critic_coef"] / 2,
        max_grad_norm=config["grad_norm"],
        policy_kwargs=layers,
        tensorboard_log=str(job.folder),
        verbose=1,
        device="cpu",
    )
    model.learn(job.epochs * job.horizon * job.num_envs, callback=Watch(job))


if __name__ == "__main__":
    main()
