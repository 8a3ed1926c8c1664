"""Environments on other machines than the learner: Ray nodes that the learner joins by address."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.run_dir import read_metrics

ROOT = Path(__file__).resolve().parents[1]

WHERE = """
import os

import gymnasium
import ray


class Where(gymnasium.Wrapper):
    \"\"\"CartPole that notes on which node it was made.\"\"\"

    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
        if ray.is_initialized():  # in a worker; the learner asks one of its own for the spaces, before it joins
            open(os.path.join(os.path.dirname(__file__), f"on_{ray.get_runtime_context().get_node_id()}"), "w").close()


gymnasium.register("Where-v0", entry_point=Where, max_episode_steps=500)
"""


@pytest.mark.long
def test_a_learner_with_environments_on_two_other_nodes(tmp_path, two_nodes):
    """As docs/scale.md says it. Ray spreads the workers, roughly: on two of the three nodes at least."""
    cluster, nodes = two_nodes
    (tmp_path / "where.py").write_text(WHERE)
    words = [
        "task=gymnasium",
        "task.id=Where-v0",
        "task.vecenv=ray",
        "task.num_workers=4",
        "num_envs=8",
        "max_frames=4_096",
        "progress=off",
    ]
    words += [f"+task.ray_config={{address: '{cluster.address}', object_store_memory: null}}", f"modules=[{tmp_path}/where.py]"]
    words += ["train.params.config.horizon_length=64", "train.params.config.minibatch_size_per_env=16", f"run_dir={tmp_path}/run"]
    done = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["exit_reason"] == "max_frames"
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["frames"] >= 4_096
    used = {path.name for path in tmp_path.glob("on_*")}
    assert used <= {f"on_{node.node_id}" for node in (cluster.head_node, *nodes)}
    assert len(used) > 1
