"""What keeps the ranks of a run one run: weights, normalizers, statistics and saved states. With one rank nothing here does anything.

The sums themselves are core/ranks.py; what is averaged where, docs/scale.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from core import checkpoint
from core.errors import UserError
from core.normalizers import MovingMeanStd, learn
from core.ranks import Ranks
from core.vecenv import tree_map

if TYPE_CHECKING:
    from algos.agent import Agent
    from algos.rollout import EpisodeStats

# the ranks' weights are compared in the first epochs (Adam's first step hides how large the gradients were), then rarely
FIRST_CHECKS, CHECK_EPOCHS = 5, 100


# ---- once, at the start ------------------------------------------------------------------------------------------------------


def own_streams(seed: int | None, ranks: Ranks, epoch: int = 0) -> None:
    """Gives every rank but the first random streams of its own: the same noise on all would make K ranks one. The first keeps
    those that a run of one process has."""
    if ranks.rank:
        own = np.random.SeedSequence([seed or 0, ranks.rank, epoch]).generate_state(2)
        torch.manual_seed(int(own[0]))
        np.random.seed(int(own[1]))


class NoWriter:
    """TensorBoard's writer off the first rank: takes everything and writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def mute(agent: Agent) -> None:
    """rl_games leaves ranks beyond the first without a writer, and its self-play writes all the same."""
    if agent.writer is None:
        agent.writer = NoWriter()
        if agent.has_self_play_config:
            agent.self_play_manager.writter = agent.writer


def start(agent: Agent) -> None:
    """Before the first epoch: rank 0's parameters and buffers everywhere, and normalizers that learn from all ranks' rows."""
    ranks = agent.ranks
    if ranks.world == 1:
        return
    agent.game_rewards.__dict__["shared"] = agent.game_rewards.finished  # a checkpoint's count is that of all ranks
    for _, module in _modules(agent):
        ranks.broadcast_(tensor.data for tensor in [*module.parameters(), *module.buffers()])
        share_normalizers(module, ranks)
    net = agent.central_value_net
    if net is not None:  # rl_games' own averaging of its gradients, over the group that we have made
        net.multi_gpu, net.world_size = True, ranks.world


def share_normalizers(module: nn.Module, ranks: Ranks) -> None:
    """Has every running mean and variance inside `module` (rl_games' or ours) learn from the rows of all ranks, as one process
    with all of them would. Its state and its results stay where they are. Twice for one module is once."""
    for part in module.modules():
        if isinstance(part, MovingMeanStd):
            update: Any = _learn_moving
        elif hasattr(part, "_update_mean_var_count_from_moments"):  # rl_games', as it is and scripted
            update = _learn_running
        else:
            continue
        if not part.__dict__.get("_learns_from_ranks"):
            part.__dict__["_learns_from_ranks"] = True
            _before_forward(part, ranks, update)


def _before_forward(part: Any, ranks: Ranks, update: Any) -> None:
    """`update` changes the statistics where the forward pass would have, which then runs as in evaluation."""
    learned = []

    @torch.compiler.disable
    @torch.no_grad()
    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            update(module, ranks, *args, **kwargs)
            module.training = False
            learned.append(True)

    def after(module: Any, args: Any, result: Any) -> None:
        if learned:
            learned.clear()
            module.training = True

    # a scripted module refuses the method on itself, and honours the hook all the same
    nn.Module.register_forward_pre_hook(part, before, with_kwargs=True)
    nn.Module.register_forward_hook(part, after, always_call=True)


def _learn_running(module: Any, ranks: Ranks, x: Tensor, denorm: bool = False, mask: Tensor | None = None) -> None:
    learn(module, x if mask is None else x[mask.bool()], ranks)


def _learn_moving(module: MovingMeanStd, ranks: Ranks, x: Tensor, mask: Tensor | None = None) -> None:
    mean, var, _ = ranks.moments(x if mask is None else x[mask.bool()])
    module.update(mean, var + mean * mean)


# ---- in the epoch -------------------------------------------------------------------------------------------------------------


def normalized(ranks: Ranks, values: Tensor, mask: Tensor | None, eps: float = 1e-8) -> Tensor:
    """`losses.normalized` with mean and unbiased standard deviation of the kept rows of all ranks. (L,) -> (L,)."""
    mean, var, count = ranks.moments(values if mask is None else values[mask.bool()])
    std = torch.sqrt(var * count / (count - 1))
    return (values - mean.to(values.dtype)) / (std.to(values.dtype) + eps)


def share_epoch(agent: Agent, metrics: dict[str, float]) -> None:
    """At the end of an epoch: the metrics become their means over the ranks that have them, and every rank's finished episodes
    count in every rank's statistics. Now and then, that all ranks still have the same weights."""
    ranks = agent.ranks
    if ranks.world == 1:
        return
    weights = None
    if agent.epoch_num <= FIRST_CHECKS or agent.epoch_num % CHECK_EPOCHS == 0:
        weights = [(name, float(p.detach().double().sum())) for name, p in _parameters(agent)]
    told = ranks.gather({"metrics": metrics, "episodes": _new_episodes(agent.game_rewards), "weights": weights})
    metrics.update(_means([one["metrics"] for one in told]))
    _add_episodes(agent.game_rewards, [one["episodes"] for one in told])
    if weights is not None:
        _check_weights([one["weights"] for one in told])


