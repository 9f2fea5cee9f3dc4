"""The losses of UniMatch and UniMatch V2 as plain torch on the tiny network, with boxes and channel masks that are given.

Like `tests.plain`, it knows nothing of `hf_fst.method`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.device import DEVICE
from tests.plain import Plain

THRESHOLD = 0.4
# True inside the boxes of the first and of the second view, an image a row
BOXES = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
BOXES[0, 0, 1:5, 2:7] = BOXES[0, 1, 3:, :4] = BOXES[1, 0, :, 5:] = True
DROPPED = torch.tensor([[2.0, 0.0, 0.0, 2.0], [0.0, 2.0, 2.0, 2.0]], dtype=torch.float64)  # of each image


class PlainUniMatch(Plain):
    """½·[CE + λ·(½·ℓ(fp) + ¼·ℓ(s1) + ¼·ℓ(s2))], sums over the whole group by its pixels."""

    def loss(self, network, teacher, group):
        valid = sum((batch["labels"] < 255).sum() for batch in group)
        pixels = sum(batch["unlabeled_pixel_values"][:, 0].numel() for batch in group)
        total = 0
        for batch in group:
            images, count = batch["unlabeled_pixel_values"], len(batch["pixel_values"])
            labels, confidence = self.label(teacher, images)
            features = self.features(network, torch.cat([batch["pixel_values"], images]))
            # the head sees clean and perturbed features together
            channels = DROPPED.to(DEVICE)[torch.arange(len(features)) % 2]
            both = torch.cat([features, features * channels[:, :, None, None]])
            logits = self.resized(network.head(both))
            total = total + F.cross_entropy(logits[:count], batch["labels"], ignore_index=255, reduction="sum") / valid
            stream = self.confident(logits[-len(images) :], labels, confidence)
            views, *targets = self.views(images, labels, confidence)
            strong = self.confident(self.resized(network(views).logits), *targets)
            total = total + self.weight * (0.5 * stream + 0.25 * strong) / pixels
        return total / 2

    def views(self, images, labels, confidence):
        """Both views, the next image of the batch inside their boxes."""
        inside = BOXES[:, : len(images)].flatten(0, 1).to(DEVICE)
        pick = torch.arange(len(images)).repeat(2)
        other = (pick + 1) % len(images)
        views = torch.where(inside[:, None], images[other], images[pick])
        return (
            views,
            torch.where(inside, labels[other], labels[pick]),
            torch.where(inside, confidence[other], confidence[pick]),
        )

    @staticmethod
    def label(teacher, images):
        with torch.no_grad():
            p = PlainUniMatch.resized(teacher(images).logits).softmax(1)
        return p.argmax(1), p.amax(1)

    @staticmethod
    def confident(logits, labels, confidence):
        return (F.cross_entropy(logits, labels, reduction="none") * (confidence >= THRESHOLD)).sum()

    @staticmethod
    def features(network, images):
        return torch.tanh(network.norm(network.stem(images)))

    @staticmethod
    def resized(logits):
        return F.interpolate(logits, (8, 8), mode="bilinear")


class PlainUniMatchV2(PlainUniMatch):
    """½·[CE + λ·½·(ℓ(s1; M) + ℓ(s2; 2 - M))]; labeled images pass the network by themselves."""

    def loss(self, network, teacher, group):
        valid = sum((batch["labels"] < 255).sum() for batch in group)
        pixels = sum(batch["unlabeled_pixel_values"][:, 0].numel() for batch in group)
        total = 0
        for batch in group:
            logits = self.resized(network(batch["pixel_values"]).logits)
            total = total + F.cross_entropy(logits, batch["labels"], ignore_index=255, reduction="sum") / valid
            labels, confidence = self.label(teacher, batch["unlabeled_pixel_values"])
            views, *targets = self.views(batch["unlabeled_pixel_values"], labels, confidence)
            features = self.features(network, views)
            first = DROPPED.to(DEVICE)[: len(views) // 2]
            logits = self.resized(network.head(features * torch.cat([first, 2 - first])[:, :, None, None]))
            total = total + self.weight * 0.5 * self.confident(logits, *targets) / pixels
        return total / 2
