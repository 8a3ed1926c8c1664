"""What the processes of tests/test_ranks.py run: `python -m tests.rank_job OUT`, once per rank, or alone for comparison.

Environments and action noise belong to an environment's number, so that 2 ranks x 4 environments see the data of 1 x 8. The one
process has its environments in the order in which its minibatches are the unions of the ranks' minibatches.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from algos import losses
from algos.agent import Agent
from algos.batch import Batch
from algos.options import AgentOptions
from core import registry
from core.context import RunContext
from core.errors import UserError
from core.observers import Observers
from core.ranks import Ranks, joined
from core.registry import register_algo
from core.vecenv import VecEnv
from tests.toys import toy_params

ENVS_OF = {0: [0, 1, 2, 3], 1: [4, 5, 6, 7], "alone": [0, 1, 4, 5, 2, 3, 6, 7]}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "plain": {"fused": False},
    "normalized_by_the_minibatch": {"update_normalizer_once": False, "fused": False},
    "moving_advantages": {"normalize_rms_advantage": True},
    "central_value": {"central": True},
    "memory": {"rnn": "lstm"},
    "one_minibatch": {"minibatch_size": 64, "schedule_type": "standard"},
}
EPOCHS = 3


class NumberedEnv(VecEnv):
    """Rows that drift with their action. What environment i does follows from its number and its actions alone."""

    reset_mode = "same_step"
    action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)
    observation_space = spaces.Box(-10.0, 10.0, (3,), np.float32)

    def __init__(self, numbers: list[int], states: bool = False) -> None:
        self.num_envs = len(numbers)
        self.state_space = self.observation_space if states else None
        self.worlds = [np.random.RandomState(1000 + i) for i in numbers]
        self.noises = [np.random.RandomState(2000 + i) for i in numbers]
        self.position = np.zeros((len(numbers), 3), np.float32)
        self.steps = np.zeros(len(numbers), np.int64)

    @property
    def can_save_state(self) -> bool:
        return True

    def get_env_state(self) -> dict[str, Any]:
        streams = [s.get_state() for s in (*self.worlds, *self.noises)]
        return {"keys": np.stack([s[1] for s in streams]).astype(np.int64), "rest": [[s[2], s[3], s[4]] for s in streams],
                "position": self.position, "steps": self.steps}  # fmt: skip

    def set_env_state(self, state: dict[str, Any]) -> None:
        for stream, keys, rest in zip((*self.worlds, *self.noises), state["keys"].numpy(), state["rest"], strict=True):
            stream.set_state(("MT19937", keys.astype(np.uint32), *rest))
        self.position, self.steps = state["position"].numpy().copy(), state["steps"].numpy().copy()

    def action_noise(self) -> Tensor:
        return torch.as_tensor(np.stack([noise.randn(2) for noise in self.noises]), dtype=torch.float32)

    def reset(self) -> Any:
        self.position = np.stack([world.randn(3) for world in self.worlds]).astype(np.float32)
        self.steps[:] = 0
        return self._obs(self.position)

    def step(self, actions: Any) -> Any:
        push = np.asarray(actions).sum(axis=1, keepdims=True)
        drawn = np.stack([world.randn(7) for world in self.worlds])
        position = (0.9 * self.position + 0.1 * push + 0.1 * drawn[:, :3]).astype(np.float32)
        self.steps += 1
        ends = drawn[:, 6] > 1.3
        outs = (self.steps >= 7) & ~ends
        dones = ends | outs
        rewards = (-np.abs(position[:, 0]) + 0.1 * push[:, 0]).astype(np.float32)
        self.position = np.where(dones[:, None], drawn[:, 3:6], position).astype(np.float32)
        self.steps[dones] = 0
        return self._obs(self.position), rewards, dones, {"time_outs": outs, "terminal_obs": self._obs(position)}

    def _obs(self, position: np.ndarray) -> Any:
        return {"obs": position.copy(), "states": position[:, ::-1].copy()} if self.state_space else position.copy()


@dataclasses.dataclass(kw_only=True)
class NumberedOptions(AgentOptions):
    own_step: bool = False
    """Steps the extra module's optimizer beside `optimizer_step`, which averages the gradients."""


