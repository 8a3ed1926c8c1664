"""Ray for experiments: started here by itself, or a cluster that runs already."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from core.errors import UserError

GIB = 1024**3
ANSWER_SECONDS = 5.0


def start(address: str | None = None, num_cpus: int | None = None) -> Any:
    """The `ray` module, connected. No address: a Ray of this process's own, which ends with it, on `num_cpus` CPUs (default: all of this
    machine); else the cluster at "host:port", "ray://host:port" or "auto". Raises UserError for an address that does not answer."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it asks, or reports
    import ray  # takes a second, and --status does without it

    if ray.is_initialized():
        return ray
    notices = logging.getLogger("ray._private.authentication.authentication_token_setup")  # that the cluster asks for a token
    notices.addFilter(lambda record: "authentication is enabled" not in record.getMessage())
    arguments: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, object_store_memory=GIB // 4, **arguments)
        return ray
    _knock(address)
    try:
        ray.init(address=address, **arguments)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"ray_address: no Ray answers at '{address}': {str(error).splitlines()[0]}") from error
    return ray


def _knock(address: str) -> None:
    """Ray itself tries for a minute."""
    host, colon, port = address.rpartition("://")[2].partition(":")
    if address == "auto":
        return
    if not colon or not port.isdigit():
        raise UserError(f"ray_address is '{address}', but must be host:port (of `ray start --head`), ray://host:port or auto")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise UserError(f"ray_address: nothing answers at '{address}' ({error.strerror or error})") from error
