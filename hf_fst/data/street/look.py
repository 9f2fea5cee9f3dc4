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
    sight: tuple[float, float]  # meters after which 1/e of a color is left, least and most
    sunshine: float  # probability of shadows across the street
    dusk: float  # light on the side away from the sun
    clouds: float  # their mean number
    stains: float  # mean number of patches on the road
    texture: float  # strength of the grain on surfaces
    exposure: float  # standard deviation in stops
    white_balance: float  # standard deviation of the log gains of the channels
    blur: tuple[float, float]  # standard deviation in pixels of a picture 96 high
    noise: tuple[float, float]  # standard deviation in gray levels


LOOKS: dict[str, Look] = {
    "synthetic": Look(
        zenith=((80, 145, 230), (110, 168, 238), (150, 190, 235)),
        skyline=((180, 215, 245), (205, 226, 246), (222, 234, 246)),
        road=((74, 74, 80), (90, 90, 95), (106, 106, 108)),
        marking=((250, 250, 250),),
        sidewalk=((178, 168, 160), (190, 182, 172)),
        curb=((215, 210, 205),),
        lawn=((96, 168, 70),),
        walls=((200, 92, 70), (222, 186, 130), (186, 130, 96), (230, 222, 205), (150, 110, 100), (160, 156, 160)),
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
        variation=0.08,
        sight=(250.0, 700.0),
        sunshine=0.0,
        dusk=0.82,
        clouds=1.0,
        stains=0.0,
        texture=0.15,
        exposure=0.12,
        white_balance=0.015,
        blur=(0.0, 0.3),
        noise=(0.5, 2.5),
    ),
    "real": Look(
        zenith=((140, 160, 186), (196, 204, 212), (116, 150, 196), (164, 176, 188)),
        skyline=((214, 219, 224), (230, 232, 232), (198, 208, 220)),
        road=((104, 106, 108), (120, 120, 120), (88, 91, 96), (130, 130, 130)),
        marking=((205, 203, 195), (180, 178, 168)),
        sidewalk=((152, 130, 116), (140, 122, 112), (160, 142, 128)),
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
        fences=((50, 80, 58), (112, 80, 52)),
        poles=((54, 60, 58), (70, 76, 74)),
        signs=((168, 52, 52), (52, 78, 136), (196, 164, 62), (190, 188, 184)),
        leaves=((58, 74, 40), (76, 86, 48), (48, 62, 44), (98, 94, 50), (88, 72, 44)),
        bark=((72, 62, 52), (56, 50, 46)),
        skin=((184, 146, 122), (126, 92, 74)),
        clothes=((38, 40, 52), (52, 62, 96), (128, 46, 46), (30, 30, 34), (44, 54, 84)),
        cars=((46, 48, 52), (148, 150, 152), (186, 186, 184), (84, 88, 94), (52, 62, 84), (110, 44, 42), (28, 28, 30)),
        glass=((44, 50, 54), (72, 80, 84)),
        air=(196, 198, 200),
        variation=0.12,
        sight=(45.0, 220.0),
        sunshine=0.55,
        dusk=0.68,
        clouds=3.0,
        stains=5.0,
        texture=0.55,
        exposure=0.25,
        white_balance=0.04,
        blur=(0.25, 0.65),
        noise=(2.0, 5.0),
    ),
}

# how rough a look's texture makes road, sidewalk, building, fence, pole, sign, vegetation, sky, person and car
ROUGHNESS = np.array([0.06, 0.08, 0.10, 0.12, 0.06, 0.07, 0.26, 0.015, 0.08, 0.07], dtype=np.float32)


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
    gains = 2 ** rng.normal(0, look.exposure) * np.exp(rng.normal(0, look.white_balance, 3))
    pixels = np.clip(pixels * gains.astype(np.float32), 0, None)
    pixels = pixels / (1 + np.clip(pixels - 0.85, 0, None))  # highlights saturate softly
    pixels = pixels ** np.float32(2 ** rng.normal(0, look.exposure / 2.5))
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
