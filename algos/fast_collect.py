"""The rollout of the fast path: per step only what a step needs, everything else once per rollout."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from algos import fused_losses
from algos.collect import missing_terminal_obs
from algos.rollout import Rollout

if TYPE_CHECKING:
    from rl_games.common.a2c_common import A2CBase as Base  # untyped: every attribute of the agent is allowed
else:
    Base = object


class Given:
    """A field (T, N, ...) of what environments give. NumPy writes its own arrays in a third of the time that torch takes to."""

    def __init__(self, field: Tensor) -> None:
        self.steps, self.streams = field.unbind(0), field.dim() == 3
        self.arrays = [step.numpy() for step in self.steps] if field.device.type == "cpu" else None

    def put(self, n: int, value: Any) -> None:
        if self.streams and value.ndim == 1:  # the task's one reward, which every stream begins with
            value = value[:, None]
        elif not self.streams and value.ndim == 2:  # (N, 1)
            value = value[:, 0]
        if self.arrays is None or isinstance(value, Tensor):
            self.steps[n].copy_(torch.as_tensor(value))
        else:
            self.arrays[n][...] = value


class Steps:
    """The rollout's buffers step by step: lists of T views, cut once, because indexing costs as much as a small layer."""

    def __init__(self, rollout: Rollout, choices: int | None, width: int) -> None:
        self.obs = rollout.obs.unbind(0)
        self.actions = rollout.actions.unbind(0)
        self.logits: Any = None
        if choices is not None:
            self.logits = torch.zeros((rollout.horizon, rollout.actions.shape[1], choices), device=rollout.device)
        self.head = (rollout.mus if self.logits is None else self.logits).unbind(0)
        self.sigmas: Any = rollout.sigmas.unbind(0) if self.logits is None else None
        self.values = rollout.values.unbind(0)
        self.dones = rollout.dones_after.unbind(0)
        self.rewards = Given(rollout.raw_rewards.squeeze(2) if width == 1 else rollout.raw_rewards)
        self.ended, self.time_outs = Given(rollout.dones_after), Given(rollout.time_outs)
        self.normalized = torch.zeros_like(rollout.obs[0], dtype=torch.float32)


