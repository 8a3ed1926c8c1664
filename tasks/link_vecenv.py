"""Environments in workers that are asked through links (`tasks.worker_link`), whoever started them."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, NoReturn

import numpy as np

from core.errors import UserError
from tasks.env_group import Failure
from tasks.row_vecenv import RowVecEnv, raise_failure
from tasks.worker_link import Broken, Link, SharedRows

PATIENCE = 5.0  # seconds in which all environments together may close


class LinkVecEnv(RowVecEnv):
    """A subclass starts the workers, fills `_links`, calls `_describe`, and writes `_place` and `_raise_dead`."""

    _links: list[Link]

    def _place(self, worker: int) -> str:
        """Where an environment raised: `, in ...`."""
        raise NotImplementedError

    def _raise_dead(self, worker: int, method: str, error: Broken) -> NoReturn:
        """Raises a UserError that names the worker and its environments."""
        raise NotImplementedError

    def worker_ids(self) -> list[int]:
        """The process id of each worker."""
        return self._ask("process_id")

    def render(self) -> np.ndarray:
        self._send(0, "render")
        return self._checked(0, "render", self._receive(0, "render"))

    def _ask(self, method: str, arguments: list[tuple[Any, ...]] | None = None) -> list[Any]:
        # all are at work before the first is waited for; in order, as each writes into rows of its own and the slowest counts
        for worker in range(len(self._links)):
            self._send(worker, method, *(arguments[worker] if arguments else ()))
        answers = [self._receive(worker, method) for worker in range(len(self._links))]
        return [self._checked(worker, method, answer) for worker, answer in enumerate(answers)]

    def _attach(self, layout: dict[str, Any]) -> dict[str, Any]:
        memory = SharedRows(layout, self.num_envs)
        try:
            for worker, link in enumerate(self._links):
                try:
                    link.share(memory, self._spans[worker])
                except Broken as error:
                    self._raise_dead(worker, "attach", error)
                self._checked(worker, "attach", self._receive(worker, "attach"))
        finally:
            memory.close()
        return memory.arrays

    def _close_links(self) -> None:
        """Closes the environments. A dead or hanging worker must not keep us."""
        for link in self._links:
            with contextlib.suppress(Broken):
                link.send("close")
        deadline = time.monotonic() + PATIENCE
        for link in self._links:
            link.close(max(0.0, deadline - time.monotonic()))
        self._links = []

    def _send(self, worker: int, method: str, *args: Any) -> None:
        try:
            self._links[worker].send(method, *args)
        except Broken as error:
            self._raise_dead(worker, method, error)

    def _receive(self, worker: int, method: str) -> Any:
        try:
            return self._links[worker].receive()
        except Broken as error:
            self._raise_dead(worker, method, error)

    def _checked(self, worker: int, method: str, answer: Any) -> Any:
        if isinstance(answer, Failure):
            raise_failure(answer, method, self._place(worker))
        return answer


def check_workers(num_workers: int | None, num_envs: int) -> None:
    """Raises UserError where there would be workers without an environment."""
    if num_workers is not None and not 1 <= num_workers <= num_envs:
        raise UserError(f"task.num_workers is {num_workers}. Valid: 1 to num_envs ({num_envs})")


def split(num_envs: int, workers: int) -> list[list[int]]:
    """The environments of each worker: neighbours, as many in each as can be."""
    return [part.tolist() for part in np.array_split(np.arange(num_envs), workers)]


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def span(indices: list[int]) -> str:
    """Neighbouring environments, in words."""
    return f"environment {indices[0]}" if len(indices) == 1 else f"environments {indices[0]} to {indices[-1]}"
