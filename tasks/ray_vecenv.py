"""Environments in Ray workers: several per worker, seeded, time-outs and terminal observations included."""

from __future__ import annotations

import contextlib
import sys
import time
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

PULSE = 5.0  # seconds without an answer after which a worker's node is looked at
DOUBT = 20.0  # seconds in which Ray may learn that it was the node that died


class RayVecEnv(LinkVecEnv):
    """N environments spread over Ray actors. Those on this machine answer through a socket and shared memory, others through Ray.

    Args:
        maker: builds environment i; travels to the workers by cloudpickle, with every environment registered at run time.
        seed: of environment 0; environment i gets seed + i. None: unseeded.
        num_workers: actors; default: one per CPU that Ray has, at most one per environment.
        ray_config: keyword arguments of `ray.init`, used if Ray is not running yet.

    Every machine gets workers in proportion to its CPUs.

    Raises UserError where an environment raises in a worker (with its traceback) or a worker dies (with its environments and its machine).
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
        self._ray = ray_local.start(ray_config, "task.ray_address" if set(ray_config or {}) == {"address"} else "task.ray_config")
        try:
            cpus = int(self._ray.cluster_resources().get("CPU", 1))
            self._indices = split(num_envs, num_workers or min(num_envs, max(cpus, 1)))
            self._nodes = shares(self._alive(), len(self._indices))
            actor = _worker_class()
            for indices, node in zip(self._indices, self._nodes, strict=True):
                self._workers.append(self._remote(actor, node).remote(sys.path, (indices, seed, True, render_mode)))
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

    def _alive(self) -> list[dict[str, Any]]:
        """Ray's machines, as `ray.nodes()` describes them, this one first: its workers are the fastest to ask."""
        own = self._ray.get_runtime_context().get_node_id()
        return sorted((node for node in self._ray.nodes() if node["Alive"]), key=lambda node: (node["NodeID"] != own, node["NodeID"]))

    def _remote(self, actor: type, node: dict[str, Any]) -> Any:
        """`actor` for `node`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # num_cpus=0: Ray would otherwise leave the workers beyond its CPU count waiting for ever
        return self._ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))(actor)

    def _connect(self) -> None:
        """Links the workers that can reach a socket of this process, which no other machine can."""
        calls = [_Calls(self._ray, worker, node["NodeID"]) for worker, node in zip(self._workers, self._nodes, strict=True)]
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
        node = self._nodes[worker]
        unsure = getattr(self._ray.exceptions, "ActorUnavailableError", ())  # Ray has lost its connection, and does not know why yet
        gone = ", and the whole node died" if _has_died(self._ray, node["NodeID"], DOUBT * isinstance(reason, unsure)) else ""
        raise UserError(
            f"Ray worker {worker} ({span(self._indices[worker])}) died in {method}: {_first_line(reason)} "
            f"It was on node {node['NodeManagerAddress']} ({node['NodeID'][:8]}){gone}"
        ) from error


def shares(nodes: list[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """A node for each worker: the one that then has the fewest per CPU. Nodes without CPUs get none, unless no node has any."""
    with_cpus = [node for node in nodes if node["Resources"].get("CPU", 0) > 0] or nodes
    cpus = [node["Resources"].get("CPU", 0) or 1 for node in with_cpus]
    counts = [0] * len(with_cpus)
    for _ in range(workers):
        least = min(range(len(with_cpus)), key=lambda i: (counts[i] + 1) / cpus[i])
        counts[least] += 1
    return [node for node, count in zip(with_cpus, counts, strict=True) for _ in range(count)]


def with_address(ray_config: dict[str, Any] | None, ray_address: str | None) -> dict[str, Any]:
    """`ray_config` with `ray_address` as its `address`. Raises UserError where it has another one, and for what is no address."""
    config = dict(ray_config or {})
    given = config.get("address")
    if ray_address is None:
        return config
    if given not in (None, ray_address):
        raise UserError(f"task.ray_address is '{ray_address}' and task.ray_config.address '{given}': give one of them")
    if not ray_local.is_address(ray_address) or ray_address.startswith("ray://"):  # Ray's client cannot carry arrays as fast as they come
        raise UserError(f"task.ray_address is '{ray_address}'. Valid: host:port, or auto for a cluster that this machine belongs to")
    return {**config, "address": ray_address}


class _Calls:
    """`Link` for a worker on another machine: every request is a call of its actor, and only then do arrays travel."""

    def __init__(self, ray: Any, worker: Any, node_id: str) -> None:
        self._ray, self._worker, self._node_id = ray, worker, node_id
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
        answer = self._answer()
        if self._stepping and not isinstance(answer, Failure):
            answer, arrays = answer
            rows.fill(self._rows, arrays)
        return answer

    def _answer(self) -> Any:
        while True:
            try:
                return self._ray.get(self._pending, timeout=PULSE)
            except self._ray.exceptions.GetTimeoutError as error:
                # of a machine that vanished without closing its connections, Ray learns in some 50 s, and `get` even then never
                if _has_died(self._ray, self._node_id):
                    raise Broken from error
            except self._ray.exceptions.RayError as error:
                raise Broken from error

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


def _has_died(ray: Any, node_id: str, patience: float = 0.0) -> bool:
    """Whether Ray knows that a node died, or learns it within `patience` seconds."""
    deadline = time.monotonic() + patience
    while node_id in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def _first_line(reason: Any) -> str:
    return (str(reason).strip().splitlines() or ["its connection broke"])[0]
