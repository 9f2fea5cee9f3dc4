"""What stands on a street. Each function settles a thing's size and colors and gives the function that paints it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .canvas import BUILDING, CAR, FENCE, PERSON, POLE, ROAD, SIGN, VEGETATION, Canvas, Color

Paint = Callable[[], None]
TIRE = (24, 24, 26)
CIRCLE = [(np.sin(angle), np.cos(angle)) for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False).tolist()]


def house(canvas: Canvas, x: float, side: int, start: float, end: float) -> Paint:
    rng, look = canvas.rng, canvas.look
    wall, trim, roof = canvas.pick(look.walls), canvas.pick(look.trims), canvas.pick(look.roofs)
    panes = [canvas.pick(look.windows) for _ in range(3)]
    floor, floors = rng.uniform(2.8, 3.6), int(rng.integers(2, 7))
    ground_floor = rng.choice(("windows", "shop", "plain"), p=(0.5, 0.35, 0.15))
    top, bay = floor * floors, rng.uniform(2.0, 3.4)
    wide, tall, first = rng.uniform(0.4, 0.75), rng.uniform(0.45, 0.7), rng.integers(3)
    light = rng.uniform(0.95, 1.08) * (1 if side != canvas.sunny_side else look.dusk)

    def paint():
        bays = max(1, round((end - start) / bay))
        canvas.upright(x, x + side * 14, -0.2, top, start, wall, BUILDING, light * 0.86)
        cuts = np.linspace(start, end, bays + 1).tolist()
        for column in range(bays - 1, -1, -1):
            z0, z1 = cuts[column], cuts[column + 1]
            canvas.along(x, -0.2, top, z0, z1, wall, BUILDING, light)
            canvas.along(x, top - 0.5, top + 0.3, z0, z1, roof, BUILDING, light)
            if z0 > 45:  # windows would be smaller than a pixel
                continue
            margin = (z1 - z0) * (1 - wide) / 2
            for row in range(floors):
                if row == 0 and ground_floor != "windows":
                    if ground_floor == "shop":
                        canvas.along(x, 0.3, floor * 0.72, z0 + 0.2, z1 - 0.2, panes[0], BUILDING, light)
                        canvas.along(x, floor * 0.75, floor * 0.95, z0, z1, trim, BUILDING, light)
                    continue
                pane, low = panes[(first + row * column) % 3], row * floor + floor * (1 - tall) / 2
                canvas.along(
                    x, low - 0.15, low + tall * floor + 0.12, z0 + margin - 0.15, z1 - margin + 0.15, trim, None, light
                )
                canvas.along(x, low, low + tall * floor, z0 + margin, z1 - margin, pane, None, light)

    return paint


def side_street(canvas: Canvas, side: int, edge: float, start: float, end: float, road: Color) -> Paint:
    return lambda: canvas.ground(side * edge, side * 60, start, end, road, ROAD)


def fence(canvas: Canvas, x: float, start: float, end: float) -> Paint:
    rng, color = canvas.rng, canvas.pick(canvas.look.fences)
    height, board, gap = rng.uniform(1.2, 2.3), rng.uniform(0.3, 0.8), rng.uniform(0.45, 0.75)

    def paint():
        canvas.along(x, 0, height, start, end, color, FENCE, gap)
        for z in np.arange(min(end, 30), start, -2 * board).tolist():
            canvas.along(x, 0, height, z - board, z, color, FENCE)
        canvas.along(x, height - 0.12, height, start, end, color, FENCE, 1.1)

    return paint


def hedge(canvas: Canvas, x: float, start: float, end: float) -> Paint:
    color, height = canvas.pick(canvas.look.leaves), canvas.rng.uniform(0.8, 2.2)
    cuts = np.linspace(end, start, 8).tolist()
    lights = canvas.rng.uniform(0.75, 1.15, 7)
    tops = height * canvas.rng.uniform(0.85, 1.1, 8)

    def paint():
        for z1, z0, y1, y0, light in zip(cuts[:-1], cuts[1:], tops[:-1], tops[1:], lights, strict=True):
            canvas.face([(x, 0, z0), (x, 0, z1), (x, y1, z1), (x, y0, z0)], color, VEGETATION, light)

    return paint


def tree(canvas: Canvas, x: float, z: float) -> Paint:
    rng = canvas.rng
    leaves, bark = canvas.pick(canvas.look.leaves), canvas.pick(canvas.look.bark)
    height, crown, trunk = rng.uniform(4, 9), rng.uniform(1.2, 2.6), rng.uniform(0.12, 0.25)
    blobs = np.concatenate(
        [rng.normal(0, 0.45, (12, 2)), rng.uniform(0.35, 0.7, (12, 1)), rng.uniform(0.7, 1.2, (12, 1))], 1
    )
    blobs = blobs[np.argsort(blobs[:, 1] + blobs[:, 3])]  # the lit leaves are on top

    def paint():
        canvas.upright(x - trunk, x + trunk, 0, height - crown, z, bark, VEGETATION)
        for dx, dy, radius, light in blobs:
            canvas.ball(
                x + crown * dx,
                height + crown * dy * 1.2 - crown * 0.3,
                z,
                crown * radius,
                crown * radius,
                leaves,
                VEGETATION,
                light,
            )

    return paint


def lamp(canvas: Canvas, x: float, side: int, z: float) -> Paint:
    color, height = canvas.pick(canvas.look.poles), canvas.rng.uniform(5, 8)
    radius, reach = canvas.rng.uniform(0.11, 0.18), canvas.rng.uniform(0, 1.8)

    def paint():
        canvas.upright(x - radius, x + radius, 0, height, z, color, POLE)
        canvas.upright(x - side * reach, x, height - 0.12, height + 0.12, z, color, POLE)
        canvas.upright(x - 1.6 * radius, x + 1.6 * radius, 0, 0.9, z, color, POLE, 0.9)

    return paint


def bollards(canvas: Canvas, x: float, z: float) -> Paint:
    color, height = canvas.pick(canvas.look.poles), canvas.rng.uniform(0.8, 1.1)
    count, spacing = canvas.rng.integers(3, 7), canvas.rng.uniform(1.5, 2.5)

    def paint():
        for k in range(count - 1, -1, -1):
            canvas.upright(x - 0.12, x + 0.12, 0, height, z + k * spacing, color, POLE)

    return paint


def sign(canvas: Canvas, x: float, z: float) -> Paint:
    rng = canvas.rng
    pole, plate, rim = (canvas.pick(c) for c in (canvas.look.poles, canvas.look.signs, canvas.look.trims[:1]))
    height, radius, shape = rng.uniform(2.2, 3.2), rng.uniform(0.36, 0.55), rng.choice(("disc", "triangle", "panel"))

    def paint():
        canvas.upright(x - 0.08, x + 0.08, 0, height, z, pole, POLE)
        if shape == "disc":
            canvas.ball(x, height, z, radius, radius, plate, SIGN)
            canvas.ball(x, height, z, 0.55 * radius, 0.55 * radius, rim, None)
        elif shape == "triangle":
            for scale, color in ((1.25, plate), (0.65, rim)):
                r = scale * radius
                low, high = height - 0.6 * r, height + 0.9 * r
                canvas.face([(x - r, low, z), (x + r, low, z), (x, high, z)], color, SIGN)
        else:
            canvas.upright(x - radius, x + radius, height - radius, height + radius, z, plate, SIGN)
            canvas.upright(x - 0.6 * radius, x + 0.6 * radius, height - 0.2, height + 0.2, z, rim, None)

    return paint


def car(canvas: Canvas, x: float, z: float, oncoming: bool) -> Paint:
    """A car along the street whose near end is z meters away; it is a van now and then."""
    rng, look = canvas.rng, canvas.look
    body, glass = canvas.pick(look.cars), canvas.pick(look.glass)
    van = rng.random() < 0.15
    half, length = rng.uniform(0.84, 0.95), rng.uniform(3.7, 4.8)
    belt, roof = (1.15, rng.uniform(1.9, 2.2)) if van else (rng.uniform(0.82, 0.95), rng.uniform(1.4, 1.6))
    nose, tail = (0.25, 0.1) if van else (rng.uniform(0.5, 1.1), rng.uniform(0.2, 0.9))
    front, back = (nose, tail) if oncoming else (tail, nose)  # how far the cabin stands back at the near and far end
    lights = (235, 235, 220) if oncoming else (170, 30, 30)
    end, top = z + length, half - 0.14

    def paint():
        flank = x - half if x + canvas.curve * z * z > 0 else x + half  # the side that the camera sees
        inner = x + (flank - x) * top / half
        low, high = belt + 0.04, roof - 0.12  # of the panes

        def across(y0, z0, half0, y1, z1, half1, color, kind, light=1.0):  # a plane that leans over the car's width
            canvas.face(
                [(x - half0, y0, z0), (x + half0, y0, z0), (x + half1, y1, z1), (x - half1, y1, z1)],
                color,
                kind,
                light,
            )

        def cabin(y0, z0, z1, y1, z2, z3, color, kind, light=1.0):  # the cabin's side leans inwards
            canvas.face([(flank, y0, z0), (flank, y0, z1), (inner, y1, z3), (inner, y1, z2)], color, kind, light)

        canvas.ground(x - half - 0.15, x + half + 0.15, z - 0.25, end + 0.1, (28, 28, 30), None)
        across(roof, z + front + 0.3, top, roof, end - back, top, body, CAR, 1.1)
        canvas.along(flank, 0.3, belt, z, end, body, CAR, 0.8)
        cabin(belt, z + front * 0.4, end - back * 0.4, roof, z + front + 0.3, end - back - 0.3, body, CAR, 0.75)
        cabin(low, z + front * 0.7 + 0.3, end - back - 0.3, high, z + front + 0.5, end - back - 0.6, glass, None)
        for wheel in (z + 0.75, end - 0.8):
            rim = [(flank, 0.32 + 0.32 * sine, wheel + 0.34 * cosine) for sine, cosine in CIRCLE]
            canvas.face(rim, TIRE, CAR)
        for wheel in (x - half + 0.12, x + half - 0.12):
            canvas.upright(wheel - 0.11, wheel + 0.11, 0, 0.35, z + 0.1, TIRE, CAR)
        canvas.upright(x - half, x + half, 0.24, belt, z, body, CAR)
        across(belt, z, half, belt + 0.02, z + front, top, body, CAR, 1.15)
        across(belt, z + front * 0.4, half - 0.04, roof, z + front + 0.3, top, body, CAR, 0.95)
        across(low, z + front * 0.5, half - 0.16, high, z + front + 0.25, top - 0.1, glass, None)
        canvas.upright(x - half, x + half, 0.24, 0.4, z, body, CAR, 0.6)
        for lamp_x in (x - half + 0.2, x + half - 0.2):
            canvas.upright(lamp_x - 0.15, lamp_x + 0.15, belt - 0.25, belt - 0.08, z, lights, None)
        canvas.upright(x - 0.25, x + 0.25, 0.45, 0.57, z, (215, 215, 205), None)

    return paint


def person(canvas: Canvas, x: float, z: float) -> Paint:
    rng, look = canvas.rng, canvas.look
    coat, trousers, skin = canvas.pick(look.clothes), canvas.pick(look.clothes), canvas.pick(look.skin)
    size, stride, girth = rng.uniform(0.9, 1.1), rng.uniform(0.05, 0.32), rng.uniform(0.19, 0.27)
    hair = canvas.pick(look.bark)

    def paint():
        def limb(x0, y0, x1, y1, width, color, light=1.0):
            corners = [(x0 - width, y0), (x0 + width, y0), (x1 + width, y1), (x1 - width, y1)]
            canvas.face([(x + size * dx, size * y, z) for dx, y in corners], color, PERSON, light)

        canvas.ground(x - 0.3, x + 0.3, z - 0.2, z + 0.3, (60, 60, 60), None)
        limb(-stride, 0, -0.06, 0.9, 0.09, trousers, 0.85)
        limb(stride, 0, 0.06, 0.9, 0.09, trousers)
        limb(0, 0.82, 0, 1.45, girth, coat)
        limb(-girth - stride * 0.5, 0.8, -girth, 1.42, 0.06, coat, 0.85)
        limb(girth + stride * 0.5, 0.8, girth, 1.42, 0.06, coat, 0.9)
        canvas.ball(x, size * 1.62, z, 0.13 * size, 0.16 * size, skin, PERSON)
        canvas.ball(x, size * 1.7, z, 0.13 * size, 0.1 * size, hair, PERSON)

    return paint
