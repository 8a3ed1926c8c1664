"""`python -m experiments.leashed train.py key=value ...`: a program as a child that ends with the process that started it."""

from __future__ import annotations

import runpy
import sys

from experiments import leash

if __name__ == "__main__":
    leash.hold()
    del sys.argv[0]
    sys.path.insert(0, sys.argv[0].rpartition("/")[0])  # what `python train.py` would put there
    runpy.run_path(sys.argv[0], run_name="__main__")
