"""What auxiliary decoders get instead of features: the perturbations of cross-consistency training (Ouali et al.,
CVPR 2020, their code), called by their names."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hf_fst.method.losses import IGNORE_INDEX
from hf_fst.method.mixing import rectangle

# the eight neighbors of a pixel, around it
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


class Perturbations:
    """The perturbations of the features of a batch; each call draws for itself.

    Args:
        labels: of the main decoder (B,H,W), 0 being the background; 255 counts as background.
        vat_step: length ξ of the step at whose end the adversarial direction is found.
    """

    NAMES = "vat dropout guided_cutout context_masking object_masking feature_drop feature_noise".split()

    def __init__(self, labels: torch.Tensor, vat_step: float):
        self.inside, self.vat_step = labels != IGNORE_INDEX, vat_step
        self.foreground = (labels > 0) & self.inside

    def __call__(self, name: str, features: torch.Tensor, decoder: nn.Module) -> torch.Tensor:
        """`features` (B,D,h,w), perturbed for a decoder."""
        return self.vat(features, decoder) if name == "vat" else getattr(self, name)(features)

    def vat(self, features: torch.Tensor, decoder: nn.Module) -> torch.Tensor:
        """z + r, r being the direction that changes the decoder's output most."""
        start = torch.rand_like(features) - 0.5
        return features + adversarial(features, decoder, start, self.vat_step, inside=self.inside)

    def dropout(self, features: torch.Tensor) -> torch.Tensor:
        """Each channel dropped with probability ½."""
        return F.dropout2d(features, 0.5)

    def feature_drop(self, features: torch.Tensor) -> torch.Tensor:
        """Without the places where the features are most active, γ ~ U(0.7, 0.9)."""
        share = torch.empty((), device=features.device).uniform_(0.7, 0.9)
        return without_most_active(features, share, _mask(self.inside, features) > 0)

    def feature_noise(self, features: torch.Tensor) -> torch.Tensor:
        """z + z·n, n ~ U(-0.3, 0.3) the same for all images."""
        return features + features * torch.empty_like(features[0]).uniform_(-0.3, 0.3)

    def context_masking(self, features: torch.Tensor) -> torch.Tensor:
        """The objects alone."""
        return features * _mask(self.foreground, features)

    def object_masking(self, features: torch.Tensor) -> torch.Tensor:
        """The background alone."""
        return features * _mask(~self.foreground, features)

    def guided_cutout(self, features: torch.Tensor) -> torch.Tensor:
        """Without a rectangle of 0.4 of the width and height of each object's bounding box."""
        size = self.foreground.shape[-2:]
        kept = torch.stack([~cut_out(boxes, torch.rand(len(boxes), 2), size) for boxes in self.boxes])
        return features * _mask(kept.to(features.device), features)

    @cached_property
    def boxes(self) -> list[torch.Tensor]:
        """The bounding boxes of the objects of each image."""
        return [object_boxes(image) for image in self.foreground.cpu().numpy()]


def _mask(mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return F.interpolate(mask.unsqueeze(1).to(features.dtype), size=features.shape[-2:], mode="nearest")


def without_most_active(
    features: torch.Tensor, share: torch.Tensor | float, inside: torch.Tensor | bool = True
) -> torch.Tensor:
    """`features` (B,D,h,w), 0 where the mean over the channels reaches `share` of the largest `inside` (B,1,h,w)."""
    attention = features.detach().mean(dim=1, keepdim=True)
    most = attention.where(torch.as_tensor(inside, device=features.device), -torch.inf).amax(dim=(2, 3), keepdim=True)
    return features * (attention < most * share)


def adversarial(
    features: torch.Tensor,
    decoder: nn.Module,
    start: torch.Tensor,
    step: float,
    length: float = 2.0,
    inside: torch.Tensor | None = None,
) -> torch.Tensor:
    """ε·∇_d KL(p(z) ‖ p(z + ξd)), normalized (virtual adversarial training, Miyato et al., 2018; one power iteration).

    Args:
        features: z (B,D,h,w).
        decoder: gives the logits of p; no gradient is left in its weights.
        start: the direction d, of any length.
        step: ξ. With the authors' 1e-6 the gradient is far below the 1e-8 of the norm, and r near 0.
        length: ε.
        inside: where d and KL are not 0 (B,H,W) bool, of any size; everywhere by default.
    """
    dtype = next(decoder.parameters()).dtype
    inside = torch.ones_like(features[:, 0], dtype=torch.bool) if inside is None else inside
    features, there = features.detach().to(dtype), _mask(inside, features).to(dtype)
    direction = _normalized(start.to(dtype) * there).requires_grad_()
    with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
        target = decoder(features).detach().softmax(dim=1)
        moved = decoder(features + step * direction).log_softmax(dim=1)
        change = (F.kl_div(moved, target, reduction="none") * _mask(inside, moved)).sum() / len(moved)
        [gradient] = torch.autograd.grad(change, direction)
    return length * _normalized(gradient * there)


def _normalized(direction: torch.Tensor) -> torch.Tensor:
    return direction / (direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-8)


def object_boxes(foreground: np.ndarray, least_points: int = 50) -> torch.Tensor:
    """The objects of an image (H,W) bool whose outline has more than `least_points` points, as corners x0, y0, x1, y1
    (N,4), the last ones inside.

    An object is 8-connected, holes and all that is in them included. Points are where an outline turns.
    """
    from scipy import ndimage  # which importing the objectives need not wait for

    filled = ndimage.binary_fill_holes(foreground)
    padded = np.pad(filled, 1)
    height, width = foreground.shape
    code = sum(
        padded[1 + y : 1 + y + height, 1 + x : 1 + x + width].astype(np.uint8) << i for i, (y, x) in enumerate(RING)
    )
    objects, count = ndimage.label(filled, np.ones((3, 3)))
    points = ndimage.sum_labels(TURNS[code], objects, range(1, count + 1))
    found = [(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in ndimage.find_objects(objects)]
    return torch.tensor(found, dtype=torch.long).view(-1, 4)[torch.from_numpy(np.asarray(points) > least_points)]


def _turns(code: int) -> int:
    """How often an outline turns at a pixel: it comes from the last neighbor before each gap of the ring, and leaves for
    the first one after it. A corner alone is no gap, since the outline takes the short way."""
    there = [bool(code >> i & 1) for i in range(8)]
    turns = 0
    for i in (i for i in range(8) if there[i]):
        length = next(n for n in range(1, 9) if there[(i + n) % 8])
        is_gap = any((i + n) % 2 for n in range(1, length))  # odd places of the ring share a side with the pixel
        turns += is_gap and length != 4
    return turns


TURNS = np.array([_turns(code) for code in range(256)])


def cut_out(boxes: torch.Tensor, chance: torch.Tensor, size: tuple[int, int], share: float = 0.4) -> torch.Tensor:
    """True inside a rectangle of `share` of the width and height of each box, (H,W).

    Args:
        boxes: corners x0, y0, x1, y1 (N,4).
        chance: where it lies in its box, from the left and from the top, in [0, 1) (N,2).
        size: (H,W).
    """
    corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    places = (sides * (1 - share)).long() + 1
    left, top = (corner + (chance * places).floor()).T[:, :, None, None]
    width, height = (sides * share).long().T[:, :, None, None]
    return rectangle(top, left, height, width, size).any(dim=0)
