"""rl_games' models whose 1.6.5 version fails, mended under their own names."""

from __future__ import annotations

from typing import Any

import torch
from rl_games.algos_torch.models import ModelA2CContinuous, ModelA2CMultiDiscrete
from rl_games.common.extensions.distributions import CategoricalMasked


class MultiDiscrete(ModelA2CMultiDiscrete):
    """`multi_discrete_a2c`: rl_games cuts action masks into equal parts, which is wrong for heads of unequal size, and squeezes
    a single row away."""

    class Network(ModelA2CMultiDiscrete.Network):
        def forward(self, input_dict: dict[str, Any]) -> dict[str, Any]:
            obs = self.norm_obs(input_dict["obs"])
            logits, value, states = self.a2c_network({**input_dict, "obs": obs})
            masks = input_dict.get("action_masks")
            split = [None] * len(logits) if masks is None else torch.split(masks, [head.shape[-1] for head in logits], dim=-1)
            heads = [CategoricalMasked(logits=head, masks=mask) for head, mask in zip(logits, split, strict=True)]
            result = {"logits": [head.logits for head in heads], "rnn_states": states}
            if input_dict.get("is_train", True):
                actions = input_dict["prev_actions"]  # (B, k)
                neglogps = [-head.log_prob(actions[:, i]) for i, head in enumerate(heads)]
                entropy = torch.stack([head.entropy() for head in heads], dim=-1).sum(dim=-1)
                return {**result, "prev_neglogp": torch.stack(neglogps, dim=-1).sum(dim=-1), "values": value, "entropy": entropy}
            actions = torch.stack([head.sample() for head in heads], dim=-1)
            neglogps = [-head.log_prob(actions[:, i]) for i, head in enumerate(heads)]
            neglogp = torch.stack(neglogps, dim=-1).sum(dim=-1)
            return {**result, "neglogpacs": neglogp, "values": self.denorm_value(value), "actions": actions}


class Continuous(ModelA2CContinuous):
    """`continuous_a2c`: the network's sigma is the standard deviation itself. rl_games' forward names an undefined variable."""

    class Network(ModelA2CContinuous.Network):
        def forward(self, input_dict: dict[str, Any]) -> dict[str, Any]:
            obs = self.norm_obs(input_dict["obs"])
            mu, sigma, value, states = self.a2c_network({**input_dict, "obs": obs})
            distribution = torch.distributions.Normal(mu, sigma, validate_args=False)
            result = {"rnn_states": states, "mus": mu, "sigmas": sigma, "entropy": distribution.entropy().sum(dim=-1)}
            if input_dict.get("is_train", True):
                neglogp = -distribution.log_prob(input_dict["prev_actions"]).sum(dim=-1)
                return {**result, "prev_neglogp": neglogp, "values": value}
            actions = distribution.sample()
            neglogp = -distribution.log_prob(actions).sum(dim=-1)
            return {**result, "neglogpacs": neglogp, "values": self.denorm_value(value), "actions": actions}


MENDED = {"multi_discrete_a2c": MultiDiscrete, "continuous_a2c": Continuous}
