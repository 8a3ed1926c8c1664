"""From a checked config to a finished run: `train`."""

from __future__ import annotations

import contextlib
import signal
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from core import checkpoint, registry
from core.build import check_actions, make_rank_env, override_sigma, seed_everything, set_threads
from core.config import algo_options, check_batch, to_params
from core.console import batch_arithmetic, print_result, print_run_table
from core.context import RunContext
from core.errors import Exhausted, UserError
from core.evaluation import eval_command, evaluation_in_training
from core.observers import Run, make_observers
from core.policy import Policy
from core.process import FirstStep, keep_freed_memory, peak_memory_mb
from core.profiling import EpochProfiler
from core.ranks import Ranks, joined, world_size
from core.registry import AlgoEntry
from core.run_dir import RunDir, Unwritten, run_name
from core.vecenv import VecEnv

ENV_OBSERVERS = ("scores", "episode")  # what they read from each rank's environments is averaged over the ranks


def train(cfg: dict[str, Any]) -> dict[str, Any]:
    """Trains to the end of the budget, or goes on where `cfg['resume']` stopped. Returns result.json's content.

    Everything that can be wrong with the config is found before the run directory is made. Raises UserError for it, and whatever
    the run itself raises, after result.json and run.json say why it ended. Under torchrun it is one of several ranks
    (docs/scale.md), of which the first alone writes and prints; RankLost where another one ended.
    """
    entry = registry.algos.get(cfg["train"]["params"]["algo"]["name"], "train.params.algo.name")
    if world_size() > 1 and not entry.multi_rank:
        raise UserError(f"algorithm '{entry.name}' trains in one process, and this is one of {world_size()} (WORLD_SIZE): start it alone")
    with joined() as ranks:
        return _train_on(ranks, cfg, entry)


def _train_on(ranks: Ranks, cfg: dict[str, Any], entry: AlgoEntry) -> dict[str, Any]:
    ranks.agree(cfg)
    params = to_params(cfg)
    device = params["config"]["device"]
    ranks.agree({"device that 'auto' found": device.split(":")[0]})
    if ranks.world > 1 and device != "cpu":
        torch.cuda.set_device(device)
    seed_everything(params["seed"], cfg["torch_deterministic"])
    set_threads(params)
    keep_freed_memory()
    with contextlib.closing(make_rank_env(ranks, cfg, params)) as env:
        kind = check_actions(entry, env)
        if params["config"].get("use_action_masks") and not env.has_action_masks():
            raise UserError("train.params.config.use_action_masks is true, but this task has no action masks")
        check_batch(params, env.num_agents)
        # What cannot be built or loaded is told before there is a run directory; the agent's own network is built from the same seed.
        policy = (entry.policy or Policy)(params, env.get_env_info(), env.num_envs, "cpu")
        if cfg["checkpoint"]:
            state = checkpoint.load(cfg["checkpoint"])
            checkpoint.check_fits(state, entry.name, cfg["checkpoint"])
            policy.load(state)
        if hasattr(entry.cls, "check_run"):  # hooks are an Agent's
            entry.cls.check_run(algo_options(entry, params["config"]), policy, env)
        seed_everything(params["seed"], cfg["torch_deterministic"])
        run_dir = _run_dir(ranks, cfg, params)
        return _train(ranks, cfg, params, entry, kind, env, run_dir)


def _run_dir(ranks: Ranks, cfg: dict[str, Any], params: dict[str, Any]) -> RunDir:
    """Made or opened by the first rank; the others know where it is."""
    if not ranks.is_main:
        return RunDir(ranks.of_main(None))
    if cfg["resume"]:
        run_dir = RunDir.open(cfg["resume"])
    else:
        name = cfg["experiment"] or run_name(cfg)
        run_dir = RunDir.create(cfg["runs_dir"], name, cfg["run_dir"])
    ranks.of_main(str(run_dir.path))
    return run_dir


def _train(
    ranks: Ranks, cfg: dict[str, Any], params: dict[str, Any], entry: AlgoEntry, kind: str, env: VecEnv, run_dir: RunDir
) -> dict[str, Any]:
    head = {"task": cfg["task"]["name"], "algo": entry.name, "seed": params["seed"]}
    if ranks.world > 1:
        head["ranks"] = ranks.world
    run_dir = run_dir if ranks.is_main else Unwritten(run_dir.path)
    config = params["config"]
    limits = [n if n and n > 0 else None for n in (config.get("max_frames"), config.get("max_epochs"))]
    wanted = wanted_observers(cfg) if ranks.is_main else dict.fromkeys(ENV_OBSERVERS)
    observers = make_observers(wanted, Run(run_dir, cfg, *limits))
    begun = not cfg["resume"]  # a resume that is refused leaves the run as it was
    if begun:
        run_dir.write_config(cfg)
        run_dir.start(head)
    context = RunContext(entry, run_dir.path, observers, cfg, cfg["save_interval"], ranks=ranks)
    result: dict[str, Any] = {**head, "exit_reason": "failed"}

    def write_failure(message: str) -> None:
        if not begun:
            return
        result.update(exit_reason="failed", error=message)
        run_dir.write_result(result)
        run_dir.finish(f"failed: {message}")

    ranks.on_lost(write_failure)
    try:
        with evaluation_in_training(cfg, params, entry, context):
            agent = entry.cls.for_actions(kind)(params, env, context)
            _start_from(cfg, agent, run_dir)
            if not begun:
                run_dir.write_config(cfg)
                run_dir.start(head)
                begun = True
            if ranks.is_main:
                print_run_table(describe(cfg, params, entry, env, agent, run_dir), title=run_dir.path.name)
            first_step = FirstStep(env)
            profiler = EpochProfiler(agent, run_dir.path) if cfg["profile"] and ranks.is_main else None
            with signals(context):
                result.update(agent.train())
            if profiler is not None:
                profiler.finish()
            result.update({"time/start": first_step.seconds, "peak_memory_mb": peak_memory_mb()})
        result["checkpoint"] = str(run_dir.best if run_dir.best.exists() else run_dir.last)
        run_dir.write_result(result)
        observers.on_train_end(result)
    except BaseException as error:
        told = ranks.explain(out_of_memory(error, params) or error)
        result.update(exit_reason="failed", error=_told(told))
        if begun:
            run_dir.write_result(result)
        if told is not error:
            raise told from error
        raise
    finally:
        observers.close()
        if begun:
            run_dir.finish(result["exit_reason"] if result["exit_reason"] != "failed" else f"failed: {result.get('error', '')}")
    if not ranks.is_main:
        return result
    _draw(run_dir)
    print_result(result, run_dir, eval_command(result["checkpoint"]))
    return result


