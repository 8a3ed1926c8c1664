"""From what Hydra composed to what the runner uses: reloading, rl_games YAMLs, shorthands, rl_games' `params`."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core import ranks, registry, schema, validate
from core.errors import UserError, nearest
from core.validate import algo_options, check_batch, unread

__all__ = ["algo_options", "check", "check_batch", "effective", "to_params", "unread"]

Config = dict[str, Any]
ReadConfig = Callable[[Path], Config | None]

CONFIG_DIR = Path(__file__).resolve().parents[1] / "cfg"
GROUPS = ("task", "train", "tuned")

# A shorthand and the key that it stands for.
SHORTHANDS = {
    "seed": "train.params.seed",
    "num_envs": "train.params.config.num_actors",
    "max_frames": "train.params.config.max_frames",
    "max_epochs": "train.params.config.max_epochs",
    "precision": "train.params.config.precision",
}

# These say what this invocation does, not what the run is: never taken from a saved config.
OF_THE_INVOCATION = ("test", "checkpoint", "resume", "file", "run_dir", "record", "video", "profile", "pause_at", "info")


def check(cfg: Config) -> Config:
    """Holds an effective config against the schema; returns it with every value in its type. Nothing is built.

    Call it after discovery and `import_outside`: the algorithm's and the task kind's own keys come from the registry.
    Raises UserError listing every mistake with its path.
    """
    cfg = validate.typed(cfg)
    for name in cfg["observers"]:
        registry.observers.get(name, "observers")
    return cfg


# ---- effective ------------------------------------------------------------------------------------------------------------


def effective(cfg: DictConfig, overrides: Iterable[str], read_checkpoint_config: ReadConfig | None = None) -> Config:
    """The config that counts, as plain dicts, resolved.

    Args:
        cfg: what Hydra composed.
        overrides: the command line's, as `HydraConfig.get().overrides.task` has them.
        read_checkpoint_config: reads the config stored inside a checkpoint; None if it holds none.

    With `resume`, and with `test` and `checkpoint`, it starts from that run's own config and applies the overrides on top, so
    nothing need be repeated. With `file`, that rl_games YAML replaces the train group. Where the task is `from_train`, it
    becomes the environment that the train config names. Raises UserError for files that are not there or not what they
    should be, and where no task is named.
    """
    composed = _container(cfg)
    given = _Given(overrides)
    saved = _saved(composed, given, read_checkpoint_config)
    result = copy.deepcopy(composed) if saved is None else _on_top(saved, composed, given)
    fresh = saved is None or "train" in given.groups
    if composed.get("file"):
        result["train"] = _read_rl_games(Path(composed["file"]))
        given.apply(result, composed, under="train.")
        if saved is not None and "task" not in given.groups:
            result["task"] = composed["task"] if _env_name(result) else result["task"]
        fresh = True
        result["file"] = None  # from here on the train section is what counts
    given.choose_minibatch(result)
    if fresh:
        _adopt_player(result, given)
    _adopt_task(result)
    return _normalised(result)


class _Given:
    """The command line's overrides, parsed: group choices and values."""

    def __init__(self, overrides: Iterable[str]) -> None:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        groups = [o for o in parsed if o.key_or_group in GROUPS and not o.is_force_add()]
        self.groups = {o.key_or_group for o in groups if not o.is_delete()}
        self.values = [o.key_or_group for o in parsed if o not in groups and not o.is_delete()]
        self.deleted = [o.key_or_group for o in parsed if o not in groups and o.is_delete()]

    def has(self, key: str) -> bool:
        """Whether the key itself or a section around it was given."""
        return any(key == value or key.startswith(f"{value}.") for value in self.values)

    def apply(self, target: Config, composed: Config, under: str = "") -> None:
        """Sets in `target` what the command line set in `composed`."""
        tree, source = OmegaConf.create(target), OmegaConf.create(composed)
        for key in self.values:
            if key.startswith(under):
                OmegaConf.update(tree, key, OmegaConf.select(source, key), merge=False, force_add=True)
        target.update(cast(Config, OmegaConf.to_container(tree)))
        for key in self.deleted:
            parent, _, name = key.rpartition(".")
            section = _select(target, parent) if parent else target
            if key.startswith(under) and isinstance(section, dict):
                section.pop(name, None)

    def choose_minibatch(self, cfg: Config) -> None:
        """rl_games ignores minibatch_size_per_env beside minibatch_size; of the two, the one just given stays."""
        pair = ("minibatch_size", "minibatch_size_per_env")
        for part in ("train.params.config", "train.params.config.central_value_config"):
            asked = [f"{part}.{name}" in self.values for name in pair]
            section = _select(cfg, part)
            if any(asked) and not all(asked) and isinstance(section, dict):
                section.pop(pair[asked.index(False)], None)


