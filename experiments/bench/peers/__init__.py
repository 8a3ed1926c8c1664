"""Other frameworks on the same environments, one module each: `python -m experiments.bench.peers.<name> params.json`.

Each translates a workload's rl_games params as far as the framework has a word for them; docs/speed.md lists what it has none for.
"""

from __future__ import annotations

import dataclasses
from importlib import metadata


@dataclasses.dataclass(frozen=True)
class Peer:
    """A framework: the distribution that must be installed (none for a loop of ours), and the workloads that it can run."""

    distribution: str | None
    workloads: tuple[str, ...]


PEERS = {
    "sb3": Peer("stable-baselines3", ("A", "B", "C")),
    "cleanrl": Peer(None, ("A", "B", "C")),
    "skrl": Peer("skrl", ("A", "B")),
    "rsl_rl": Peer("rsl-rl-lib", ("A",)),
}


def version(name: str) -> str | None:
    """The installed version; 'own loop' for one that needs no distribution; None where it is not installed."""
    distribution = PEERS[name].distribution
    if distribution is None:
        return "own loop"
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
