"""Errors that are the user's to mend: printed without a traceback, exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a config, a command line or a file. The message names the value, the valid ones and the place."""

    exit_status = 2


class Exhausted(UserError):
    """The machine had not enough of something just now: told in the same way, but another attempt may succeed."""

    exit_status = 1


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to a misspelt one, or None where nothing is close."""
    found = difflib.get_close_matches(str(name), [str(v) for v in valid], n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(what: str, name: str, valid: Iterable[str], where: str = "") -> UserError:
    """'unknown algo 'pp0' at train.params.algo.name. Did you mean 'ppo'? Valid: ...'"""
    valid = sorted(str(v) for v in valid)
    guess = nearest(name, valid)
    message = f"unknown {what} '{name}'" + (f" at {where}" if where else "") + "."
    if guess:
        message += f" Did you mean '{guess}'?"
    return UserError(message + f" Valid: {', '.join(valid) if valid else '(none)'}")
