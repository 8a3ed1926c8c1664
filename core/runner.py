"""From a checked config to a finished run: `train` and `evaluate`."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import random
import shlex
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import checkpoint, demos, registry
from core.config import algo_options, check, check_batch, to_params
from core.console import batch_arithmetic, print_eval_table, print_result, print_run_table
from core.context import RunContext
from core.errors import Exhausted, UserError
from core.hidden import HiddenObs
from core.observers import Run, make_observers
from core.policy import Policy
from core.process import FirstStep, keep_freed_memory, peak_memory_mb
from core.profiling import EpochProfiler
from core.ranks import Ranks, joined, local_world_size, world_size
from core.registry import AlgoEntry
from core.run_dir import RunDir, Unwritten
from core.vecenv import VecEnv, action_kind

ENV_OBSERVERS = ("scores", "episode")  # what they read from each rank's environments is averaged over the ranks
EVAL_SEED_OFFSET = 100_000  # training environments are seeded seed, seed + 1, ...: evaluation plays on others


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
        name = cfg["experiment"] or f"{cfg['task']['name']}_{algo_label(cfg, params)}"
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


def evaluate(cfg: dict[str, Any]) -> dict[str, Any]:
    """Plays `cfg['checkpoint']` with its algorithm's player and writes eval.json, the demonstration file `cfg['record']` where one is
    asked for, and a video where `cfg['video']`.

    Returns eval.json's content. Raises UserError where checkpoint and config do not belong together.
    """
    if world_size() > 1:
        raise UserError(f"one process plays an evaluation, and this is one of {world_size()} (WORLD_SIZE): start it without torchrun")
    record = demos.check_target(cfg["record"]) if cfg["record"] else None
    played = _play(cfg, record)
    run_dir = _run_of_checkpoint(cfg, played.params)
    run_dir.write_eval(played.result)
    print_eval_table(played.result)
    print(f"eval.json: {run_dir.path / 'eval.json'}")
    if record:
        print(f"demonstrations: {record} ({played.transitions:,} transitions)")
    if cfg["video"]:
        print(f"video: {_record(cfg, played, run_dir)}")
    return played.result


def evaluate_checkpoint(
    path: str | Path, *, games_num: int, deterministic: bool, seed: int, num_envs: int | None = None, sigma: float | None = None
) -> dict[str, Any]:
    """eval.json's content for one of our checkpoints, played by its algorithm's player with the config that it carries. Nothing is
    written or printed.

    Args:
        games_num: episodes to count.
        seed: environment i is started with seed + i.
        num_envs: environments; None: as many as the run trained with, at most one per episode.
        sigma: as rl_games' --sigma.

    Raises UserError for a file that cannot be read, or that carries no config (stock rl_games' do not).
    """
    saved = checkpoint.read_config(path)
    if saved is None:
        raise UserError(f"checkpoint '{path}' is a stock rl_games file: it does not say which task and network it is for")
    registry.discover()
    registry.import_outside(saved["modules"])
    player = {"games_num": games_num, "deterministic": deterministic, "seed": seed, "num_envs": num_envs}
    return _play(check({**saved, "checkpoint": str(path), "player": player, "sigma": sigma})).result


@dataclasses.dataclass(frozen=True)
class _Played:
    """An evaluation, and what filming it needs."""

    result: dict[str, Any]
    params: dict[str, Any]
    entry: AlgoEntry
    state: dict[str, Any]
    seed: int
    player_class: Any
    transitions: int  # written to the demonstration file


def _play(cfg: dict[str, Any], record: Path | None = None) -> _Played:
    params = to_params(cfg)
    entry = registry.algos.get(params["algo"]["name"], "train.params.algo.name")
    settings = cfg["player"]
    seed = settings["seed"] if settings["seed"] is not None else params["seed"] + EVAL_SEED_OFFSET
    games = settings["games_num"]
    num_envs = settings["num_envs"] or min(games, params["config"]["num_actors"])
    device = params["config"]["device"]
    seed_everything(seed, cfg["torch_deterministic"])
    set_threads(params)
    state = checkpoint.load(cfg["checkpoint"], device)
    checkpoint.check_fits(state, entry.name, cfg["checkpoint"])
    player_class = registry.players.get(entry.player)
    started = time.perf_counter()
    with contextlib.closing(make_env(cfg, num_envs, seed, device)) as env:
        check_actions(entry, env)
        policy = make_policy(entry, params, env, num_envs, device, state, cfg["sigma"])
        player: Any = (player_class.recording() if record else player_class)(
            policy, env, games_num=games, deterministic=settings["deterministic"], seed=seed, n_game_life=lives_per_game(params)
        )
        player.restore_extras(checkpoint.player_extras(state))
        played = player.run()
        transitions = player.save(record, _origin(cfg, entry, state)) if record else 0
    head = {"task": cfg["task"]["name"], "algo": entry.name, "seed": seed, "checkpoint": str(cfg["checkpoint"])}
    result = {**head, "frames": state.get("frame"), "epochs": state.get("epoch"), **played}
    result["seconds"] = time.perf_counter() - started
    return _Played(result, params, entry, state, seed, player_class, transitions)


def lives_per_game(params: dict[str, Any]) -> int:
    """rl_games' `player.n_game_life`: episodes that make one game."""
    return (params["config"].get("player") or {}).get("n_game_life", 1)


def _origin(cfg: dict[str, Any], entry: AlgoEntry, state: dict[str, Any]) -> dict[str, Any]:
    """What a demonstration file says about where it comes from."""
    task = cfg["task"]
    return {
        "task": {"name": task["name"], "kind": task["kind"], "id": task.get("id") or task.get("env_name")},
        "algo": entry.name,
        "frames": state.get("frame"),
        "checkpoint": Path(cfg["checkpoint"]).name,
    }


# ---- parts, each usable alone ----------------------------------------------------------------------------------------------


def make_env(cfg: dict[str, Any], num_envs: int, seed: int | None, device: str, render_mode: str | None = None) -> VecEnv:
    """The task's environments. Raises UserError for an unknown kind, or whatever the kind refuses."""
    task = cfg["task"]
    factory = registry.task_factory(task["kind"])
    options = {key: value for key, value in task.items() if key in inspect.signature(factory).parameters}
    options.pop("num_envs", None)
    env = factory(num_envs=num_envs, seed=seed, device=device, render_mode=render_mode, **options)
    if task.get("hidden_obs"):
        try:
            env = HiddenObs(env, task["hidden_obs"])
        except UserError:
            env.close()
            raise
    env.checks_obs = task.get("check_obs", True)
    return env


def make_rank_env(ranks: Ranks, cfg: dict[str, Any], params: dict[str, Any]) -> VecEnv:
    """The training environments of one rank. Rank r's environment i is seeded as environment r * num_envs + i of a single process,
    so that no two are alike."""
    num_envs = params["config"]["num_actors"]
    offset = ranks.rank * num_envs
    task = dict(cfg["task"])
    own = task.get("env_config")
    if offset and isinstance(own, dict) and isinstance(own.get("seed"), int):  # rl_games' YAMLs may give a seed there, which counts
        task["env_config"] = {**own, "seed": own["seed"] + offset}
    return make_env({**cfg, "task": task}, num_envs, params["seed"] + offset, params["config"]["device"])


def make_policy(
    entry: AlgoEntry, params: dict[str, Any], env: VecEnv, num_envs: int, device: str, state: dict[str, Any], sigma: float | None = None
) -> Policy:
    """The algorithm's policy for `env`, with a checkpoint's weights."""
    policy = (entry.policy or Policy)(params, env.get_env_info(), num_envs, device)
    policy.load(state)
    override_sigma(policy.model, sigma)
    policy.model.eval()
    return policy


def check_actions(entry: AlgoEntry, env: VecEnv) -> str:
    """The action kind of the task. Raises UserError where the algorithm cannot act in it."""
    try:
        kind = action_kind(env.action_space)
    except ValueError as error:
        raise UserError(f"task: {error}") from error
    if kind not in entry.actions:
        able = ", ".join(name for name in registry.algos if kind in registry.algos.get(name).actions)
        raise UserError(
            f"algorithm '{entry.name}' needs {' or '.join(entry.actions)} actions, but the task's are {kind} ({env.action_space}). "
            f"Algorithms for {kind} actions: {able}"
        )
    return kind


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and torch (seed 0 too); `deterministic` asks torch for deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses matrix products on a GPU
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the setter imports torch's compiler, which takes a second
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("highest" if deterministic else "high")


def set_threads(params: dict[str, Any]) -> None:
    """rl_games' `params.torch_threads`: a number, 0 for torch's own choice, 'auto' for at most four; the ranks of a machine share it."""
    threads = params.get("torch_threads", "auto")
    if threads == "auto":
        threads = max(1, min(4, (os.cpu_count() or 1) // local_world_size()))
    if threads:
        torch.set_num_threads(int(threads))


def override_sigma(model: torch.nn.Module, sigma: float | None) -> None:
    """rl_games' --sigma: sets a fixed log standard deviation. Raises UserError where the network has none."""
    if sigma is None:
        return
    network: Any = getattr(model, "a2c_network", None)
    if not getattr(network, "fixed_sigma", False):
        raise UserError("sigma can only be set for a network with fixed_sigma: true")
    with torch.no_grad():
        network.sigma.fill_(float(sigma))


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


@contextlib.contextmanager
def evaluation_in_training(cfg: dict[str, Any], params: dict[str, Any], entry: AlgoEntry, context: RunContext) -> Iterator[None]:
    """Gives the context an `evaluate` that plays on environments of its own, made at its first call and closed at the end."""
    made: dict[str, Any] = {}

    def evaluate_now(state: dict[str, Any]) -> dict[str, float]:
        config, seed = params["config"], params["seed"] + EVAL_SEED_OFFSET
        games = config.get("eval_games", 10)
        num_envs = min(games, config["num_actors"])
        if not made:
            made["env"] = make_env(cfg, num_envs, seed, config["device"])
        with checkpoint.kept_rng():
            policy = make_policy(entry, params, made["env"], num_envs, config["device"], state)
            player = registry.players.get(entry.player)(
                policy, made["env"], games_num=games, deterministic=True, seed=seed, n_game_life=lives_per_game(params)
            )
            player.restore_extras(checkpoint.player_extras(state))
            played = player.run()
        return {"eval/return_mean": played["return"]["mean"], "eval/return_iqm": played["return"]["iqm"],
                "eval/length_mean": played["length"]["mean"]}  # fmt: skip

    context.evaluate = evaluate_now
    try:
        yield
    finally:
        if "env" in made:
            made["env"].close()


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


def algo_label(cfg: dict[str, Any], params: dict[str, Any]) -> str:
    """The algorithm's part of a run directory's name: the train config's file name where it is known."""
    return cfg["train"].get("name") or params["algo"]["name"]


def eval_command(checkpoint_path: str) -> str:
    """The command that plays a checkpoint, ready to paste; the run's own config says the rest."""
    return f"python train.py test=True checkpoint={shlex.quote(checkpoint_path)}"


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


def _run_of_checkpoint(cfg: dict[str, Any], params: dict[str, Any]) -> RunDir:
    """Where eval.json goes: the run that the checkpoint lies in, or a directory of its own."""
    home = Path(cfg["checkpoint"]).resolve().parent
    if not cfg["run_dir"] and home.name == "nn" and (home.parent / "config.yaml").is_file():
        return RunDir(Path(cfg["checkpoint"]).parent.parent)
    run_dir = RunDir.create(cfg["runs_dir"], f"{cfg['task']['name']}_{algo_label(cfg, params)}_eval", cfg["run_dir"])
    run_dir.write_config(cfg)
    return run_dir


def _record(cfg: dict[str, Any], played: _Played, run_dir: RunDir) -> Path:
    params, seed, device = played.params, played.seed, played.params["config"]["device"]
    with contextlib.closing(make_env(cfg, 1, seed, device, render_mode="rgb_array")) as env:
        policy = make_policy(played.entry, params, env, 1, device, played.state, cfg["sigma"])
        path = run_dir.videos / f"{Path(cfg['checkpoint']).stem}_{seed}.mp4"
        return played.player_class.record(
            policy,
            env,
            path,
            cfg["video_episodes"],
            deterministic=cfg["player"]["deterministic"],
            seed=seed,
            extras=checkpoint.player_extras(played.state),
        )


def _told(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    return "".join(traceback.format_exception_only(error)).strip()
