"""An algorithm with an extra network, to measure what hooks cost: random network distillation (https://arxiv.org/abs/1810.12894).

`bench_rnd` uses hooks that are called once per epoch; `bench_rnd_step` computes the same bonus in `on_step`, which is called in every step.
"""

from __future__ import annotations

import torch
from torch import nn

from algos.agent import Agent
from algos.options import AgentOptions
from core.registry import register_algo


def network(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ELU(), nn.Linear(64, 16))


@register_algo("bench_rnd", config=AgentOptions)
class Distillation(Agent):
    def setup(self):
        size = self.policy.obs_shape[0]
        self.target = self.register("target", network(size).requires_grad_(False))
        predictor = network(size)
        self.predictor = self.register("predictor", predictor, optimizer=torch.optim.Adam(predictor.parameters(), 1e-4), grad_norm=1.0)

    def error(self, obs):
        seen = obs.clamp(-5, 5)
        return (self.predictor(seen) - self.target(seen)).square().sum(-1, keepdim=True)  # (..., O) -> (..., 1)

    def combine_rewards(self, rollout):
        bonus = self.error(rollout.obs)  # (T, N, 1)
        return rollout.rewards + 0.01 * bonus, {"novelty": bonus}

    def extra_update(self, batch):
        for mb in batch.minibatches(self.num_minibatches, shuffle=True):
            loss = self.error(mb.obs).mean()
            self.optimizer_step(loss, group="predictor")
        return {"losses/predictor": loss.item()}


@register_algo("bench_rnd_step", config=AgentOptions)
class StepDistillation(Distillation):
    def on_step(self, transition):
        transition.rewards = transition.rewards + 0.01 * self.error(transition.obs)

    def combine_rewards(self, rollout):
        return rollout.rewards, {}
