"""Strongly changed views of images whose geometry is known: RandAugment's draws, cutout, and maps moved as the image was.

An image is changed on the model's device; which operations, and how strong, is drawn on the CPU for each image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as ops

from hf_fst.method.augmentation import IMAGE_MEAN, IMAGE_STD

# RandAugment's pool as in FixMatch (Sohn et al., 2020): what an operation does at a strength v in (0, 1)
COLORS = (
    lambda image, v: image,
    lambda image, v: ops.autocontrast(image),
    lambda image, v: ops.equalize(image),
    lambda image, v: ops.adjust_brightness(image, 0.9 * v + 0.05),
    lambda image, v: ops.adjust_saturation(image, 0.9 * v + 0.05),
    lambda image, v: ops.adjust_contrast(image, 0.9 * v + 0.05),
    lambda image, v: ops.adjust_sharpness(image, 0.9 * v + 0.05),
    lambda image, v: ops.posterize(image, int(4 * v) + 4),
    lambda image, v: ops.solarize(image, 1 - v),
)
# and the geometric ones: the 2x3 matrix from a place of the view to one of the image, both in [-1, 1], for an image of
# height / width `r`; the strength has a sign
MOVES = {
    "rotate": lambda v, r: rotation(30 * v, r),
    "shear_x": lambda v, r: [[1, 0.3 * v * r, 0.3 * v * r], [0, 1, 0]],
    "shear_y": lambda v, r: [[1, 0, 0], [0.3 * v / r, 1, 0.3 * v / r]],
    "translate_x": lambda v, r: [[1, 0, 2 * 0.3 * v], [0, 1, 0]],
    "translate_y": lambda v, r: [[1, 0, 0], [0, 1, 2 * 0.3 * v]],
}


def rotation(degrees: float, ratio: float) -> list[list[float]]:
    """Counterclockwise about the middle of an image of height / width `ratio`."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[cos, -sin * ratio, 0], [sin / ratio, cos, 0]]


@dataclass(frozen=True)
class View:
    """What was made of images, and how.

    Args:
        images: (B,3,H,W).
        matrices: (B,2,3) from a place of the view to one of the image, both in [-1, 1].
        holes: (B,1,H,W) bool, what was cut out.
    """

    images: torch.Tensor
    matrices: torch.Tensor
    holes: torch.Tensor

    def move(self, maps: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
        """Maps (B,C,h,w) of the images as maps of the views; 0 where a view shows nothing of its image."""
        return moved(maps, self.matrices, mode)

    def shows(self, valid: torch.Tensor) -> torch.Tensor:
        """Which places (B,h,w) of the views show one of the image that is `valid` (B,h,w), holes not among them."""
        shown = self.move(valid.unsqueeze(1).to(self.images.dtype), "nearest")
        holes = F.interpolate(self.holes.to(shown.dtype), size=shown.shape[-2:], mode="nearest")
        return ((shown > 0.5) & (holes < 0.5)).squeeze(1)


def moved(maps: torch.Tensor, matrices: torch.Tensor, mode: str) -> torch.Tensor:
    """`maps` (B,C,h,w) looked at through `matrices` (B,2,3)."""
    grid = F.affine_grid(matrices.to(maps.dtype), list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode=mode, align_corners=False)


@torch.no_grad()
def strong_view(
    images: torch.Tensor,
    image_mean: Sequence[float] = IMAGE_MEAN,
    image_std: Sequence[float] = IMAGE_STD,
    count: int = 2,
    flip: float = 0.5,
    cutout: float = 1 / 3,
) -> View:
    """Mirror, `count` operations of RandAugment, and a hole: the strong view of ProDA (Zhang et al., 2021).

    Each operation is drawn from the pool with a strength of 1 to 9 tenths and happens half the time. The moves of an
    image are made at once, after its colors.

    Args:
        images: (B,3,H,W), normalized; what is outside of them, and holes, are 0.
        image_mean, image_std: with which they are normalized, for each channel.
        count: operations an image.
        flip: probability of mirroring.
        cutout: side of the hole over the short side of the image; 0 for none.
    """
    mean, std = (images.new_tensor(numbers).view(3, 1, 1) for numbers in (image_mean, image_std))
    height, width = images.shape[-2:]
    moves, side = tuple(MOVES.values()), int(cutout * min(height, width))
    views, matrices = [], []
    holes = torch.zeros(len(images), 1, height, width, dtype=torch.bool, device=images.device)
    for i, image in enumerate((images * std + mean).clamp(0, 1)):
        matrix = torch.eye(3, dtype=torch.float64)
        if torch.rand(()) < flip:
            matrix[0, 0] = -1
        for _ in range(count):
            which, tenths = int(torch.randint(len(COLORS) + len(moves), ())), int(torch.randint(1, 10, ()))
            happens, sign = torch.rand(()) < 0.5, 1 if torch.rand(()) < 0.5 else -1
            if not happens:
                continue
            if which < len(COLORS):
                image = COLORS[which](image, tenths / 10)
            else:  # the move that comes last is looked through first
                move = moves[which - len(COLORS)](sign * tenths / 10, height / width)
                matrix = matrix @ torch.tensor([*move, [0, 0, 1]], dtype=torch.float64)
        top, left = (int(torch.randint(size - side + 1, ())) for size in (height, width))
        holes[i, :, top : top + side, left : left + side] = True
        views.append((image - mean) / std)
        matrices.append(matrix[:2])
    matrices = torch.stack(matrices).to(images)
    return View(moved(torch.stack(views), matrices, "bilinear").masked_fill(holes, 0), matrices, holes)
