"""Plays checkpoints: `evaluate` for the command line, `evaluate_checkpoint` for scripts, `evaluation_in_training` between epochs."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import checkpoint, demos, registry
from core.build import check_actions, make_env, make_policy, seed_everything, set_threads
from core.config import check, to_params
from core.console import print_eval_table
from core.context import RunContext
from core.errors import UserError
from core.ranks import world_size
from core.registry import AlgoEntry
from core.run_dir import RunDir, run_name

EVAL_SEED_OFFSET = 100_000  # training environments are seeded seed, seed + 1, ...: evaluation plays on others


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


def lives_per_game(params: dict[str, Any]) -> int:
    """rl_games' `player.n_game_life`: episodes that make one game."""
    return (params["config"].get("player") or {}).get("n_game_life", 1)


def eval_command(checkpoint_path: str) -> str:
    """The command that plays a checkpoint, ready to paste; the run's own config says the rest."""
    return f"python train.py test=True checkpoint={shlex.quote(checkpoint_path)}"


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


def _origin(cfg: dict[str, Any], entry: AlgoEntry, state: dict[str, Any]) -> dict[str, Any]:
    """What a demonstration file says about where it comes from."""
    task = cfg["task"]
    return {
        "task": {"name": task["name"], "kind": task["kind"], "id": task.get("id") or task.get("env_name")},
        "algo": entry.name,
        "frames": state.get("frame"),
        "checkpoint": Path(cfg["checkpoint"]).name,
    }


def _run_of_checkpoint(cfg: dict[str, Any], params: dict[str, Any]) -> RunDir:
    """Where eval.json goes: the run that the checkpoint lies in, or a directory of its own."""
    home = Path(cfg["checkpoint"]).resolve().parent
    if not cfg["run_dir"] and home.name == "nn" and (home.parent / "config.yaml").is_file():
        return RunDir(Path(cfg["checkpoint"]).parent.parent)
    run_dir = RunDir.create(cfg["runs_dir"], f"{run_name(cfg)}_eval", cfg["run_dir"])
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
