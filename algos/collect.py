"""The rollout, written once for feed-forward and recurrent policies, for both ways in which environments reset."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from algos.hooks import Hooks
from algos.rollout import Rollout, Transition
from core import first_obs
from core.errors import UserError
from core.vecenv import to_tensor, tree_map

if TYPE_CHECKING:
    from rl_games.common.a2c_common import A2CBase as Base  # untyped: every attribute of the agent is allowed
else:
    Base = object


class Collector(Base):
    """The part of `Agent` that steps environments."""

    on_gpu: bool
    rnn_states: Any  # list of (layers, N, units), or None without memory
    step_seconds: float  # of the last rollout, in the environments
    fast: Any  # Fast
    keeps_next_obs: bool = False  # set to True in setup(): the rollout and the batch then have `next_obs`, what each step led to
    obs: Any  # as read_obs() gives them; None until the first reset
    obs_is_part: bool = False  # "obs" is a part of the Dict observations, not what holds them beside "states"
    action_masks: Tensor | None  # (N, choices) bool
    episode_masks: Tensor | None  # (T, N) bool: whose finished episodes count; None: all

    def new_rollout(self) -> Rollout:
        """Allocates the buffer (T, N, ...) from the spaces, the head's fields and the author's `rollout_fields`."""
        rollout = Rollout(self.horizon_length, self.policy.device, self.seq_length)
        n = self.rows
        rollout.add_space("obs", self.policy.observation_space, n)
        action_shapes = {"continuous": (self.actions_num,), "discrete": (), "multi_discrete": (_count(self.actions_num),)}
        rollout.add("actions", n, action_shapes[self.kind], torch.float32 if self.kind == "continuous" else torch.int64)
        for name in self.head.rollout_keys:
            rollout.add(name, n, (self.actions_num,))
        rollout.add("neglogp", n, ())
        for name in ("values", "rewards", "raw_rewards", "state_values"):
            rollout.add(name, n, (self.value_size,))
        for name in ("dones_before", "dones_after"):
            rollout.add(name, n, ())
        for name in ("time_outs", "valid"):
            rollout.add(name, n, (), torch.bool)
        self.carried_fields = [*self.head.rollout_keys]
        if self.is_rnn:
            self._check_sequences()
            rollout.add("rnn_dones", n, (), torch.uint8)
            rollout.add_memory(self.policy.initial_rnn_states())
            self.carried_fields.append("rnn_dones")
        if self.has_central_value:
            rollout.add_space("states", self.state_space, self.num_actors)
        if self.use_action_masks:
            choices = np.sum(self.actions_num)
            rollout.add("action_masks", n, (int(choices),), torch.bool)
            self.carried_fields.append("action_masks")
        if self.keeps_next_obs:
            rollout.add_space("next_obs", self.policy.observation_space, n)
            self.carried_fields.append("next_obs")
        for name, (shape, dtype) in self.rollout_fields().items():
            rollout.add(name, n, tuple(shape), dtype)
            self.carried_fields.append(name)
        self.next_step_reset = self.vec_env.reset_mode == "next_step"
        self.masks_reset_rows = self.next_step_reset and self.options.mask_reset_rows
        self.episode_masks = None
        if type(self).episode_mask is not Hooks.episode_mask:
            self.episode_masks = torch.ones((self.horizon_length, n), dtype=torch.bool, device=self.policy.device)
        return rollout

    def reset_environments(self) -> None:
        """Starts all episodes anew: first observations, zero memory, no running returns."""
        self.obs_is_part = first_obs.has_part(self.vec_env.observation_space, "obs")
        self.obs = self.read_obs(first_obs.reset(self.vec_env))
        device = self.policy.device
        self.dones = torch.ones(self.rows, dtype=torch.uint8, device=device)  # as rl_games: nothing came before
        self.resetting = torch.zeros(self.rows, dtype=torch.bool, device=device)  # next-step envs: the coming row is a mere reset
        self.just_reset = torch.zeros(self.rows, dtype=torch.bool, device=device)
        self.rnn_states = self.policy.initial_rnn_states()
        if self.central_value_net is not None and self.central_value_net.is_rnn:
            self.central_value_net.rnn_states = [torch.zeros_like(s) for s in self.central_value_net.rnn_states]
        self.game_rewards.restart()

    def read_obs(self, raw: Any) -> dict[str, Any]:
        """From what the environment returned to {"obs": (N, ...), "states": (num_actors, ...)}, on the device, augmented."""
        device = self.policy.device
        if not isinstance(raw, dict):
            obs = {"obs": to_tensor(raw, device)}
        else:
            raw = {"obs": raw} if "obs" not in raw or self.obs_is_part else raw
            obs = {key: tree_map(lambda x: to_tensor(x, device), value) for key, value in raw.items()}
        obs["obs"] = self.policy.augment_obs(obs["obs"])
        if self.has_central_value:
            obs.setdefault("states", obs["obs"])
        return obs

    def env_step(self, actions: Tensor) -> tuple[dict[str, Any], Tensor, Tensor, dict[str, Any]]:
        """Steps all environments. Returns observations, rewards (N, V), dones (N,) bool, infos."""
        env_actions = self.policy.env_actions(actions)
        start = time.perf_counter()
        raw, rewards, dones, infos = self.vec_env.step(env_actions if self.vec_env.is_torch else env_actions.cpu().numpy())
        self.step_seconds += time.perf_counter() - start
        device = self.policy.device
        rewards = to_tensor(rewards, device).to(torch.float32)
        if rewards.dim() == 1:
            rewards = rewards.unsqueeze(1)
        return self.read_obs(raw), rewards, to_tensor(dones, device).bool(), infos

    def collect(self, rollout: Rollout) -> Tensor:
        """Fills the rollout with T steps. Returns the values (N, V) of the observations after the last one."""
        self.step_seconds = 0.0
        self.fast.refresh()
        for n in range(self.horizon_length):
            self.before_step(n)
            self._before_act(rollout, n)
            result = self._act(rollout)
            if self.central_value_net is not None:
                result["values"] = self.central_value_net.get_value({"states": self.obs["states"], "is_train": False})
            self._store(rollout, n, result)
            obs, raw_rewards, dones, infos = self.env_step(result["actions"])
            if self.is_rnn:
                self.rnn_states = result["rnn_states"]
            time_outs = self._time_outs(infos, dones)
            transition = Transition(
                n, self.obs["obs"], result, obs["obs"], raw_rewards, self.rewards_shaper(raw_rewards), dones, time_outs, infos,
                ~self.resetting,
            )  # fmt: skip
            self._bootstrap_step(rollout, transition)
            if self.keeps_next_obs:
                self._write_next_obs(rollout, n, obs["obs"], dones, infos)
            self.on_step(transition)
            self._store_outcome(rollout, transition)
            self._after_step(transition)
            self.obs = obs
        last_values = self.values_of(self.obs)
        if self.options.check_finite:
            self.check_rollout(rollout)
        return last_values

    def _act(self, rollout: Rollout) -> dict[str, Any]:
        try:
            return self.fast.act(self.obs["obs"]) if self.fast.acts else self.act(self.obs["obs"])
        except (RuntimeError, ValueError):
            if self.options.check_finite:
                self.check_rollout(rollout)  # a NaN observation ends in the distribution's own error; name it instead
            raise

    def values_of(self, obs: dict[str, Any]) -> Tensor:
        """V (N, V) of observations, in reward units, with the present memory, which stays as it is."""
        if self.central_value_net is not None:
            if self.options.peek_values:
                return self.central_value_net.peek(obs["states"])
            return self.central_value_net.get_value({"states": obs["states"], "is_train": False})
        return self.policy.act(obs["obs"], self.rnn_states, self.action_masks)["values"]

    def bootstrap(self, rollout: Rollout, last_values: Tensor) -> Tensor:
        """(T, N, V) what a truncated step's reward lacks: gamma * V of what would have followed, 0 elsewhere."""
        if not self.value_bootstrap:
            return torch.zeros_like(rollout.rewards)
        values = rollout.state_values
        if self.options.bootstrap_from == "terminal_obs" and self.next_step_reset:
            # the observation after a done is the last one of the old episode, and the rollout has its value already
            values = torch.cat([rollout.values[1:], last_values.unsqueeze(0)])
        return self.gamma * values * rollout.time_outs.unsqueeze(2).float()

    # ---- one step's parts -------------------------------------------------------------------------------------------------

    def _before_act(self, rollout: Rollout, n: int) -> None:
        rollout.write(n, "obs", self.obs["obs"])
        if self.has_central_value:
            rollout.write(n, "states", self.obs["states"])
        if self.use_action_masks:
            self.action_masks = to_tensor(self.vec_env.get_action_masks(), self.policy.device).bool()
            rollout.write(n, "action_masks", self.action_masks)
        if self.is_rnn:
            rollout.write_memory(n, self.rnn_states)
            zeroed = self.just_reset if self.masks_reset_rows else self.dones
            rollout.write(n, "rnn_dones", zeroed)
        if self.central_value_net is not None:
            self.central_value_net.pre_step_rnn(n)

    def _store(self, rollout: Rollout, n: int, result: dict[str, Any]) -> None:
        rollout.write(n, "dones_before", self.dones)
        rollout.write(n, "valid", ~self.resetting)
        rollout.write(n, "neglogp", result["neglogpacs"])
        for name in ("actions", "values", *self.head.rollout_keys):
            rollout.write(n, name, result[name])

    def _time_outs(self, infos: dict[str, Any], dones: Tensor) -> Tensor:
        given = infos.get("time_outs") if isinstance(infos, dict) else None
        if given is None:
            return torch.zeros_like(dones)
        return to_tensor(given, self.policy.device).bool()

    def _bootstrap_step(self, rollout: Rollout, transition: Transition) -> None:
        """Keeps V of what a same-step time-out cut off, while memory and terminal observation are at hand."""
        values = transition.result["values"]
        wanted = self.value_bootstrap and self.options.bootstrap_from == "terminal_obs" and not self.next_step_reset
        if wanted and transition.time_outs.any():
            terminal = transition.infos.get("terminal_obs")
            if terminal is None:
                raise missing_terminal_obs(self.vec_env)
            values = self.values_of(self.read_obs(terminal))
        rollout.write(transition.n, "state_values", values)

    def _write_next_obs(self, rollout: Rollout, n: int, obs: Any, dones: Tensor, infos: dict[str, Any]) -> None:
        """What step n led to: `obs`, or where a same-step environment has already begun another episode, the last of the old one."""
        if not self.next_step_reset and (self.on_gpu or bool(dones.any())):
            terminal = infos.get("terminal_obs")
            if terminal is None:
                raise missing_terminal_obs(self.vec_env, "ends episodes")
            obs = tree_map(lambda last, first: _where(dones, last, first), self.read_obs(terminal)["obs"], obs)
        rollout.write(n, "next_obs", obs)

    def _store_outcome(self, rollout: Rollout, transition: Transition) -> None:
        n = transition.n
        rollout.write(n, "raw_rewards", transition.raw_rewards)
        rollout.write(n, "rewards", transition.rewards)
        rollout.write(n, "dones_after", transition.dones)
        rollout.write(n, "time_outs", transition.time_outs)
        for name, value in transition.fields.items():
            if name not in rollout.fields:
                raise KeyError(f"on_step filled '{name}', which rollout_fields() does not declare")
            rollout.write(n, name, value)
        if self.episode_masks is not None:
            mask = self.episode_mask(transition)
            self.episode_masks[n] = True if mask is None else mask

    def _after_step(self, transition: Transition) -> None:
        done_rows = transition.dones.nonzero(as_tuple=False)
        self.algo_observer.process_infos(transition.infos, done_rows[:: self.num_agents])
        if len(done_rows):
            self.on_episode_end(done_rows.squeeze(1), transition)
        # A next-step environment's last observation still belongs to the old episode: its memory is zeroed one row later.
        zero = self.resetting if self.masks_reset_rows else transition.dones
        self.just_reset = self.resetting
        self.resetting = transition.dones.clone() if self.masks_reset_rows else self.resetting
        self.dones = transition.dones.byte()
        if self.is_rnn and self.zero_rnn_on_done:
            for state in self.rnn_states:
                state[:, zero, :] = 0.0
        if self.central_value_net is not None and self.central_value_net.is_rnn:
            rows = zero.nonzero(as_tuple=False)
            if len(rows):
                self.central_value_net.post_step_rnn(rows)

    # ---- checks -------------------------------------------------------------------------------------------------------------

    def check_rollout(self, rollout: Rollout) -> None:
        """Raises UserError naming the first tensor of the rollout that holds a NaN or infinity, its environment and step."""
        for name in ("obs", "states", "raw_rewards", "rewards", "values", "actions"):
            leaves = rollout.fields.get(name)
            for key, tensor in leaves.items() if isinstance(leaves, dict) else [("", leaves)]:
                if tensor is None or not tensor.is_floating_point() or _is_finite(tensor):
                    continue
                step, row = (~torch.isfinite(tensor)).nonzero()[0][:2].tolist()
                raise UserError(
                    f"'{name}{'.' + key if key else ''}' is not finite in epoch {self.epoch_num}, step {step}, "
                    f"environment {row // self.num_agents}. Training stops; the last good checkpoint is kept."
                )

    def _check_sequences(self) -> None:
        if self.horizon_length % self.seq_length or self.minibatch_size % self.seq_length:
            raise UserError(
                f"a policy with memory trains on sequences: horizon_length ({self.horizon_length}) and minibatch_size "
                f"({self.minibatch_size}) must be divisible by seq_length ({self.seq_length}) at train.params.config"
            )


def _is_finite(tensor: Tensor) -> bool:
    """A sum is one quick pass, and is finite only if everything is; the exact look follows where it is not."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _where(rows: Tensor, theirs: Tensor, others: Tensor) -> Tensor:
    """(N, ...): of `theirs` where rows (N,) is true."""
    return torch.where(rows.view(-1, *[1] * (theirs.dim() - 1)), theirs, others)


def missing_terminal_obs(env: Any, does: str = "") -> UserError:
    if does:
        return UserError(
            f"{type(env).__name__} {does} but has no infos['terminal_obs'], which this algorithm learns from: have it give them"
        )
    return UserError(
        f"{type(env).__name__} reports time-outs but no infos['terminal_obs'] to bootstrap from: "
        "have it give them, or set train.params.config.bootstrap_from=current_obs"
    )


def _count(actions_num: Any) -> int:
    return len(actions_num) if isinstance(actions_num, list) else 1
