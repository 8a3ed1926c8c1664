"""Where a run came from: the command, the code, the packages and the machine, as `run.json` states them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("gamesmith", "torch", "numpy", "rl_games", "gymnasium", "envpool", "ray", "hydra-core")


def provenance() -> dict[str, Any]:
    """{"command", "git", "git_here", "packages", "hardware"}. `git_here` is the repository of the working directory where it is
    another one than this code's (a paper's repository with its own algorithm), else null."""
    code, here = git_state(Path(__file__).resolve().parent), git_state(Path.cwd())
    if here is not None and code is not None and here["repository"] == code["repository"]:
        here = None
    command = sys.orig_argv  # as it was typed: a command line parser may have changed sys.argv
    return {"command": command, "git": code, "git_here": here, "packages": packages(), "hardware": hardware()}


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"repository", "commit", "differs", "changed"}: `differs` is true where files are not as committed, untracked ones
    included, and `changed` lists up to 50 of them; `commit` is null before the first. None without git or a repository."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    changed = (_git(folder, "status", "--porcelain") or "").splitlines()
    return {
        "repository": top,
        "commit": _git(folder, "rev-parse", "--verify", "--quiet", "HEAD"),
        "differs": bool(changed),
        "changed": [line.strip() for line in changed[:50]],
    }


def packages() -> dict[str, str | None]:
    """Versions by distribution name, null where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def hardware() -> dict[str, Any]:
    """{"cpu", "cores", "memory_gib", "gpus"}: cores are those that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _cpu_model(), "cores": cores, "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "gpus": gpus}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