def _saved(composed: Config, given: _Given, read_checkpoint_config: ReadConfig | None) -> Config | None:
    """The config of the run that `resume` or `test` with `checkpoint` refers to, or None where there is none to look for."""
    resume, checkpoint, test = composed.get("resume"), composed.get("checkpoint"), composed.get("test")
    if resume:
        if checkpoint or test:
            other = "checkpoint" if checkpoint else "test"
            raise UserError(f"resume and {other} exclude each other: resume=DIR trains on, test=True checkpoint=FILE evaluates")
        return _config_of_run(Path(resume))
    if not checkpoint:
        if test:
            raise UserError("test=True needs a checkpoint to evaluate: checkpoint=runs/<run>/nn/best.pth")
        return None
    path = Path(checkpoint)
    if not path.is_file():
        raise _no_checkpoint(path)
    if not test:
        return None
    beside = path.resolve().parent.parent / "config.yaml"
    saved = _load(beside, "checkpoint's config") if beside.is_file() and path.resolve().parent.name == "nn" else None
    if saved is None and read_checkpoint_config is not None:
        saved = read_checkpoint_config(path)
    if saved is None and not composed.get("file") and not {"task", "train"} & given.groups:
        raise UserError(
            f"checkpoint '{checkpoint}' carries no config (rl_games' own files do not): "
            "name its YAML with file=..., or task=... and train=..."
        )
    return copy.deepcopy(saved)


def _config_of_run(run: Path) -> Config:
    if (run / "config.yaml").is_file():
        return _load(run / "config.yaml", "resume")
    if run.is_file():
        raise UserError(f"resume: '{run}' is a file; give the run's directory, e.g. resume={run.resolve().parent.parent}")
    runs = [str(path.parent) for path in sorted(run.parent.glob("*/config.yaml"))] if run.parent.is_dir() else []
    close = nearest(str(run), runs)
    why = "has no config.yaml, so it is not a run directory" if run.is_dir() else "does not exist"
    raise UserError(f"resume: '{run}' {why}." + (f" Did you mean '{close}'?" if close else ""))


def _no_checkpoint(path: Path) -> UserError:
    place = path if path.is_dir() else next((p for p in path.parents if p.is_dir()), Path())
    patterns = ("*.pth", "nn/*.pth", "*/nn/*.pth")
    files = [str(file) for pattern in patterns for file in sorted(place.glob(pattern))][:10]
    why = "is a directory" if path.is_dir() else "does not exist"
    return UserError(
        f"checkpoint: '{path}' {why}." + (f" There are: {', '.join(files)}" if files else f" No .pth file stands in '{place}'.")
    )


def _on_top(saved: Config, composed: Config, given: _Given) -> Config:
    if "tuned" in given.groups and "train" not in given.groups:
        raise UserError("tuned= has no meaning on top of a run's own config: give train= (and task=) with it")
    result = {**copy.deepcopy(composed), **saved}
    for name in (*OF_THE_INVOCATION, *(given.groups & {"task", "train"})):
        result[name] = composed.get(name)
    for short, long in SHORTHANDS.items():
        if given.has(long) and not given.has(short):
            result[short] = None  # else the saved shorthand would outrank what was just given
    given.apply(result, composed)
    return result


# ---- rl_games YAMLs ---------------------------------------------------------------------------------------------------


def _read_rl_games(path: Path) -> Config:
    """The train section from a stock rl_games YAML. Read as rl_games reads it: a key that stands twice is no error."""
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else None
        raise UserError(f"file: '{path}' does not exist." + (f" Did you mean '{path.parent / near}'?" if near else ""))
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"file: '{path}' is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("params"), dict):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"file: '{path}' is no rl_games config: it has no section 'params' at the top (found: {found})")
    return content


def _env_name(cfg: Config) -> str | None:
    config = _select(cfg, "train.params.config")
    return config.get("env_name") if isinstance(config, Mapping) else None


def _adopt_task(cfg: Config) -> None:
    """Where the task is from_train, takes the environment that the train config names."""
    if not isinstance(cfg.get("task"), Mapping) or cfg["task"].get("name") != "from_train":
        return
    task = cfg["task"]
    env_name = task.get("env_name") or _env_name(cfg)
    if not env_name:
        raise UserError(
            f"no task: give task=NAME, with one of {', '.join(_choices('task'))}; "
            "or a train config that names train.params.config.env_name, as rl_games' YAMLs do"
        )
    env_config = task.get("env_config") or _select(cfg, "train.params.config.env_config") or {}
    name = env_config.get("env_name") or env_config.get("name") or env_name
    task.update(name=re.sub(r"[^\w.-]+", "-", str(name)), kind="rl_games", env_name=env_name, env_config=copy.deepcopy(env_config))


def _choices(group: str) -> list[str]:
    if GlobalHydra.instance().is_initialized():
        names = GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG)
    else:
        names = [path.stem for path in (CONFIG_DIR / group).glob("*.yaml")]
    return sorted(set(names) - {"from_train"})


