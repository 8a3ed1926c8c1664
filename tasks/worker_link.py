"""A connection to a group of environments in another process of this machine: requests and answers through a socket, arrays through
shared memory.

A request and its answer take some 50 microseconds where a call of a Ray actor takes a millisecond, and the link breaks in the moment in
which the other process dies. Nothing here imports torch, as workers do without it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from tasks import rows
from tasks.env_group import EnvGroup


class Broken(Exception):
    """The process at the other end is gone."""


class SharedRows:
    """The arrays of all environments, in memory that has no name: nothing stays behind, however the processes end."""

    def __init__(self, layout: dict[str, Any], num_envs: int) -> None:
        self.layout, self.num_envs = layout, num_envs
        self.size = rows.num_bytes(layout, num_envs)
        self.handle = rows.shared_file(self.size)
        self.arrays = rows.allocate(layout, num_envs, rows.mapped(self.handle, self.size))

    def close(self) -> None:
        """Closes the descriptor; the memory lives on while an array does."""
        os.close(self.handle)


class Link:
    """The learner's end.

    Args:
        connection: a duplex one over a Unix socket; the other end runs `serve`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._number = 0

    def send(self, method: str, *args: Any) -> None:
        """Asks for a call of the group's `method`. Raises Broken."""
        self._number += 1
        try:
            self._connection.send_bytes(pickle.dumps((self._number, method, args), pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            raise Broken from error

    def answers(self, timeout: float) -> bool:
        """Whether something can be received within `timeout` seconds; also true of a process that is gone."""
        return self._connection.poll(timeout)

    def receive(self) -> Any:
        """The answer to the last `send`. Raises Broken."""
        while True:
            try:
                number, answer = pickle.loads(self._connection.recv_bytes())
            except (EOFError, OSError) as error:
                raise Broken from error
            if number == self._number:  # an interrupt may have left an older answer unread
                return answer

    def share(self, memory: SharedRows, span: tuple[int, int]) -> None:
        """Asks the group to write into memory of this process.

        Args:
            span: first and last + 1 of the group's environments.

        Raises Broken.
        """
        self.send("share", memory.size, memory.layout, memory.num_envs, span)
        try:
            reduction.send_handle(self._connection, memory.handle, 0)
        except OSError as error:
            raise Broken from error

    def close(self, timeout: float) -> None:
        """Waits at most `timeout` seconds for the answer to the last `send`, and hangs up."""
        with contextlib.suppress(Broken, OSError):
            if self._connection.poll(timeout):
                self.receive()
        self._connection.close()


def serve(group: EnvGroup, connection: Connection) -> None:
    """Answers requests until `close`, or until the process at the other end is gone."""
    while True:
        try:
            number, method, args = pickle.loads(connection.recv_bytes())
            if method == "share":
                size, layout, num_envs, span = args
                handle = reduction.recv_handle(connection)
                memory = rows.mapped(handle, size)
                os.close(handle)
                method, args = "attach", (rows.part(rows.allocate(layout, num_envs, memory), *span),)
            answer = getattr(group, method)(*args)
            reply(connection, number, answer)
        except (EOFError, ConnectionError):
            return
        if method == "close":
            return


def reply(connection: Connection, number: int, answer: Any) -> None:
    """Sends the answer to request `number`; 0: to none, as the first thing that a `Link` receives."""
    connection.send_bytes(pickle.dumps((number, answer), pickle.HIGHEST_PROTOCOL))
