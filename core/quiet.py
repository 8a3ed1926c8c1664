"""rl_games prints while it builds ('build mlp: 17', 'RunningMeanStd: ...'); a run's table says the same once, in order."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Swallows what the block prints to stdout; the caller may read it from the yielded buffer."""
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer):
        yield buffer
