"""The command line: rl_games' flags and plain `key=value` become Hydra overrides, and every mistake a clear error."""

from __future__ import annotations

import argparse
import contextlib
import copy
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from core.config import CONFIG_DIR, GROUPS
from core.errors import UserError, unknown

# Hydra must neither log nor make directories: a run has one directory, and the runner makes it.
ALWAYS = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
WHEN_SWEEPING = ["hydra.sweep.dir=runs/multirun", "hydra.sweep.subdir=."]

TASK = "task"  # what --info tells of when it is given nothing; whatever it is given is Hydra's (all, config, defaults, ...)

TEXT_KEYS = {
    "checkpoint",
    "record",
    "resume",
    "run_dir",
    "runs_dir",
    "file",
    "modules",
    "experiment",
    "wandb_project",
    "wandb_entity",
    "wandb_group",
    "wandb_job_type",
}


@contextlib.contextmanager
def main_guard() -> Iterator[None]:
    """Around a program's main, `with main_guard():` or `@main_guard()`.

    A UserError is printed as `error: ...` with exit status 2, Ctrl-C exits with 130; any other exception goes on, with its
    traceback and status 1.

    Hydra swallows what leaves its main function, so the guard stands inside that one and around `translate`.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def translate(argv: list[str], config_dir: Path = CONFIG_DIR) -> list[str]:
    """What follows the program's name -> what Hydra understands.

    rl_games' flags become overrides: --file/-f, --train/-t, --play/-p, --checkpoint/-c, --seed, --num_actors/-na, --sigma/-s,
    --track, --wandb-project-name, --wandb-entity. Hydra's own flags stay (--cfg and --package in their long form only: their
    short ones are rl_games' --checkpoint and --play; --info with a value only: alone it tells what the task is). `key=value` may set
    any key, so that a misspelt one reaches the schema.

    The result is composed once without running, so that Hydra's errors come as UserError: an unknown task or algorithm with
    the nearest one, a value that cannot be parsed.
    """
    return read(argv, config_dir)[0]


def read(argv: list[str], config_dir: Path = CONFIG_DIR) -> tuple[list[str], DictConfig | None]:
    """`translate(argv)`, and what it composed, with Hydra's own node in it: hand it to `as_job`.

    None where Hydra has to compose and run by itself: a sweep, one of its flags (--help, --cfg, --info, ...), a `hydra.*` key,
    or a config that names Hydra callbacks or job variables.
    """
    flags, rest = _parser().parse_known_args(argv)
    tokens = _rl_games_overrides(flags)
    for token in rest:
        if token.startswith("-"):
            raise unknown("option", token.split("=")[0], _option_names())
        if "=" not in token and not token.startswith("~"):
            raise UserError(f"'{token}' is neither an option nor key=value")
        tokens.append(token)
    overrides = [_override(token, flags.multirun) for token in tokens]
    if flags.config_path is None and flags.config_name is None and _sets(overrides, "file") and not _sets(overrides, "tuned"):
        overrides.append("~tuned")  # values tuned for cfg/train's algorithm are not meant for another YAML
    overrides += ALWAYS + (WHEN_SWEEPING if flags.multirun else [])
    composed = None
    if not (flags.help or flags.hydra_help or flags.version or flags.shell_completion):
        composed = _dry_run(overrides, flags, config_dir)
    arguments = _hydra_flags(flags) + overrides
    return arguments, composed if composed is not None and _plain(flags, tokens, composed) else None


def as_job(composed: DictConfig) -> DictConfig:
    """What `hydra.main` would hand to the program: the config without Hydra's node, which `HydraConfig` and `${hydra:...}` know
    from now on. Composing takes a tenth of a second, and Hydra's own way to a job composes twice more."""
    composed.hydra.mode = RunMode.RUN
    with open_dict(composed.hydra.runtime):
        composed.hydra.runtime.output_dir = str(Path.cwd())
    HydraConfig.instance().set_config(composed)
    job = copy.deepcopy(composed)
    with open_dict(job):
        del job["hydra"]
    return job