class FastCollector(Base):
    """The part of `Agent` that steps environments where no per-step hook is overridden."""

    steps: Any = None  # Steps, made with the first rollout
    graphs: Any  # Graphs
    obs: Any
    rnn_states: Any
    step_seconds: float
    infos_are_read = False  # an observer wanted the last step's infos

    def collect_fast(self, rollout: Rollout) -> Tensor:
        """Fills the rollout with T steps, as `collect` does. Returns the values (N, V) of the observations after the last one.

        The arithmetic is the plain rollout's; the noise of the actions is drawn for all steps at once.
        """
        if self.steps is None:
            self.steps = Steps(rollout, None if self.kind == "continuous" else self.actions_num, self.value_size)
        self.fast.refresh()
        self.step_seconds = 0.0
        last_values = self.graphs.play(rollout, self.draw_noise())
        if self.options.check_finite:
            self.check_rollout(rollout)
        return last_values

    def play(self, rollout: Rollout, noise: Tensor) -> Tensor:
        """The T steps and what follows them. On a GPU the host asks the device nothing in here, so that it can be a CUDA graph."""
        steps, carried = self.steps, (self.dones, self.resetting, self.just_reset)
        self._sigma = self._fixed_sigma(rollout)
        cut_off: list[tuple[int, Any, Tensor]] = []  # same-step time-outs: step, rows (k,) or all, values (k, V) of what they cut off
        wants_terminal = self.value_bootstrap and self.options.bootstrap_from == "terminal_obs" and not self.next_step_reset
        noises = noise.unbind(0)
        for n in range(self.horizon_length):
            self.before_step(n)
            steps.obs[n].copy_(self.obs["obs"])
            if self.is_rnn:
                rollout.write_memory(n, self.rnn_states)
            self._forward(steps, n)
            actions = self._sample(steps, n, noises[n])
            start = time.perf_counter()
            raw, rewards, dones, infos = self.vec_env.step(actions if self.vec_env.is_torch else actions.cpu().numpy())
            self.step_seconds += time.perf_counter() - start
            self.obs = self.read_obs(raw)
            time_outs = infos.get("time_outs") if isinstance(infos, dict) else None
            steps.rewards.put(n, rewards)
            steps.ended.put(n, dones)
            if time_outs is None:
                steps.time_outs.steps[n].zero_()
            else:
                steps.time_outs.put(n, time_outs)
                if wants_terminal and (self.on_gpu or time_outs.any()):
                    cut_off.append((n, *self._cut_off(infos, torch.as_tensor(time_outs))))
            if self.keeps_next_obs:
                self._write_next_obs(rollout, n, self.obs["obs"], steps.dones[n].bool(), infos)
            self.infos_are_read = self.algo_observer.reads(infos)
            if self.infos_are_read:
                done_rows = steps.dones[n].nonzero(as_tuple=False)
                self.algo_observer.process_infos(infos, done_rows[:: self.num_agents])
            if self.is_rnn and self.zero_rnn_on_done:
                ended = steps.dones[n - 1] if n else carried[1]  # next-step: the row that shows the last observation comes first
                self._forget(ended if self.masks_reset_rows else steps.dones[n])
        self._fill_flags(rollout, *carried)
        return self._finish(rollout, steps, cut_off)

    def draw_noise(self) -> Tensor:
        """What makes the T steps' actions random: standard normals (T, N, A), or Gumbel numbers (T, N, choices)."""
        shape = (self.horizon_length, self.rows, self.actions_num)
        if self.kind == "continuous":
            return torch.randn(shape, device=self.policy.device)
        return torch.empty(shape, device=self.policy.device).exponential_().log_().neg_()

    # ---- one step's parts -----------------------------------------------------------------------------------------------

    def _forward(self, steps: Steps, n: int) -> None:
        """The policy on step n's observations: head, values and, where it is not fixed, sigma into their buffers."""
        fused, x = self.fast.fused, self.fast.normalize_step(steps.obs[n], steps.normalized)
        inputs = {"rnn_states": self.rnn_states} if self.is_rnn else {}
        if fused is not None:
            fused.act(x, steps.head[n], None if fused.values_later else steps.values[n], **inputs)
            return
        head, logstd, values, states = self.fast.network(x, **inputs)
        steps.head[n].copy_(head)
        steps.values[n].copy_(values)
        if logstd is not None:
            torch.exp(logstd, out=steps.sigmas[n])
        if self.is_rnn:
            self.rnn_states = list(states)

    def _sample(self, steps: Steps, n: int, noise: Tensor) -> Tensor:
        """Keeps step n's actions and returns them in the environment's scale."""
        actions = steps.actions[n]
        if self.kind != "continuous":
            torch.argmax(noise.add_(steps.head[n]), dim=1, out=actions)  # Gumbel-max: a sample of the categorical distribution
        else:
            torch.addcmul(steps.head[n], self._sigma if self._sigma is not None else steps.sigmas[n], noise, out=actions)
        return self.policy.env_actions(actions)

    def _fixed_sigma(self, rollout: Rollout) -> Tensor | None:
        """(A,) where the network's sigma does not depend on the observation."""
        if self.kind != "continuous" or self.fast.fused is None:
            return None
        sigma = self.fast.net.sigma_act(self.fast.net.sigma).exp()
        rollout.sigmas.copy_(sigma.expand_as(rollout.sigmas))
        return sigma

    def _cut_off(self, infos: dict[str, Any], time_outs: Tensor) -> tuple[Any, Tensor]:
        """Rows that a same-step time-out ended, and V of the observations after which nothing came."""
        terminal = infos.get("terminal_obs")
        if terminal is None:
            raise missing_terminal_obs(self.vec_env)
        obs = self.read_obs(terminal)["obs"]
        every_row = self.is_rnn or self.on_gpu  # memory belongs to all rows, and asking which would wait for the device
        rows = slice(None) if every_row else time_outs.nonzero().squeeze(1)
        inputs = {"rnn_states": self.rnn_states} if self.is_rnn else {}
        return rows, self._values(self.fast.normalize(obs[rows]), **inputs)

    def _values(self, normalized: Tensor, **inputs: Any) -> Tensor:
        """(L, V) in reward units."""
        values = self.fast.fused.values(normalized, **inputs) if self.fast.fused is not None else self.fast.network(normalized, **inputs)[2]
        return self.fast.denormalize(values)

    def _forget(self, ended: Tensor) -> None:
        if self.on_gpu or bool(ended.any()):
            keep = (1.0 - ended.float()).view(1, -1, 1)
            for state in self.rnn_states:
                state.mul_(keep)

    # ---- once per rollout -------------------------------------------------------------------------------------------------

    def _fill_flags(self, rollout: Rollout, dones: Tensor, resetting: Tensor, just_reset: Tensor) -> None:
        """What came before each step: dones, reset rows, zeroed memory; and what the next rollout begins with."""
        ended = rollout.dones_after.bool()
        rollout.dones_before[0], rollout.dones_before[1:] = dones, rollout.dones_after[:-1]
        self.dones = ended[-1].byte()
        reset_rows = torch.zeros_like(ended)
        if self.masks_reset_rows:
            reset_rows[0], reset_rows[1:] = resetting, ended[:-1]
            self.resetting, self.just_reset = ended[-1].clone(), reset_rows[-1].clone()
        rollout.valid.copy_(~reset_rows)
        if self.is_rnn:
            if self.masks_reset_rows:
                rollout.rnn_dones[0], rollout.rnn_dones[1:] = just_reset, reset_rows[:-1]
            else:
                rollout.rnn_dones.copy_(rollout.dones_before)

    def _finish(self, rollout: Rollout, steps: Steps, cut_off: list[tuple[int, Any, Tensor]]) -> Tensor:
        """Values, log-probabilities, shaped rewards and bootstraps of all steps in one pass each."""
        last = self.fast.normalize(self.obs["obs"])
        if self.fast.fused is not None and self.fast.fused.values_later:
            values = self._values(torch.cat([self.fast.normalize(rollout.obs.flatten(0, 1)), last])).view(-1, self.rows, self.value_size)
            rollout.values.copy_(values[:-1])
            last_values = values[-1]
        else:
            rollout.values.copy_(self.fast.denormalize(rollout.values))
            last_values = self._values(last, **({"rnn_states": self.rnn_states} if self.is_rnn else {}))
        if steps.logits is None:
            flat = [x.flatten(0, 1) for x in (rollout.mus, rollout.sigmas.log(), rollout.actions)]
            neglogp = fused_losses.Gaussian.apply(*flat)[0]
        else:
            neglogp = fused_losses.Categorical.apply(steps.logits.flatten(0, 1), rollout.actions.flatten())[0]
        rollout.neglogp.copy_(neglogp.view_as(rollout.neglogp))
        rollout.rewards.copy_(self.rewards_shaper(rollout.raw_rewards))
        rollout.state_values.copy_(rollout.values)
        for n, rows, values in cut_off:
            rollout.state_values[n, rows] = values
        return last_values
