"""CUDA graphs over an agent's whole rollout and whole update: which of them can be recorded, and why the rest is not (docs/graphs.md)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from rl_games.common.tr_helpers import DefaultRewardsShaper
from torch import Tensor

from algos import by_hand, fast
from algos.batch import Batch
from algos.capture import Captured, CudaGraph, Slot, attribute
from algos.fast_collect import FastCollector
from algos.hooks import Hooks, overrides
from algos.update import Updater
from core.policy import Policy

if TYPE_CHECKING:
    from algos.agent import Agent
    from algos.rollout import Rollout

GRAPHS: dict[str, Any] = {"cuda": CudaGraph}  # by the device's type
UPDATE_HOOKS = ("update", *fast.LOSS_HOOKS, *by_hand.HOOKS, "policy_kl")
READ = ("actions", "old_neglogp", "advantages", "old_values", "returns", "mask")  # of a batch, beside observations and the head's
FIXED = ("e_clip", "clip_value", "critic_coef", "truncate_grads", "grad_norm", "mini_epochs_num", "num_minibatches")


class Graphs:
    """Runs the rollout and the update of an agent, each as a graph where it can be one. `reasons` says why not, None where it can."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        neither = self._why_neither()
        self.reasons = {"rollout": neither or self._why_not_the_rollout(), "update": neither or self._why_not_the_update()}
        functions = {"rollout": self._play, "update": self._learn}
        device = agent.policy.device
        self.captured = {
            part: Captured(functions[part], device, GRAPHS[device.type](device, self._generators if part == "rollout" else list))
            for part, reason in self.reasons.items()
            if reason is None
        }
        if agent.options.cuda_graphs is not False:
            self._tell(part for part, reason in self.reasons.items() if reason)

    # ---- what runs -----------------------------------------------------------------------------------------------------

    def play(self, rollout: Rollout, noise: Tensor) -> Tensor:
        """`FastCollector.play`. Where a graph plays, environment and policy are one, and the whole time is `step_seconds`."""
        agent = self.agent
        if self.reasons["rollout"] is None and agent.infos_are_read:
            self._refuse("rollout", "an observer reads the infos of every step")
        if self.reasons["rollout"]:
            return agent.play(rollout, noise)
        start = time.perf_counter()
        settings = {
            "weights": self._weights(),
            "buffers": rollout.obs.data_ptr(),
            **_numbers("environment", agent.vec_env),
            **_numbers("reward_shaper", agent.rewards_shaper),
        }
        captured = self.captured["rollout"]
        last_values = self._run("rollout", {"noise": noise}, self._slots(), settings)
        if captured.recorded:
            agent.step_seconds = time.perf_counter() - start
        return last_values

    def learn(self, batch: Batch, orders: dict[str, Tensor]) -> dict[str, Tensor]:
        """`Updater.passes`."""
        agent = self.agent
        if self.reasons["update"] or agent.rate is None:
            return agent.passes(batch, orders)
        written = [f"old_{key}" for key in agent.head.rollout_keys]
        seen = "normalized_obs" if "normalized_obs" in batch else "obs"
        inputs = {name: getattr(batch, name) for name in (seen, *READ, *written) if name in batch}
        settings = {
            "weights": self._weights(),
            "bounds_loss_coef": agent.head.bounds_coef,
            **{name: getattr(agent, name) for name in FIXED},
            **_numbers("scheduler", agent.scheduler),
            **{f"optimizer.{k}": v for k, v in agent.optimizer.param_groups[0].items() if k not in ("params", "lr")},
        }
        captured = self.captured["update"]
        means = self._run("update", {**inputs, **orders}, {}, settings)
        if captured.recorded:
            for name in written:
                inputs[name].copy_(captured.inputs[name])
        return means

    def _play(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.agent.play(self.agent.rollout, inputs["noise"])

    def _learn(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        orders = {name: x for name, x in inputs.items() if name.isdigit()}
        return self.agent.passes(Batch({"mask": None, **{k: v for k, v in inputs.items() if k not in orders}}), orders)

    def _run(self, part: str, inputs: dict[str, Tensor], slots: dict[str, Slot], settings: dict[str, Any]) -> Any:
        captured = self.captured[part]
        result = captured(inputs, slots, settings)
        if captured.reason is not None:
            self._refuse(part, captured.reason)
        return result

    def _slots(self) -> dict[str, Slot]:
        """What a rollout replaces: the agent's last step, and every tensor of the environment."""
        agent, env = self.agent, self.agent.vec_env

        def put_obs(value: Tensor) -> None:
            agent.obs = {"obs": value}

        slots = {"obs": Slot(lambda: agent.obs["obs"], put_obs)}
        slots.update({name: attribute(agent, name) for name in ("dones", "resetting", "just_reset")})
        slots.update({f"environment.{name}": attribute(env, name) for name, value in vars(env).items() if isinstance(value, Tensor)})
        return slots

    def _weights(self) -> tuple[int, ...]:
        return tuple(p.data_ptr() for p in self.agent.model.parameters())

    def _generators(self) -> list[torch.Generator]:
        return [value for value in vars(self.agent.vec_env).values() if isinstance(value, torch.Generator)]

    # ---- what does not, and why ----------------------------------------------------------------------------------------

    def _why_neither(self) -> str | None:
        agent = self.agent
        if agent.options.cuda_graphs is False:
            return "cuda_graphs is false"
        if agent.policy.device.type not in GRAPHS:
            return f"the device is {agent.policy.device}, not cuda"
        if agent.ranks.world > 1:
            return f"{agent.ranks.world} ranks train together"
        if agent.is_rnn:
            return "the policy has memory"
        if agent.mixed_precision:
            return "the networks compute in bfloat16"
        if agent.has_central_value:
            return "there is a central value"
        return agent.fast.reason or (None if agent.fast.fused is not None else "the network is no plain MLP (docs/fast.md)")

    def _why_not_the_rollout(self) -> str | None:
        agent, env = self.agent, self.agent.vec_env
        if not env.is_torch:
            return f"the environment {type(env).__name__} is not written in torch"
        if not env.capturable:
            return f"the environment {type(env).__name__} does not say that its step is made of tensors alone (capturable)"
        outside = ("collect_fast", "draw_noise")
        own = [name for name, part in vars(FastCollector).items() if callable(part) and name not in outside and not name.startswith("__")]
        for base, names, whose in ((Hooks, ("before_step",), agent), (FastCollector, own, agent),
                                   (Policy, ("augment_obs", "preprocess", "env_actions"), agent.policy)):  # fmt: skip
            for name in names:
                if overrides(whose, name, base):
                    return f"'{name}' is overridden"
        if type(agent.rewards_shaper) is not DefaultRewardsShaper:
            return f"the reward shaper is {type(agent.rewards_shaper).__name__}"
        return agent.fast.step_reason

    def _why_not_the_update(self) -> str | None:
        agent = self.agent
        for base, names in ((Hooks, UPDATE_HOOKS), (agent.default_class, by_hand.DRIVER), (Updater, ("ppo_update", "passes"))):
            for name in names:
                if overrides(agent, name, base):
                    return f"'{name}' is overridden"
        if agent.use_diagnostics:
            return "use_diagnostics is true"
        if agent.masks_reset_rows:
            return "the environments reset in a step of their own, so that the batch is never the same size (mask_reset_rows)"
        if agent.fast.by_hand is None:
            return "its minibatches are differentiated by autograd (docs/fast.md)"
        return None if agent.device_rate is not None else f"the learning-rate schedule is {type(agent.scheduler).__name__}"

    def _refuse(self, part: str, reason: str) -> None:
        self.reasons[part] = reason
        del self.captured[part]
        self._tell([part])

    def _tell(self, parts: Iterable[str]) -> None:
        if self.agent.options.cuda_graphs is True and self.agent.ranks.is_main:
            for part in parts:
                warnings.warn(f"cuda_graphs: the {part} runs without a graph: {self.reasons[part]}", RuntimeWarning, stacklevel=2)


def _numbers(name: str, holder: Any) -> dict[str, Any]:
    """What of an object a recording takes as it is now; a generator by its identity."""
    given = vars(holder).items()
    found = {f"{name}.{key}": value for key, value in given if isinstance(value, bool | int | float | str | None)}
    return {**found, **{f"{name}.{key}": id(value) for key, value in given if isinstance(value, torch.Generator)}}
