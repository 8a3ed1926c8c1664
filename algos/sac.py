"""SAC: rl_games 1.6.5's own agent, run inside this project's run directories, observers, checkpoints and player.

Haarnoja et al. 2018 (https://arxiv.org/abs/1812.05905). Its update is rl_games' to the letter. One thing differs: rows in which a
next-step environment merely resets do not enter the replay buffer. Returns are those of the shaped rewards, as rl_games reports them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_games.algos_torch.sac_agent import SACAgent
from rl_games.common.tr_helpers import DefaultRewardsShaper

from core import checkpoint
from core.context import RunContext
from core.errors import UserError
from core.policy import Policy, load_network
from core.quiet import quiet
from core.registry import register_algo
from core.vecenv import VecEnv, to_tensor

REPORT_FRAMES = 2048  # an epoch of SAC is a handful of steps; metrics are averaged over this many frames


class SACPolicy(Policy):
    """The squashed Gaussian actor of rl_games' SAC. Actions are in [-1, 1]; `env_actions` stretches them."""

    def network_build_config(self) -> dict[str, Any]:
        return {
            "obs_dim": self.obs_shape[0],
            "action_dim": self.actions_num,
            "actions_num": self.actions_num,
            "input_shape": self.obs_shape,
            "normalize_input": self.normalize_input,
        }

    @torch.no_grad()
    def act(self, obs: Any, rnn_states: Any = None, action_masks: torch.Tensor | None = None) -> dict[str, Any]:
        self.model.eval()
        distribution = self.model.actor(self.model.norm_obs(self.preprocess(obs)))
        return {"actions": distribution.sample(), "mus": distribution.mean, "rnn_states": None}

    def load(self, state: dict[str, Any]) -> None:
        """Raises UserError where the networks are of another shape."""
        network = self.model.sac_network
        try:
            for name in ("actor", "critic", "critic_target"):
                getattr(network, name).load_state_dict(state[name])
            if self.normalize_input:
                self.model.running_mean_std.load_state_dict(state["running_mean_std"])
        except (RuntimeError, KeyError) as error:
            raise UserError(f"checkpoint does not fit this network: {str(error).splitlines()[-1].strip()}") from error


