"""rl_games' PPO diagnostics (`use_diagnostics`), where 1.6.5's own fail: moving advantage statistics, and an update of one's own."""

from __future__ import annotations

from typing import Any

import torch
from rl_games.common.diagnostics import PpoDiagnostics


class Diagnostics(PpoDiagnostics):
    """`diagnostics/*` in TensorBoard: explained variance, clip fraction per mini-epoch, statistics of values and advantages."""

    exp_vars: list[torch.Tensor]

    def epoch(self, agent: Any, current_epoch: int) -> None:
        self.current_epoch = current_epoch
        if agent.advantage_stats is not None:
            self.diag_dict["diagnostics/rms_advantage/mean"] = agent.advantage_stats.mean
        if agent.normalize_value:
            self.diag_dict["diagnostics/rms_value/mean"] = agent.value_mean_std.running_mean
            self.diag_dict["diagnostics/rms_value/var"] = agent.value_mean_std.running_var
        if self.exp_vars:  # none where an algorithm's update has no minibatches of PPO's
            self.diag_dict["diagnostics/exp_var"] = torch.stack(self.exp_vars).mean()
            self.exp_vars = []
