"""The command line of an experiment: its own `key=value` words and flags; every other word is an override of train.py."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from core.config import GROUPS
from core.errors import UserError, unknown
from core.schema import ROOT
from core.validate import convert

Options = TypeVar("Options")


def parse(argv: Sequence[str], options: type[Options], flags: Iterable[str] = ()) -> tuple[Options, list[str], set[str]]:
    """(an instance of `options`, train.py's overrides, the flags that were given).

    `options` is a dataclass whose annotations say what a value must be; a list is written `[a,b]` or `a,b`. A field named `config_dir` is
    given as train.py has it, `--config-dir DIR`. Raises UserError for an unknown word, with the nearest, and for a value that cannot be.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, options))}
    types = typing.get_type_hints(options, include_extras=True)
    given: dict[str, Any] = {}
    overrides: list[str] = []
    found: set[str] = set()
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--config-dir" and "config_dir" in fields:
            if not words:
                raise UserError("--config-dir needs a directory")
            given["config_dir"] = words.pop(0)
        elif word.startswith("-"):
            if word not in flags:
                raise unknown("option", word, [*flags, *(["--config-dir"] if "config_dir" in fields else [])])
            found.add(word)
        elif "=" not in word:
            if not word.startswith("~"):
                raise UserError(f"'{word}' is neither an option nor key=value")
            overrides.append(word)
        else:
            key, _, text = word.partition("=")
            if key in fields:
                given[key] = _value(key, text, types[key])
            elif _is_of_train(key):
                overrides.append(word)
            else:
                raise unknown("key", key, {*fields, *ROOT}, word)
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{name}= is missing")
    return options(**given), overrides, found


def _is_of_train(key: str) -> bool:
    """Nested keys are checked when a config is composed; at the root, a word may be a misspelt one of ours."""
    name = key.lstrip("+~")
    return "." in name or "/" in name or name in ROOT or name in GROUPS


def _value(key: str, text: str, kind: Any) -> Any:
    try:
        return convert(_plain(text, kind), kind)
    except ValueError as error:
        raise UserError(f"{key} is '{text}', but {error}") from None


def _plain(text: str, kind: Any) -> Any:
    kinds = [kind, *typing.get_args(kind)]
    kinds += [inner for one in kinds for inner in typing.get_args(one)]
    if any(typing.get_origin(one) is list for one in kinds) and ("," in text or text.startswith("[") or int not in kinds):
        return [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    if int in kinds or float in kinds:
        try:
            return OverridesParser.create().parse_override(f"key={text}").value()  # 1_000_000 and 1e6 are numbers, as in train.py
        except HydraException:
            return text
    return None if text == "null" else text