@register_algo("numbered", config=NumberedOptions)
class Numbered(Agent):
    """PPO whose action noise is the environment's, with a registered module that learns too. Keeps its weights of every epoch."""

    def setup(self) -> None:
        net = torch.nn.Linear(3, 1)
        self.extra = self.register("extra", net, torch.optim.Adam(net.parameters(), 1e-2), grad_norm=0.1)
        self.history: list[dict[str, Tensor]] = []
        self.told: list[dict[str, float]] = []

    def act(self, obs: Any) -> dict[str, Any]:
        result = super().act(obs)
        env: Any = self.vec_env
        result["actions"] = result["mus"] + result["sigmas"] * env.action_noise()
        result["neglogpacs"] = losses.gaussian_neglogp(result["actions"], result["mus"], result["sigmas"])
        return result

    def extra_update(self, batch: Batch) -> dict[str, float]:
        loss = ((self.extra(batch.obs).squeeze(1) - batch.advantages) ** 2).mean()
        if self.options.own_step:
            self.extra.zero_grad()
            loss.backward()
            self.extras.groups["extra"].optimizer.step()
        else:
            self.optimizer_step(loss, group="extra")
        return {"losses/extra": loss.item()}

    def after_epoch(self, metrics: dict[str, float]) -> None:
        self.history.append({name: tensor.clone() for name, tensor in state_of(self).items()})
        self.told.append(dict(metrics))


def state_of(agent: Any) -> dict[str, Tensor]:
    state = {**agent.model.state_dict(), **{f"extra.{k}": v for k, v in agent.extra.state_dict().items()}}
    if agent.advantage_stats is not None:
        state.update({f"advantages.{k}": v for k, v in agent.advantage_stats.state_dict().items()})
    if agent.central_value_net is not None:
        state.update({f"central.{k}": v for k, v in agent.central_value_net.state_dict().items()})
    return state


def make(case: str, ranks: Ranks, path: Path, **config: Any) -> Any:
    """The agent of one rank, or the one agent with all environments."""
    registry.discover()
    numbers = ENVS_OF[ranks.rank] if ranks.world > 1 else ENVS_OF["alone"]
    settings = {"max_epochs": EPOCHS, "shuffle": False, "learning_rate": 3e-3, "kl_threshold": 3e-4, **CASES[case], **config}
    settings["minibatch_size"] = settings.get("minibatch_size", 32) * 2 // ranks.world
    params = toy_params(num_envs=len(numbers), **settings)
    if settings.get("central"):
        params["config"]["central_value_config"]["minibatch_size"] = settings["minibatch_size"]
    (path / "nn").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    np.random.seed(7)
    entry = registry.algos.get("numbered")
    context = RunContext(entry, path, Observers([]), cfg={}, save_interval=1e9, ranks=ranks)
    return entry.cls.for_actions("continuous")(params, NumberedEnv(numbers, bool(settings.get("central"))), context)


def resumed(ranks: Ranks, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Weights after 4 epochs in one go, after 2 and 2 more by another agent from the file, and this rank's next random number."""
    whole = make("memory", ranks, path / "whole", max_epochs=4, shuffle=True)
    whole.train()
    first = make("memory", ranks, path / "parts", max_epochs=2, shuffle=True)
    first.train()
    second = make("memory", ranks, path / "parts", max_epochs=4, shuffle=True)
    torch.manual_seed(99)  # the streams must come from the file
    second.restore(str(path / "parts" / "nn" / "last.pth"))
    second.train()
    return state_of(whole), state_of(second), float(torch.rand(()))


def primitives(ranks: Ranks) -> dict[str, Any]:
    rank = ranks.rank
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [8.0, 4.0]])
    mine = rows[:1] if rank == 0 else rows[1:]
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), float(rank + 1))
    if rank == 1:
        parameters[1].grad = torch.ones(2)
    ranks.average_gradients(parameters)
    copied = torch.full((2, 3), float(rank)).t()  # not contiguous
    ranks.broadcast_([copied])
    return {
        "sums": (ranks.sum(rank + 1), ranks.sum(0.5)),
        "mean": ranks.mean(torch.tensor([float(rank), 4.0])),
        "moments": ranks.moments(mine),
        "moments_of_none": ranks.moments(rows if rank else rows[:0]),
        "gradients": [p.grad for p in parameters],
        "copied": copied,
        "decisions": (ranks.any(rank == 1), ranks.any(False), ranks.first("b" if rank else None), ranks.of_main(f"from {rank}")),
        "gathered": ranks.gather({"rank": rank}),
    }


def main(out: Path) -> None:
    with joined() as ranks:
        told: dict[str, Any] = {"primitives": primitives(ranks)}
        for case in CASES:
            agent = make(case, ranks, out / case)
            summary = agent.train()
            told[case] = {
                "history": agent.history,
                "told": agent.told,
                "summary": summary,
                "next": float(torch.rand(())),
                "by_hand": agent.fast.by_hand is not None,
            }
        told["resumed"] = resumed(ranks, out)
        agent = make("default", ranks, out / "own_step", own_step=True)
        try:
            agent.train()
        except UserError as error:
            told["own_step"] = str(error)
        torch.save(told, out / f"rank{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