# ---- flags ------------------------------------------------------------------------------------------------------------------

# Hydra's flags: (names, takes a value).
HYDRA_FLAGS = [
    (["--help", "-h"], False),
    (["--hydra-help"], False),
    (["--version"], False),
    (["--multirun", "-m"], False),
    (["--run", "-r"], False),
    (["--resolve"], False),
    (["--shell-completion", "-sc"], False),
    (["--cfg"], True),
    (["--package"], True),
    (["--config-path", "-cp"], True),
    (["--config-name", "-cn"], True),
    (["--config-dir", "-cd"], True),
    (["--experimental-rerun"], True),
]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser() -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--file", "-f")
    parser.add_argument("--train", "-t", action="store_true")
    parser.add_argument("--play", "-p", action="store_true")
    parser.add_argument("--checkpoint", "-c")
    parser.add_argument("--seed")
    parser.add_argument("--num_actors", "-na")
    parser.add_argument("--sigma", "-s")
    parser.add_argument("--track", action="store_true")
    parser.add_argument("--wandb-project-name")
    parser.add_argument("--wandb-entity")
    parser.add_argument("--info", "-i", nargs="?", const=TASK)
    for names, takes_value in HYDRA_FLAGS:
        if takes_value:
            parser.add_argument(*names)
        else:
            parser.add_argument(*names, action="store_true")
    return parser


def _option_names() -> list[str]:
    return [name for action in _parser()._actions for name in action.option_strings]


def _rl_games_overrides(flags: argparse.Namespace) -> list[str]:
    values = {
        "file": flags.file,
        "checkpoint": flags.checkpoint,
        "seed": flags.seed,
        "num_envs": flags.num_actors,
        "sigma": flags.sigma,
        "wandb_project": flags.wandb_project_name,
        "wandb_entity": flags.wandb_entity,
    }
    tokens = [f"{key}={value}" for key, value in values.items() if value is not None]
    if flags.play and not flags.train:  # with both, rl_games trains
        tokens.append("test=true")
    if flags.info == TASK:
        tokens.append("info=true")
        flags.info = None
    if flags.track:
        tokens.append("wandb=online")
    return tokens


def _hydra_flags(flags: argparse.Namespace) -> list[str]:
    result = []
    for names, takes_value in HYDRA_FLAGS:
        value = getattr(flags, names[0].lstrip("-").replace("-", "_"))
        if value:
            result += [names[0], value] if takes_value else [names[0]]
    return result + (["--info", flags.info] if flags.info else [])


def _plain(flags: argparse.Namespace, tokens: list[str], composed: DictConfig) -> bool:
    """Whether the run asks nothing of Hydra but to compose."""
    hydras = [flags.multirun, flags.cfg, flags.package, flags.resolve, flags.info, flags.experimental_rerun]
    own_keys = [token for token in tokens if token.lstrip("+~").startswith(("hydra.", "hydra/"))]
    node = composed.hydra
    return not any(hydras) and not own_keys and node.mode in (None, RunMode.RUN) and not node.callbacks and not node.job.env_set


# ---- overrides --------------------------------------------------------------------------------------------------------------


def _sets(overrides: list[str], key: str) -> bool:
    return any(o.lstrip("+~").split("=")[0] == key and o.split("=", 1)[-1] != "null" for o in overrides)


def _override(token: str, sweeping: bool) -> str:
    key, equals, value = token.partition("=")
    if not equals or key in GROUPS or key.startswith(("hydra.", "hydra/")) or "/" in key or "@" in key:
        return token
    name = key.lstrip("+~")
    if name in TEXT_KEYS:
        value = _quoted(value, sweeping, is_list=name == "modules")
    return f"{key}={value}" if key != name else f"++{name}={value}"


def _quoted(value: str, sweeping: bool, is_list: bool) -> str:
    """The value so that Hydra's grammar reads it as this very text; null, quoted text, lists and sweeps stay what they are."""
    if value in ("null", "") or (value[0] == value[-1] and value[0] in "'\"" and len(value) > 1) or (is_list and value[0] == "["):
        return value
    with contextlib.suppress(HydraException):
        parsed = OverridesParser.create().parse_override(f"key={value}")
        if sweeping if parsed.is_sweep_override() else parsed.value() == value:
            return value
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'")
    return f"'{escaped}'"


