"""Arrays that environments write their results into: allocated once, in this process or in memory that processes share.

A tree is an array or a (nested) dict of them. Every array here is (E, k, ...): E environments with k rows each (its agents; 1 for a
central state). Nothing here imports torch, as workers do without it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ALIGN = 64  # bytes; a cache line, so that no two arrays share one


def tree_map(function: Callable[..., Any], *trees: Any) -> Any:
    """Applies `function` to the leaves of (nested) dicts of equal structure."""
    if isinstance(trees[0], dict):
        return {key: tree_map(function, *(tree[key] for tree in trees)) for key in trees[0]}
    return function(*trees)


def leaves(tree: Any) -> list[Any]:
    """The arrays of a tree, in order."""
    return [leaf for value in tree.values() for leaf in leaves(value)] if isinstance(tree, dict) else [tree]


def layout(obs: Any, num_agents: int, value_size: int, masks: np.ndarray | None) -> dict[str, Any]:
    """What one environment writes in a step: a tree of (shape, dtype), for `allocate`.

    Args:
        obs: a tree of first observations, (E, k, ...).
        masks: (E, k, A) booleans, or None.
    """
    described = tree_map(lambda leaf: _Leaf(leaf.shape[1:], leaf.dtype.str), obs)
    tree = {
        "obs": described,
        "terminal": described,  # the last observation of an episode; written only where `ended`
        "rewards": _Leaf((num_agents,) if value_size == 1 else (num_agents, value_size), "<f4"),
        "dones": _Leaf((num_agents,), "|b1"),
        "time_outs": _Leaf((num_agents,), "|b1"),
        "ended": _Leaf((1,), "|b1"),  # the environment was reset: all its agents are done
    }
    return tree if masks is None else {**tree, "masks": _Leaf(masks.shape[1:], "|b1")}


class _Leaf(tuple):
    """(shape, dtype) of one array: a tuple, as trees are dicts all the way down to it."""

    def __new__(cls, shape: Sequence[int], dtype: str) -> _Leaf:
        return super().__new__(cls, (tuple(shape), dtype))

    def __reduce__(self) -> Any:
        return _Leaf, tuple(self)


def num_bytes(tree: Any, num_envs: int) -> int:
    """The size of the buffer that `allocate` needs."""
    return sum(_padded(leaf, num_envs) for leaf in leaves(tree))


def allocate(tree: Any, num_envs: int, buffer: Any = None) -> Any:
    """Arrays (E, k, ...) for a `layout`, laid into `buffer` one after the other, or into memory of their own."""
    at = 0

    def array(leaf: _Leaf) -> np.ndarray:
        nonlocal at
        shape, dtype = (num_envs, *leaf[0]), np.dtype(leaf[1])
        if buffer is None:
            return np.zeros(shape, dtype)
        made = np.frombuffer(buffer, dtype, int(np.prod(shape)), at).reshape(shape)
        at += _padded(leaf, num_envs)
        return made

    return tree_map(array, tree)


def shared_file(size: int) -> int:
    """A descriptor of `size` bytes without a name, which other processes can map: nothing stays behind, however they end."""
    if hasattr(os, "memfd_create"):  # Linux; /dev/shm would be 64 MB in a container
        handle = os.memfd_create("gamesmith")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle


def mapped(handle: int, size: int) -> mmap.mmap:
    """The memory behind a `shared_file`, which outlives the descriptor."""
    return mmap.mmap(handle, size)


def part(tree: Any, start: int, stop: int) -> Any:
    """The environments start to stop, as views."""
    return tree_map(lambda leaf: leaf[start:stop], tree)


def flat(tree: Any) -> Any:
    """A copy in rows, (E * k, ...): the caller may keep it, as the arrays are written again in the next step."""
    return tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]).copy(), tree)


def fill(tree: dict[str, Any], arrived: dict[str, Any]) -> None:
    """Writes what `EnvGroup.step_alone` sent: everything, but `terminal` only where `ended`."""
    ended = arrived["ended"][:, 0]

    def write(target: np.ndarray, source: np.ndarray, where: Any) -> None:
        target[where] = source

    for key, source in arrived.items():
        where = ended if key == "terminal" else slice(None)
        tree_map(lambda target, value, where=where: write(target, value, where), tree[key], source)


def _padded(leaf: _Leaf, num_envs: int) -> int:
    size = num_envs * int(np.prod(leaf[0])) * np.dtype(leaf[1]).itemsize
    return max(ALIGN, -(-size // ALIGN) * ALIGN)
