"""skrl's PPO on EnvPool."""

from __future__ import annotations

import time

import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch.base import Wrapper
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, GaussianMixin, Model
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.resources.schedulers.torch import KLAdaptiveLR
from skrl.trainers.torch import SequentialTrainer
from torch import nn

from experiments.bench.peers.pool import Job


class Pool(Wrapper):
    """EnvPool behind skrl's interface."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.pool)
        self.job = job

    num_envs = property(lambda self: self.job.num_envs)
    observation_space = property(lambda self: self.job.observation_space)
    action_space = property(lambda self: self.job.action_space)
    state_space = property(lambda self: None)

    def reset(self):
        return self._tensor(self.job.pool.reset()[0]), {}

    def step(self, actions):
        actions = actions.cpu().numpy()
        obs, rewards, terminated, truncated = self.job.step(actions if self.job.continuous else actions.ravel())
        columns = (torch.as_tensor(x).view(-1, 1) for x in (rewards, terminated, truncated))
        return self._tensor(obs), *columns, {}

    def state(self):
        return None

    def render(self):
        return None

    def close(self):
        pass

    def _tensor(self, obs):
        return torch.as_tensor(obs, dtype=torch.float32)


class Shared(GaussianMixin, DeterministicMixin, Model):
    """Actor and critic on one MLP, which a forward pass for the critic takes from the actor's just before, as skrl's guide has it."""

    def __init__(self, job: Job, spaces) -> None:
        Model.__init__(self, **spaces)
        GaussianMixin.__init__(self, role="policy")
        DeterministicMixin.__init__(self, role="value")
        self.body = job.mlp()
        self.mean = nn.Linear(job.units[-1], self.num_actions)
        self.value = nn.Linear(job.units[-1], 1)
        self.log_std = nn.Parameter(torch.zeros(self.num_actions))
        self.hidden = None

    def act(self, inputs, *, role=""):
        mixin = GaussianMixin if role == "policy" else DeterministicMixin
        return mixin.act(self, inputs, role=role)

    def compute(self, inputs, role=""):
        hidden, self.hidden = (self.body(inputs["observations"]) if self.hidden is None else self.hidden), None
        if role == "policy":
            self.hidden = hidden
            return self.mean(hidden), {"log_std": self.log_std}
        return self.value(hidden), {}


class Actor(CategoricalMixin, Model):
    def __init__(self, job: Job, spaces) -> None:
        Model.__init__(self, **spaces)
        CategoricalMixin.__init__(self)
        self.net = nn.Sequential(job.mlp(), nn.Linear(job.units[-1], self.num_actions))

    def compute(self, inputs, role=""):
        return self.net(inputs["observations"]), {}


class Critic(DeterministicMixin, Model):
    def __init__(self, job: Job, spaces) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(job.mlp(), nn.Linear(job.units[-1], 1))

    def compute(self, inputs, role=""):
        return self.net(inputs["observations"]), {}


class Timed(PPO):
    """An epoch ends with `update`; what precedes it is the rollout."""

    def __init__(self, job: Job, **kwargs) -> None:
        super().__init__(**kwargs)
        self.job = job
        self.ended = time.perf_counter()

    def update(self, *, timestep, timesteps):
        played = time.perf_counter()
        super().update(timestep=timestep, timesteps=timesteps)
        now = time.perf_counter()
        self.job.epoch(played - self.ended, now - played)
        self.ended = now


def main() -> None:
    job = Job()
    config = job.config
    spaces = {"observation_space": job.observation_space, "action_space": job.action_space, "device": "cpu"}
    if job.continuous:
        shared = Shared(job, spaces)
        models = {"policy": shared, "value": shared}
    else:
        models = {"policy": Actor(job, spaces), "value": Critic(job, spaces)}
    scaled = config["normalize_input"]
    adaptive = config["lr_schedule"] == "adaptive"
    cfg = PPO_CFG(
        rollouts=job.horizon,
        learning_epochs=config["mini_epochs"],
        mini_batches=job.horizon * job.num_envs // config["minibatch_size"],
        discount_factor=config["gamma"],
        gae_lambda=config["tau"],
        learning_rate=config["learning_rate"],
        learning_rate_scheduler=KLAdaptiveLR if adaptive else None,
        learning_rate_scheduler_kwargs={"kl_threshold": config["kl_threshold"]} if adaptive else {},
        observation_preprocessor=RunningStandardScaler if scaled else None,
        observation_preprocessor_kwargs={"size": job.observation_space, "device": "cpu"} if scaled else {},
        value_preprocessor=RunningStandardScaler if config["normalize_value"] else None,
        value_preprocessor_kwargs={"size": 1, "device": "cpu"} if config["normalize_value"] else {},
        grad_norm_clip=config["grad_norm"],
        ratio_clip=config["e_clip"],
        value_clip=config["e_clip"] if config["clip_value"] else 0.0,
        entropy_loss_scale=config["entropy_coef"],
        value_loss_scale=config["critic_coef"] / 2,
        time_limit_bootstrap=config["value_bootstrap"],
        experiment={"directory": str(job.folder), "checkpoint_interval": 0},
    )
    env = Pool(job)
    memory = RandomMemory(memory_size=job.horizon, num_envs=job.num_envs, device="cpu")
    agent = Timed(job, models=models, memory=memory, cfg=cfg, **spaces)
    trainer = SequentialTrainer(env=env, agents=agent, cfg={"timesteps": job.epochs * job.horizon, "headless": True})
    agent.ended = time.perf_counter()
    trainer.train()


if __name__ == "__main__":
    main()
