"""Strong augmentation on the model's device: color jitter, gray and blur, each image with its own draw (kornia)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

IMAGE_MEAN, IMAGE_STD = tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)


def blur_kernel(height: int) -> int:
    """Odd kernel size of about a tenth of the image's height: 51 at 512, 63 at 640 (DACS)."""
    tenth = math.ceil(0.1 * height)
    return max(3, math.floor(tenth - 0.5 + tenth % 2))


def _without_padding(contrast: Callable, valid: torch.Tensor | None, images: torch.Tensor, factor: torch.Tensor):
    """torchvision's contrast of images (B,3,H,W), away from their mean gray, here that of their `valid` pixels alone."""
    if valid is not None:
        from kornia.color import rgb_to_grayscale  # see below

        inside = valid.unsqueeze(1)
        gray = rgb_to_grayscale(images).where(inside, 0).sum((2, 3), keepdim=True)
        images = images.where(inside, gray / inside.sum((2, 3), keepdim=True).clamp(min=1))
    return contrast(images, factor)


class StrongAugmentation:
    """Color jitter, gray, then blur, on normalized images (B,3,H,W); the geometry stays, so labels stay valid.

    Args:
        jitter_probability: with which an image's brightness, contrast, saturation and hue are jittered.
        jitter_strength: each factor is drawn within ± this share.
        blur_probability: with which an image is blurred, sigma uniform in [0.15, 1.15] pixels.
        draw: whether each `"image"` or the whole `"batch"` is jittered (and blurred) or not, as in DACS (Tranheden et
            al., 2021, with 0.8 and 0.5); by how much is drawn for each image.
        gray_probability: with which an image loses its colors.
        like: the numbers of `"dacs"`, or of `"unimatch"` (Yang et al., 2023): brightness is a factor, hue is drawn within
            half of the strength, sigma in [0.1, 2].
        mean, std: with which the images are normalized, for each channel.
    """

    def __init__(
        self,
        jitter_probability: float,
        jitter_strength: float,
        blur_probability: float,
        draw: str = "image",
        gray_probability: float = 0.0,
        like: str = "dacs",
        mean: Sequence[float] = IMAGE_MEAN,
        std: Sequence[float] = IMAGE_STD,
    ):
        import kornia.augmentation as K  # a second, which importing the trainer need not wait for

        s, self.draw, self.mean, self.std = jitter_strength, draw, mean, std
        self.jitter_probability, self.blur_probability = jitter_probability if s else 0.0, blur_probability
        self.gray_probability = gray_probability
        # torchvision's jitter multiplies by the brightness, DACS adds it
        kind, hue, self.sigma = {
            "dacs": (K.ColorJiggle, s, (0.15, 1.15)),
            "unimatch": (K.ColorJitter, s / 2, (0.1, 2.0)),
        }[like]
        self.jitter = kind(s, s, s, hue, p=self._each(jitter_probability))
        self.contrast = self.jitter._contrast_fn if like == "unimatch" else None
        self.gray = K.RandomGrayscale(p=self._each(gray_probability))
        self.blurs: dict[tuple[int, ...], nn.Module] = {}
        self.statistics: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, pixel_values: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Augmented `pixel_values` (B,3,H,W), normalized like the input; `valid` (B,H,W) is False on padding."""
        if not (self.jitter_probability or self.gray_probability or self.blur_probability):
            return pixel_values
        mean, std = self._statistics(pixel_values.device, pixel_values.dtype)
        images = (pixel_values * std + mean).clamp(0, 1)
        if self.contrast is not None:
            self.jitter._contrast_fn = partial(_without_padding, self.contrast, valid)
        if self._happens(self.jitter_probability):
            images = self.jitter(images)
        if self._happens(self.gray_probability):
            images = self.gray(images)
        if self._happens(self.blur_probability):
            images = self._blur(*images.shape[-2:])(images)
        return (images - mean) / std

    def _statistics(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the input, (1,3,1,1), copied to a device once: the host waits for such a copy.

        kornia, from 0.9 on, draws its random numbers on the host and sends them without waiting.
        """
        if (device, dtype) not in self.statistics:
            mean, std = (torch.tensor(of, device=device, dtype=dtype) for of in (self.mean, self.std))
            self.statistics[device, dtype] = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
        return self.statistics[device, dtype]

    def _each(self, probability: float) -> float:
        """With which an image is changed where the augmentation happens at all."""
        return 1.0 if self.draw == "batch" else probability

    def _happens(self, probability: float) -> bool:
        return probability > 0 and (self.draw == "image" or torch.rand(()).item() < probability)

    def _blur(self, *size: int) -> nn.Module:
        if size not in self.blurs:
            import kornia.augmentation as K

            kernel = min(blur_kernel(size[0]), 2 * min(size) - 1)  # its border is mirrored in the image
            p = self._each(self.blur_probability)
            self.blurs[size] = K.RandomGaussianBlur((kernel, kernel), self.sigma, p=p)
        return self.blurs[size]
