"""One thread per test process: two of them share the cores, and OpenMP threads that wait for each other take minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)


@pytest.fixture
def two_nodes() -> Iterator[tuple[Any, list[Any]]]:
    """A Ray head node that runs nothing and two more with a CPU each, all on loopback: a cluster to whatever joins it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster, [cluster.add_node(num_cpus=1) for _ in range(2)]
    finally:
        cluster.shutdown()
