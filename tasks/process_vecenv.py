"""Environments in processes of this machine, several in each."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from core.errors import UserError
from tasks.env_group import EnvGroup
from tasks.link_vecenv import LinkVecEnv, check_workers, span, split, usable_cpus
from tasks.one_env import Maker
from tasks.row_vecenv import portable
from tasks.worker_link import Broken, Link, reply, serve

SLOW_START = 30.0  # seconds in which a process should have built its environments


class ProcessVecEnv(LinkVecEnv):
    """N environments spread over processes.

    Args:
        maker: builds environment i.
        seed: of environment 0; environment i gets seed + i. None: unseeded.
        num_workers: processes; default: one per CPU, at most one per environment.

    Raises UserError where an environment raises (with its traceback) or a process dies (with its environments).
    """

    def __init__(
        self, maker: Maker, num_envs: int, seed: int | None = None, render_mode: str | None = None, num_workers: int | None = None
    ) -> None:
        super().__init__(num_envs, render_mode)
        check_workers(num_workers, num_envs)
        self._indices = split(num_envs, num_workers or min(num_envs, usable_cpus()))
        self._links: list[Link] = []
        self._processes: list[Any] = []
        context: Any = multiprocessing.get_context()
        forks = context.get_start_method() == "fork"
        content = maker if forks else portable(maker)
        ours: list[Connection] = []
        try:
            for indices in self._indices:
                here, there = context.Pipe()
                ours.append(here)
                arguments = (there, content, (indices, seed, True, render_mode), ours if forks else [])
                process = context.Process(target=_run, args=arguments, daemon=True)
                process.start()
                there.close()  # only then does its end break when the process dies
                self._processes.append(process)
                self._links.append(Link(here))
            infos = [self._started(i) for i in range(len(self._links))]
            self._describe(infos[0], [len(indices) for indices in self._indices])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._close_links()
        for process in self._processes:
            process.join(1.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes = []

    def _started(self, worker: int) -> Any:
        if not self._links[worker].answers(SLOW_START):
            warnings.warn(
                f"task.vecenv=async: process {worker} has been building {span(self._indices[worker])} for {SLOW_START:g} s. A library that "
                "runs threads or drives a graphics card can hang in a forked process: if nothing follows, press Ctrl-C and set "
                "task.vecenv=ray, whose workers begin afresh",
                RuntimeWarning,
                stacklevel=2,
            )
        return self._checked(worker, "start", self._receive(worker, "start"))

    def _place(self, worker: int) -> str:
        return f", in process {worker}"

    def _raise_dead(self, worker: int, method: str, error: Broken) -> NoReturn:
        self._processes[worker].join(1.0)  # its end breaks a moment before it is gone
        code = self._processes[worker].exitcode
        raise UserError(
            f"task.vecenv=async: process {worker} of {span(self._indices[worker])} died in {method} (exit code {code})"
        ) from error


def _run(connection: Connection, content: Any, arguments: tuple[Any, ...], foreign: list[Connection]) -> None:
    """The process. content: the maker, or `portable(maker)`; foreign: ends of the parent that a fork hands down."""
    for end in foreign:
        end.close()  # else the parent's death would show at none of them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent saves and closes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    group = EnvGroup(*arguments)
    reply(connection, 0, group.unpack(content) if isinstance(content, bytes) else group.start(content))
    serve(group, connection)