def wanted_observers(cfg: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """The observers of every run, W&B if asked for, then the config's own."""
    wanted: dict[str, dict[str, Any] | None] = dict.fromkeys(("scores", "episode", "metrics_file", "tensorboard"))
    if cfg["progress"] != "off":
        wanted["console"] = {"mode": cfg["progress"]}  # before W&B, whose summary would else stand before the last line
    if cfg["wandb"] != "off":
        options = {key: cfg[f"wandb_{key}"] for key in ("project", "entity", "group", "job_type", "tags")}
        wanted["wandb"] = {"mode": cfg["wandb"], **options}
    wanted.update(dict.fromkeys(cfg["observers"]))
    return wanted


@contextlib.contextmanager
def signals(context: RunContext) -> Iterator[None]:
    """Ctrl-C and SIGTERM end training after the running epoch, with a checkpoint; a second one ends it at once."""
    names = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

    def stop(number: int, frame: Any) -> None:
        if context.stop_requested:
            raise KeyboardInterrupt
        context.stop_requested = names[signal.Signals(number)]
        if context.ranks.is_main:
            print(f"\n{context.stop_requested}: finishing this epoch, then saving (once more: stop at once)", flush=True)

    try:
        old = {number: signal.signal(number, stop) for number in names}
    except ValueError:  # not the main thread: whoever started it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def describe(
    cfg: dict[str, Any], params: dict[str, Any], entry: AlgoEntry, env: VecEnv, agent: Any, run_dir: RunDir
) -> dict[str, dict[str, str]]:
    """The table at the start of a run: what was resolved."""
    config, task = params["config"], cfg["task"]
    parameters = sum(p.numel() for p in agent.model.parameters())
    frames, epochs = config.get("max_frames"), config.get("max_epochs")
    budget = [f"{frames:,} frames"] if frames and frames > 0 else []
    budget += [f"{epochs:,} epochs"] if epochs and epochs > 0 else []
    named = {"id": task.get("id") or task.get("env_name") or "-", "kind": task["kind"]}
    sections = {
        "algorithm": {
            "name": f"{entry.name} ({entry.cls.__module__}.{entry.cls.__qualname__})",
            "network": f"{params['network']['name']}, {parameters:,} parameters",
            "player": entry.player,
        },
        "task": {
            "name": f"{task['name']} ({named['kind']}: {named['id']})",
            "observations": str(env.observation_space),
            "actions": str(env.action_space),
            "resets": f"in the {'same' if env.reset_mode == 'same_step' else 'next'} step",
        },
        "training": {"batch": _batch(agent, env), "budget": ", ".join(budget) or "none: stop it with Ctrl-C", "seed": str(params["seed"]),
                     "device": config["device"], "threads": str(torch.get_num_threads())},
        "files": {"directory": str(run_dir.path)},
    }  # fmt: skip
    ranks = agent.context.ranks
    if ranks.world > 1:
        sections["training"]["ranks"] = f"{ranks.world}, data-parallel: {ranks.world * env.num_envs:,} environments"
    if cfg["resume"]:
        sections["training"]["resumed"] = f"at epoch {agent.epoch_num}, frame {agent.frame:,}"
    return sections


def out_of_memory(error: BaseException, params: dict[str, Any]) -> UserError | None:
    """What a GPU that ran out of memory was asked for, and which settings to lower; None for any other error."""
    if not isinstance(error, torch.OutOfMemoryError):
        return None
    config = params["config"]
    sizes = ", ".join(f"{key} ({config[key]})" for key in ("num_actors", "horizon_length", "minibatch_size") if key in config)
    return Exhausted(
        f"out of GPU memory: {str(error).splitlines()[0]} Lower one of {sizes}, or the network's units; num_actors is num_envs"
    )


def _batch(agent: Any, env: VecEnv) -> str:
    if not hasattr(agent, "horizon_length"):
        return f"{env.num_envs} envs, {agent.batch_size} rows from a replay buffer of {agent.replay_buffer_size:,}"
    return batch_arithmetic(env.num_envs, env.num_agents, agent.horizon_length, agent.minibatch_size, agent.mini_epochs_num)


def _start_from(cfg: dict[str, Any], agent: Any, run_dir: RunDir) -> None:
    if cfg["resume"]:
        agent.restore(str(run_dir.last))
        run_dir.truncate_metrics(agent.epoch_num)
    elif cfg["checkpoint"]:
        agent.restore(str(cfg["checkpoint"]), set_epoch=False)
    override_sigma(agent.model, cfg["sigma"])


def _draw(run_dir: RunDir) -> None:
    from core.plot import learning_curve  # matplotlib takes a second to import, and is needed only here

    learning_curve(run_dir.metrics_path, run_dir.path / "learning_curve.png", run_dir.path.name)


def _told(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    return "".join(traceback.format_exception_only(error)).strip()
