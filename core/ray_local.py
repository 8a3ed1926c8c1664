"""Ray, started here by itself with quiet logs, or a running cluster joined. Environments, suites, sweeps and PBT share it."""

from __future__ import annotations

import logging
import os
import re
import socket
from typing import Any

from core.errors import UserError

GIB = 1024**3
PATIENCE = 10.0  # seconds that a cluster has for its first sign of life
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # what a client says first (RFC 9113, 3.4): Ray speaks gRPC
SETTINGS = 4  # the type of the frame with which the server answers

_users = 0  # of this process
_ours = False  # this module called ray.init


def start(ray_config: dict[str, Any] | None = None, place: str = "ray_address") -> Any:
    """Imports Ray (a second) and starts it, or joins the cluster that `address` or RAY_ADDRESS names, unless it runs already.
    Returns the module. Each call needs one `stop`.

    Args:
        ray_config: keyword arguments of `ray.init`.
        place: the key that they come from, for messages.

    Raises UserError where no Ray answers at the address (PATIENCE to connect, and as long for an answer), where one asks for another token,
    and where Ray refuses the arguments.
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
        address = ray_config.get("address") or os.environ.get("RAY_ADDRESS")
        if address:
            _answers(address, place)
            _agree_on_token(address, place)
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


def is_address(text: str) -> bool:
    """host:port, ray://host:port, or auto."""
    return text == "auto" or re.fullmatch(r"(ray://)?(\[[^\[\]]+\]|[^:/\s]+):\d+", text) is not None


def _answers(address: str, place: str) -> None:
    """Ray itself tries for a minute where nobody listens, and for a quarter of an hour where somebody else does; and then says little.
    Words such as 'auto' and 'local' are left to it."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):  # else it says nothing before a handshake
                connection.sendall(HTTP2)
                answer = connection.recv(4, socket.MSG_WAITALL)
                if len(answer) < 4 or answer[3] != SETTINGS:
                    raise OSError("what listens there is no Ray")
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{place}: no Ray cluster answers at '{address}' ({error}). `ray start --head` prints its address; without one, Ray starts here"
        ) from error


def _agree_on_token(address: str, place: str) -> None:
    """`ray start --head` asks for a token wherever its user has one, and any Ray that ever started there has made one. Who joins by address
    does not show his by default, and must not where none is asked for: that Ray could not call back, and would end its actors."""
    try:
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
        from ray.exceptions import AuthenticationError
    except ImportError:  # a Ray that knows no tokens
        return
    if address.startswith("ray://") or not is_address(address) or address == "auto":
        return

    def refused() -> bool:
        try:
            GcsClient(address=address)
        except AuthenticationError:
            return True
        except Exception:  # whatever it is, ray.init tells it better
            return False
        return False

    if refused() and not (maybe_enable_token_auth_if_token_available(warn_if_disabled=False) and not refused()):
        raise UserError(
            f"{place}: the Ray cluster at '{address}' asks for a token that is not this user's. "
            "Set RAY_AUTH_MODE=token and copy the head node's ~/.ray/auth_token here (docs/scale.md)"
        )


def _init(ray: Any, arguments: dict[str, Any], memory_is_asked: bool) -> None:
    """ray.init. A cluster that runs already (`ray start`, RAY_ADDRESS) has its memory, and refuses ours, which nobody asked for."""
    try:
        ray.init(**arguments)
    except ValueError as error:
        if memory_is_asked or "existing cluster" not in str(error):
            raise
        ray.init(**{key: value for key, value in arguments.items() if key != "object_store_memory"})