# ---- the dry run ------------------------------------------------------------------------------------------------------------


def _dry_run(overrides: list[str], flags: argparse.Namespace, config_dir: Path) -> DictConfig | None:
    """Composes without running, and returns what came last. Of a sweep, every value is tried, one key at a time. None where there is
    nothing to try."""
    composed = None
    if flags.config_path is not None:
        if "://" in flags.config_path:
            return None
        config_dir = (config_dir.parent / flags.config_path).resolve()
    if not config_dir.is_dir():
        raise UserError(f"--config-path: '{config_dir}' is not a directory")
    if flags.config_dir is not None:
        extra = Path(flags.config_dir).resolve()
        if not extra.is_dir():
            raise UserError(f"--config-dir: '{extra}' is not a directory")
        overrides = [*overrides, f"hydra.searchpath=['file://{extra}']"]
    with _hydra_errors(), hydra.initialize_config_dir(str(config_dir), job_name="train", version_base="1.3"):
        for attempt in _attempts(overrides) if flags.multirun else [overrides]:
            composed = hydra.compose(flags.config_name or "config", overrides=attempt, return_hydra_config=True)
        if any(override.lstrip("+~").split("=")[0] == "tuned" for override in overrides):
            _check_tuned(overrides, flags.config_name or "config")
    if composed is not None and flags.config_dir is not None:
        _check_shadowed(composed.hydra.runtime.choices, Path(flags.config_dir).resolve(), config_dir.resolve())
    return composed


def _attempts(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides without sweeps: the first value of each, then every value of a swept group."""
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    if any(o.is_sweep_override() and not o.is_discrete_sweep() for o in parsed):
        return  # an interval has no values to try
    swept = {
        i: [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] for i, o in enumerate(parsed) if o.is_sweep_override()
    }
    first = [swept[i][0] if i in swept else override for i, override in enumerate(overrides)]
    yield first
    for i, values in swept.items():
        if parsed[i].key_or_group in GROUPS:
            for value in values[1:]:
                yield [*first[:i], value, *first[i + 1 :]]


def _check_tuned(overrides: list[str], config_name: str) -> None:
    """The tuned group is optional in config.yaml, so Hydra takes any name; a name that was given must exist."""
    valid = GlobalHydra.instance().config_loader().get_group_options("tuned", ObjectType.CONFIG, config_name, overrides)
    for override in OverridesParser.create().parse_overrides(overrides):
        single = not override.is_delete() and not override.is_sweep_override()
        if override.key_or_group == "tuned" and single and override.value() not in valid:
            raise unknown("tuned pair", str(override.value()), valid, "tuned=")


def _check_shadowed(choices: Mapping[str, str], extra: Path, config_dir: Path) -> None:
    """Hydra takes the shipped one of two files of the same name, and says nothing."""
    for group in GROUPS:
        own, shipped = (folder / group / f"{choices.get(group)}.yaml" for folder in (extra, config_dir))
        if own.exists() and shipped.exists() and not own.samefile(shipped):
            raise UserError(
                f"--config-dir: '{own}' has the name of a shipped file, which Hydra would take in its place. Rename it, and ask for it "
                f"by its name: {group}=NAME"
            )


@contextlib.contextmanager
def _hydra_errors() -> Iterator[None]:
    try:
        yield
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if not error.options:
            raise UserError(str(error).splitlines()[0]) from error
        raise unknown("algorithm config" if group == "train" else group, name, error.options, f"{group}=") from error
    except OverrideParseException as error:
        raise UserError(
            f"cannot parse '{error.override}': {str(error).splitlines()[0]}. Quote a text with special characters: \"key='...'\""
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"a config file is not valid YAML: {error}") from error
    except (HydraException, ValueError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise UserError(f"{error}{cause}") from error
