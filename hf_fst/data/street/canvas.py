"""The canvas of `street`: surfaces given in meters, seen by a camera.

The camera looks along +z from height `eye` above the road; x points right, y up from the road, z into the picture.
Every surface is painted twice, its color into the picture and its class id into the label, so both agree by construction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .look import Look

ROAD, SIDEWALK, BUILDING, FENCE, POLE, SIGN, VEGETATION, SKY, PERSON, CAR = range(10)
OVERSAMPLING = 2  # the picture is painted larger and reduced, so that its edges are as soft as a lens makes them
NEAREST, FARTHEST = 1.0, 90.0  # meters
FOCAL = 0.85  # focal length in picture widths

Color = Sequence[float]


class Canvas:
    """A picture and its label, painted together in camera coordinates."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator, look: Look):
        height, width = (OVERSAMPLING * side for side in size)
        self.image = Image.new("RGB", (width, height))
        self.label = Image.new("L", (width, height), VEGETATION)
        self._color, self._class = ImageDraw.Draw(self.image), ImageDraw.Draw(self.label)
        self.rng, self.look = rng, look
        self.focal = FOCAL * width
        self.center = width * rng.uniform(0.36, 0.64)
        self.horizon = height * rng.uniform(0.38, 0.5)
        self.eye = rng.uniform(1.3, 1.9)
        self.curve = rng.normal(0, 0.0006)  # meters sideways per square meter ahead
        self.sight = rng.uniform(*look.sight)
        self.air = [channel + rng.normal(0, 6) for channel in look.air]
        self.sunny_side = rng.choice((-1, 1))

    def point(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel of a point in meters."""
        z = max(z, NEAREST)
        scale = self.focal / z
        return self.center + scale * (x + self.curve * z * z), self.horizon + scale * (self.eye - y)

    def tone(self, color: Color, z: float, light: float = 1.0) -> tuple[int, int, int]:
        """A color under `light`, seen through `z` meters of air."""
        clear = math.exp(-z / self.sight)
        light, haze = light * clear, 1 - clear
        (r, g, b), (air_r, air_g, air_b) = color, self.air
        r, g, b = int(light * r + haze * air_r), int(light * g + haze * air_g), int(light * b + haze * air_b)
        return min(255, max(0, r)), min(255, max(0, g)), min(255, max(0, b))

    def pick(self, colors: Sequence[Color]) -> list[float]:
        """One of the look's colors, varied a little."""
        spread = self.look.variation
        color = colors[self.rng.integers(len(colors))]
        brightness, tint = self.rng.normal(1, spread), self.rng.normal(0, 255 * 0.08 * spread, 3)
        return [brightness * channel + shift for channel, shift in zip(color, tint.tolist(), strict=True)]

    def face(self, corners: Sequence[tuple[float, float, float]], color: Color, kind: int | None, light: float = 1.0):
        """A flat polygon with corners (x, y, z); with kind None it changes the color and keeps the class."""
        points = [self.point(*corner) for corner in corners]
        if all(px < 0 for px, _ in points) or all(px >= self.image.width for px, _ in points):
            return
        self._color.polygon(points, fill=self.tone(color, sum(c[2] for c in corners) / len(corners), light))
        if kind is not None:
            self._class.polygon(points, fill=kind)

    def upright(self, x0: float, x1: float, y0: float, y1: float, z: float, color: Color, kind: int | None, light=1.0):
        """A rectangle that faces the camera."""
        self.face([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], color, kind, light)

    def along(self, x: float, y0: float, y1: float, z0: float, z1: float, color: Color, kind: int | None, light=1.0):
        """A rectangle that stands along the street."""
        self.face([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], color, kind, light)

    def ground(self, x0: float, x1: float, z0: float, z1: float, color: Color, kind: int | None, light=1.0):
        """A rectangle that lies flat on the ground."""
        self.face([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], color, kind, light)

    def ball(self, x: float, y: float, z: float, rx: float, ry: float, color: Color, kind: int | None, light=1.0):
        """An ellipse that faces the camera, with radii in meters."""
        left, top = self.point(x - rx, y + ry, z)
        right, bottom = self.point(x + rx, y - ry, z)
        self._color.ellipse((left, top, right, bottom), fill=self.tone(color, z, light))
        if kind is not None:
            self._class.ellipse((left, top, right, bottom), fill=kind)

    def shade(self, polygons: Sequence[Sequence[tuple[float, float, float]]], strength: float):
        """Darken polygons; where they overlap it gets no darker."""
        mask = Image.new("L", self.image.size)
        draw = ImageDraw.Draw(mask)
        for corners in polygons:
            draw.polygon([self.point(*corner) for corner in corners], fill=255)
        self.image.paste(self.image.point(lambda value: int(value * strength)), mask=mask)
