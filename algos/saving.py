"""What an agent saves and how it goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from algos import rank_sync
from core import checkpoint
from core.errors import UserError
from core.quiet import quiet
from core.vecenv import tree_map

if TYPE_CHECKING:
    from rl_games.common.a2c_common import A2CBase as Base  # untyped: every attribute of the agent is allowed
else:
    Base = object


class Saving(Base):
    """The part of `Agent` that writes and reads checkpoints (format: core/checkpoint.py)."""

    last_lr: float
    entropy_coef: float

    @property
    def last_path(self) -> Path:
        return Path(self.nn_dir) / "last.pth"

    @property
    def best_path(self) -> Path:
        return Path(self.nn_dir) / "best.pth"

    def save(self, fn: str) -> None:
        """Writes the full state to `fn` (".pth" is added where it lacks, as rl_games does). Of several ranks all must call it; the
        first one writes."""
        state = rank_sync.with_ranks(self, self.get_full_state_weights())
        if self.ranks.is_main:
            checkpoint.save(fn if fn.endswith(".pth") else f"{fn}.pth", state)

    def save_milestones(self, improved: bool) -> None:
        """best.pth where the metric improved; `last_<name>_ep_<n>_rew_<r>.pth` every `save_frequency` epochs."""
        if improved:
            self.save(str(self.best_path))
        if self.save_freq > 0 and self.epoch_num % self.save_freq == 0 and len(self.game_rewards):
            reward = float(self.game_rewards.get_mean()[0])
            self.save(str(Path(self.nn_dir) / f"last_{self.config['name']}_ep_{self.epoch_num}_rew_{reward:.2f}"))

    def get_full_state_weights(self) -> dict[str, Any]:
        """rl_games' dict, and under `gamesmith` the manifest and all that must go on: extras, schedules, random state, counters,
        and, where the environments' state can be saved, where they and their episodes stand."""
        state: dict[str, Any] = {
            "model": {name.replace("_orig_mod.", ""): value for name, value in self.model.state_dict().items()},
            "epoch": self.epoch_num,
            "frame": self.frame,
            "optimizer": self.optimizer.state_dict(),
            "last_mean_rewards": float(self.last_mean_rewards),
            "env_state": checkpoint.plain(self.vec_env.get_env_state()),
        }
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        if self.central_value_net is not None:
            state["assymetric_vf_nets"] = self.central_value_net.state_dict()
            state["assymetric_vf_optimizer"] = self.central_value_net.optimizer.state_dict()
        spaces = {key: str(self.policy.env_info[f"{key}_space"]) for key in ("observation", "action")}
        state["gamesmith"] = {
            **checkpoint.manifest(self.context.entry.name, self.kind, self.context.cfg, spaces),
            "extras": checkpoint.plain(self.extras.state_dict()),
            "schedule": {"last_lr": self.last_lr, "entropy_coef": self.entropy_coef},
            "central_value": self.central_value_net.schedule_state() if self.central_value_net is not None else None,
            "seconds": self.seconds,
            "episodes": self.game_rewards.state_dict(),
            "rng": checkpoint.rng_state(),
            "running": self._running_state(),
        }
        return state

    def _running_state(self) -> dict[str, Any] | None:
        """Where the episodes stand, for environments that can go on from there."""
        if not self.vec_env.can_save_state or self.obs is None:
            return None
        return {
            "obs": self.obs,
            "dones": self.dones,
            "resetting": self.resetting,
            "just_reset": self.just_reset,
            "rnn_states": None if self.rnn_states is None else list(self.rnn_states),
        }

    def restore(self, fn: str, set_epoch: bool = True) -> None:
        """Goes on from a checkpoint, ours or stock rl_games'. `set_epoch=False` takes weights, normalizers and registered modules,
        but starts optimizers, schedules, counters and what a run collects (replay, data sets) anew.

        Raises UserError where the file cannot be read or does not fit the algorithm or the network.
        """
        state = checkpoint.load(fn, self.policy.device)
        checkpoint.check_fits(state, self.context.entry.name, fn)
        self.set_full_state_weights(state, set_epoch)

    def set_full_state_weights(self, weights: dict[str, Any], set_epoch: bool = True) -> None:
        weights = rank_sync.of_this_rank(self, weights)
        self.policy.load(weights)
        if self.central_value_net is not None:
            if "assymetric_vf_nets" not in weights:
                raise UserError("checkpoint has no central value, but central_value_config is set")
            self.central_value_net.load_state_dict(
                {name.replace("_orig_mod.", ""): value for name, value in weights["assymetric_vf_nets"].items()}
            )
        ours = weights.get("gamesmith")
        if ours is not None:
            try:
                self.extras.load_state_dict(ours["extras"], modules_only=not set_epoch)
            except KeyError as missing:
                raise UserError(
                    f"checkpoint lacks the registered part {missing}: it was made by another version of the algorithm"
                ) from missing
            except RuntimeError as error:  # torch names the tensors
                told = " ".join(str(error).split())
                raise UserError(f"checkpoint does not fit this algorithm's settings: {told}") from error
        if not set_epoch:
            return
        self.optimizer.load_state_dict(weights["optimizer"])
        if self.central_value_net is not None and "assymetric_vf_optimizer" in weights:
            self.central_value_net.optimizer.load_state_dict(weights["assymetric_vf_optimizer"])
        if self.scaler.is_enabled() and "scaler" in weights:
            self.scaler.load_state_dict(weights["scaler"])
        self.epoch_num, self.frame = weights["epoch"], weights["frame"]
        if self.options.keep_best_on_resume:
            self.last_mean_rewards = float(weights.get("last_mean_rewards", -1000000000))
        if ours is not None:
            self._resume(weights, ours)
        else:
            self.last_lr = float(self.optimizer.param_groups[0]["lr"])  # stock files keep the schedule nowhere else

    def _take_over_changed(self, cfg: dict[str, Any]) -> None:
        """Schedules go on where they stood. A learning rate or an entropy coefficient that this run changes counts from here on, by the
        factor of the change, however far the schedule has come. `cfg`: the checkpoint's whole config."""
        before = cfg.get("train", {}).get("params", {}).get("config", {})
        if before.get("learning_rate", self.config["learning_rate"]) != self.config["learning_rate"]:
            self.last_lr = _changed(self.last_lr, before["learning_rate"], self.config["learning_rate"])
            for group in self.optimizer.param_groups:
                group["lr"] = self.last_lr
        if before.get("entropy_coef", self.config["entropy_coef"]) != self.config["entropy_coef"]:
            self.entropy_coef = _changed(self.entropy_coef, before["entropy_coef"], self.config["entropy_coef"])

    def _resume(self, weights: dict[str, Any], ours: dict[str, Any]) -> None:
        self.last_lr, self.entropy_coef = ours["schedule"]["last_lr"], ours["schedule"]["entropy_coef"]
        self._take_over_changed(ours["config"])
        self.seconds = ours["seconds"]
        running = ours["running"] if self.vec_env.can_save_state else None
        if self.central_value_net is not None:
            self.central_value_net.load_schedule_state(ours["central_value"], running is not None)
        if running is not None:
            if running["dones"].shape[0] != self.rows:
                raise UserError(
                    f"checkpoint was made with {running['dones'].shape[0]} rows, this run has {self.rows}: resume with the same num_envs"
                )
            with quiet():
                self.vec_env.reset()
            self.vec_env.set_env_state(weights["env_state"])
            self.obs = tree_map(lambda x: x.to(self.policy.device), running["obs"])
            self.dones, self.resetting, self.just_reset = running["dones"], running["resetting"], running["just_reset"]
            self.rnn_states = running["rnn_states"]
        self.game_rewards.load_state_dict(ours["episodes"], running is not None)
        checkpoint.set_rng_state(ours["rng"])


def _changed(present: float, before: float, now: float) -> float:
    """What the schedule made of `before`, for `now`."""
    return float(present * now / before if before else now)
