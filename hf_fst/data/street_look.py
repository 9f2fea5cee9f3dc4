"""The two looks of `street`: what things are made of, and the camera that saw them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage


Colors = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Look:
    """Materials as lists of RGB colors, and what the weather and the camera do to them."""

    zenith: Colors
    skyline: Colors
    road: Colors
    marking: Colors
    sidewalk: Colors
    curb: Colors
    lawn: Colors
    walls: Colors
    trims: Colors
    roofs: Colors
    windows: Colors
    fences: Colors
    poles: Colors
    signs: Colors
    leaves: Colors
    bark: Colors
    skin: Colors
    clothes: Colors
    cars: Colors
    glass: Colors
    air: tuple[int, int, int]
    variation: float  # relative spread of every color
    sight: tuple[float, float]  # metres after which 1/e of a color is left, least and most
    sunshine: float  # probability of shadows across the street
    dusk: float  # light on the side away from the sun
    clouds: float  # their mean number
    stains: float  # mean number of patches on the road
    texture: float  # strength of the grain on surfaces
    exposure: float  # standard deviation in stops
    white_balance: float  # standard deviation of the log gains of the channels
    blur: tuple[float, float]  # standard deviation in pixels of a picture 96 high
    noise: tuple[float, float]  # standard deviation in grey levels


LOOKS: dict[str, Look] = {
    "synthetic": Look(
        zenith=((70, 140, 235), (90, 160, 245)),
        skyline=((175, 215, 250), (190, 225, 255)),
        road=((74, 74, 80), (84, 84, 90)),
        marking=((250, 250, 250),),
        sidewalk=((178, 168, 160), (190, 182, 172)),
        curb=((215, 210, 205),),
        lawn=((96, 168, 70),),
        walls=((200, 92, 70), (222, 186, 130), (186, 130, 96), (230, 222, 205), (150, 110, 100), (170, 160, 190)),
        trims=((245, 240, 230), (120, 80, 60)),
        roofs=((140, 60, 45), (95, 95, 105)),
        windows=((70, 110, 150), (110, 150, 185), (50, 75, 105)),
        fences=((150, 105, 65), (175, 130, 85)),
        poles=((125, 125, 130), (105, 105, 112)),
        signs=((225, 30, 40), (30, 80, 210), (250, 205, 30)),
        leaves=((50, 150, 50), (75, 170, 60), (40, 125, 55)),
        bark=((105, 75, 50),),
        skin=((235, 190, 155), (160, 110, 80)),
        clothes=((215, 50, 60), (45, 90, 200), (240, 200, 60), (60, 60, 70), (150, 60, 170), (230, 230, 230)),
        cars=((215, 30, 35), (30, 70, 200), (240, 240, 240), (245, 190, 30), (40, 40, 45), (30, 150, 90)),
        glass=((60, 85, 110),),
        air=(200, 220, 245),
        variation=0.06,
        sight=(500.0, 900.0),
        sunshine=0.0,
        dusk=0.82,
        clouds=1.0,
        stains=0.0,
        texture=0.0,
        exposure=0.05,
        white_balance=0.01,
        blur=(0.0, 0.2),
        noise=(0.5, 2.0),
    ),
    "real": Look(
        zenith=((140, 160, 186), (196, 204, 212), (116, 150, 196), (164, 176, 188)),
        skyline=((214, 219, 224), (230, 232, 232), (198, 208, 220)),
        road=((104, 104, 102), (122, 118, 112), (88, 90, 94), (134, 130, 126)),
        marking=((205, 203, 195), (180, 178, 168)),
        sidewalk=((130, 124, 116), (142, 132, 122), (116, 114, 112)),
        curb=((148, 145, 138), (122, 120, 116)),
        lawn=((92, 98, 58), (116, 108, 70)),
        walls=(
            (146, 130, 110),
            (168, 160, 146),
            (120, 104, 92),
            (98, 94, 92),
            (178, 166, 140),
            (128, 92, 76),
            (150, 152, 152),
        ),
        trims=((176, 170, 160), (92, 86, 78), (134, 124, 112)),
        roofs=((92, 72, 64), (72, 74, 78)),
        windows=((52, 58, 62), (84, 92, 98), (120, 128, 134), (38, 40, 44)),
        fences=((104, 84, 62), (62, 74, 62), (124, 104, 78), (92, 72, 56)),
        poles=((96, 98, 98), (128, 128, 124), (68, 70, 70)),
        signs=((168, 52, 52), (52, 78, 136), (196, 164, 62), (190, 188, 184)),
        leaves=((58, 74, 40), (76, 86, 48), (48, 62, 44), (98, 94, 50), (88, 72, 44)),
        bark=((72, 62, 52), (56, 50, 46)),
        skin=((184, 146, 122), (126, 92, 74)),
        clothes=((48, 50, 58), (66, 64, 62), (96, 88, 82), (58, 70, 96), (116, 56, 54), (148, 144, 138), (36, 36, 38)),
        cars=((46, 48, 52), (148, 150, 152), (186, 186, 184), (84, 88, 94), (52, 62, 84), (110, 44, 42), (28, 28, 30)),
        glass=((44, 50, 54), (72, 80, 84)),
        air=(196, 198, 200),
        variation=0.12,
        sight=(45.0, 220.0),
        sunshine=0.55,
        dusk=0.62,
        clouds=3.0,
        stains=5.0,
        texture=0.75,
        exposure=0.28,
        white_balance=0.045,
        blur=(0.25, 0.65),
        noise=(2.0, 6.0),
    ),
}

# how rough each class is under the look's texture: road, sidewalk, building, fence, pole, sign, vegetation, sky, person, car
ROUGHNESS = np.array([0.06, 0.08, 0.10, 0.14, 0.08, 0.07, 0.26, 0.015, 0.13, 0.07], dtype=np.float32)


def photograph(rng: np.random.Generator, look: Look, image: Image.Image, label: Image.Image) -> Image.Image:
    """What the look's camera makes of a painted scene: grain, light falloff, exposure, white balance, blur and noise."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    height, width = pixels.shape[:2]
    unit = height / 96  # lens blur and surface grain grow with the picture, sensor noise does not
    if look.texture:
        fine = rng.standard_normal((height, width), dtype=np.float32)
        grain = 0.8 * fine + blobs(rng, height, width, 3 * unit) + 0.9 * blobs(rng, height, width, 12 * unit)
        pixels *= 1 + (look.texture * ROUGHNESS[np.asarray(label)] * grain)[..., None]
        y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        pixels *= (1 - rng.uniform(0, 0.25) * (x * x + y * y) / 2).astype(np.float32)[..., None]
    gains = 2 ** rng.normal(0.1, look.exposure) * np.exp(rng.normal(0, look.white_balance, 3))
    pixels = np.clip(pixels * gains.astype(np.float32), 0, None)
    pixels = pixels / (1 + np.clip(pixels - 0.85, 0, None))  # highlights saturate softly
    pixels = pixels ** np.float32(2 ** rng.normal(0, look.exposure / 2))
    blur = rng.uniform(*look.blur) * unit
    if blur > 0.15:
        pixels = ndimage.gaussian_filter(pixels, (blur, blur, 0), truncate=2.5)
    noise = rng.uniform(*look.noise) / 255
    pixels = pixels + noise * np.sqrt(0.3 + pixels) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))


def blobs(rng: np.random.Generator, height: int, width: int, scale: float) -> np.ndarray:
    """Smooth noise (height, width) of unit variance at its knots, which lie `scale` pixels apart."""
    rows, columns = max(2, round(height / scale)), max(2, round(width / scale))
    knots = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC))
