"""CPSL: the authors' Sinkhorn labels and self-labeling, the contrast worked by hand, and a run as a plain loop."""

from __future__ import annotations

import math
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hf_fst.data.pairing import collate
from hf_fst.method.contrast import enqueued
from hf_fst.method.objectives import CPSLObjective
from hf_fst.method.objectives.cpsl import drawn_places
from hf_fst.method.self_labeling import label_contrast, self_labeling_loss, sinkhorn
from tests import tiny
from tests.device import DEVICE, on_device
from tests.method.test_proda import Loop, mirrored
from tests.recorded import recorded


def test_sinkhorn_labels_are_the_authors():
    inputs, outputs = recorded("cpsl_sinkhorn")
    uniform = torch.full((7,), 1 / 7, dtype=torch.float64)
    for name, shares in (("class_balance", inputs["class_distribution"]), ("uniform", uniform)):
        for iterations, suffix in ((3, ""), (50, "_50iter")):
            found = sinkhorn(inputs["similarity"], shares, inputs["epsilon"], iterations)
            assert torch.allclose(found, outputs[f"q_{name}{suffix}"], rtol=0, atol=1e-12)


def test_a_class_without_a_share_labels_nothing():
    found = sinkhorn(torch.eye(3, dtype=torch.float64), torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    assert (found[:, 2] == 0).all() and torch.allclose(found.sum(dim=1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("case", ["full", "empty"])
def test_self_labeling_and_its_gradient_are_the_authors(case):
    inputs, outputs = recorded("cpsl_self_label")
    given, expected = inputs[case], outputs[case]
    prototypes = inputs["prototypes"].double().requires_grad_()
    remembered = (given["queue_in"].double(), given["queue_out_in"]) if case == "full" else None
    losses = []
    for image in range(2):
        rows = [inputs[key][image].double().flatten(1).t()[given["perm"]][:16] for key in ("feat_ema", "logits_ema")]
        features, logits = (F.normalize(each, dim=1) for each in rows)
        shares, options = inputs["class_distribution"], {"temperature": 0.08, "coded": True}
        losses.append(self_labeling_loss(features, logits, prototypes, shares, remembered, **options))
        if remembered is not None:  # ours are the other way round: the newest last
            remembered = tuple(
                enqueued(old.flip(0), new.flip(0), 64).flip(0)
                for old, new in zip(remembered, (features, logits), strict=True)
            )
    loss = sum(losses) / 2
    assert loss.item() == pytest.approx(expected["loss_total"].item(), abs=1e-10)
    [gradient] = torch.autograd.grad(loss, prototypes)
    assert torch.allclose(gradient.float(), expected["grad_prototypes"], rtol=0, atol=1e-6)
    if remembered is not None:
        assert torch.allclose(remembered[0][:2, :8].float(), expected["queue_first_rows"], atol=1e-6)
        assert torch.allclose(remembered[1][:16], expected["queue_out_after_first"], atol=1e-10)


def test_the_paper_compares_remembered_pixels_with_normalized_prototypes():
    torch.manual_seed(0)
    features, earlier = (F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1) for _ in range(2))
    outputs = F.normalize(torch.randn(6, 3, dtype=torch.float64), dim=1)
    prototypes, shares = torch.randn(3, 4, dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)
    remembered = earlier, outputs.flip(0)
    lengths = torch.tensor([[0.5], [2.0], [3.0]])

    def losses(coded):
        both = prototypes, lengths * prototypes
        return [self_labeling_loss(features, outputs, p, shares, remembered, 0.1, coded).item() for p in both]

    paper, coded = losses(False), losses(True)
    assert paper[0] == pytest.approx(paper[1]) and abs(coded[0] - coded[1]) > 1e-6


def test_the_contrast_by_hand():
    """One anchor of class 1 with cosines 1, 0 and -1 to a positive, a negative and a positive; one without a label."""
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    remembered = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    found = label_contrast(anchors, torch.tensor([1, 255]), remembered, torch.tensor([1, 0, 1, 255]), 0.5)
    e = math.exp
    expected = (math.log(1 + e(0 - 2)) + math.log(1 + e(0 + 2))) / (2 + 1e-5)
    assert found.item() == pytest.approx(expected)
    assert torch.isfinite(label_contrast(anchors, torch.tensor([1, 0]), remembered[:1], torch.tensor([1]), 0.5))


def test_places_are_drawn_of_those_allowed():
    allowed = torch.zeros(3, 4, 5, dtype=torch.bool)
    allowed[0, 1:3] = allowed[1, 0, 0] = True
    torch.manual_seed(0)
    places = drawn_places(allowed, 8)
    assert places.shape == (3, 8) and places[0].unique().numel() == 8 and set(places[0].tolist()) <= set(range(5, 15))
    assert places[1].tolist() == [0] * 8  # too few: with replacement
    assert places[2].unique().numel() == 8
    assert drawn_places(allowed, 100).shape == (3, 20)


def test_rectangles_of_labeled_images_are_pasted_with_their_labels():
    network = tiny.model()
    objective = CPSLObjective(num_labels=3, reference=network, cut_probability=1.0)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    batch = {
        "pixel_values": images + 5,
        "labels": torch.full((2, 8, 8), 2),
        "weak_pixel_values": images,
        "corrected_labels": torch.zeros(2, 4, 4, dtype=torch.long),
    }
    pasted = objective.pasted(batch)
    inside = pasted["weak_pixel_values"][:, 0] == 5
    assert inside.any() and not inside.all() and not pasted["uncut"]
    assert torch.equal(pasted["corrected_labels"] == 2, inside[:, ::2, ::2])
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    assert torch.equal(objective.pasted({**batch, "valid": valid})["weak_pixel_values"], images)  # all is padding
    never = CPSLObjective(num_labels=3, reference=network, cut_probability=0.0).pasted(batch)
    assert never["uncut"] and torch.equal(never["weak_pixel_values"], images)


class CPSLLoop(Loop):
    """CPSL's first stage with a mean teacher: ProDA's loop with prototypes that learn."""

    tau, size = 0.5, 24

    def begin(self, total, count):
        super().begin(total, count)
        predicted = torch.zeros(3, dtype=torch.float64)
        for k in range(count):
            for i in range(self.whole):
                image = self.pairs["ahead", total, k, i]["unlabeled_pixel_values"].to(DEVICE)
                with torch.no_grad():
                    predicted += torch.bincount(self.look(self.fixed, image[None])[1].argmax(1).flatten(), minlength=3)
        self.shares = predicted / predicted.sum()
        self.c = F.normalize(self.eta, dim=1)
        self.c_phi, self.v, self.queue = self.c.clone(), torch.zeros_like(self.c), []

    def z(self, features):
        cosines = [F.cosine_similarity(features, c[None, :, None, None], dim=1) for c in self.c_phi]
        return F.softmax(torch.stack(cosines, dim=1) / self.tau, dim=1)

    def learn(self, features, logits, labels):
        c = self.c.clone().requires_grad_()
        total = 0.0
        for f, g, y in zip(features, logits, labels, strict=True):
            rows = [(F.normalize(f[:, 0, x], dim=0), F.normalize(g[:, 0, x], dim=0), y[0, x]) for x in range(4)]
            seen = rows + (self.queue if len(self.queue) == self.size else [])
            unit = F.normalize(c, dim=1)
            with torch.no_grad():
                targets = []
                for s in (torch.stack([r[0] @ unit.t() for r in seen]), torch.stack([r[1] for r in seen])):
                    q = torch.exp(s / 0.05)
                    for _ in range(3):
                        q = q / q.sum(0) * self.shares
                        q = q / q.sum(1, keepdim=True)
                    targets.append(q[:4])
            for row, (f_x, _, _) in enumerate(rows):
                total = (
                    total - ((targets[0] + targets[1])[row] * F.log_softmax(f_x @ unit.t() / self.tau, 0)).sum() / 4
                )
            self.queue = (self.queue + rows)[-self.size :]
        (0.4 * total / len(features)).backward()
        self.v = 0.9 * self.v + c.grad + 2e-4 * self.c
        self.c = self.c - 5 * self.lr * self.v
        self.c_phi = 0.9 * self.c_phi + 0.1 * self.c

    def contrast(self, features, labels):
        total = 0.0
        for f, y in zip(features, labels, strict=True):
            for x in range(4):
                scores = torch.stack([F.normalize(f[:, 0, x], dim=0) @ r[0] for r in self.queue]) / self.tau
                same = torch.stack([r[2] == y[0, x] for r in self.queue])
                if same.any():
                    rest = scores[~same].exp().sum()
                    total = total - torch.log(scores[same].exp() / (scores[same].exp() + rest)).sum() / (
                        same.sum() + 1e-5
                    )
        return total / (len(labels) * 4)

    def run(self):
        optimizer = torch.optim.SGD(self.student.parameters(), lr=self.lr)
        for t in range(self.steps):
            batch = on_device(collate([self.pairs[t * self.whole + i] for i in range(self.whole)]))
            images = batch["unlabeled_pixel_values"]
            with torch.no_grad():
                for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    mine.copy_(self.mu * mine + (1 - self.mu) * theirs)
                features, logits = self.look(self.teacher, images)
                corrected = (self.z(features) * F.softmax(self.look(self.fixed, images)[1], 1)).argmax(1)
                target = self.z(features.flip(-1))
            upsampled = F.interpolate(self.look(self.student, batch["pixel_values"])[1], (8, 8), mode="bilinear")
            loss = F.cross_entropy(upsampled, batch["labels"], ignore_index=255)
            strong, _ = self.look(self.student, 0.5 * images.flip(-1))
            loss = loss + 2.0 * F.kl_div(self.z(strong).log(), target, reduction="none")[..., 2:].mean()
            weak, logits_weak = self.look(self.student, images)
            wrong = 1 - F.softmax(logits_weak, 1).gather(1, corrected[:, None])
            loss = loss + 0.7 * (0.1 * F.cross_entropy(logits_weak, corrected) + math.log(1e4) * wrong.mean())
            if len(self.queue) == self.size:
                loss = loss + 0.3 * self.contrast(weak, corrected)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.learn(features, logits, corrected)
        return self


def test_a_run_is_the_plain_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_fst.method.objectives.proda.strong_view", mirrored)
    first = SimpleNamespace(four=lambda allowed, count: torch.arange(4, device=allowed.device).expand(len(allowed), 4))
    monkeypatch.setattr("hf_fst.method.objectives.cpsl.drawn_places", first.four)  # the first row of the features
    options = {
        **{"objective": "cpsl", "rule": "mean_teacher", "teacher_momentum": 0.8, "momentum_warmup": False},
        **{"prototype_temperature": 0.5, "prototype_momentum": 0.9, "prototype_passes": 2.0, "bank_size": 24},
        **{"unlabeled_weight": 0.7, "consistency_weight": 2.0, "contrast_weight": 0.3, "self_labeling_weight": 0.4},
        **{"cut_probability": 0.0, "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        **{"max_grad_norm": 0, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"},
    }
    trainer = tiny.trainer(tmp_path, **options)
    object.__setattr__(trainer.learning_objective, "least_places", 2)
    trainer.train()
    loop = CPSLLoop(tiny.images(6, 1), tiny.images(8, 2, labels=False), deepcopy(tiny.model()).to(DEVICE))
    loop.begin(4, count=4)
    loop.run()
    memory = trainer.learning_objective.memory
    for mine, theirs in ((trainer.model, loop.student), (trainer.teacher.model, loop.teacher)):
        assert tiny.distance(tiny.weights(mine), tiny.weights(theirs)) < 1e-6  # shares are in single precision
    assert tiny.distance([memory["prototypes"], memory["followed"]], [loop.c, loop.c_phi]) < 1e-6
    assert (
        len(loop.queue) == 24 and tiny.distance([memory["features"]], [torch.stack([r[0] for r in loop.queue])]) < 1e-6
    )
