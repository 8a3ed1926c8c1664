"""GAIL: Generative Adversarial Imitation Learning, Ho and Ermon 2016 (https://arxiv.org/abs/1606.03476), eq. 17 and algorithm 1:

    min over pi, max over D:  E_pi[ log(1 - D(s, a)) ] + E_demos[ log D(s, a) ] - lambda H(pi)

D = sigmoid(score) is the probability that (s, a) was demonstrated (the paper's D is 1 minus this one). The policy is paid for what D takes
for demonstrated, by default -log(1 - D), and learns by PPO in place of TRPO.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from algos.discriminator import Discriminator, DiscriminatorOptions, ImitationPlayer, Imitator, flat_size
from core.policy import Policy
from core.registry import register_algo, register_player


@dataclasses.dataclass(kw_only=True)
class GAILOptions(DiscriminatorOptions):
    disc_grad_penalty: float = 3.0
    gail_reward: Literal["positive", "negative", "logit"] = "positive"
    """-log(1 - D), always positive: staying alive pays; log D, always negative: an early end pays; or their sum, D's logit."""


class GAILDiscriminator(Discriminator):
    @staticmethod
    def input_size(policy: Policy, options: Any) -> int:
        choices = policy.actions_num
        return flat_size(policy, "GAIL") + int(sum(choices) if isinstance(choices, list) else choices)

    def inputs(self, obs: Tensor, actions: Tensor, next_obs: Any = None) -> Tensor:
        return torch.cat([obs.float(), encoded(actions, self.policy)], dim=-1)

    def loss(self, policy: Tensor, demos: Tensor) -> Tensor:
        return functional.softplus(policy).mean() + functional.softplus(-demos).mean()  # -log(1 - D) and -log D

    def reward(self, scores: Tensor) -> Tensor:
        if self.options.gail_reward == "logit":
            return scores
        positive = self.options.gail_reward == "positive"
        return functional.softplus(scores) if positive else -functional.softplus(-scores)


def encoded(actions: Tensor, policy: Policy) -> Tensor:
    """Continuous actions (..., A) as the environment takes them, clipped to [-1, 1]; choices (...) or (..., k) one-hot, head by head."""
    if policy.action_kind == "continuous":
        return actions.clamp(-1.0, 1.0) if policy.clip_actions else actions
    if isinstance(policy.action_space, spaces.Discrete):
        return functional.one_hot(actions, policy.actions_num).float()
    heads = zip(actions.unbind(-1), policy.actions_num, strict=True)
    return torch.cat([functional.one_hot(head, count) for head, count in heads], dim=-1).float()


@register_algo("gail", config=GAILOptions, player="gail")
class GAIL(Imitator):
    discriminator = GAILDiscriminator


@register_player("gail")
class GAILPlayer(ImitationPlayer):
    algo = "gail"
