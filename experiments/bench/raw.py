"""The environment alone, with random actions: what no training loop can exceed.

`python -m experiments.bench.raw ENVPOOL_ID NUM_ENVS SECONDS OPTIONS`, the last as JSON; prints frames/s.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np


def measure(id: str, num_envs: int, seconds: float, options: dict[str, Any]) -> float:
    """Environment steps per second, summed over environments, over about `seconds`; actions drawn beforehand."""
    import envpool

    pool = envpool.make(id, env_type="gymnasium", num_envs=num_envs, **options)
    random = np.random.default_rng(0)
    space = pool.action_space
    if hasattr(space, "n"):
        drawn = random.integers(0, space.n, (64, num_envs)).astype(np.int32)
    else:
        drawn = random.uniform(space.low, space.high, (64, num_envs, *space.shape)).astype(space.dtype)
    pool.reset()
    for actions in drawn[:8]:
        pool.step(actions)
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        pool.step(drawn[steps % len(drawn)])
        steps += 1
    return steps * num_envs / (time.perf_counter() - started)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4]))))
