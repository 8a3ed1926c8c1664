"""rl_games' central value (a critic that sees `states`), trained through this project's batches and masks."""

from __future__ import annotations

from typing import Any

import torch
from rl_games.algos_torch.central_value import CentralValueTrain
from rl_games.common import common_losses, schedulers
from torch import Tensor

from algos import losses
from algos.batch import Batch
from algos.options import AgentOptions


class CentralValue(CentralValueTrain):
    """Same network, optimizer and arithmetic as rl_games 1.6.5; the defects on the way are repaired by `AgentOptions`.

    Args:
        options: the agent's options.
        max_frames: end of a linear schedule where no `max_epochs` is given.
        arguments: those of rl_games' CentralValueTrain.
    """

    lr: float
    rnn_states: Any  # list of (layers, N, units), or None without memory

    def __init__(self, options: AgentOptions, max_frames: int, arguments: dict[str, Any]) -> None:
        super().__init__(**arguments)
        self.options = options
        self.frame = 0
        if self.linear_lr and self.max_epochs == -1 and options.schedule_with_frames:
            self.scheduler = schedulers.LinearScheduler(self.lr, max_steps=max_frames, use_epochs=False)
        self.mb_rnn_states: list[Tensor] = []
        if self.is_rnn:
            count = self.horizon_length // self.seq_length
            self.mb_rnn_states = [torch.zeros((count, *s.shape), device=self.ppo_device) for s in self.rnn_states]

    def peek(self, states: Any) -> Tensor:
        """Values (N, V) of states without advancing the memory."""
        kept = self.rnn_states
        values = self.get_value({"states": states, "is_train": False})
        self.rnn_states = kept
        return values

    def learn(self, batch: Batch, frame: int) -> dict[str, float]:
        """All mini-epochs over one batch: obs (L, ...) are states, returns and old_values (L, V), mask (L,) or None."""
        total = torch.zeros((), device=batch.returns.device)
        count = 0
        mini_epochs = 0 if self.config.get("freeze_critic", False) else self.mini_epoch
        for mini_epoch in range(mini_epochs):
            for mb in batch.minibatches(self.num_minibatches, self.options.shuffle):
                self.train()
                if self.normalize_input and self.options.update_normalizer_once and mini_epoch > 0:
                    self.model.running_mean_std.eval()
                with torch.autocast(torch.device(self.ppo_device).type, torch.bfloat16, enabled=self.mixed_precision):
                    total += self.calc_gradients(self._as_rl_games(mb)).detach()
                count += 1
        self.epoch_num += 1
        self.frame = frame
        seen = frame if self.options.schedule_with_frames else 0
        self.lr, _ = self.scheduler.update(self.lr, 0, self.epoch_num, seen, 0)
        self.update_lr(self.lr)
        return {"losses/cval_loss": float(total / max(count, 1)), "info/cval_lr": float(self.lr)}

    def update_lr(self, lr: float) -> None:
        """rl_games' sends the rate from rank 0 in float32; every rank has computed the same one."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def calc_loss(self, value_preds_batch: Any, values: Any, returns_batch: Any, rnn_masks_batch: Any) -> Tensor:
        loss = common_losses.critic_loss(self.model, value_preds_batch, values, self.e_clip, returns_batch, self.clip_value)
        return losses.masked_mean(loss, rnn_masks_batch)

    def _as_rl_games(self, mb: Batch) -> dict[str, Any]:
        return {
            "obs": mb.obs,
            "old_values": mb.old_values,
            "returns": mb.returns,
            "actions": mb.actions,
            "dones": mb.rnn_dones,
            "rnn_masks": mb.mask,
            "rnn_states": mb.rnn_states,
        }

    def schedule_state(self) -> dict[str, Any]:
        return {"epoch_num": self.epoch_num, "frame": self.frame, "lr": float(self.lr), "rnn_states": self.rnn_states}

    def load_schedule_state(self, state: dict[str, Any], running: bool) -> None:
        self.epoch_num, self.frame, self.lr = state["epoch_num"], state["frame"], state["lr"]
        if running and state["rnn_states"] is not None:
            self.rnn_states = [s.to(self.ppo_device) for s in state["rnn_states"]]
