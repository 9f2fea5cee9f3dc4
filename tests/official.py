"""The authors' loops, told once more as plain torch from the description of what their code does, and their toy network.

Independent of `hf_fst`: it is what the `official` preset is measured against where no recording of their code is at hand,
and is itself measured against the recordings in `tests/data`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tests.device import DEVICE, on_device

CLASSES, IGNORE = 4, 255


class ToyConfig(PreTrainedConfig):
    model_type = "toy_of_the_recordings"

    def __init__(self, batch_norm=False, **kwargs):
        super().__init__(**kwargs)
        self.batch_norm = batch_norm


class Backbone(nn.Module):
    def __init__(self, batch_norm: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm1 = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 12, 3, 2, 1)
        self.norm2 = nn.BatchNorm2d(12) if batch_norm else nn.Identity()


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_seg = nn.Conv2d(12, CLASSES, 1)


class Toy(PreTrainedModel):
    """Two strided convolutions and a classifier, under the names of the recordings; logits at a quarter of the size."""

    config_class = ToyConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.backbone, self.decode_head = Backbone(config.batch_norm), Head()
        self.post_init()

    def _init_weights(self, module):
        """Keep torch's own initialisation."""

    def forward(self, pixel_values, labels=None, output_hidden_states=None):
        b = self.backbone
        fine = F.gelu(b.norm1(b.conv1(pixel_values.to(b.conv1.weight.device))))
        coarse = F.gelu(b.norm2(b.conv2(fine)))
        return SemanticSegmenterOutput(logits=self.decode_head.conv_seg(coarse), hidden_states=(fine, coarse))


