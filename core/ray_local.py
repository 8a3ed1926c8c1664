"""Ray, started here by itself with quiet logs, or a running cluster joined. Environments, suites, sweeps and PBT share it."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from core.errors import UserError

GIB = 1024**3
PATIENCE = 10.0  # seconds that a cluster has for its first sign of life

_users = 0  # of this process
_ours = False  # this module called ray.init


def start(ray_config: dict[str, Any] | None = None, place: str = "ray_address") -> Any:
    """Imports Ray (a second) and starts it, or joins the cluster that `address` or RAY_ADDRESS names, unless it runs already.
    Returns the module. Each call needs one `stop`.

    Args:
        ray_config: keyword arguments of `ray.init`.
        place: the key that they come from, for messages.

    Raises UserError where nothing answers at the address, and where Ray refuses the arguments.
    """
    global _users, _ours
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets any other process take a worker's core
    ray_config = ray_config or {}
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError(f"{place} needs Ray: pip install ray ({error})") from error
    if not ray.is_initialized():
        # its notice that the cluster asks for a token, which it does by itself; the opposite, a warning, stays
        notices = logging.getLogger("ray._private.authentication.authentication_token_setup")
        notices.addFilter(lambda record: "authentication is enabled" not in record.getMessage())
        quiet = {
            "include_dashboard": False,
            "log_to_driver": False,
            "configure_logging": False,
            "object_store_memory": GIB,
        }
        _answers(ray_config.get("address") or os.environ.get("RAY_ADDRESS"), place)
        try:
            _init(ray, {**quiet, **ray_config}, "object_store_memory" in ray_config)
        except (TypeError, RuntimeError, ValueError, ConnectionError) as error:
            raise UserError(f"{place} {ray_config}: {error}") from error
        _ours = True
    _users += 1
    return ray


def stop() -> None:
    """The last user stops Ray, or leaves the cluster, if this module started or joined it."""
    global _users, _ours
    _users -= 1
    if _users == 0 and _ours:
        import ray

        ray.shutdown()
        _ours = False


def users() -> int:
    """How many `start`s of this process have no `stop` yet."""
    return _users


def _answers(address: str | None, place: str) -> None:
    """Ray itself tries for a minute, and then says little. Words such as 'auto' and 'local' are left to it."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{place}: no Ray cluster answers at '{address}' ({error}). `ray start --head` prints its address; without one, Ray starts here"
        ) from error


def _init(ray: Any, arguments: dict[str, Any], memory_is_asked: bool) -> None:
    """ray.init. A cluster that runs already (`ray start`, RAY_ADDRESS) has its memory, and refuses ours, which nobody asked for."""
    try:
        ray.init(**arguments)
    except ValueError as error:
        if memory_is_asked or "existing cluster" not in str(error):
            raise
        ray.init(**{key: value for key, value in arguments.items() if key != "object_store_memory"})
