"""ClassMix and CutMix masks, drawn on the images' device, each image with its own draw; pure tensor functions.

A mask (B,1,H,W) is True where the first image is kept.
"""

from __future__ import annotations

import torch

IGNORE_INDEX = 255


def class_mask(labels: torch.Tensor, num_labels: int, classes_from: str = "image") -> torch.Tensor:
    """ClassMix: the pixels of a random half of the classes present (Olsson et al., 2021; DACS, Tranheden et al., 2021).

    Of n classes ceil(n / 2) are chosen without replacement.

    Args:
        labels: (B,H,W) int64; 255 belongs to no class with `"image"`, and is one more class with `"batch"`.
        num_labels: number of classes C.
        classes_from: `"image"` chooses among the classes of each image; `"batch"` among those of the whole batch, as
            the authors' code does.

    Returns:
        (B,1,H,W) bool.
    """
    ids = labels.clamp(max=num_labels)  # 255 is the last column
    present = torch.zeros(len(labels), num_labels + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, ids.flatten(1), True)
    if classes_from == "batch":
        present = present.any(dim=0, keepdim=True).expand_as(present)
    else:
        present[:, num_labels] = False
    # the half of the present classes with the largest random score
    score = torch.rand(present.shape, device=labels.device).masked_fill(~present, -1)
    rank = score.argsort(dim=1, descending=True).argsort(dim=1)
    chosen = rank < (present.sum(dim=1, keepdim=True) + 1) // 2
    return chosen.gather(1, ids.flatten(1)).view_as(labels).unsqueeze(1)


def cut_mask(
    batch: int, size: tuple[int, int], device: torch.device, probability: float = 1.0, draw: str = "image"
) -> torch.Tensor:
    """CutMix (French et al., 2020): everything outside a rectangle of half the image's area.

    The width w is uniform in [W/2 + 1, W) and the height round(HW / 2 / w), the position uniform: the authors'
    semi-supervised code.

    Args:
        batch: number of masks B.
        size: (H,W) in pixels.
        probability: with which an image is cut at all; otherwise its mask is True everywhere.
        draw: whether that is drawn for each `"image"` or once for the whole `"batch"` (the authors' code).

    Returns:
        (B,1,H,W) bool, False inside the rectangle.
    """
    height, width = size
    chance = torch.rand(4, batch, 1, 1, device=device)
    w = (width // 2 + 1 + chance[0] * (width - width // 2 - 1)).floor()
    h = (height * width / 2 / w).round()
    left = (chance[1] * (width - w + 1)).floor()
    top = (chance[2] * (height - h + 1)).floor()
    cut = chance[3] < probability if draw == "image" else chance[3, :1] < probability
    return ~(rectangle(top, left, h, w, size) & cut).unsqueeze(1)


def rectangle(
    top: torch.Tensor, left: torch.Tensor, height: torch.Tensor, width: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """True inside rectangles whose corner and sides, in pixels, are (...,1,1): (...,H,W) bool for a `size` (H,W)."""
    y = torch.arange(size[0], device=top.device).view(-1, 1)
    x = torch.arange(size[1], device=top.device)
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def small_cut_mask(
    batch: int, size: tuple[int, int], device: torch.device, probability: float = 0.5, draw: str = "image"
) -> torch.Tensor:
    """UniMatch's CutMix (Yang et al., 2023; their code): everything outside a box of 2 to 40 % of the image.

    The box's area is U(0.02, 0.4) of the image's, its height over its width r ~ U(0.3, 1/0.3); r and the place are drawn
    until it lies inside.

    Args:
        batch: number of masks B.
        size: (H,W) in pixels.
        probability, draw: see `cut_mask`.

    Returns:
        (B,1,H,W) bool, False inside the box.
    """
    tries = 256  # of which one in ten fits even where the box is large
    chance = torch.rand(3, batch, tries, device=device)
    once = torch.rand(2, batch, device=device)
    area = (0.02 + 0.38 * once[0]) * size[0] * size[1]
    ratio = 0.3 + (1 / 0.3 - 0.3) * chance[0]
    box = first_fitting(area, ratio, (chance[1] * size[0]).floor(), (chance[2] * size[1]).floor(), size)
    cut = once[1] < probability if draw == "image" else (once[1, :1] < probability).expand(batch)
    return ~(rectangle(*box, size) & cut.view(-1, 1, 1)).unsqueeze(1)


def first_fitting(
    area: torch.Tensor, ratio: torch.Tensor, top: torch.Tensor, left: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first box of each row that lies inside an image; an empty one where none does.

    Args:
        area: in pixels (B,).
        ratio: height over width, a try a column (B,T).
        top, left: its corner (B,T).
        size: (H,W) of the image.

    Returns:
        top, left, height and width, whole numbers (B,1,1).
    """
    height, width = (area[:, None] * ratio).sqrt().floor(), (area[:, None] / ratio).sqrt().floor()
    fits = (top + height <= size[0]) & (left + width <= size[1])
    first = fits.int().argmax(dim=1, keepdim=True)
    top, left, height, width = (value.gather(1, first).unsqueeze(2) for value in (top, left, height * fits, width))
    return top, left, height, width


def toggled_cut_mask(
    batch: int, size: tuple[int, int], device: torch.device, probability: float = 1.0, boxes: int = 3
) -> torch.Tensor:
    """The CutMix of cross pseudo supervision (Chen et al., CVPR 2021; their code): everything outside a few boxes, which
    toggle where they overlap.

    A box has the share s ~ U(0.25, 0.5) of the image's area and s^u of its height, u ~ U(0, 1), before both sides are
    shrunk alike, so that all boxes together have that area. It lies anywhere inside.

    Args:
        batch: number of masks B.
        size: (H,W) in pixels.
        probability: with which an image is cut at all.
        boxes: how many.

    Returns:
        (B,1,H,W) bool, False inside an odd number of boxes.
    """
    area, height, top, left = torch.rand(4, batch, boxes, 1, 1, device=device)
    inside = toggled_boxes(0.25 + 0.25 * area, height, top, left, size)
    cut = torch.rand(batch, 1, 1, device=device) < probability
    return ~(inside & cut).unsqueeze(1)


def toggled_boxes(
    area: torch.Tensor, height: torch.Tensor, top: torch.Tensor, left: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """True inside an odd number of boxes, (B,H,W), from shares of the area and numbers in [0, 1), each (B,boxes,1,1)."""
    shrunk = area.shape[1] ** -0.5
    share = (height * area.log()).exp()  # of the image's height
    h = (share * shrunk * size[0]).round()
    w = (area / share * shrunk * size[1]).round()
    return rectangle(((size[0] - h) * top).round(), ((size[1] - w) * left).round(), h, w, size).sum(dim=1) % 2 == 1


def mix(mask: torch.Tensor, kept: torch.Tensor, pasted_under: torch.Tensor) -> torch.Tensor:
    """`kept` where the mask is True, `pasted_under` elsewhere; images (B,3,H,W) or maps (B,H,W)."""
    if kept.dim() == 3:
        mask = mask.squeeze(1)
    return torch.where(mask, kept, pasted_under)
