"""Who of the ranks still lives: every rank counts up once a second in the store that the ranks met at.

gloo notices a closed connection by itself, but not whose it was; nccl may wait for a dead rank for as long as its time-out. So a
thread beside the training looks after the others, says which one ended, and ends this rank where the training hangs in a call.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BEAT_SECONDS = 1.0
SILENT_SECONDS = 20.0  # longer than anything that holds Python's lock
DYING_SECONDS = 4.0  # a rank that ended in an error has said so by then, one that was killed has missed its beats
GRACE_SECONDS = 10.0  # for the training to notice by itself, and to end with its files written


class RankWatch:
    """The heartbeat of one rank, and its view of the others'.

    Args:
        store: a connection to the common store that nobody else uses.
        rank, world: this rank, and how many there are.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        # a second group in one process, or a restart by torchrun, must not read the beats of the last one
        self.prefix = f"gamesmith/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next_number()}"
        self.others = [other for other in range(world) if other != rank]
        self.leaving = False  # training ended here, well or not: this thread need not end it
        self.on_lost: Callable[[str], None] = lambda message: None  # told before the process is ended from outside
        self._known: str | None = None  # who ended, once it was told
        self._stop = threading.Event()
        self._lock = threading.Lock()  # the store's client is not made for two threads at once
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)
        self._beat()

    def start(self) -> None:
        """After every rank has beaten once."""
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * BEAT_SECONDS)

    def tell_failure(self, message: str) -> None:
        """Tells every rank why this one ends. The first to tell is believed."""
        self._claim(f"rank {self.rank} failed: {message}")
        if self.rank == 0:  # the store may end with this process: let the others' threads read it first
            time.sleep(2 * BEAT_SECONDS)

    def who_ended(self) -> str | None:
        """After a call to the others failed: which rank ended and why. None where all seem to live. Takes up to `DYING_SECONDS`."""
        before, deadline = self._beats(), time.monotonic() + DYING_SECONDS
        while time.monotonic() < deadline:
            told = self._told()
            if told:
                return told
            time.sleep(0.1)
        after = self._beats()
        if before is None or after is None:
            return self._known or self._store_gone()
        silent = [other for other in self.others if after[other] == before[other]]
        if not silent:
            return self._told()
        return self._claim(_ended(silent))

    # ---- the store, which may be gone --------------------------------------------------------------------------------------

    def _claim(self, message: str) -> str:
        try:
            with self._lock:
                return self.store.compare_set(f"{self.prefix}/ended", "", message).decode()
        except RuntimeError:
            return message

    def _told(self) -> str | None:
        try:
            with self._lock:
                if self._known is None and self.store.check([f"{self.prefix}/ended"]):
                    self._known = self.store.get(f"{self.prefix}/ended").decode()
        except RuntimeError:
            return self._known or self._store_gone()
        return self._known

    def _beat(self) -> None:
        with self._lock:
            self.store.add(f"{self.prefix}/beat/{self.rank}", 1)

    def _beats(self) -> list[bytes] | None:
        try:
            with self._lock:
                return self.store.multi_get([f"{self.prefix}/beat/{rank}" for rank in range(self.world)])
        except RuntimeError:
            return None

    def _store_gone(self) -> str:
        return "the store that the ranks met at is gone: rank 0, its torchrun or its machine ended"

    # ---- the thread ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        seen: list[bytes] = [b""] * self.world
        since = [time.monotonic()] * self.world
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._beat()
            except RuntimeError:
                return self._lost(self._store_gone())
            if self.leaving:
                continue  # others may still ask whether this rank lives
            told = self._told()
            if told:
                return self._lost(told)
            now, beats = time.monotonic(), self._beats()
            for other in self.others:
                if beats is not None and beats[other] != seen[other]:
                    seen[other], since[other] = beats[other], now
            silent = [other for other in self.others if now - since[other] > SILENT_SECONDS]
            if silent:
                return self._lost(self._claim(_ended(silent)))

    def _lost(self, message: str) -> None:
        """Gives the training time to fail by itself; a call that never returns would keep the process for ever."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            if self.leaving or self._stop.wait(0.1):
                return self._beat_on()
        message = f"rank {self.rank} stops: {message}"
        print(f"error: {message}", file=sys.stderr, flush=True)
        try:
            self.on_lost(message)
        finally:
            os._exit(2)

    def _beat_on(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._beat()
            except RuntimeError:
                return


def _ended(silent: list[int]) -> str:
    names = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))}"
    return f"{names} ended without a word (killed, out of memory, or its machine is out of reach)"


_groups = 0


def next_number() -> int:
    """1, 2, ...: how many groups this process has joined. The same on all ranks, which join together."""
    global _groups
    _groups += 1
    return _groups
