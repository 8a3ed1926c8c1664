"""From the rollout (T, N, ...) to the batch (L, ...) that the update learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from algos.batch import LARGE, Batch, flat
from algos.rollout import Rollout, flat_memory
from core.normalizers import learn
from core.vecenv import tree_map

if TYPE_CHECKING:
    from rl_games.common.a2c_common import A2CBase as Base  # untyped: every attribute of the agent is allowed
else:
    Base = object


KEPT = 2**26  # numbers of an epoch's observations that are kept normalized: 256 MB; more are normalized minibatch by minibatch


class Preparer(Base):
    """The part of `Agent` that turns a rollout into a batch."""

    _pictures: Tensor | None = None

    def make_batch(self, rollout: Rollout, last_values: Tensor) -> tuple[Batch, Batch | None]:
        """Returns the policy's batch (L rows) and the central value's (T * num_actors rows), if there is one.

        Rows that are no transitions are left out of statistics and batch; a batch of sequences (`steps_together`) keeps them, with
        mask 0, because its sequences must stay whole.
        """
        rewards, components = self.combine_rewards(rollout)
        for name, component in components.items():
            self.log(f"rewards/{name}", component.mean())
        rewards = rewards + self.bootstrap(rollout, last_values)
        self.game_rewards.add_rollout(rollout, rewards, self.episode_masks)
        advantages = self.advantages(rollout, rewards, last_values)
        returns = flat(advantages + rollout.values)
        values = flat(rollout.values)
        valid = flat(rollout.valid)
        mask = valid.float() if self.masks_reset_rows and not bool(valid.all()) else None

        raw_advantages = self.combine_advantages(returns - values)
        if self.normalize_value:
            values, returns = self._normalize_values(values, returns, mask)
        if self.normalize_advantage:
            raw_advantages = self.normalize_advantages(raw_advantages, mask)

        fields: dict[str, Any] = {
            "obs": rollout.obs,
            "actions": rollout.actions,
            "old_neglogp": rollout.neglogp,
            "dones_before": rollout.dones_before,
            "dones_after": rollout.dones_after,
        }
        fields.update({name: rollout.fields[name] for name in self.carried_fields})
        fields = {name: flat_tree(value) for name, value in fields.items()}
        for key in self.head.rollout_keys:
            fields[f"old_{key}"] = fields.pop(key)
        fields.update(old_values=values, returns=returns, advantages=raw_advantages, mask=mask, rnn_states=rollout.flat_memory())
        self._learn_observations(fields, mask)
        central = self._central_batch(rollout, fields) if self.central_value_net is not None else None
        return self._whole_or_kept(Batch(fields, self.steps_together())), central

    def _learn_observations(self, fields: dict[str, Any], mask: Tensor | None) -> None:
        """Once per epoch: the normalizer learns from the batch's kept rows; then all rows are normalized for the fast path."""
        if not (self.normalize_input and self.options.update_normalizer_once):
            return
        obs = fields["obs"]
        large = isinstance(obs, Tensor) and 4 * obs.numel() > LARGE  # pictures: by the minibatch, and normalized when they are used
        rows = torch.arange(len(fields["actions"]), device=fields["actions"].device)
        pieces = -(-len(rows) // self.minibatch_size) if large else 1  # as many on every rank, whatever its mask
        for piece in (rows if mask is None else rows[mask.bool()]).tensor_split(pieces):
            learn(self.model.running_mean_std, self.policy.preprocess(take_rows(obs, piece)), self.ranks)
        if self.fast.reason is None:
            self.fast.refresh()
            if not large:
                fields["normalized_obs"] = self.fast.normalize(obs)
            elif obs.numel() <= KEPT:
                fields["normalized_obs"] = self._kept_pictures(obs)

    def _kept_pictures(self, obs: Tensor) -> Tensor:
        """All pictures normalized, in memory that is used again every epoch; by the minibatch, so that no second float copy is made."""
        dtype = torch.bfloat16 if self.options.precision == "bf16" else torch.float32
        if self._pictures is None or self._pictures.shape != obs.shape:
            self._pictures = torch.empty(obs.shape, dtype=dtype, device=obs.device)
        for into, piece in zip(self._pictures.split(self.minibatch_size), obs.split(self.minibatch_size), strict=True):
            into.copy_(self.fast.normalize(piece))
        return self._pictures

    def _normalize_values(self, values: Tensor, returns: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The running statistics see the values, then the returns (kept rows only); each is normalized right after."""
        stats, normalized = self.value_mean_std, []
        learn = not self.config.get("freeze_critic", False)
        for x in (values, returns):
            stats.train(learn)
            if mask is not None:
                stats(x[mask.bool()])
                stats.eval()
            normalized.append(stats(x))
        stats.eval()
        return normalized[0], normalized[1]

    def _central_batch(self, rollout: Rollout, fields: dict[str, Any]) -> Batch:
        """One row per environment and step: the first agent's values and returns, which all agents of it share."""
        per_env = slice(None, None, self.num_agents)

        def first_agent(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            return x.unflatten(0, (-1, self.horizon_length))[per_env].flatten(0, 1)

        net = self.central_value_net
        central: dict[str, Any] = {name: first_agent(fields[name]) for name in ("actions", "old_values", "returns", "mask")}
        central["obs"] = flat_tree(rollout.states)
        zeroed = rollout.rnn_dones if self.is_rnn else rollout.dones_before
        central["rnn_dones"] = first_agent(flat(zeroed))
        central["rnn_states"] = None
        if net.is_rnn:
            central["rnn_states"] = [flat_memory(state) for state in net.mb_rnn_states]
        return self._whole_or_kept(Batch(central, self.seq_length if net.is_rnn else 1))

    def _whole_or_kept(self, batch: Batch) -> Batch:
        if batch.mask is None or batch.seq_length > 1 or batch.rnn_states is not None:
            return batch
        return batch.take(batch.mask.bool()).replace(mask=None)


def flat_tree(value: Any) -> Any:
    """`flat` for a field that may be a dict of tensors."""
    return {key: flat_tree(sub) for key, sub in value.items()} if isinstance(value, dict) else flat(value)


def take_rows(value: Any, index: Tensor) -> Any:
    """Rows of a field that may be a dict of tensors."""
    return tree_map(lambda x: x[index], value)
