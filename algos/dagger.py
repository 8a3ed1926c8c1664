"""DAgger: dataset aggregation, Ross et al. 2011 (https://arxiv.org/abs/1011.0686), alg. 3.1, from a teacher to a student:

    pi_i = beta_i pi_teacher + (1 - beta_i) pi_student acts;   D <- D + {(s, pi_teacher(s)) : s visited};   min_student E_D[ l(s, pi) ]

The teacher is another run's checkpoint. It may see more than the student: the state of the task (task.hidden_obs).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch.nn import functional as F

from algos.agent import Agent
from algos.batch import Batch
from algos.options import AgentOptions
from core.checkpoint import frozen_policy
from core.errors import UserError
from core.registry import register_algo
from core.vecenv import tree_map


@dataclasses.dataclass(kw_only=True)
class DAggerOptions(AgentOptions):
    teacher: str | None = None
    """Checkpoint of the teacher; training needs one."""

    dagger_target: Literal["action", "distribution"] = "action"
    """action: squared error to the teacher's mean, or cross-entropy with its likeliest choice; distribution: KL(teacher || student)."""

    dagger_beta: float = 1.0
    """Share of the steps of the first epoch in which the teacher acts."""

    dagger_beta_decay: float = 0.5
    """Factor of that share from one epoch to the next; 0: from the second epoch on the student acts alone."""

    dagger_deterministic: bool = True
    """The student acts with its most likely action while collecting; false: it samples."""

    dagger_epochs_kept: int = 10
    """Epochs whose labelled states are learned from: the dataset's size. 1: only the newest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dagger_beta", "dagger_beta_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be from 0 to 1")
        if self.dagger_epochs_kept < 1:
            raise ValueError(f"dagger_epochs_kept is {self.dagger_epochs_kept}: it must be at least 1")


class Dataset:
    """The labelled rows of the last `size` epochs; saved with the agent."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epochs: list[dict[str, Any]] = []

    def add(self, fields: dict[str, Any]) -> None:
        self.epochs = [*self.epochs, fields][-self.size :]

    def batch(self, seq_length: int) -> Batch:
        """All rows as one batch; recurrent states lie along their second dimension."""
        first = self.epochs[0]
        fields: dict[str, Any] = {}
        for name in first:
            values = [epoch[name] for epoch in self.epochs]
            if name == "rnn_states":
                fields[name] = [torch.cat(states, dim=1) for states in zip(*values, strict=True)]
            else:
                fields[name] = tree_map(lambda *leaves: torch.cat(leaves), *values)
        return Batch(fields, seq_length)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"][-self.size :]


@register_algo("dagger", config=DAggerOptions)
class DAgger(Agent):
    @classmethod
    def check_run(cls, options, policy, env):
        super().check_run(options, policy, env)
        if options.teacher is None:
            raise UserError("train.params.config.teacher is missing: DAgger learns from another run's checkpoint (nn/best.pth)")
        teacher = frozen_policy(options.teacher, env.get_env_info(), env.num_envs, "cpu", sees="either")
        if teacher.is_rnn:
            raise UserError(f"teacher '{options.teacher}' has memory: DAgger asks it about single states")
        if options.dagger_target == "distribution" and not hasattr(teacher.model, "a2c_network"):
            raise UserError(
                f"teacher '{options.teacher}' is no Gaussian or categorical policy: use train.params.config.dagger_target=action"
            )
        if teacher.sees == "states" and env.num_agents > 1:
            raise UserError(
                f"teacher '{options.teacher}' sees the task's state, which its {env.num_agents} agents share: DAgger has no label for each"
            )

    def setup(self):
        super().setup()
        self.teacher = self.load_frozen(self.options.teacher, sees="either")
        self.dataset = self.register("dataset", Dataset(self.options.dagger_epochs_kept))
        choices = self.actions_num if isinstance(self.actions_num, list) else [self.actions_num]
        self.choices = [2 * self.actions_num] if self.kind == "continuous" else choices  # sizes of the label's parts

    def rollout_fields(self):
        return {"label": ((sum(self.choices),), torch.float32)}

    # ---- rollout ------------------------------------------------------------------------------------------------------

    def before_epoch(self):
        self.beta = self.options.dagger_beta * self.options.dagger_beta_decay ** (self.epoch_num - 1)
        self.log("dagger/beta", self.beta)

    def act(self, obs):
        result = super().act(obs)
        told = self.teacher.act(self.teacher.augment_obs(self.obs[self.teacher.sees]), None, self.action_masks)
        if self.options.dagger_deterministic:
            result["actions"] = self.policy.best_actions(result)
        if self.beta > 0:
            by_teacher = torch.rand(self.rows, device=self.policy.device) < self.beta
            shape = (-1, *[1] * (result["actions"].dim() - 1))
            result["actions"] = torch.where(by_teacher.reshape(shape), self.teacher.best_actions(told), result["actions"])
        if self.kind == "continuous":
            widths = told.get("sigmas", torch.ones_like(told["mus"]))  # SAC's are of another distribution, and check_run lets none be used
            self.label = torch.cat([told["mus"], widths], dim=-1)
        else:
            self.label = torch.cat(self.parts(told["logits"]), dim=-1)
        return result

    def on_step(self, transition):
        transition.fields["label"] = self.label

    # ---- update -------------------------------------------------------------------------------------------------------

    def update(self, batch):
        names = ("obs", "actions", "label", "rnn_states", "rnn_dones", "action_masks", "mask")
        fields = {name: getattr(batch, name) for name in names if name in batch}
        fields = {
            name: [x.clone() for x in value] if name == "rnn_states" else tree_map(torch.clone, value) for name, value in fields.items()
        }
        if self.is_rnn and "mask" not in fields:
            fields["mask"] = torch.ones(len(batch), device=batch.actions.device)  # another epoch may have reset rows
        self.dataset.add(fields)
        data = self.dataset.batch(batch.seq_length)
        losses = []
        for _ in range(self.mini_epochs_num):
            for mb in data.minibatches(self.num_minibatches * len(self.dataset.epochs), shuffle=True):
                with self.autocast(self.mixed_precision):
                    out = self.evaluate_actions(mb)
                    loss = self.mean(self.distance(mb.label, out), mb.mask if "mask" in mb else None)
                self.optimizer_step(loss)
                losses.append(loss.detach())
            if not self.is_adaptive_lr:  # there is no KL divergence to adapt to
                self._schedule(losses[-1])
        return {"losses/dagger": torch.stack(losses).mean().item(), "dagger/rows": len(data)}

    def distance(self, label, out):
        """What is minimised, per sample (B,): between the teacher's label (B, sum of choices) and the student's output."""
        if self.kind == "continuous":
            mus, sigmas = label.chunk(2, dim=-1)  # (B, A) each
            if self.options.dagger_target == "action":
                return (out.mus - mus).square().sum(-1)
            return ((sigmas**2 + (out.mus - mus) ** 2) / (2 * out.sigmas**2) - 0.5 + torch.log(out.sigmas / sigmas)).sum(-1)
        total = torch.zeros(len(label), device=label.device)
        for theirs, ours in zip(label.split(self.choices, dim=-1), self.parts(out.logits), strict=True):
            logp, logq = theirs.log_softmax(-1), ours.float().log_softmax(-1)
            if self.options.dagger_target == "action":
                total = total + F.nll_loss(logq, logp.argmax(-1), reduction="none")
            else:
                total = total + (logp.exp() * (logp - logq)).sum(-1)
        return total

    def parts(self, logits):
        """One tensor of logits per head."""
        return logits if isinstance(logits, list) else [logits]
