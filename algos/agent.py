"""The agent: the driver that runs an epoch and calls the hooks of algos/hooks.py.

This file and its neighbours rollout.py, batch.py and saving.py are the only ones that touch the internals of rl_games' agents.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from rl_games.algos_torch.a2c_continuous import A2CAgent
from rl_games.algos_torch.a2c_discrete import DiscreteA2CAgent
from rl_games.common.a2c_common import ContinuousA2CBase, DiscreteA2CBase
from rl_games.common.tr_helpers import DefaultRewardsShaper
from torch import Tensor, nn

from algos import rank_sync
from algos.central_value import CentralValue
from algos.collect import Collector
from algos.device_rate import DeviceRate
from algos.diagnostics import Diagnostics
from algos.extras import Extras, Group
from algos.fast import Fast
from algos.fast_collect import FastCollector
from algos.graphs import Graphs
from algos.heads import ContinuousHead, DiscreteHead
from algos.hooks import Hooks
from algos.options import AgentOptions
from algos.prepare import Preparer
from algos.rollout import EpisodeStats, Rollout
from algos.saving import Saving
from algos.update import Updater
from core.checkpoint import frozen_policy
from core.config import algo_options
from core.context import RunContext
from core.errors import UserError
from core.normalizers import MovingMeanStd
from core.policy import Policy, load_network, space_shape
from core.quiet import quiet
from core.vecenv import VecEnv

SMALL_POLICY = 1024  # rows of a rollout


class Agent(Hooks, Collector, FastCollector, Preparer, Updater, Saving):
    """An actor-critic agent over rl_games' A2CBase whose every step is a hook. Left alone, it is PPO.

    Timeline (hooks in CAPITALS; what stands beside them is the driver):

        __init__        policy, BUILD_MODEL, BUILD_OPTIMIZERS, SETUP, ROLLOUT_FIELDS
        train()         ON_TRAIN_START, reset, then epochs until max_frames, max_epochs, score_to_win or SHOULD_STOP
          train_epoch()
            BEFORE_EPOCH
            collect()           for n in range(T):  BEFORE_STEP -> ACT -> env.step -> ON_STEP -> EPISODE_MASK -> ON_EPISODE_END
            make_batch()        COMBINE_REWARDS -> ADVANTAGES -> COMBINE_ADVANTAGES -> NORMALIZE_ADVANTAGES
            central value       (where configured)
            TRANSFORM_BATCH
            UPDATE              = ppo_update(): for each mini-epoch, for each minibatch
                                  EVALUATE_ACTIONS -> POLICY_LOSS, VALUE_LOSS, EXTRA_LOSSES, ENTROPY_WEIGHT
                                  -> OPTIMIZER_STEP -> POLICY_KL -> learning-rate schedule
            EXTRA_UPDATE
            EVALUATE            every `eval_every` epochs
          AFTER_EPOCH -> observers -> BEST_METRIC -> checkpoints

    An algorithm subclasses Agent and is registered with `register_algo`. `for_actions` joins it with rl_games' continuous or
    discrete agent when the task's action space is known, so that one class serves both.
    """

    default_class: ClassVar[Any]  # Agent itself: what a subclass's methods are compared with
    options_class: ClassVar[type] = AgentOptions  # of an algorithm registered without `config`
    kind: ClassVar[str]  # action kind, set by for_actions()
    optimizer: Any  # what build_optimizers() calls 'policy'
    model: Any  # rl_games' module: it has get_aux_loss() and running_mean_std, which nn.Module does not know

    @property
    def global_rank(self) -> int:
        """By this rl_games knows who opens the TensorBoard writer."""
        return self.ranks.rank

    @global_rank.setter
    def global_rank(self, value: int) -> None:
        """rl_games sets it to 0: it knows ranks only with its own process group."""

    @classmethod
    def for_actions(cls, kind: str) -> type[Agent]:
        """This class joined with rl_games' agent for the action kind: RPO -> RPO over A2CAgent, or over DiscreteA2CAgent."""
        base = A2CAgent if kind == "continuous" else DiscreteA2CAgent
        return type(cls.__name__, (cls, base), {"kind": kind, "__module__": cls.__module__, "__doc__": cls.__doc__})

    def __init__(self, params: dict[str, Any], env: VecEnv, context: RunContext) -> None:
        self.context = context
        self.ranks = context.ranks
        self.vec_env = env
        self.options = algo_options(context.entry, params["config"])
        self.policy: Policy = (context.entry.policy or Policy)(
            params, env.get_env_info(), params["config"]["num_actors"], params["config"]["device"]
        )
        self._init_rl_games(params)
        self.model = self.build_model().to(self.ppo_device)
        if self.options.fused and any(isinstance(module, nn.Conv2d) for module in self.model.modules()):
            self.model.to(memory_format=torch.channels_last)  # the order in which convolutions read; their weights' values stay
        compiled = self.config.get("torch_compile", False)  # rl_games: True, a mode, or {"mode": ...}
        if compiled:
            mode = compiled.get("mode") if isinstance(compiled, dict) else compiled if isinstance(compiled, str) else None
            self.model.compile(mode=mode)  # in place: the checkpoint's names stay as they are
        self.is_rnn = self.policy.is_rnn
        self.rnn_states = None
        self.action_masks = None
        self.head = (ContinuousHead if self.kind == "continuous" else DiscreteHead)(self)
        self.last_lr = float(self.last_lr)
        self.extras = Extras(self.policy.device)
        for name, module in self.policy.extra_modules.items():
            self.extras.add(name, module, player=True)
        self.advantage_stats = self._advantage_stats()
        self._build_central_value()
        self.metrics: dict[str, float] = {}
        optimizers = self.build_optimizers()
        self.optimizer = optimizers["policy"]
        for name, optimizer in optimizers.items():
            self.extras.groups[name] = Group(optimizer, [p for g in optimizer.param_groups for p in g["params"]])
        self.setup()
        self.algo_observer.after_init(self)
        self.rows = self.num_actors * self.num_agents
        self.rollout = self.new_rollout()
        if self.masks_reset_rows:  # no two batches are of one size, and for each cuDNN would try out its ways anew: seconds
            torch.backends.cudnn.benchmark = False
        self.game_rewards = EpisodeStats(self.rows, self.num_agents, self.value_size, self.games_to_track, self.policy.device)
        self.on_gpu = self.policy.device.type == "cuda"  # asking the device anything means waiting for it
        self.fast = Fast(self)
        self.device_rate = DeviceRate.of(self)
        self.graphs = Graphs(self)
        self._updating = False  # inside the default update, whose graphs are differentiated once
        self.obs = None
        self.seconds = 0.0  # of training, over all resumed parts
        self.seed = params.get("seed")
        rank_sync.own_streams(self.seed, self.ranks)

    # ---- building ------------------------------------------------------------------------------------------------------

    def _init_rl_games(self, params: dict[str, Any]) -> None:
        """Runs A2CBase's constructor on a config that does not step on its defects, then restores what was kept from it."""
        given = params["config"]
        config = {k: v for k, v in given.items() if k != "max_steps"}  # np.max(a, b) there takes max_steps for an axis
        path = self.context.run_path
        config.update(
            env_info={**self.policy.env_info, "action_space": self.policy.action_space},
            vec_env=self.vec_env,
            features={**(given.get("features") or {}), "observer": self.context.observers},
            reward_shaper=DefaultRewardsShaper(**(given.get("reward_shaper") or {})),
            train_dir=str(path.parent),
            full_experiment_name=path.name,
            multi_gpu=False,
            normalize_rms_advantage=False,  # its class raises; see _advantage_stats
            mixed_precision=False,  # its gradient scaler is not for bfloat16; see default_optimizer_step
            population_based_training=False,
        )
        base = ContinuousA2CBase if self.kind == "continuous" else DiscreteA2CBase
        with quiet():
            base.__init__(self, "run", {**params, "config": config})
        rank_sync.mute(self)
        self.max_frames = int(given.get("max_frames") or given.get("max_steps") or -1)
        self.max_epochs = int(given.get("max_epochs") or -1)
        self.mixed_precision = bool(given.get("mixed_precision", False)) or self.options.precision == "bf16"
        self.normalize_rms_advantage = bool(given.get("normalize_rms_advantage", False))
        self.scaler = torch.amp.GradScaler(self.policy.device.type, enabled=self.mixed_precision and self.options.scale_bf16)
        if self.use_diagnostics and self.ranks.is_main:
            self.diagnostics = Diagnostics()
        central = self.has_central_value
        self.has_value_loss = not central or bool(given.get("use_experimental_cv", self.kind == "continuous"))

    def load_networks(self, params: dict[str, Any]) -> None:
        """rl_games builds its networks here; ours is in the policy, so only the central value's is left."""
        self.config["network"] = None
        central = self.config.get("central_value_config")
        if central is not None:
            central = copy.deepcopy(central)
            central.setdefault("model", {"name": "central_value"})
            states = self.policy.env_info.get("state_space") or self.policy.observation_space
            central["network"] = load_network(central, self.kind, space_shape(states))
            self.config["central_value_config"] = central

    def _build_central_value(self) -> None:
        self.central_value_net: CentralValue | None = None
        if self.has_central_value:
            arguments = {
                "state_shape": self.state_shape,
                "value_size": self.value_size,
                "ppo_device": self.ppo_device,
                "num_agents": self.num_agents,
                "horizon_length": self.horizon_length,
                "num_actors": self.num_actors,
                "num_actions": self.actions_num,
                "seq_length": self.seq_length,
                "normalize_value": self.normalize_value,
                "network": self.central_value_config["network"],
                "config": self.central_value_config,
                "writter": None,
                "max_epochs": self.max_epochs,
                "multi_gpu": False,
                "zero_rnn_on_done": self.zero_rnn_on_done,
            }
            with quiet():
                self.central_value_net = CentralValue(self.options, self.max_frames, arguments).to(self.ppo_device)
        if self.normalize_value:
            owner = self.central_value_net.model if self.central_value_net is not None else self.model
            self.value_mean_std = owner.value_mean_std

    def _advantage_stats(self) -> nn.Module | None:
        if not (self.normalize_advantage and self.normalize_rms_advantage):
            return None
        stats = MovingMeanStd(self.config.get("adv_rms_momentum", 0.5))
        return self.extras.add("advantage_stats", stats)

    def register(
        self, name: str, part: Any, optimizer: torch.optim.Optimizer | None = None, grad_norm: float | None = None, player: bool = False
    ) -> Any:
        """Registers a module, optimizer, buffer or any other object with `state_dict`; returns it, on the agent's device.

        From then on it is saved, restored, moved and switched between train and eval with the agent. `optimizer` is stepped by
        `self.optimizer_step(loss, group=name)`, its gradient clipped to `grad_norm`. `player=True` hands its state to the player
        (`Player.restore_extras`). Raises ValueError for a taken name or a part that cannot be saved.
        """
        return self.extras.add(name, part, optimizer, grad_norm, player)

    def log(self, name: str, value: float | Tensor) -> None:
        """Adds a scalar to this epoch's metrics: files, TensorBoard, W&B."""
        self.metrics[name] = float(value)

    def load_frozen(self, checkpoint: str, sees: str = "obs") -> Policy:
        """Another run's policy inside this one (a teacher, an opponent, a low-level controller): its model is in eval mode, without
        gradients, writer or directories. The checkpoint must be one of this project's: it holds its own config.

        sees: what of this task it is shown, `self.obs[...]`: "obs", "states" (what a central value sees), or "either" for whichever it was
        made for, which `policy.sees` then tells.
        """
        return frozen_policy(checkpoint, self.vec_env.get_env_info(), self.num_actors, self.policy.device, sees)

    # ---- the driver ------------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Trains to the end of the budget. Returns {"exit_reason", "return_mean", "return_best", "frames", "epochs", "seconds"}."""
        rank_sync.start(self)
        self.on_train_start()
        self.algo_observer.on_train_start(self)
        if self.obs is None:
            self.reset_environments()
        started = time.perf_counter() - self.seconds
        last_save = time.perf_counter()
        reason = self.ranks.first(self.exit_reason())
        while reason is None:
            metrics = self.train_epoch()
            self.seconds = time.perf_counter() - started
            self._finish_epoch(metrics)
            reason = self.ranks.first(self.exit_reason())
            due = time.perf_counter() - last_save >= self.context.save_interval
            if reason is not None or self.epoch_num == 1 or self.ranks.any(due):
                self.save(str(self.last_path))
                last_save = time.perf_counter()
        if self.ranks.any(self.ranks.is_main and not self.last_path.exists()):  # stopped before the first epoch
            self.save(str(self.last_path))
        return self.summary(reason)

    def exit_reason(self) -> str | None:
        """Why training should end now, or None."""
        if self.max_epochs != -1 and self.epoch_num >= self.max_epochs:
            return "max_epochs"
        if self.max_frames != -1 and self.frame >= self.max_frames:
            return "max_frames"
        if self.epoch_num and "score_to_win" in self.config and self.last_mean_rewards > self.config["score_to_win"]:
            return "score_to_win"
        if self.frame >= (self.context.cfg.get("pause_at") or float("inf")):
            return "pause_at"
        if self.metrics and self.should_stop():  # not before the first epoch of this process
            return "should_stop"
        return self.context.stop_requested

    def train_epoch(self) -> dict[str, float]:
        """One rollout and its update. Returns the epoch's metrics."""
        self.epoch_num += 1
        self.metrics = {}
        self.vec_env.set_train_info(self.frame, self)
        if self.epochs_between_resets > 0 and self.epoch_num % self.epochs_between_resets == 0:
            self.reset_environments()
        self.before_epoch()
        start = time.perf_counter()
        self._set_mode(train=False)
        with torch.no_grad(), self.rollout_threads(), self.autocast(self.options.precision == "bf16"):
            last_values = self.collect(self.rollout) if self.fast.step_reason else self.collect_fast(self.rollout)
        self._set_mode(train=True)
        played = time.perf_counter()
        frames = self._count_frames(self.rollout)
        self.frame += frames
        with torch.no_grad():
            batch, central_batch = self.make_batch(self.rollout, last_values)
        prepared = time.perf_counter()
        self.algo_observer.after_steps()
        if self.central_value_net is not None and central_batch is not None:
            self.metrics.update(self.central_value_net.learn(central_batch, self.frame))
        batch = self.transform_batch(batch)
        self.metrics.update(self.update(batch))
        self.metrics.update(self.extra_update(batch))
        end = time.perf_counter()
        if self.ranks.is_main and self.options.eval_every and self.epoch_num % self.options.eval_every == 0:
            self.metrics.update(self.evaluate())
        self.metrics.update(
            {
                "time/step": self.step_seconds,
                "time/play": played - start,
                "time/prepare": prepared - played,
                "time/update": end - prepared,
                "fps": frames / (end - start),
                "fps_step": frames / max(self.step_seconds, 1e-9),
                "fps_play": frames / (played - start),
            }
        )
        return self.metrics

    def _set_mode(self, train: bool) -> None:
        self.model.train(train)
        if self.normalize_input and self.options.update_normalizer_once:
            self.model.running_mean_std.eval()  # it learns in make_batch
        self.extras.train(train)

    @contextlib.contextmanager
    def rollout_threads(self) -> Iterator[None]:
        """torch's threads during the rollout. By themselves: one where the policy is small, because a second one would bring it
        nothing and take a core from the environments."""
        all_threads, wanted = torch.get_num_threads(), self.options.rollout_threads
        if not wanted and self.options.compat != "rl_games":
            is_picture = isinstance(self.policy.obs_shape, tuple) and len(self.policy.obs_shape) > 1
            small = self.rows <= SMALL_POLICY and not self.vec_env.is_torch and not is_picture
            wanted = 1 if small else all_threads
        torch.set_num_threads(wanted or all_threads)
        try:
            yield
        finally:
            torch.set_num_threads(all_threads)

    def autocast(self, enabled: bool) -> torch.autocast:
        return torch.autocast(self.policy.device.type, torch.bfloat16, enabled=enabled)

    # ---- the end of an epoch -----------------------------------------------------------------------------------------------

    def _finish_epoch(self, metrics: dict[str, float]) -> None:
        episodes = self.game_rewards
        rank_sync.share_epoch(self, metrics)
        metrics.update(epoch=self.epoch_num, frames=self.frame, seconds=self.seconds, episodes=episodes.finished)
        metrics.update({"info/last_lr": self.last_lr, "info/e_clip": self.e_clip, "info/lr_mul": 1.0, "info/epochs": self.epoch_num})
        if len(episodes):
            metrics["return_mean"] = float(episodes.get_mean()[0])
            metrics["shaped_return_mean"] = float(np.mean(episodes.shaped, axis=0)[0])
            metrics["length_mean"] = float(np.mean(episodes.lengths))
            metrics.update({f"return_mean_{i}": float(episodes.get_mean()[i]) for i in range(1, self.value_size)})
        if self.options.check_finite:
            self.check_metrics(metrics)
        self.after_epoch(metrics)
        better, improved = self.ranks.of_main(self.best_metric()), False
        if better is not None and self.epoch_num >= self.save_best_after and better > self.last_mean_rewards:
            self.last_mean_rewards, improved = better, True
        if self.last_mean_rewards > -1e9:
            metrics["best_return"] = float(self.last_mean_rewards)
        self.diagnostics.epoch(self, current_epoch=self.epoch_num)
        self.diagnostics.send_info(self.writer)
        self.algo_observer.after_print_stats(self.frame, self.epoch_num, self.seconds)
        metrics.update(rank_sync.share_metrics(self.ranks, self.algo_observer.metrics()))
        self.algo_observer.on_epoch(metrics)
        if self.has_self_play_config and len(episodes):
            self.self_play_manager.update(self)
        self.save_milestones(improved)

    def check_metrics(self, metrics: dict[str, float]) -> None:
        """Raises UserError naming the first loss that is not finite, and the first parameter that it spoilt."""
        for name, value in metrics.items():
            if not np.isfinite(value):
                spoilt = next((n for n, p in self.model.named_parameters() if not torch.isfinite(p).all()), None)
                raise UserError(
                    f"'{name}' is {value} in epoch {self.epoch_num} (frame {self.frame})"
                    + (f"; first parameter that is not finite: '{spoilt}'" if spoilt else "")
                    + ". Training stops; the last good checkpoint is kept. Try a lower learning_rate or grad_norm."
                )

    def summary(self, reason: str) -> dict[str, Any]:
        """The numbers of result.json that the agent knows."""
        stats = self.game_rewards
        return {
            "exit_reason": reason,
            "frames": self.frame,
            "epochs": self.epoch_num,
            "seconds": self.seconds,
            "fps": self.frame / self.seconds if self.seconds else 0.0,
            "return_mean": float(stats.get_mean()[0]) if len(stats) else None,
            "return_best": float(self.last_mean_rewards) if self.last_mean_rewards > -1e9 else None,
        }

    def play_evaluation(self) -> dict[str, float]:
        """Metrics `eval/*` of the present policy, played on environments of their own; training's random state is untouched."""
        if self.context.evaluate is None:
            return {}
        devices = [self.policy.device] if self.policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            return self.context.evaluate(self.get_full_state_weights())

    def _count_frames(self, rollout: Rollout) -> int:
        return self.ranks.sum(int(rollout.valid.sum()) // self.num_agents)


Agent.default_class = Agent
