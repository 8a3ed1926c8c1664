"""Environments in Ray workers: several per worker, seeded, time-outs and terminal observations included."""

from __future__ import annotations

import contextlib
import sys
from multiprocessing.connection import Listener
from typing import Any, NoReturn

from core import ray_local
from core.errors import UserError
from tasks import rows
from tasks.env_group import Failure
from tasks.link_vecenv import LinkVecEnv, check_workers, span, split
from tasks.one_env import Maker
from tasks.row_vecenv import portable
from tasks.worker_link import Broken, Link, SharedRows


class RayVecEnv(LinkVecEnv):
    """N environments spread over Ray actors. Those on this machine answer through a socket and shared memory, others through Ray.

    Args:
        maker: builds environment i; travels to the workers by cloudpickle, with every environment registered at run time.
        seed: of environment 0; environment i gets seed + i. None: unseeded.
        num_workers: actors; default: one per CPU that Ray has, at most one per environment.
        ray_config: keyword arguments of `ray.init`, used if Ray is not running yet.

    Raises UserError where an environment raises in a worker (with its traceback) or a worker dies (with its environments).
    """

    def __init__(
        self,
        maker: Maker,
        num_envs: int,
        seed: int | None = None,
        render_mode: str | None = None,
        num_workers: int | None = None,
        ray_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(num_envs, render_mode)
        check_workers(num_workers, num_envs)
        payload = portable(maker)
        self._workers: list[Any] = []
        self._serving: dict[int, Any] = {}  # the call in which a linked worker stays, which tells why it died
        self._links: list[Any] = []
        self._closed = False
        self._ray = ray_local.start(ray_config, "task.ray_config")
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        self._indices = split(num_envs, num_workers or min(num_envs, max(cpus, 1)))
        # num_cpus=0: Ray would otherwise leave the workers beyond its CPU count waiting for ever
        actor = self._ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_worker_class())
        try:
            self._workers = [actor.remote(sys.path, (indices, seed, True, render_mode)) for indices in self._indices]
            self._connect()
            infos = self._ask("unpack", [(payload,)] * len(self._workers))
            self._describe(infos[0], [len(indices) for indices in self._indices])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._close_links()
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
        ray_local.stop()

    def _connect(self) -> None:
        """Links the workers that can reach a socket of this process, which no other machine can."""
        calls = [_Calls(self._ray, worker) for worker in self._workers]
        self._links = list(calls)
        listener = _listen(len(calls))
        if listener is None:
            return
        with listener:
            for i, worker in enumerate(self._workers):
                calls[i].ask("connect", listener.address)
                if self._receive(i, "connect"):
                    connection: Any = listener.accept()
                    self._links[i] = Link(connection)
                    self._serving[i] = worker.serve.remote()

    def _place(self, worker: int) -> str:
        return f", in Ray worker {worker}"

    def _raise_dead(self, worker: int, method: str, error: Broken) -> NoReturn:
        reason: Any = error.__cause__
        if worker in self._serving:
            try:  # Ray knows why a moment after the socket broke
                self._ray.get(self._serving[worker], timeout=10.0)
            except self._ray.exceptions.RayError as cause:
                reason = cause
        raise UserError(f"Ray worker {worker} ({span(self._indices[worker])}) died in {method}: {_first_line(reason)}") from error


class _Calls:
    """`Link` for a worker on another machine: every request is a call of its actor, and only then do arrays travel."""

    def __init__(self, ray: Any, worker: Any) -> None:
        self._ray, self._worker = ray, worker
        self._pending: Any = None
        self._stepping = False
        self._rows: dict[str, Any] = {}

    def ask(self, method: str, *args: Any) -> None:
        """Calls a method of the actor itself, not of its group."""
        self._pending = getattr(self._worker, method).remote(*args)

    def send(self, method: str, *args: Any) -> None:
        self._stepping = method == "step"
        self.ask("call", "step_alone" if self._stepping else method, *args)

    def receive(self) -> Any:
        try:
            answer = self._ray.get(self._pending)
        except self._ray.exceptions.RayError as error:
            raise Broken from error
        if self._stepping and not isinstance(answer, Failure):
            answer, arrays = answer
            rows.fill(self._rows, arrays)
        return answer

    def share(self, memory: SharedRows, start_stop: tuple[int, int]) -> None:
        self._rows = rows.part(memory.arrays, *start_stop)
        self.send("attach_own", memory.layout)

    def close(self, timeout: float) -> None:
        self._ray.wait([self._pending], timeout=timeout)


def _listen(backlog: int) -> Listener | None:
    """A Unix socket in a directory that only this user can enter; None where there can be none."""
    with contextlib.suppress(OSError, ValueError):
        return Listener(family="AF_UNIX", backlog=backlog)
    return None


def _worker_class() -> type:
    """A class made inside a function is sent by value: the worker can import nothing of ours before its path is set."""

    class Worker:
        def __init__(self, sys_path: list[str], arguments: tuple[Any, ...]) -> None:
            import sys

            sys.path.extend(folder for folder in sys_path if folder not in sys.path)
            from tasks.env_group import EnvGroup

            self.group = EnvGroup(*arguments)

        def call(self, method: str, *args: Any) -> Any:
            return getattr(self.group, method)(*args)

        def connect(self, address: str) -> bool:
            from multiprocessing.connection import Client

            try:
                self.connection = Client(address, family="AF_UNIX")
            except OSError:
                return False
            return True

        def serve(self) -> None:
            from tasks.worker_link import serve

            serve(self.group, self.connection)

    return Worker


def _first_line(reason: Any) -> str:
    return (str(reason).strip().splitlines() or ["its connection broke"])[0]