def share_metrics(ranks: Ranks, metrics: dict[str, float]) -> dict[str, float]:
    """The means over the ranks that have them."""
    return metrics if ranks.world == 1 else _means(ranks.gather(metrics))


def _means(of_ranks: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for metrics in of_ranks for name in metrics)
    return {name: float(np.mean([metrics[name] for metrics in of_ranks if name in metrics])) for name in names}


def _new_episodes(stats: EpisodeStats) -> dict[str, Any]:
    """Takes out what this rank's environments have finished since the last call, so that all ranks can add it in one order."""
    count = stats.finished - stats.__dict__.get("shared", 0)
    kept = min(count, len(stats.returns))
    columns = {name: [getattr(stats, name).pop() for _ in range(kept)] for name in ("returns", "shaped", "lengths")}
    return {"count": count, **columns}  # newest first


def _add_episodes(stats: EpisodeStats, of_ranks: list[dict[str, Any]]) -> None:
    """The oldest first, the ranks in turn: of more than can be kept, every rank's newest stay."""
    stats.finished = stats.__dict__.get("shared", 0) + sum(one["count"] for one in of_ranks)
    stats.__dict__["shared"] = stats.finished
    for age in reversed(range(max(len(one["returns"]) for one in of_ranks))):
        for one in of_ranks:
            if age < len(one["returns"]):
                for name in ("returns", "shaped", "lengths"):
                    getattr(stats, name).append(one[name][age])


def _check_weights(of_ranks: list[list[tuple[str, float]]]) -> None:
    for rank, sums in enumerate(of_ranks):
        for (name, ours), (_, theirs) in zip(of_ranks[0], sums, strict=True):
            if ours != theirs:
                raise UserError(
                    f"'{name}' differs between rank 0 and rank {rank}: its gradients were not averaged. Step its optimizer by "
                    "self.optimizer_step(loss, group=...), and decide by values that all ranks share (self.ranks.mean, docs/scale.md)"
                )


def _modules(agent: Agent) -> Iterator[tuple[str, nn.Module]]:
    yield "model", agent.model
    if agent.central_value_net is not None:
        yield "central_value", agent.central_value_net
    for name, part in agent.extras.parts.items():
        if isinstance(part, nn.Module):
            yield name, part


def _parameters(agent: Agent) -> Iterator[tuple[str, Tensor]]:
    for name, module in _modules(agent):
        for inner, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{name}.{inner}", parameter


# ---- saving and resuming ---------------------------------------------------------------------------------------------------------

RUNNING_TOTALS = ("running", "running_shaped", "running_length")


def with_ranks(agent: Agent, state: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with what each rank has of its own: random state, environments, running episodes, memory, registered parts that
    say so (`of_each_rank`: a replay buffer)."""
    if agent.ranks.world > 1:
        ours = state["gamesmith"]
        own = {
            "rng": ours["rng"],
            "running": ours["running"],
            "env_state": state["env_state"],
            "episodes": {name: ours["episodes"][name] for name in RUNNING_TOTALS},
            "central_value": (ours["central_value"] or {}).get("rnn_states"),
            "parts": {name: checkpoint.plain(part.state_dict()) for name, part in agent.extras.of_each_rank()},
        }
        ours["ranks"] = agent.ranks.gather(_on_cpu(own))
    return state


def of_this_rank(agent: Agent, weights: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint as this rank goes on from it. A rank that had no part in it starts new episodes, with streams of its own."""
    ranks, ours = agent.ranks, weights.get("gamesmith")
    if ranks.rank == 0 or ours is None:
        return weights
    ours, saved = copy.copy(ours), ours.get("ranks", [])
    if ranks.rank < len(saved):
        own = saved[ranks.rank]
        ours["extras"] = {**ours["extras"], "parts": {**ours["extras"]["parts"], **own.get("parts", {})}}
        ours["central_value"] = {**(ours["central_value"] or {}), "rnn_states": own["central_value"]} if ours["central_value"] else None
    else:
        own_streams(agent.seed, ranks, weights["epoch"])
        own = {"rng": checkpoint.rng_state(), "running": None, "env_state": None, "episodes": {}}
    ours.update(rng=own["rng"], running=own["running"], episodes={**ours["episodes"], **own["episodes"]})
    return {**weights, "env_state": own["env_state"], "gamesmith": ours}


def _on_cpu(value: Any) -> Any:
    if isinstance(value, list):
        return [_on_cpu(item) for item in value]
    return tree_map(lambda x: _on_cpu(x) if isinstance(x, list) else x.cpu() if isinstance(x, Tensor) else x, value)
