"""The benchmark's command line, checked before anything runs."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from core.errors import UserError, unknown
from experiments.bench import peers
from experiments.bench.scaling import COUNTS
from experiments.bench.sides import ROOT, Side, sides
from experiments.bench.workloads import WORKLOADS


class Parser(argparse.ArgumentParser):
    """A mistake is a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m experiments.bench", description="Speed of this repository against stock rl_games.", allow_abbrev=False)
    parser.add_argument("--workloads", metavar="A,B,...", help=f"of {', '.join(WORKLOADS)} (default: all that this machine can run)")
    parser.add_argument("--rounds", type=int, help="rounds, in each of which every side runs once (default 5; with --scaling 1)")
    parser.add_argument("--epochs", type=int, help="measured epochs of every run (default: chosen per workload)")
    parser.add_argument("--ours", action="append", default=[], metavar="[NAME=]DIR", help="checkout to measure; may be given again")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME:KEY=VALUE,...", help="our side again, with these overrides")
    parser.add_argument("--peers", nargs="?", const="all", metavar="NAME,...", help=f"also {', '.join(peers.PEERS)}, where installed")
    parser.add_argument("--no-stock", action="store_true", help="leave stock rl_games out; ratios are then to the first side")
    parser.add_argument("--scaling", nargs="?", const="envpool,torch", metavar="KIND,...", help="frames/s against environments, instead")
    parser.add_argument("--envs", metavar="N,...", help="numbers of environments for --scaling (default: 1 to 4096, torch to 65536)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/bench_<time>)")
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options: `workloads` and `peers` as lists, `sides`, `counts` and `device` for scaling, `not_measured`: what was asked for and
    this machine cannot do, as sentences. Raises UserError for an option that is unknown or has a value that cannot be."""
    options = _parser().parse_args(argv)
    for name in ("rounds", "epochs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}, but must be at least 1")
    options.device = "cuda" if _has_cuda() else "cpu"
    options.not_measured = []
    options.counts = _counts(options)
    options.rounds = options.rounds or (1 if options.scaling else 5)
    options.workloads = _workloads(options)
    options.sides = _sides(options)
    options.out = options.out or ROOT / "runs" / time.strftime("bench_%Y-%m-%d_%H-%M-%S")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"--out: '{options.out}' is there and is no empty folder")
    return options


def _workloads(options: argparse.Namespace) -> list[str]:
    if options.scaling and options.workloads is None:
        return []
    chosen = names("--workloads", options.workloads, WORKLOADS, "workload") if options.workloads else list(WORKLOADS)
    missing = [name for name in chosen if WORKLOADS[name].device == "cuda"] if options.device == "cpu" else []
    options.not_measured += [f"{name} ({WORKLOADS[name].title}): this machine has no CUDA device" for name in missing]
    if missing == chosen:
        raise UserError(f"--workloads {options.workloads}: this machine has no CUDA device, which all of them need")
    return [name for name in chosen if name not in missing]


def _counts(options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    if not options.scaling:
        if options.envs:
            raise UserError("--envs is for --scaling")
        return {}
    kinds = names("--scaling", options.scaling, COUNTS, "kind of environment")
    if not options.envs:
        return {kind: COUNTS[kind] for kind in kinds}
    try:
        wanted = tuple(int(n) for n in options.envs.split(","))
    except ValueError:
        wanted = (0,)
    if min(wanted) < 1:
        raise UserError(f"--envs is '{options.envs}', but must be numbers of environments from 1 on, e.g. 1,64,4096")
    return dict.fromkeys(kinds, wanted)


def _sides(options: argparse.Namespace) -> list[Side]:
    made = sides(options.ours, options.variant)
    if options.peers:
        asked = list(peers.PEERS) if options.peers == "all" else names("--peers", options.peers, peers.PEERS, "peer")
        for name in asked:
            if peers.version(name) is None:
                options.not_measured.append(f"peer {name}: {peers.PEERS[name].distribution} is not installed (pip install '.[bench]')")
            else:
                made.append(Side(name, peer=name))
    labels = [side.name for side in made]
    taken = next((label for label in labels if labels.count(label) > 1 or label == "raw"), None)
    if taken:
        raise UserError(f"--ours, --variant: the name '{taken}' is taken; choose another")
    if options.no_stock:
        made = [dataclasses.replace(side, base=made[1].name) for side in made[1:]]
    return made


def names(option: str, text: str, valid: Sequence[str] | dict, what: str) -> list[str]:
    """The names in a comma-separated text, each once. Raises UserError for one that is not valid, with the nearest."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in found:
        if name not in valid:
            raise unknown(what, name, valid, option)
    return found


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
