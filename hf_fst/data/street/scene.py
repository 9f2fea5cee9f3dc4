"""Draws one street: where things stand, painted far to near.

Places and sizes come from the random generator only, never from the picture's size: the same generator state gives
the same street at any size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from .canvas import BUILDING, FARTHEST, NEAREST, OVERSAMPLING, ROAD, SIDEWALK, SKY, VEGETATION, Canvas
from .look import LOOKS, Look, photograph
from .things import bollards, car, fence, hedge, house, lamp, person, side_street, sign, tree

Painter = list[tuple[float, Callable[[], None]]]  # (meters away, what paints the thing)
SPLITS = ("train", "validation", "test")


def draw(look: str, split: str, index: int, size: tuple[int, int], seed: int = 0) -> tuple[Image.Image, Image.Image]:
    """Draws one picture (RGB) and its label (mode "L", class ids), both of `size` (height, width) pixels."""
    rng = np.random.default_rng((seed, list(LOOKS).index(look), SPLITS.index(split), index))
    image, label = draw_scene(rng, LOOKS[look], size)
    return photograph(rng, LOOKS[look], image, label), label


def draw_scene(rng: np.random.Generator, look: Look, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """One street as (RGB picture, mode-"L" label with class ids), both of `size` (height, width) pixels."""
    canvas = Canvas(size, rng, look)
    edges = {-1: rng.uniform(4.5, 8.0), 1: rng.uniform(2.2, 5.0)}  # meters to the curbs: it drives on the right
    walls = {side: edge + rng.uniform(2.4, 5.5) for side, edge in edges.items()}  # to the line of houses
    paint_sky(canvas)
    paint_skyline(canvas)
    paint_ground(canvas, edges, walls)
    things: Painter = []
    for side in (-1, 1):
        add_row(canvas, things, side, edges[side], walls[side])
        add_curbside(canvas, things, side, edges[side])
    add_traffic(canvas, things, edges)
    add_people(canvas, things, edges, walls)
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    height, width = size
    return canvas.image.reduce(OVERSAMPLING), canvas.label.resize((width, height), Image.Resampling.NEAREST)


def paint_sky(canvas: Canvas):
    width, height = canvas.image.size
    zenith, low = np.array(canvas.pick(canvas.look.zenith)), np.array(canvas.pick(canvas.look.skyline))
    rows = np.linspace(0, 1, int(canvas.horizon) + 2)[:, None]
    gradient = np.clip((1 - rows) * zenith + rows * low, 0, 255).astype(np.uint8)
    canvas.image.paste(Image.fromarray(gradient[:, None]).resize((width, len(rows))), (0, 0))
    canvas.label.paste(SKY, (0, 0, width, len(rows)))
    far = FARTHEST * 3
    for _ in range(canvas.rng.poisson(canvas.look.clouds)):
        x, y, tint = canvas.rng.uniform(-200, 200), canvas.rng.uniform(20, 130), canvas.rng.uniform(0.92, 1.06)
        for _ in range(5):
            dx, dy, rx, ry = canvas.rng.normal(0, (25, 4, 0, 0)) + (0, 0, *canvas.rng.uniform((10, 3), (30, 8)))
            canvas.ball(x + dx, y + dy, far, rx, ry, low * tint, None)


def paint_skyline(canvas: Canvas):
    """Houses and trees too far away to tell apart, which close the street."""
    x = -120.0
    while x < 120:
        width, height = canvas.rng.uniform(4, 16), canvas.rng.uniform(4, 14)
        if canvas.rng.random() < 0.5:
            color = canvas.pick(canvas.look.walls)
            canvas.upright(x, x + width, -3, height, FARTHEST, color, BUILDING, canvas.rng.uniform(0.6, 1))
        else:
            color = canvas.pick(canvas.look.leaves)
            canvas.ball(x + width / 2, 2, FARTHEST, width * 0.7, height * 0.7, color, VEGETATION)
        x += width * 0.8


def paint_ground(canvas: Canvas, edges: dict[int, float], walls: dict[int, float]):
    rng, look = canvas.rng, canvas.look
    lawn, road, walk, curb = (canvas.pick(c) for c in (look.lawn, look.road, look.sidewalk, look.curb))
    marking = canvas.pick(look.marking)
    steps = (FARTHEST * (NEAREST / FARTHEST) ** np.linspace(0, 1, 19)).tolist()
    for z1, z0 in zip(steps[:-1], steps[1:], strict=True):
        canvas.ground(-150, 150, z0, z1, lawn, VEGETATION)
        canvas.ground(-edges[-1], edges[1], z0, z1, road, ROAD)
        for side in (-1, 1):
            canvas.ground(side * edges[side], side * walls[side], z0, z1, walk, SIDEWALK)
            canvas.ground(side * edges[side], side * (edges[side] + 0.22), z0, z1, curb, SIDEWALK)
    for _ in range(rng.poisson(look.stains)):  # patches of newer or older asphalt, which are road too
        x, z = rng.uniform(-edges[-1], edges[1]), rng.uniform(3, 30)
        x1, z1 = min(x + rng.uniform(0.4, 2.5), edges[1]), z + rng.uniform(0.5, 6)
        canvas.ground(x, x1, z, z1, road, None, light=rng.uniform(0.72, 1.18))
    middle = (edges[1] - edges[-1]) / 2
    dash, start = rng.uniform(2, 4), rng.uniform(0, 6)
    for z in np.arange(start + 60, start, -2 * dash):
        canvas.ground(middle - 0.09, middle + 0.09, z - dash, z, marking, None)
    if rng.random() < 0.2:  # a zebra crossing
        z = rng.uniform(7, 25)
        for x in np.arange(-edges[-1] + 0.4, edges[1] - 0.5, 1.1):
            canvas.ground(x, x + 0.55, z, z + 3, marking, None)
    sunny = canvas.sunny_side
    if rng.random() < look.sunshine:  # the houses on the sunny side throw their shadows across the street
        shadows, z = [], NEAREST
        while z < 70:
            length, reach = rng.uniform(6, 20), rng.uniform(-1.0, 1.1)
            x0, x1 = sunny * walls[sunny], sunny * (walls[sunny] - max(0, reach) * (walls[sunny] + edges[-sunny]))
            shadows.append([(x0, 0, z), (x1, 0, z + 1), (x1, 0, z + length), (x0, 0, z + length)])
            z += length + rng.uniform(0, 4)
        canvas.shade(shadows, rng.uniform(0.4, 0.65))


def add_row(canvas: Canvas, things: Painter, side: int, edge: float, wall: float):
    """Houses, fences, hedges and side streets along one side, up to the horizon."""
    rng, look = canvas.rng, canvas.look
    z = rng.uniform(-6, 0)
    road = canvas.pick(look.road)
    while z < FARTHEST:
        length = rng.uniform(7, 18)
        kind = rng.choice(("house", "fence", "hedge", "street"), p=(0.52, 0.27, 0.13, 0.08))
        start, end = max(z, NEAREST), min(z + length, FARTHEST)
        if kind == "house":
            things.append((end, house(canvas, side * wall, side, start, end)))
        elif kind == "street":
            things.append((end + 30, side_street(canvas, side, edge, start, min(end, start + 9), road)))
        else:
            if rng.random() < 0.5:  # a house stands back behind the garden
                things.append((end + 0.3, house(canvas, side * (wall + rng.uniform(5, 9)), side, start, end)))
            for _ in range(rng.integers(0, 4)):
                things.append((end + 0.2, tree(canvas, side * (wall + rng.uniform(1.5, 5)), rng.uniform(start, end))))
            things.append((end, (fence if kind == "fence" else hedge)(canvas, side * wall, start, end)))
        z += length


def add_curbside(canvas: Canvas, things: Painter, side: int, edge: float):
    """Trees, lamps, bollards and signs between curb and walkers, and the cars parked along the curb."""
    rng = canvas.rng
    x = side * (edge + 0.55)
    if rng.random() < 0.55:
        spacing = rng.uniform(8, 18)
        for z in np.arange(rng.uniform(5, 14), 60, spacing).tolist():
            things.append((z, tree(canvas, x, z + rng.normal(0, 0.4))))
    if rng.random() < 0.85:
        spacing = rng.uniform(12, 25)
        for z in np.arange(rng.uniform(4, 14), 75, spacing):
            things.append((z, lamp(canvas, x, side, z)))
    if rng.random() < 0.3:
        z = rng.uniform(4, 20)
        things.append((z, bollards(canvas, x, z)))
    for _ in range(rng.poisson(1.3)):
        z = rng.uniform(5, 24)
        things.append((z, sign(canvas, x + rng.uniform(-0.2, 0.4), z)))
    if rng.random() < 0.6 and edge > 3:
        z = rng.uniform(3.5, 12)
        while z < 60:
            if rng.random() < 0.6:
                things.append((z, car(canvas, side * (edge - 1.05) + rng.normal(0, 0.1), z, oncoming=side < 0)))
            z += rng.uniform(5.2, 7.5)


def add_traffic(canvas: Canvas, things: Painter, edges: dict[int, float]):
    rng = canvas.rng
    if rng.random() < 0.65:
        z = rng.uniform(7, 40)
        things.append((z, car(canvas, rng.normal(0, 0.25), z, oncoming=False)))
    z = rng.uniform(6, 60)
    while z < 70:
        x = -min(edges[-1] - 2.9, 3.2) + rng.normal(0, 0.2)
        things.append((z, car(canvas, x, z, oncoming=True)))
        z += rng.uniform(8, 60)


def add_people(canvas: Canvas, things: Painter, edges: dict[int, float], walls: dict[int, float]):
    rng = canvas.rng
    for _ in range(rng.poisson(4.0)):  # groups of one to three walk on the sidewalks
        side = rng.choice((-1, 1))
        x, z = side * rng.uniform(edges[side] + 0.7, walls[side] - 0.3), rng.uniform(4.5, 28)
        for _ in range(rng.choice((1, 1, 2, 3))):
            things.append((z, person(canvas, x, z)))
            x, z = x + rng.choice((-1, 1)) * rng.uniform(0.5, 0.8), z + rng.uniform(-0.6, 0.6)
    if rng.random() < 0.25:
        z = rng.uniform(8, 25)
        things.append((z, person(canvas, rng.uniform(-edges[-1], edges[1]), z)))
