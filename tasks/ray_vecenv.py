"""Environments in Ray workers: several per worker, seeded, time-outs and terminal observations included."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import numpy as np

from core.errors import UserError
from tasks.one_env import Failure, Maker
from tasks.row_vecenv import RowVecEnv, portable

GIB = 1024**3

_in_use = 0  # RayVecEnvs of this process
_ours = False  # this module called ray.init


class RayVecEnv(RowVecEnv):
    """N environments spread over Ray actors.

    Args:
        maker: builds environment i; travels to the workers by cloudpickle, with every environment registered at run time.
        seed: of environment 0; environment i gets seed + i. None: unseeded.
        num_workers: actors; default: one per CPU, at most one per environment.
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
        if num_workers is not None and not 1 <= num_workers <= num_envs:
            raise UserError(f"task.num_workers is {num_workers}. Valid: 1 to num_envs ({num_envs})")
        payload = portable(maker)
        self._workers: list[Any] = []
        self._closed = False
        self._ray = _start_ray(ray_config or {})
        workers = num_workers or min(num_envs, os.cpu_count() or 1)
        self._indices = [part.tolist() for part in np.array_split(np.arange(num_envs), workers)]
        # num_cpus=0: Ray would otherwise leave the workers beyond its CPU count waiting for ever
        actor = self._ray.remote(num_cpus=0)(_worker_class())
        try:
            self._workers = [actor.remote(sys.path, (indices, seed, True, render_mode)) for indices in self._indices]
            infos = self._ask("unpack", [(payload,)] * workers)
            self._describe(infos[0], [len(indices) for indices in self._indices])
        except BaseException:
            self.close()
            raise

    def worker_ids(self) -> list[int]:
        """The process id of each worker."""
        return self._ask("process_id")

    def render(self) -> np.ndarray:
        return self._get(0, self._workers[0].call.remote("render"), "render")

    def close(self) -> None:
        global _in_use, _ours
        if self._closed:
            return
        self._closed = True
        if self._workers:
            closing = [worker.call.remote("close") for worker in self._workers]
            self._ray.wait(closing, num_returns=len(closing), timeout=5.0)  # a dead or hanging worker must not keep us
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
        _in_use -= 1
        if _in_use == 0 and _ours:
            self._ray.shutdown()
            _ours = False

    def _ask(self, method: str, arguments: list[tuple[Any, ...]] | None = None) -> list[Any]:
        arguments = arguments or [()] * len(self._workers)
        refs = [worker.call.remote(method, *args) for worker, args in zip(self._workers, arguments, strict=True)]
        return [self._get(i, ref, method) for i, ref in enumerate(refs)]

    def _get(self, worker: int, ref: Any, method: str) -> Any:
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"Ray worker {worker} ({_span(self._indices[worker])}) died in {method}: {reason}") from error
        if isinstance(answer, Failure):
            raise UserError(f"environment {answer.index} raised in {method}, in Ray worker {worker}:\n{answer.text}")
        return answer


def _worker_class() -> type:
    """A class made inside a function is sent by value: the worker can import nothing of ours before its path is set."""

    class Worker:
        def __init__(self, sys_path: list[str], arguments: tuple[Any, ...]) -> None:
            import sys

            sys.path.extend(folder for folder in sys_path if folder not in sys.path)
            from tasks.one_env import EnvGroup

            self.group = EnvGroup(*arguments)

        def call(self, method: str, *args: Any) -> Any:
            return getattr(self.group, method)(*args)

    return Worker


def _start_ray(ray_config: dict[str, Any]) -> Any:
    """Imports Ray (a second) and starts it unless it runs already. Counts its users, so that the last one can stop it."""
    global _in_use, _ours
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError(f"task.vecenv=ray needs Ray: pip install ray ({error})") from error
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
        try:
            ray.init(**{**quiet, **ray_config})
        except (TypeError, RuntimeError, ValueError) as error:
            raise UserError(f"task.ray_config {ray_config}: {error}") from error
        _ours = True
    _in_use += 1
    return ray


def _span(indices: list[int]) -> str:
    return f"environment {indices[0]}" if len(indices) == 1 else f"environments {indices[0]} to {indices[-1]}"
