"""One thread per test process: two of them share the cores, and OpenMP threads that wait for each other take minutes."""

from __future__ import annotations

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
