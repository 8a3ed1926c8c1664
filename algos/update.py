"""The default update: mini-epochs over minibatches, the losses of the hooks, one optimizer step each, the learning-rate schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from algos import losses
from algos.batch import Batch
from algos.device_rate import DeviceRate
from algos.flat_adam import FlatAdam
from algos.heads import Output

if TYPE_CHECKING:
    from rl_games.common.a2c_common import A2CBase as Base  # untyped: every attribute of the agent is allowed
else:
    Base = object


class Updater(Base):
    """The part of `Agent` that learns from a batch."""

    last_lr: float
    entropy_coef: float
    graphs: Any  # Graphs
    device_rate: DeviceRate | None
    _by_hand: Any = None  # ByHand, within an update that it serves
    rate: DeviceRate | None = None  # within an update: what schedules, where the host does not

    def ppo_update(self, batch: Batch) -> dict[str, float]:
        """`mini_epochs` passes over the batch in `num_minibatches` minibatches, with rl_games' learning-rate schedules."""
        self._updating = self.fast.reason is None
        flat = self._updating and self.fast.by_hand is not None and self.optimizer.lies_flat()
        self._by_hand = self.fast.by_hand if flat else None
        if flat:
            self.optimizer.settle()
        self.rate = self.device_rate if self.device_rate is not None and self.optimizer.lies_flat() else None
        try:
            if self.rate is not None:
                self.rate.load()
            orders = {str(i): batch.draw_order() for i in range(self.mini_epochs_num)} if self.options.shuffle else {}
            means = self.graphs.learn(batch, orders)
            return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))  # one wait for the device
        finally:
            self._updating, self._by_hand = False, None
            if self.rate is not None:
                self.rate.store()
                self.rate = None

    def passes(self, batch: Batch, orders: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mini-epochs, each in its order of the rows ("0" is the first; none: as they lie). Returns the mean of each metric over all
        minibatches. With `rate`, the host asks the device nothing in here, so that it can be a CUDA graph."""
        parts: dict[str, list[Tensor]] = {}
        for mini_epoch in range(self.mini_epochs_num):
            kls = []
            for mb in batch.minibatches(self.num_minibatches, False, orders.get(str(mini_epoch))):
                losses_of_mb, kl = self.minibatch_step(batch, mb)
                kls.append(kl)
                for name, value in losses_of_mb.items():
                    parts.setdefault(f"losses/{name}", []).append(value)
                if self.head.schedule_each_minibatch:
                    self._schedule(kl)
            mean_kl = torch.stack(kls).mean()
            if not self.head.schedule_each_minibatch:
                self._schedule(mean_kl)
            parts.setdefault("info/kl", []).append(mean_kl)
            self.diagnostics.mini_epoch(self, mini_epoch)
        return {name: _mean_of_means(values) for name, values in parts.items()}

    def minibatch_step(self, batch: Batch, mb: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """One optimizer step. Returns each loss, detached, and the mean KL. A loss is its mean or the rows that it is the mean of: small
        sums are as dear as small layers, and taken once for all minibatches."""
        if self._by_hand is not None:
            out, parts = self._by_hand.step(mb)
        else:
            with self.autocast(self.mixed_precision):
                out = self.evaluate_actions(mb)
                loss, parts = self.total_loss(mb, out)
            self.optimizer_step(loss)
        with torch.no_grad():
            kl = self.fast.mean_kl(mb, out) if self._updating else None
            if kl is None:
                kl = self.mean(self.policy_kl(mb, out), mb.mask)
            self.head.after_minibatch(batch, mb, out)
        if self.use_diagnostics:
            rows = {"values": mb.old_values, "returns": mb.returns, "masks": None}
            neglogps = {"new_neglogp": out.neglogp, "old_neglogp": mb.old_neglogp}
            self.diagnostics.mini_batch(self, {**rows, **neglogps}, self.e_clip, 0)
        return parts if self._by_hand is not None else {name: value.detach() for name, value in parts.items()}, kl

    def total_loss(self, mb: Batch, out: Output) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduces and weighs the losses of the hooks. Returns the scalar to minimise and each mean, by rl_games' names."""
        loss, parts = self.fast.total_loss(mb, out) if self._updating and self.fast.losses else self.policy_and_value_loss(mb, out)
        for name, value in self.extra_losses(mb, out).items():
            parts[name] = self.mean(value, mb.mask) if value.dim() else value
            loss = loss + parts[name] * getattr(self.options, f"{name}_coef", 1.0)
        for name, value in (self.model.get_aux_loss() or {}).items():
            parts[name] = value
            loss = loss + value
        return loss, parts

    def policy_and_value_loss(self, mb: Batch, out: Output) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of the hooks `policy_loss`, `value_loss` and `entropy_weight`, and the head's own."""
        parts = {"a_loss": self.mean(self.policy_loss(mb, out), mb.mask)}
        loss = parts["a_loss"]
        if self.has_value_loss:
            parts["c_loss"] = self.mean(self.value_loss(mb, out), mb.mask)
            loss = loss + 0.5 * parts["c_loss"] * self.critic_coef
        parts["entropy"] = self.mean(out.entropy, mb.mask)
        weight = self.entropy_weight(mb)
        bonus = self.mean(out.entropy * weight, mb.mask) if isinstance(weight, Tensor) else parts["entropy"] * weight
        loss = loss - bonus
        for name, (value, coef) in self.head.losses(out).items():
            parts[name] = self.mean(value, mb.mask)
            loss = loss + parts[name] * coef
        return loss, parts

    def mean(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Mean over the kept rows; rl_games divides by all of them (option `mean_over_mask`)."""
        result = losses.masked_mean(values, mask)
        if mask is not None and not self.options.mean_over_mask:
            result = result * mask.sum() / mask.numel()
        return result

    def model_inputs(self, mb: Batch) -> dict[str, Any]:
        """The dict that rl_games' models take in training. A fresh one each time: a forward pass normalizes obs in place."""
        inputs = {"is_train": True, "prev_actions": mb.actions, "obs": self.policy.preprocess(mb.obs)}
        if self.is_rnn:
            inputs.update(rnn_states=mb.rnn_states, seq_length=self.seq_length)
            if self.zero_rnn_on_done:
                inputs["dones"] = mb.rnn_dones
        if "action_masks" in mb:
            inputs["action_masks"] = mb.action_masks
        return inputs

    def default_optimizer_step(self, loss: Tensor, group: str) -> None:
        """Zero gradients, backward, clip, step, for the optimizer of one group."""
        if group not in self.extras.groups:
            raise ValueError(f"optimizer_step: no optimizer '{group}'; there are {', '.join(self.extras.groups)}")
        stepped = self.extras.groups[group]
        for parameter in stepped.parameters:
            parameter.grad = None
        self.scaler.scale(loss).backward()
        self.ranks.average_gradients(stepped.parameters)
        clip = stepped.grad_norm
        if group == "policy" and self.truncate_grads:
            clip = self.grad_norm
        flat = stepped.optimizer if self.options.fused and not self.scaler.is_enabled() else None
        if isinstance(flat, FlatAdam) and flat.step_clipped(clip):
            return
        if clip is not None:
            self.scaler.unscale_(stepped.optimizer)
            clip_grad_norm_(stepped.parameters, clip)
        self.scaler.step(stepped.optimizer)
        self.scaler.update()

    def schedule_frames(self) -> int:
        """The frames that the schedule is told."""
        return self.frame if self.options.schedule_with_frames else 0

    def _schedule(self, kl: Tensor) -> None:
        if self.rate is not None:
            self.rate.advance(kl)
            return
        frames = self.schedule_frames()
        kl_value = self.ranks.mean(kl).item() if self.is_adaptive_lr else 0.0
        self.last_lr, self.entropy_coef = self.scheduler.update(self.last_lr, self.entropy_coef, self.epoch_num, frames, kl_value)
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = self.last_lr


def _mean_of_means(values: list[Tensor]) -> Tensor:
    """values: a minibatch's mean each, or the rows of one, of which the last minibatch may have fewer."""
    if any(value.shape != values[0].shape for value in values):
        values = [value.mean() for value in values]
    return torch.stack(values).mean()
