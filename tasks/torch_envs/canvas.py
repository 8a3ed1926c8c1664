"""Pictures of environments that no gymnasium twin draws."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Colour = tuple[int, int, int]
Point = Iterable[float]  # x to the right, y upwards, in the environment's own units


class Canvas:
    """A square of `pixels` that shows `centre` +- `reach`. It is drawn at twice its size and then halved, which smooths the edges."""

    def __init__(self, centre: Point, reach: float, pixels: int = 500) -> None:
        from PIL import Image, ImageDraw  # only pictures need it; it comes with matplotlib

        self.pixels, self.scale = pixels, pixels / reach  # of the doubled picture
        x, y = centre
        self.corner = np.array([x - reach, y + reach])  # upper left
        self.image: Any = Image.new("RGB", (2 * pixels, 2 * pixels), (255, 255, 255))
        self.pen: Any = ImageDraw.Draw(self.image)

    def line(self, start: Point, end: Point, colour: Colour, width: int = 2) -> None:
        """`width` is in pixels."""
        self.pen.line([self._place(start), self._place(end)], fill=colour, width=2 * width)

    def polygon(self, corners: Iterable[Point], colour: Colour) -> None:
        self.pen.polygon([self._place(corner) for corner in corners], fill=colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        x, y = self._place(centre)
        r = radius * self.scale
        self.pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)

    def array(self) -> np.ndarray:
        """(pixels, pixels, 3) uint8."""
        return np.asarray(self.image.reduce(2))

    def _place(self, point: Point) -> tuple[float, float]:
        x, y = (np.asarray([*point]) - self.corner) * self.scale
        return float(x), float(-y)