def toy(weights: dict | None = None, batch_norm: bool = False, seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    network = Toy(ToyConfig(num_labels=CLASSES, batch_norm=batch_norm)).double().to(DEVICE)
    if weights is not None:
        network.load_state_dict(weights)
    return network


def upsampled(network, images):
    return F.interpolate(network(images).logits, images.shape[-2:], mode="bilinear", align_corners=False)


@dataclass
class Loop:
    """One run of the authors' code. `batches` are dicts img, gt (B,H,W), target_img, future (list of such dicts)."""

    variant: str  # dacs, fst_d, fst_w, semi_baseline, semi_fst
    batches: list[dict]
    count: int = 3  # K or N
    lr: float = 0.1
    alpha: float = 0.9
    threshold: float = 0.45
    ignore_top: int = 0
    ignore_bottom: int = 0
    optimizer: str = "sgd"
    distance: float = 0.0
    distance_classes: tuple = (1, 2)
    drop_percent: float = 80.0
    ohem: tuple | None = None
    reference: nn.Module | None = None
    students: list = field(default_factory=list)
    teachers: list = field(default_factory=list)

    def run(self, student: nn.Module) -> Loop:
        self.student, self.teacher = student, deepcopy(student)
        self.student.train(), self.teacher.train()
        kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
        options = {"momentum": 0.9} if self.optimizer == "momentum" else {}
        kind = kinds["sgd" if self.optimizer == "momentum" else self.optimizer]
        self.stepper = kind(student.parameters(), lr=self.lr, **options)
        self.forwards = 0
        for t, batch in enumerate(on_device(self.batches)):
            self.t = t
            {"dacs": self.dacs, "fst_d": self.fst_d, "fst_w": self.fst_w}.get(self.variant, self.semi)(batch)
            self.students.append(deepcopy(self.student.state_dict()))
            self.teachers.append(deepcopy(self.teacher.state_dict()))
        return self

    # moving the teacher

    @torch.no_grad()
    def follow(self, counter: int, parameters=None):
        a = min(1 - 1 / (counter + 1), self.alpha)
        for mine, theirs in zip(self.teacher.parameters(), parameters or self.student.parameters(), strict=True):
            mine.copy_(a * mine + (1 - a) * theirs)

    def remember(self):
        return [p.detach().clone() for p in self.student.parameters()]

    @torch.no_grad()
    def put_back(self, kept):
        for p, k in zip(self.student.parameters(), kept, strict=True):
            p.copy_(k)

    # the loops of domain adaptation

    def dacs(self, batch):
        self.follow(self.forwards)
        self.adapt(batch)

    def fst_d(self, batch):
        if self.t == 0:
            self.follow(0)
            self.adapt(batch)
            self.follow(self.forwards)
            return
        kept = self.remember()
        for _ in range(self.count):
            self.follow(self.forwards)
            self.adapt(batch)
        self.follow(self.forwards)
        self.put_back(kept)
        self.adapt(batch)

    def fst_w(self, batch):
        if self.t == 0:
            return self.fst_d(batch)
        kept = self.remember()
        total = [torch.zeros_like(p) for p in kept]
        for future in batch["future"]:
            self.put_back(kept)
            self.adapt(future)
            total = [a + p.detach() for a, p in zip(total, self.student.parameters(), strict=True)]
        self.follow(self.forwards, [a / len(batch["future"]) for a in total])
        self.put_back(kept)
        self.adapt(batch)
        self.follow(self.forwards)

    def adapt(self, batch):
        """One forward_train and optimizer step: mean over all pixels, everything from the target image."""
        images, labels, target = batch["img"], batch["gt"], batch["target_img"]
        self.stepper.zero_grad()
        logits = upsampled(self.student, images)
        F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").mean().backward()
        if self.distance:
            with torch.no_grad():
                wanted = self.reference.eval()(images).hidden_states[-1]
            given = self.student(images).hidden_states[-1] if not self.has_norm else None
            assert given is not None, "a second forward pass would move the statistics"
            places = self.places(labels, wanted.shape[-1])
            (self.distance * (given - wanted).norm(dim=1)[places].mean()).backward()
        with torch.no_grad():
            confidence, pseudo = upsampled(self.teacher, target).softmax(1).max(1)
        weight = torch.full_like(confidence, (confidence >= self.threshold).double().mean().item())
        weight[:, : self.ignore_top] = 0
        if self.ignore_bottom:
            weight[:, -self.ignore_bottom :] = 0
        loss = F.cross_entropy(upsampled(self.student, target), pseudo, reduction="none")
        (loss * weight).mean().backward()
        self.stepper.step()
        self.forwards += 1

    @property
    def has_norm(self):
        return any(isinstance(m, nn.BatchNorm2d) for m in self.student.modules())

    def places(self, labels, width):
        """One-hot labels averaged over squares; a square counts where one wanted class has three quarters of it."""
        side = labels.shape[-1] // width
        squares = labels.unfold(1, side, side).unfold(2, side, side).flatten(3)
        best, share = torch.zeros_like(squares[..., 0]), torch.zeros_like(squares[..., 0], dtype=torch.float64)
        for c in [*range(CLASSES), IGNORE]:
            here = (squares == c).double().mean(-1)
            best, share = torch.where(here > share, c, best), torch.maximum(share, here)
        wanted = torch.zeros_like(best, dtype=torch.bool)
        for c in self.distance_classes:
            wanted |= best == c
        return wanted & (share >= 0.75)

    # the semi-supervised loop

    def semi(self, batch):
        if self.variant == "semi_baseline":
            self.learn(batch)
            self.follow(self.t)
            return
        kept = self.remember()
        for _ in range(self.count):
            self.follow(self.t)
            self.learn(batch)
        self.follow(self.t)
        self.put_back(kept)
        self.learn(batch)
        self.follow(self.t)

    def learn(self, batch):
        images, labels, target = batch["img"], batch["gt"], batch["target_img"]
        joint = torch.cat([images, target])
        with torch.no_grad():
            self.teacher.eval()
            pseudo = upsampled(self.teacher, target).argmax(1)
            self.teacher.train()
            p = upsampled(self.teacher, joint)[len(images) :].softmax(1)
            uncertainty = -(p * (p + 1e-10).log()).sum(1)
            limit = np.percentile(uncertainty.cpu().numpy().ravel(), self.drop_percent)
        pseudo[uncertainty >= limit] = IGNORE
        self.stepper.zero_grad()
        logits = upsampled(self.student, joint)
        own, other = logits[: len(images)], logits[len(images) :]
        if self.ohem:
            labels = self.hard(own.detach(), labels)
        kept = (pseudo != IGNORE).sum()
        loss = F.cross_entropy(own, labels, ignore_index=IGNORE)
        loss = loss + pseudo.numel() / kept * F.cross_entropy(other, pseudo, ignore_index=IGNORE)
        loss.backward()
        self.stepper.step()

    def hard(self, logits, labels):
        """Labels with easy pixels ignored, chosen by sorting."""
        threshold, min_kept = self.ohem
        p = logits.softmax(1).permute(0, 2, 3, 1)[labels != IGNORE]
        right = p[torch.arange(len(p)), labels[labels != IGNORE]]
        if min_kept > len(right):
            return labels
        limit = max(threshold, sorted(right.tolist())[min_kept - 1])
        hard = labels.clone()
        hard[labels != IGNORE] = torch.where(right <= limit, labels[labels != IGNORE], IGNORE)
        return hard