def _adopt_player(cfg: Config, given: _Given) -> None:
    """rl_games' own `config.player` counts, unless the command line says otherwise."""
    stock = _select(cfg, "train.params.config.player")
    if not isinstance(stock, Mapping) or not isinstance(cfg.get("player"), dict):
        return
    for name in ("games_num", "deterministic"):
        if name in stock and not given.has(f"player.{name}"):
            cfg["player"][name] = stock[name]


# ---- to_params ------------------------------------------------------------------------------------------------------------


def to_params(cfg: Config) -> Config:
    """rl_games' `params` for the agent and the player, from an effective config, shorthands applied.

    num_envs > train.params.config.num_actors > task.num_envs; max_frames, max_epochs, seed and device likewise. Raises
    UserError as `check` does, for a device that is not there, and where no number of environments is given.
    """
    cfg = validate.typed(cfg)
    params, task = cfg["train"]["params"], cfg["task"]
    config = params["config"]
    entry = registry.algos.get(params["algo"]["name"], "train.params.algo.name")

    envs = cfg["num_envs"] or config.get("num_actors") or task.get("num_envs")
    if not envs:
        raise UserError("num_envs is missing: neither num_envs, train.params.config.num_actors nor task.num_envs is given")
    config["num_actors"] = envs

    if "max_steps" in config:
        config["max_frames"] = max(config.get("max_frames", -1), config.pop("max_steps"))
    for name in ("max_frames", "max_epochs"):
        if cfg[name] is not None:
            config[name] = cfg[name]

    if cfg["precision"] is not None:
        if entry.config is None or "precision" not in schema.of_dataclass(entry.config):
            raise UserError(f"precision is '{cfg['precision']}', but algorithm '{entry.name}' has no such option")
        config["precision"] = cfg["precision"]

    config["device"] = config["device_name"] = resolve_device(cfg["device"], config.get("device"))
    if cfg["seed"] is not None:
        params["seed"] = cfg["seed"]
    params["model"] = params.get("model") or {"name": "auto"}
    config["reward_shaper"] = config.get("reward_shaper") or {}
    config.setdefault("name", f"{task['name']}_{cfg['train'].get('name', params['algo']['name'])}")
    if task["kind"] == "rl_games":  # where the task's own keys name it, the train config may not
        config["env_name"], config["env_config"] = task["env_name"], copy.deepcopy(task["env_config"])
    else:  # a YAML made for one environment, used on another
        config["env_name"], config["env_config"] = task["name"], {}

    defaults = schema.of_dataclass(entry.config) if entry.config else {}
    required = {**schema.PPO_CONFIG, **schema.SAC_CONFIG}
    options = algo_options(entry, config)
    for name in defaults:
        if name not in config and name in required:  # rl_games' own code reads it from the dict
            config[name] = getattr(options, name)
    return params


def resolve_device(asked: str, in_train: str | None = None) -> str:
    """'cpu' or 'cuda:N'. auto: what the train config names if it is there, else CUDA if there is one, else the CPU.

    Where several ranks run on this machine, each takes cuda:LOCAL_RANK. Raises UserError for a CUDA device that this machine lacks.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    own = ranks.local_device(asked, in_train, gpus)
    if own is not None:
        return own
    here = ["cpu"] + [f"cuda:{n}" for n in range(gpus)]
    if asked == "auto":
        default = here[min(1, gpus)]
        return in_train if in_train in here else default
    wanted = "cuda:0" if asked == "cuda" else asked
    if wanted not in here:
        raise UserError(f"device is '{asked}', but this machine has {', '.join(here)}" + ("" if gpus else " and no CUDA") + "; or use auto")
    return wanted


# ---- small parts -----------------------------------------------------------------------------------------------------------


def _normalised(cfg: Config) -> Config:
    params = _select(cfg, "train.params")
    own = params.get("seed") if isinstance(params, Mapping) else None
    if cfg.get("seed") is None:
        cfg["seed"] = 42 if own is None else own
    for name in ("wandb", "progress", "modules", "observers", "wandb_tags"):
        if name in cfg:
            try:
                cfg[name] = validate.convert(cfg[name], schema.ROOT[name].type)
            except ValueError as error:
                raise UserError(f"{name} is {cfg[name]!r}, but {error} ({schema.ROOT[name].meaning})") from None
    # A run's config must find its modules from any directory.
    cfg["modules"] = [str(Path(m).resolve()) if Path(m).is_file() else m for m in cfg.get("modules", [])]
    return cfg


def _container(cfg: DictConfig) -> Config:
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {str(error).splitlines()[0]}" + (f" (at {error.full_key})" if error.full_key else "")) from error
    assert isinstance(plain, dict)
    return cast(Config, plain)


def _load(path: Path, what: str) -> Config:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{what}: '{path}' cannot be read: {error}") from error
    if not isinstance(loaded, dict) or not {"task", "train"} <= set(loaded):
        raise UserError(f"{what}: '{path}' is not a run's config: it has no task and train")
    return cast(Config, loaded)


def _select(cfg: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(cfg, Mapping) or name not in cfg:
            return None
        cfg = cfg[name]
    return cfg
