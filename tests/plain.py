"""The rules once more, as a plain torch loop over deep copies: the reference that the trainer is measured against.

It knows nothing of `hf_fst.method.rules`, `lookahead`, `teacher`, `losses` or `objectives`; only the order of the
images is asked of `hf_fst.data.pairing`, which is what a run's images are. The student's virtual futures are deep
copies with optimizers of their own, so nothing has to be put back.
"""

from __future__ import annotations

import math
import random
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import BatchNorm2d

from hf_fst.data.pairing import Pairs, collate
from tests.device import noise_state, on_device, set_noise_state
from tests.shampoo import Shampoo


@dataclass
class Plain:
    """Settings of a run; the names say what they are in the equations."""

    rule: str
    count: int = 3  # K or N
    different: bool = False
    present_labels: bool = False  # ψ = φ_t instead of φ'
    mu: float = 0.9
    mu_ahead: float = 0.8
    memory: float | None = None  # in the place of both
    every: int = 1  # M
    warmup: bool = False
    buffers: str = "copy"
    carry: bool = False
    weight: float = 0.7  # λ
    optimizer: str = "sgd"
    lr: float = 0.1
    decay: float = 0.05
    clip: float = 0.5
    steps: int = 4
    batch_size: int = 2
    accumulation: int = 1
    seed: int = 7
    noise: list = field(default_factory=list)  # torch's random state at the start of each step, where there is dropout

    # the pieces

    def make_optimizer(self, network):
        decayed = [p for n, p in network.named_parameters() if n.endswith("weight") and "norm" not in n]
        rest = [p for n, p in network.named_parameters() if not n.endswith("weight") or "norm" in n]
        groups = [{"params": decayed, "weight_decay": self.decay}, {"params": rest, "weight_decay": 0.0}]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=0.9)
        if self.optimizer == "shampoo":
            return Shampoo(groups, lr=self.lr)
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.999), eps=1e-8)

    def loss(self, network, teacher, group):
        """CE(g_θ(x_l), y_l) + λ CE(g_θ(x_u), argmax g_φ(x_u)), means over the valid pixels of the whole group."""
        valid = sum((batch["labels"] < 255).sum() for batch in group)
        pseudo, count = [], 0
        for batch in group if self.rule != "supervised" else ():
            images = batch["unlabeled_pixel_values"]
            with torch.no_grad():
                logits = F.interpolate(teacher(images).logits, images.shape[-2:], mode="bilinear")
            pseudo.append(logits.argmax(1))
            count += pseudo[-1].numel()
        total = 0
        for i, batch in enumerate(group):
            logits = F.interpolate(network(batch["pixel_values"]).logits, batch["labels"].shape[-2:], mode="bilinear")
            total = total + F.cross_entropy(logits, batch["labels"], ignore_index=255, reduction="sum") / valid
            if self.rule != "supervised":
                images = batch["unlabeled_pixel_values"]
                logits = F.interpolate(network(images).logits, images.shape[-2:], mode="bilinear")
                total = total + self.weight * F.cross_entropy(logits, pseudo[i], reduction="sum") / count
        return total

    def step(self, network, optimizer, teacher, group):
        optimizer.zero_grad()
        self.loss(network, teacher, group).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), self.clip)
        optimizer.step()
        optimizer.zero_grad()

    def future(self, network, optimizer, teacher, group):
        """A copy of the student, and of its optimizer, one step on."""
        network, state = deepcopy(network), deepcopy(optimizer.state_dict())
        optimizer = self.make_optimizer(network)
        optimizer.load_state_dict(state)
        self.step(network, optimizer, teacher, group)
        return network, optimizer

    def follow(self, teacher, parameters, buffers, momentum):
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), parameters, strict=True):
                mine.copy_(momentum * mine + (1 - momentum) * theirs)
            for mine, theirs in zip(teacher.buffers(), buffers, strict=True):
                if self.buffers == "ema" and mine.is_floating_point():
                    mine.copy_(momentum * mine + (1 - momentum) * theirs)
                elif self.buffers != "batch":
                    mine.copy_(theirs)

    def factor(self, t, mu):
        """Of a following at step t; with a memory all of a step multiply to 1 - 1/memory."""
        mu = mu if self.memory is None else 1 - 1 / self.memory
        mu = min(1 - 1 / (t + 1), mu) if self.warmup else mu
        moves = {"mean_teacher": 1, "naive_fst": 1, "fst_d": self.count + 1}.get(self.rule, 2)
        return mu if self.memory is None else mu ** (1 / moves)

    # the rules

    def look_ahead(self, student, optimizer, teacher, group, ahead):
        """Moves `teacher` to φ_{t+1}; gives the last virtual student and its optimizer, None where there is none."""
        mu, mu_ahead = self.mu_now, self.mu_ahead_now

        def follow(network, momentum):
            self.follow(teacher, list(network.parameters()), list(network.buffers()), momentum)

        groups = ahead if self.different else [group] * self.count
        if self.rule == "supervised":
            return None
        if self.rule == "mean_teacher" or not self.looks:
            follow(student, mu)
            return None
        if self.rule == "naive_fst":
            last = self.future(student, optimizer, teacher, groups[0])
            follow(last[0], mu)
            return last
        if self.rule == "improved_fst":
            follow(student, mu)
            last = self.future(student, optimizer, teacher, groups[0])
            follow(last[0], mu_ahead)
            return last
        if self.rule == "fst_d":
            follow(student, mu)
            last = (student, optimizer)
            for virtual in groups:
                last = self.future(*last, teacher, virtual)
                follow(last[0], mu_ahead)
            return last
        if not self.present_labels:
            follow(student, mu)
        futures, start, state = [], student, optimizer
        for virtual in groups:
            last = self.future(start, state, teacher, virtual)
            futures.append(last[0])
            if self.carry:  # buffers and optimizer state go on, parameters start from the present
                start, state = deepcopy(last[0]), last[1]
                with torch.no_grad():
                    for p, q in zip(start.parameters(), student.parameters(), strict=True):
                        p.copy_(q)
        if self.present_labels:
            present = student if not self.carry else start
            follow(present, mu)
        parameters = [sum(ps) / len(ps) for ps in zip(*(f.parameters() for f in futures), strict=True)]
        buffers = [
            sum(bs) / len(bs) if bs[0].is_floating_point() else bs[0]
            for bs in zip(*(f.buffers() for f in futures), strict=True)
        ]
        self.follow(teacher, parameters, buffers, mu_ahead)
        return last

    # the run

    def groups(self, labeled, unlabeled):
        """The accumulation groups of all steps, and the function that gives a step's groups of other images."""
        whole = self.batch_size * self.accumulation
        pairs = Pairs(labeled, unlabeled, seed=self.seed, multiple_of=whole)

        def cut(items):
            return [on_device(collate(items[i : i + self.batch_size])) for i in range(0, whole, self.batch_size)]

        real = [cut([pairs[t * whole + i] for i in range(whole)]) for t in range(self.steps)]
        return real, lambda t, k: cut([pairs["ahead", t, k, i] for i in range(whole)])

    def run(self, student, labeled, unlabeled):
        """Trains `student` in place by the equations; gives the teacher."""
        teacher = deepcopy(student).requires_grad_(False).eval()
        if self.buffers == "batch":
            for module in teacher.modules():
                if isinstance(module, BatchNorm2d):
                    module.train()
        student.train()
        optimizer = self.make_optimizer(student)
        real, other = self.groups(labeled, None if self.rule == "supervised" else unlabeled)
        for t, group in enumerate(real):
            for settings in optimizer.param_groups:
                settings["lr"] = self.lr * (self.steps - t) / self.steps
            self.t, self.looks = t, t % self.every == 0
            self.mu_now = self.factor(t, self.mu)
            self.mu_ahead_now = math.prod(self.factor(t + i, self.mu_ahead) for i in range(self.every))
            if self.noise:
                set_noise_state(self.noise[t])
            ahead = [other(t, k) for k in range(self.count)] if self.different else None
            before = noise_state(), np.random.get_state(), random.getstate()
            last = self.look_ahead(student, optimizer, teacher, group, ahead)
            if not self.carry:
                set_noise_state(before[0])
                np.random.set_state(before[1])
                random.setstate(before[2])
            elif last is not None:
                optimizer.load_state_dict(last[1].state_dict())
                with torch.no_grad():
                    for mine, theirs in zip(student.buffers(), last[0].buffers(), strict=True):
                        mine.copy_(theirs)
            self.step(student, optimizer, teacher, group)
        return teacher
