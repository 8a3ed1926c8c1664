"""A single-file loop in the manner of CleanRL: plain tensors, nothing between them and the environment. Written for this benchmark."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.utils.tensorboard import SummaryWriter

from experiments.bench.peers.pool import Job


class Network(nn.Module):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.continuous = job.continuous
        self.pictures = len(job.observation_space.shape) == 3
        actions = job.action_space.shape[0] if job.continuous else job.action_space.n
        self.body = _body(job)
        self.critic_body = _body(job) if job.separate else None
        self.actor = nn.Linear(job.units[-1], actions)
        self.critic = nn.Linear(job.units[-1], 1)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def values(self, obs: Tensor) -> Tensor:
        return self.critic((self.critic_body or self.body)(self._scaled(obs))).squeeze(-1)

    def forward(self, obs: Tensor, actions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """obs (B, ...) -> actions, log-probabilities, entropies and values, (B, ...) each."""
        obs = self._scaled(obs)
        hidden = self.body(obs)
        values = self.critic(hidden if self.critic_body is None else self.critic_body(obs)).squeeze(-1)
        if self.continuous:
            normal = Normal(self.actor(hidden), self.log_std.exp())
            actions = normal.sample() if actions is None else actions
            return actions, normal.log_prob(actions).sum(-1), normal.entropy().sum(-1), values
        categorical = Categorical(logits=self.actor(hidden))
        actions = categorical.sample() if actions is None else actions
        return actions, categorical.log_prob(actions), categorical.entropy(), values

    def _scaled(self, obs: Tensor) -> Tensor:
        return obs / 255.0 if self.pictures else obs


class Normalizer:
    """Running mean and variance of observations (N, O), as gymnasium's wrapper keeps them."""

    def __init__(self, size: int) -> None:
        self.mean, self.var, self.count = np.zeros(size), np.ones(size), 1e-4

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        mean, var, n = obs.mean(0), obs.var(0), len(obs)
        delta, total = mean - self.mean, self.count + n
        self.var = (self.var * self.count + var * n + delta**2 * self.count * n / total) / total
        self.mean, self.count = self.mean + delta * n / total, total
        return np.clip((obs - self.mean) / np.sqrt(self.var + 1e-8), -10, 10)


def _body(job: Job) -> nn.Module:
    layers: list[nn.Module] = []
    size = job.observation_space.shape[0]
    for conv in job.params["network"].get("cnn", {}).get("convs", []):
        layers += [nn.Conv2d(size, conv["filters"], conv["kernel_size"], conv["strides"]), job.activation()]
        size = conv["filters"]
    if layers:
        layers.append(nn.Flatten())
        size = nn.Sequential(*layers)(torch.zeros(1, *job.observation_space.shape)).shape[1]
    for units in job.units:
        layers += [nn.Linear(size, units), job.activation()]
        size = units
    return nn.Sequential(*layers)


def main() -> None:
    job = Job()
    config, T, N = job.config, job.horizon, job.num_envs
    net = Network(job)
    optimizer = torch.optim.Adam(net.parameters(), lr=config["learning_rate"], eps=1e-5)
    writer = SummaryWriter(str(job.folder))
    shape, action_shape = job.observation_space.shape, job.action_space.shape if job.continuous else ()
    normalize = Normalizer(shape[0]) if config["normalize_input"] and len(shape) == 1 else lambda obs: obs

    obs = torch.zeros((T, N, *shape))
    actions = torch.zeros((T, N, *action_shape))
    logprobs, rewards, dones, values = (torch.zeros((T, N)) for _ in range(4))
    next_obs = torch.as_tensor(normalize(job.pool.reset()[0]), dtype=torch.float32)
    next_done = torch.zeros(N)
    returned, running = 0.0, np.zeros(N)
    for epoch in range(job.epochs):
        began = time.perf_counter()
        for t in range(T):
            obs[t], dones[t] = next_obs, next_done
            with torch.no_grad():
                action, logprobs[t], _, values[t] = net(next_obs)
            actions[t] = action
            new, reward, terminated, truncated = job.step(action.numpy())
            done = terminated | truncated
            running += reward
            if done.any():
                returned = float(running[done].mean())
                running[done] = 0.0
            rewards[t] = torch.as_tensor(reward)
            next_obs, next_done = torch.as_tensor(normalize(new), dtype=torch.float32), torch.as_tensor(done, dtype=torch.float32)
        played = time.perf_counter()
        with torch.no_grad():
            advantages, last = torch.zeros_like(rewards), torch.zeros(N)
            next_value = net.values(next_obs)
            for t in reversed(range(T)):
                alive = 1.0 - (next_done if t == T - 1 else dones[t + 1])
                following = next_value if t == T - 1 else values[t + 1]
                last = rewards[t] + config["gamma"] * following * alive - values[t] + config["gamma"] * config["tau"] * alive * last
                advantages[t] = last
        losses = update(net, optimizer, config, obs, actions, logprobs, advantages, values)
        for name, value in losses.items():
            writer.add_scalar(f"losses/{name}", value, epoch)
        writer.add_scalar("charts/return", returned, epoch)
        print(f"epoch {epoch + 1}: return {returned:.1f}", flush=True)
        job.epoch(played - began, time.perf_counter() - played)
    writer.close()


def update(net, optimizer, config, obs, actions, logprobs, advantages, values) -> dict[str, float]:
    """PPO's mini-epochs over the flattened rollout. Returns the last minibatch's losses."""
    clip = config["e_clip"]
    returns = (advantages + values).flatten()
    obs, actions, logprobs, advantages, values = (x.flatten(0, 1) for x in (obs, actions, logprobs, advantages, values))
    indices = np.arange(len(returns))
    for _ in range(config["mini_epochs"]):
        np.random.shuffle(indices)
        for start in range(0, len(indices), config["minibatch_size"]):
            mb = indices[start : start + config["minibatch_size"]]
            _, logprob, entropy, value = net(obs[mb], actions[mb])
            ratio = (logprob - logprobs[mb]).exp()
            advantage = advantages[mb]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            policy_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()
            error = (value - returns[mb]) ** 2
            if config["clip_value"]:
                clipped = values[mb] + (value - values[mb]).clamp(-clip, clip)
                error = torch.max(error, (clipped - returns[mb]) ** 2)
            value_loss = error.mean()
            loss = policy_loss - config["entropy_coef"] * entropy.mean() + config["critic_coef"] / 2 * value_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), config["grad_norm"])
            optimizer.step()
    return {"policy": policy_loss.item(), "value": value_loss.item(), "entropy": entropy.mean().item()}


if __name__ == "__main__":
    main()
