"""What core/ray_local.py refuses before Ray has a minute to try."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from core import ray_local
from core.errors import UserError


def test_an_address_at_which_nothing_answers() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody can answer there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        started = time.perf_counter()
        with pytest.raises(UserError, match=f"ray_address: no Ray cluster answers at '{address}'"):
            ray_local.start({"address": address})
    assert time.perf_counter() - started < ray_local.PATIENCE
    assert ray_local.users() == 0


@contextlib.contextmanager
def listening(answer: bytes) -> Iterator[str]:
    """The address of something that takes a connection, says `answer` (nothing at all if that is empty), and is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(answer)
                while connection.recv(1024):  # until the other side has had enough
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(5.0)
        assert not thread.is_alive()


def test_something_that_listens_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself takes it for a cluster that is about to start, for 14 minutes."""
    monkeypatch.setattr(ray_local, "PATIENCE", 0.3)
    started = time.perf_counter()
    with (
        listening(b"") as address,
        pytest.raises(UserError, match=rf"task\.ray_address: no Ray cluster answers at '{address}' \(timed out\)"),
    ):
        ray_local.start({"address": address}, "task.ray_address")
    assert time.perf_counter() - started < 10.0
    assert ray_local.users() == 0


def test_something_else_that_answers() -> None:
    with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address, pytest.raises(UserError, match="what listens there is no Ray"):
        ray_local.start({"address": address})
    assert ray_local.users() == 0


@pytest.mark.parametrize("text", ["10.0.0.1:6379", "head:6379", "ray://head:10001", "[fd00::2]:6379", "auto"])
def test_addresses(text: str) -> None:
    assert ray_local.is_address(text)


@pytest.mark.parametrize("text", ["10.0.0.1", "head", ":6379", "head:port", "http://head:6379", "head: 6379", ""])
def test_no_addresses(text: str) -> None:
    assert not ray_local.is_address(text)
