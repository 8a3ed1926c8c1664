"""DAPG: Demo Augmented Policy Gradient, Rajeswaran et al. 2017 (https://arxiv.org/abs/1709.10087), sec. IV, eq. 6 and 7:

    g = sum_{(s,a) of pi} grad log pi(a|s) A(s,a) + sum_{(s,a) of D} grad log pi(a|s) w,   w = lambda0 lambda1^k max_{(s,a) of pi} A(s,a)

after behaviour cloning on the demonstrations D; k counts the epochs. The paper follows g by natural gradient; here the second sum is a
term beside PPO's loss.
"""

from __future__ import annotations

import dataclasses

import torch

from algos.agent import Agent
from algos.batch import Batch
from algos.options import AgentOptions
from core.demos import Demonstrations
from core.errors import UserError
from core.normalizers import learn
from core.registry import register_algo
from core.vecenv import tree_map


@dataclasses.dataclass(kw_only=True)
class DAPGOptions(AgentOptions):
    demos: str | None = None
    """Demonstration file (docs/demonstrations.md); training needs one."""

    dapg_lambda0: float = 0.1
    """Weight of the demonstrations in the first epoch, in units of the largest advantage; 0: only behaviour cloning helps."""

    dapg_lambda1: float = 0.95
    """Factor of that weight from one epoch to the next."""

    bc_epochs: int = 5
    """Passes over the demonstrations before the first rollout; 0: no behaviour cloning."""

    bc_learning_rate: float = 1e-3
    """Adam's, for behaviour cloning."""

    bc_minibatch_size: int = 64
    """Transitions of one of its steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, valid, told in (
            ("dapg_lambda0", self.dapg_lambda0 >= 0, "at least 0"),
            ("dapg_lambda1", 0 <= self.dapg_lambda1 <= 1, "from 0 to 1"),
            ("bc_epochs", self.bc_epochs >= 0, "at least 0"),
            ("bc_learning_rate", self.bc_learning_rate > 0, "positive"),
            ("bc_minibatch_size", self.bc_minibatch_size >= 1, "at least 1"),
        ):
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {told}")


@register_algo("dapg", config=DAPGOptions)
class DAPG(Agent):
    @classmethod
    def check_run(cls, options, policy, env):
        super().check_run(options, policy, env)
        if options.demos is None:
            raise UserError("train.params.config.demos is missing: DAPG learns from a demonstration file (docs/demonstrations.md)")
        if policy.is_rnn:
            raise UserError("DAPG cannot train a network with memory (train.params.network.rnn): demonstrations hold no states of one")
        Demonstrations.load(options.demos, policy)

    def setup(self):
        super().setup()
        self.demos = Demonstrations.load(self.options.demos, self.policy)
        self.weight = torch.zeros((), device=self.policy.device)
        self.bc_loss = None

    def on_train_start(self):
        super().on_train_start()
        if self.epoch_num == 0:  # not in a run that goes on
            self.clone()

    def clone(self):
        """Behaviour cloning: squared error of the mean, which leaves the width of exploration alone, or cross-entropy."""
        if self.normalize_input:
            learn(self.model.running_mean_std, self.policy.preprocess(self.demos.obs), self.ranks)
        self.model.eval()  # the normalizer has seen them
        parameters = list(self.model.parameters())
        optimizer = torch.optim.Adam(parameters, self.options.bc_learning_rate)
        for _ in range(self.options.bc_epochs):
            losses = []
            for rows in torch.randperm(len(self.demos), device=self.policy.device).split(self.options.bc_minibatch_size):
                batch = self.demonstrated(rows)
                out = self.evaluate_actions(batch)
                loss = (out.neglogp if self.kind != "continuous" else (out.mus - batch.actions).square().sum(-1)).mean()
                optimizer.zero_grad()
                loss.backward()
                self.ranks.average_gradients(parameters)
                optimizer.step()
                losses.append(loss.detach())
            self.bc_loss = torch.stack(losses).mean().item()
        optimizer.zero_grad()

    def transform_batch(self, batch):
        kept = batch.advantages if batch.mask is None else batch.advantages[batch.mask.bool()]
        largest = max(self.ranks.gather(kept.max().item()))
        self.weight.fill_(self.options.dapg_lambda0 * self.options.dapg_lambda1 ** (self.epoch_num - 1) * max(largest, 0.0))
        self.log("dapg/weight", self.weight)
        if self.epoch_num == 1 and self.bc_loss is not None:
            self.log("dapg/bc_loss", self.bc_loss)
        return super().transform_batch(batch)

    def extra_losses(self, mb, out):
        rows = torch.randint(len(self.demos), (len(mb),), device=self.policy.device)
        return {**super().extra_losses(mb, out), "demo": self.weight * self.evaluate_actions(self.demonstrated(rows)).neglogp.mean()}

    def demonstrated(self, rows):
        """Rows (B,) of the demonstrations, as a minibatch."""
        return Batch({"obs": tree_map(lambda leaf: leaf[rows], self.demos.obs), "actions": self.demos.actions[rows]})