@register_algo("sac", policy=SACPolicy, actions=("continuous",), multi_rank=False)
class SAC(SACAgent):
    """rl_games' SACAgent with a train loop that reports, saves and stops as the others do."""

    last_mean_rewards: float
    frame: int
    resetting: torch.Tensor  # (N,) bool: next-step environments whose coming row is a mere reset

    @classmethod
    def for_actions(cls, kind: str) -> type[SAC]:
        return cls

    def __init__(self, params: dict[str, Any], env: VecEnv, context: RunContext) -> None:
        self.context, self.vec_env = context, env
        space = env.observation_space
        if space.shape is None or len(space.shape) != 1:
            raise UserError(f"sac needs flat observations, not {space}: rl_games' SAC network has no other encoder")
        self.kind = "continuous"
        given = params["config"]
        config = {
            **given,
            "env_info": env.get_env_info(),
            "features": {"observer": context.observers},
            "reward_shaper": DefaultRewardsShaper(**(given.get("reward_shaper") or {})),
            "train_dir": str(context.run_path.parent),
            "full_experiment_name": context.run_path.name,
            "normalize_input": given.get("normalize_input", False),
        }
        with quiet():
            super().__init__("run", {**params, "config": config})
        self.replay_buffer.add = self._without_resets(self.replay_buffer.add)
        self.seconds = 0.0
        self.episodes = self.new_frames = 0

    def load_networks(self, params: dict[str, Any]) -> None:
        self.config["network"] = load_network(params, "continuous", self.vec_env.observation_space.shape)

    def env_step(self, actions: torch.Tensor) -> Any:
        raw, rewards, dones, infos = self.vec_env.step(actions.clone() if self.vec_env.is_torch else actions.cpu().numpy().copy())
        self.is_transition = ~self.resetting
        self.new_frames += int(self.is_transition.sum())
        dones = to_tensor(dones, self._device).bool()
        if self.vec_env.reset_mode == "next_step":
            self.resetting = dones
        self.episodes += int(dones.sum())
        rewards = to_tensor(rewards, self._device).float()
        return to_tensor(raw, self._device), rewards, dones, infos

    def _without_resets(self, add: Any) -> Any:
        def add_transitions(*columns: torch.Tensor) -> None:
            if bool(self.is_transition.all()):
                add(*columns)
            elif bool(self.is_transition.any()):
                add(*(column[self.is_transition] for column in columns))

        return add_transitions

    def train(self) -> dict[str, Any]:
        self.init_tensors()
        self.algo_observer.after_init(self)
        self.algo_observer.on_train_start(self)
        self.obs = self.env_reset()
        self.resetting = torch.zeros(self.num_actors, dtype=torch.bool, device=self._device)
        started, last_save = time.perf_counter() - self.seconds, time.perf_counter()
        every = max(1, REPORT_FRAMES // self.num_frames_per_epoch)
        spent: list[Any] = []
        reason = self.exit_reason()
        while reason is None:
            self.epoch_num += 1
            spent.append(self.train_epoch())
            self.frame, self.new_frames = self.frame + self.new_frames, 0
            reason = self.exit_reason()
            if len(spent) < every and reason is None:
                continue
            self.seconds = time.perf_counter() - started
            self._report(spent)
            spent = []
            reason = reason or self.exit_reason()
            if reason is not None or time.perf_counter() - last_save >= self.context.save_interval:
                self.save(str(Path(self.nn_dir) / "last"))
                last_save = time.perf_counter()
        return {
            "exit_reason": reason, "frames": self.frame, "epochs": self.epoch_num, "seconds": self.seconds,
            "fps": self.frame / self.seconds if self.seconds else 0.0, "return_mean": self._mean_return(),
            "return_best": float(self.last_mean_rewards) if self.last_mean_rewards > -1e9 else None,
        }  # fmt: skip

    def exit_reason(self) -> str | None:
        """Why training should end now, or None."""
        if self.max_epochs and self.max_epochs != -1 and self.epoch_num >= self.max_epochs:
            return "max_epochs"
        if self.max_frames and self.max_frames != -1 and self.frame >= self.max_frames:
            return "max_frames"
        if self.last_mean_rewards > self.config.get("score_to_win", float("inf")):
            return "score_to_win"
        if self.frame >= (self.context.cfg.get("pause_at") or float("inf")):
            return "pause_at"
        return self.context.stop_requested

    def _report(self, spent: list[Any]) -> None:
        frames = len(spent) * self.num_frames_per_epoch
        metrics: dict[str, float] = {"epoch": self.epoch_num, "frames": self.frame, "seconds": self.seconds, "episodes": self.episodes}
        for index, name in enumerate(("time/step", "time/play", "time/update")):
            metrics[name] = sum(epoch[index] for epoch in spent)
        metrics["fps"] = frames / sum(epoch[3] for epoch in spent)
        names = ("losses/a_loss", "losses/entropy", "info/alpha", "losses/alpha_loss", "losses/c1_loss", "losses/c2_loss")
        for index, name in enumerate(names, start=4):
            values = [value for epoch in spent for value in epoch[index] if value is not None]
            if name in ("losses/a_loss", "losses/entropy"):
                values = [value for value in values if value != 0]  # rl_games reports 0 where an update left the actor out
            if values:
                metrics[name] = torch.stack(values).mean().item()
        for name, value in metrics.items():
            if not np.isfinite(value):
                raise UserError(f"'{name}' is {value} in epoch {self.epoch_num}. Training stops; the last good checkpoint is kept.")
        mean_return = self._mean_return()
        if mean_return is not None:
            metrics["return_mean"] = mean_return
            metrics["length_mean"] = float(self.game_lengths.get_mean())
            if self.epoch_num >= self.save_best_after and mean_return > self.last_mean_rewards:
                self.last_mean_rewards = mean_return
                self.save(str(Path(self.nn_dir) / "best"))
        if self.last_mean_rewards > -1e9:
            metrics["best_return"] = float(self.last_mean_rewards)
        metrics.update(self.algo_observer.metrics())
        self.algo_observer.on_epoch(metrics)
        self.algo_observer.after_print_stats(self.frame, self.epoch_num, self.seconds)

    def _mean_return(self) -> float | None:
        return float(self.game_rewards.get_mean()) if self.game_rewards.current_size else None

    def save(self, fn: str) -> None:
        checkpoint.save(fn if fn.endswith(".pth") else f"{fn}.pth", self.get_full_state_weights())

    def get_full_state_weights(self) -> dict[str, Any]:
        """rl_games' dict, its temperature (which rl_games forgets) and our manifest; the replay buffer is not kept."""
        with quiet():
            state = super().get_full_state_weights()
        spaces = {"observation": str(self.observation_space), "action": str(self.env_info["action_space"])}
        state["last_mean_rewards"] = float(self.last_mean_rewards)
        state["log_alpha"] = self.log_alpha.detach()
        state["gamesmith"] = {
            **checkpoint.manifest(self.context.entry.name, self.kind, self.context.cfg, spaces),
            "seconds": self.seconds,
            "episodes": self.episodes,
            "rng": checkpoint.rng_state(),
        }
        return state

    def restore(self, fn: str, set_epoch: bool = True) -> None:
        """Networks, optimizers, temperature and counters; the replay buffer fills anew, so the warm-up is run again."""
        state = checkpoint.load(fn, self._device)
        checkpoint.check_fits(state, self.context.entry.name, fn)
        self.set_full_state_weights(state, set_epoch)
        if "log_alpha" in state:
            with torch.no_grad():
                self.log_alpha.copy_(state["log_alpha"])
        if set_epoch and "gamesmith" in state:
            self.seconds, self.episodes = state["gamesmith"]["seconds"], state["gamesmith"].get("episodes", 0)
            checkpoint.set_rng_state(state["gamesmith"]["rng"])
            self.num_warmup_steps += self.epoch_num
