"""rsl_rl's PPO on EnvPool. It has continuous actions only, and actor and critic never share layers."""

from __future__ import annotations

import torch
from rsl_rl.env import VecEnv
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict

from experiments.bench.peers.pool import Job


class Pool(VecEnv):
    """EnvPool behind rsl_rl's interface."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.num_envs = job.num_envs
        self.num_actions = job.action_space.shape[0]
        self.max_episode_length = 1000
        self.episode_length_buf = torch.zeros(job.num_envs, dtype=torch.long)
        self.device = "cpu"
        self.cfg: dict = {}
        self.obs = self._observe(job.pool.reset()[0])

    def get_observations(self) -> TensorDict:
        return self.obs

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        obs, rewards, terminated, truncated = self.job.step(actions.numpy())
        self.obs = self._observe(obs)
        dones = torch.as_tensor(terminated | truncated)
        return self.obs, torch.as_tensor(rewards), dones.long(), {"time_outs": torch.as_tensor(truncated & ~terminated)}

    def _observe(self, obs) -> TensorDict:
        return TensorDict({"policy": torch.as_tensor(obs, dtype=torch.float32)}, batch_size=[self.num_envs])


def main() -> None:
    job = Job()
    config = job.config
    activation = job.activation.__name__.lower()
    mlp = {"class_name": "MLPModel", "hidden_dims": job.units, "activation": activation, "obs_normalization": config["normalize_input"]}
    cfg = {
        "num_steps_per_env": job.horizon,
        "save_interval": 1_000_000,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": {**mlp, "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "log"}},
        "critic": mlp,
        "algorithm": {
            "class_name": "PPO",
            "num_learning_epochs": config["mini_epochs"],
            "num_mini_batches": job.horizon * job.num_envs // config["minibatch_size"],
            "clip_param": config["e_clip"],
            "gamma": config["gamma"],
            "lam": config["tau"],
            "value_loss_coef": config["critic_coef"] / 2,
            "entropy_coef": config["entropy_coef"],
            "learning_rate": config["learning_rate"],
            "max_grad_norm": config["grad_norm"],
            "use_clipped_value_loss": config["clip_value"],
            "schedule": config["lr_schedule"],
            "desired_kl": config["kl_threshold"],
        },
    }
    runner = OnPolicyRunner(Pool(job), cfg, log_dir=str(job.folder), device="cpu")
    log = runner.logger.log

    def timed(*args, **kwargs):
        log(*args, **kwargs)
        job.epoch(kwargs["collect_time"], kwargs["learn_time"])

    runner.logger.log = timed
    runner.learn(job.epochs)


if __name__ == "__main__":
    main()
