"""What core/ray_local.py refuses before Ray has a minute to try."""

from __future__ import annotations

import socket
import time

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
