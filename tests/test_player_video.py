"""A film is read back and looked at pixel by pixel: every step is there, once, in order."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from core.errors import UserError
from players.default import Player
from players.video import even, record
from tests.test_player_default import Clockwork, Memo


class Bright(Clockwork):
    """Its picture is as bright as 40 times the time of its episode. An odd size, which H.264 cannot hold."""

    render_mode = "rgb_array"

    def render(self) -> np.ndarray:
        return np.full((51, 35, 3), 40 * self.t[0], np.uint8)


def film(path: Path, env: Any, episodes: int = 1) -> Path:
    return record(Player, Memo(1), env, path, episodes, 10)  # type: ignore[arg-type]  # Memo stands for a Policy


def brightness_of(path: Path) -> list[float]:
    """Mean grey value of each frame; read with ffmpeg itself, as imageio's reader leaves its pipes open."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, 52 * 36 * 3).mean(axis=1).tolist()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("same_step", [0, 1, 2, 1, 2]),  # the picture after an episode's last step is the next one's first: left out
        ("next_step", [0, 1, 2, 3, 0, 1, 2, 3]),
    ],
)
def test_film_has_every_step(tmp_path: Path, mode: str, expected: list[int]) -> None:
    path = film(tmp_path / "videos" / "eval.mp4", Bright([3], mode), episodes=2)
    assert [round(b / 40) for b in brightness_of(path)] == expected
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert (count, seconds) == (len(expected), pytest.approx(len(expected) / 10))
    assert [p.name for p in path.parent.iterdir()] == ["eval.mp4"]


def test_even_repeats_the_edge() -> None:
    frame = np.arange(9, dtype=np.uint8).reshape(3, 1, 3)
    out = even(frame)
    assert out.shape == (4, 2, 3)
    assert (out[3, 1] == frame[2, 0]).all()
    assert (out[:3, :1] == frame).all()


def test_what_cannot_be_filmed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Clockwork cannot render"):
        film(tmp_path / "a.mp4", Clockwork([1]))
    with pytest.raises(UserError, match=r"one environment is filmed, not 2"):
        film(tmp_path / "a.mp4", Bright([1, 1]))
    assert not list(tmp_path.iterdir())


def test_the_filmed_player_gets_its_extras(tmp_path: Path) -> None:
    class Extra(Player):
        def restore_extras(self, extras: dict[str, Any]) -> None:
            given.append(extras)

    given: list[dict[str, Any]] = []
    policy: Any = Memo(1)
    path = Extra.record(policy, Bright([2]), tmp_path / "a.mp4", 1, deterministic=True, seed=0, extras={"disc": {}})
    assert given == [{"disc": {}}]
    assert path.exists()


def test_a_failed_film_leaves_no_file(tmp_path: Path) -> None:
    class Dark(Bright):
        def render(self) -> np.ndarray:
            if self.t[0] == 2:
                raise RuntimeError("no light")
            return super().render()

    with pytest.raises(RuntimeError, match=r"no light"):
        film(tmp_path / "a.mp4", Dark([3]))
    assert not list(tmp_path.iterdir())
