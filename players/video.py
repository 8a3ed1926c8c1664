"""Films episodes: any player in one environment that can render, written as an mp4."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.errors import UserError
from core.files import write_through
from core.policy import Policy
from core.vecenv import Obs, VecEnv
from players.default import Player


def record(
    player_cls: type[Player],
    policy: Policy,
    env: VecEnv,
    path: str | Path,
    episodes: int = 1,
    fps: int = 30,
    *,
    deterministic: bool = True,
    seed: int = 0,
    extras: dict[str, Any] | None = None,
) -> Path:
    """Plays `episodes` episodes with `player_cls` and writes `path` (.mp4), one frame per step. Returns the path.

    policy: built for one environment. env: one environment whose `render()` gives (H, W, 3) uint8.
    extras: for `Player.restore_extras`, where the checkpoint has some.
    Raises UserError where the environment cannot render, is not alone, or imageio-ffmpeg is missing.
    """
    if not env.can_render:
        raise UserError(f"video: {type(env).__name__} cannot render this task")
    if env.num_envs != 1:
        raise UserError(f"video: one environment is filmed, not {env.num_envs}")
    try:
        import imageio_ffmpeg  # brings its own ffmpeg; only videos need it
    except ImportError as error:
        raise UserError("video: imageio-ffmpeg is not installed: pip install imageio-ffmpeg") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def film(temporary: Path) -> None:
        writer: Generator[None, np.ndarray | None, None] | None = None

        def shoot() -> None:
            nonlocal writer
            frame = even(picture(env))
            if writer is None:
                height, width = frame.shape[:2]
                writer = imageio_ffmpeg.write_frames(str(temporary), (width, height), fps=fps, macro_block_size=1)
                writer.send(None)
            writer.send(frame)

        try:
            player = _filmed(player_cls, shoot)(policy, env, games_num=episodes, deterministic=deterministic, seed=seed)
            if extras is not None:
                player.restore_extras(extras)
            player.run()
        finally:
            if writer is not None:
                writer.close()

    write_through(path, film)
    return path


def picture(env: VecEnv) -> np.ndarray:
    """(H, W, 3) bytes of what the environment draws; a grey picture gets three equal channels. Raises UserError for what is none."""
    frame = env.render()
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8:
        if frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
            return np.repeat(frame.reshape(*frame.shape[:2], 1), 3, axis=2)
        if frame.ndim == 3 and frame.shape[2] in (3, 4):
            return frame[:, :, :3]  # without transparency
    what = f"an array of {frame.dtype} and shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise UserError(f"video: render() returned {what}; wanted is an array of uint8 and shape (height, width, 3)")


def even(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) with H and W even, as H.264's colour format needs: the last row or column is repeated where it is not."""
    height, width = frame.shape[:2]
    padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded)


def _filmed(player_cls: type[Player], shoot: Any) -> type[Player]:
    """`player_cls` with a camera; its own hooks are called first."""

    class Filmed(player_cls):  # type: ignore[valid-type, misc]  # a base class that is only known here
        def on_eval_start(self) -> None:
            super().on_eval_start()
            shoot()

        def on_eval_step(self, obs: Obs, rewards: torch.Tensor, dones: torch.Tensor, infos: dict[str, Any]) -> None:
            super().on_eval_step(obs, rewards, dones, infos)
            shows_next_episode = self.env.reset_mode == "same_step" and bool(dones.any())
            if not shows_next_episode:
                shoot()

    return Filmed
