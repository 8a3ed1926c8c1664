"""IsaacGymEnvs: `task=isaacgymenvs task.id=Ant`. Written from its sources and tested on a stand-in: untested on the real one.

docs/tasks/simulators.md
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import UserError, unknown
from core.registry import register_task
from core.vecenv import Obs, VecEnv
from tasks.batched_torch import BatchedTorch

INSTALL = "see https://github.com/isaac-sim/IsaacGymEnvs (Isaac Gym itself has no package)"
FIRST = "python -c \"import isaacgym, runpy; runpy.run_path('train.py', run_name='__main__')\" task=isaacgymenvs ..."


class IsaacGymVecEnv(BatchedTorch):
    """A `VecTask` behind our contract. Untested on the real one.

    Next-step reset: where an episode ended the observation is its last one, and the following step ignores the action, begins the next
    episode and gives a reward that is none (0 here). A VecTask has one flag for the end of an episode and one for its time limit: an
    episode that also fell over in the step of its limit counts as a time-out.
    """

    reset_mode = "next_step"

    def __init__(self, env: Any) -> None:
        self._env = env
        self._starting = torch.zeros(env.num_envs, dtype=torch.bool, device=env.rl_device)
        first = env.reset()  # only the buffers: the first step resets everything, as reset_buf begins with ones
        super().__init__(env.num_envs, str(env.rl_device), first, env.action_space, 1.0, "obs", "states")

    def reset(self) -> Obs:
        """A VecTask begins all episodes with its next step: that step is taken here."""
        self._env.reset_buf.fill_(1)
        first, *_ = self._env.step(self._env.zero_actions())
        self._starting = torch.zeros_like(self._starting)
        return self.read(first)

    def step(self, actions: Any) -> tuple[Obs, Any, Any, dict[str, Any]]:
        raw, rewards, ended, extras = self._env.step(actions)
        starting = self._starting
        dones = ended.bool() & ~starting
        truncated = extras["time_outs"].bool() & dones
        rewards, dones, infos = self.outcome(rewards.masked_fill(starting, 0.0), dones & ~truncated, truncated)
        self._starting = dones
        return self.read(raw), rewards, dones, infos

    def set_train_info(self, env_frames: int, *args: Any, **kwargs: Any) -> None:
        """How far the training is: curricula ask."""
        self._env.set_train_info(env_frames, *args, **kwargs)


@register_task("isaacgymenvs", needs_modules=("isaacgym", "isaacgymenvs"), install=INSTALL)
def make(
    *,
    num_envs: int,
    seed: int | None,
    device: str,
    render_mode: str | None = None,
    id: str | None = None,
    headless: bool = True,
    overrides: list[str] | None = None,
) -> VecEnv:
    """N environments of IsaacGymEnvs. Untested on the real one.

    Args:
        id: of its cfg/task, e.g. Ant.
        headless: false opens its viewer.
        overrides: of its own configuration, e.g. [task.env.episodeLength=500].

    Raises UserError for an unknown id, and where torch was imported before Isaac Gym, which it refuses.
    """
    if render_mode is not None:
        raise UserError("isaacgymenvs environments are not filmed here: leave video and record out")
    try:
        import isaacgym  # noqa: F401  # before its environments
        import isaacgymenvs
    except ImportError as error:
        raise UserError(f"task.kind 'isaacgymenvs': {error}. Have it imported first: {FIRST}") from error
    folder = Path(str(isaacgymenvs.__file__)).parent / "cfg"
    valid = [path.stem for path in (folder / "task").glob("*.yaml")]
    if id not in valid:
        raise unknown("IsaacGymEnvs task", str(id), valid, "task.id")
    entropy = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    words = [f"task={id}", f"num_envs={num_envs}", f"sim_device={device}", f"rl_device={device}", f"seed={entropy}"]
    if device == "cpu":
        words.append("pipeline=cpu")
    cfg = _config(folder, words + list(overrides or []))
    random.seed(entropy), np.random.seed(entropy % 2**32), torch.manual_seed(entropy)  # its own make takes a seed and does nothing with it
    env = isaacgymenvs.make(
        seed=entropy, task=id, num_envs=num_envs, sim_device=device, rl_device=device, headless=headless, force_render=not headless, cfg=cfg
    )
    return IsaacGymVecEnv(env)


def _config(folder: Path, words: list[str]) -> Any:
    """Its configuration, composed beside ours: its own `make` would take the task's name from the Hydra that runs. Raises UserError."""
    import hydra
    from hydra import version
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    ours, base = GlobalHydra.instance().hydra, version.getbase()
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir=str(folder.resolve()), version_base="1.2"):
            return hydra.compose(config_name="config", overrides=words)
    except HydraException as error:
        raise UserError(f"task.overrides: IsaacGymEnvs' configuration refuses {words}: {error}") from error
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = ours
        if base is not None and hasattr(base, "major"):  # else none was set before
            version.VersionBase.instance().setbase(base)
