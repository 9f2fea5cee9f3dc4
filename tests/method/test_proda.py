"""ProDA: the authors' prototypes and corrected labels, its losses worked by hand, and a run as a plain loop."""

from __future__ import annotations

import math
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_fst.data.pairing import Pairs, collate
from hf_fst.errors import UserError
from hf_fst.method.objectives import ProDAObjective
from hf_fst.method.prototypes import class_means, cumulated, followed
from hf_fst.method.views import View
from tests import tiny
from tests.device import DEVICE, on_device
from tests.recorded import ids, recorded

ALONE = SimpleNamespace(gather=lambda found: found, device="cpu")  # an accelerator of one process


class Fixed(nn.Module):
    """Gives the same output for whatever images."""

    def __init__(self, logits: torch.Tensor, features: torch.Tensor):
        super().__init__()
        self.output = SemanticSegmenterOutput(logits=logits)
        self.output["features"] = features

    def forward(self, pixel_values):
        return self.output


def recorded_means():
    inputs, outputs = recorded("proda_prototypes")
    means, places = class_means(inputs["feat"], inputs["logits"].argmax(dim=1), 5)
    return inputs, outputs, (means, places >= 10)


def test_mean_features_are_the_authors():
    _, outputs, (means, present) = recorded_means()
    assert present.nonzero()[:, 1].tolist() == outputs["ids"]
    assert torch.allclose(means[present], outputs["vectors"], rtol=0, atol=1e-12)


def test_prototypes_follow_as_the_authors_do():
    inputs, outputs, found = recorded_means()
    prototypes, _ = followed(inputs["prototypes_before"], torch.ones(5), *found, momentum=0.9999)
    assert torch.allclose(prototypes, outputs["prototypes_after_moving"], rtol=0, atol=1e-12)


def test_prototypes_start_as_the_authors_do():
    _, outputs, (means, present) = recorded_means()
    prototypes, counts = torch.zeros(5, 6, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for offset in range(3):
        prototypes, counts = cumulated(prototypes, counts, means + offset, present, most=3000)
    assert torch.allclose(prototypes, outputs["cumulative_mean_3_passes_plus_0_1_2"], rtol=0, atol=1e-12)
    assert torch.equal(counts, outputs["cumulative_counts"])
    numbers = torch.arange(1, 3005, dtype=torch.float64).view(-1, 1, 1)  # they leave out a vector whose sum is 0
    always = torch.ones(3004, 1, dtype=torch.bool)
    start = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    mean, _ = cumulated(*start, numbers, always, most=3000)
    assert mean.item() == pytest.approx(outputs["cumulative_of_0_to_3004"].item(), abs=1e-9)


def test_a_class_that_was_never_seen_takes_its_first_mean():
    means = torch.tensor([[[8.0], [2.0]]]), torch.tensor([[True, True]])
    prototypes, counts = followed(torch.tensor([[0.0], [0.0]]), torch.tensor([0.0, 5.0]), *means, momentum=0.75)
    assert prototypes.tolist() == [[8.0], [0.5]] and counts.tolist() == [1, 5]


def prepared(threshold=0.0, valid=None):
    """The recorded features and soft labels, prepared."""
    inputs, outputs = recorded("proda_denoise")
    features = outputs["weak_feat"].double()
    reference = Fixed(inputs["soft_label"].log(), features)
    objective = ProDAObjective(num_labels=5, reference=reference, confidence_threshold=threshold)
    objective.memory.update(prototypes=inputs["prototypes"], counts=torch.ones(5))
    images = torch.zeros(2, 3, 16, 24, dtype=torch.float64)
    batch = {"pixel_values": images, "labels": torch.zeros(2, 16, 24).long(), "unlabeled_pixel_values": images}
    if valid is not None:
        batch["unlabeled_valid"] = valid
    teacher = Fixed(torch.zeros(2, 5, 16, 24, dtype=torch.float64), features)
    return objective, objective.prepare(lambda images: teacher(images), batch), outputs


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_corrected_labels_are_the_authors(threshold):
    objective, batch, outputs = prepared(threshold)
    assert torch.equal(batch["corrected_labels"], ids(outputs[f"denoised_label_thred{threshold}"])[:, 0])
    found = objective.assignment(outputs["weak_feat"].double())
    assert torch.allclose(found, outputs["weights"].double(), rtol=0, atol=1e-6)
    confidence = outputs["rectified"].double().max(dim=1).values
    assert torch.allclose(batch["pseudo_confidence"], confidence, rtol=0, atol=1e-6)


def test_padding_has_no_corrected_label_and_moves_no_prototype():
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    valid[1] = valid[0, :4] = False
    _, batch, outputs = prepared(valid=valid)
    for key in ("corrected_labels", "pseudo_labels"):
        assert torch.equal(batch[key] != 255, valid)
    assert torch.equal(batch["places"], valid) and not batch["consistent"][1].any()
    assert batch["class_places"].tolist() == [[12 * 24] + [0] * 4, [0] * 5]
    mean = outputs["weak_feat"].double()[0, :, 4:].mean(dim=(1, 2))
    assert torch.allclose(batch["class_means"][0, 0], mean, atol=1e-12)


def losses(network, objective, batch):
    terms = list(objective.terms(network, None, batch, objective.counts(batch)))
    assert len(terms) == objective.passes
    return {name: loss.item() for term in terms for name, loss in term.items()}


def test_the_losses_by_hand():
    """Two places of one image: p = 3/4, 1/4 everywhere, and the student's feature is 1 away from η_0, 2 from η_1."""
    logits = torch.tensor([math.log(3), 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    network = Fixed(logits, torch.ones(1, 1, 1, 2, dtype=torch.float64))
    options = {"unlabeled_weight": 0.5, "consistency_weight": 3.0, "regularizer_weight": 7.0}
    objective = ProDAObjective(num_labels=2, reference=network, **options)
    objective.memory.update(prototypes=torch.tensor([[0.0], [3.0]], dtype=torch.float64))
    nothing = torch.full((1, 1, 2), 255)
    batch = {
        **dict.fromkeys(("pixel_values", "weak_pixel_values", "strong_pixel_values"), torch.zeros(1, 3, 1, 2)),
        "labels": nothing,
        "corrected_labels": torch.tensor([[[1, 255]]]),
        "places": torch.tensor([[[True, True]]]),
        "consistent": torch.tensor([[[True, False]]]),
        "assignment": torch.tensor([0.25, 0.75], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 1, 2),
    }
    found = losses(network, objective, batch)
    symmetric = 0.1 * math.log(4) + 1.0 * math.log(1e4) * 3 / 4
    assert found["unlabeled_loss"] == pytest.approx(0.5 * symmetric)
    assert found["regularizer"] == pytest.approx(7 * (math.log(4 / 3) + math.log(4)) / 2)
    near = 1 / (1 + math.exp(-1))  # of η_0
    divergence = 0.25 * math.log(0.25 / near) + 0.75 * math.log(0.75 / (1 - near))
    assert found["consistency_loss"] == pytest.approx(3 * divergence / 2)


def test_a_reference_and_features_are_needed():
    with pytest.raises(UserError, match="ProDAObjective has no reference; give the network of the warm-up"):
        ProDAObjective(num_labels=3)
    objective = ProDAObjective(num_labels=3, reference=tiny.model())
    with pytest.raises(UserError, match="return_features"):
        batch = {"unlabeled_pixel_values": torch.zeros(2, 3, 8, 8, dtype=torch.float64)}
        objective.begin(iter([on_device(batch)]), SimpleNamespace(gather=ALONE.gather, device=DEVICE))


# a run as a plain loop


def mirrored(images, *normalization):
    """The strong view of this test: the mirror image, darker, with its left half cut out."""
    matrices = torch.tensor([[-1, 0, 0], [0, 1, 0]], dtype=images.dtype, device=images.device)
    holes = torch.zeros(len(images), 1, *images.shape[-2:], dtype=torch.bool, device=images.device)
    holes[..., : images.shape[-1] // 2] = True
    return View(0.5 * images.flip(-1), matrices.expand(len(images), 2, 3), holes)


class Loop:
    """ProDA's first stage with a mean teacher, knowing nothing of the package but the order of the images."""

    mu, lr, momentum, steps = 0.8, 0.1, 0.9, 4

    def __init__(self, labeled, unlabeled, start):
        whole = 4
        self.pairs, self.whole = Pairs(labeled, unlabeled, seed=7, multiple_of=whole), whole
        self.student, self.teacher, self.fixed = start, deepcopy(start), deepcopy(start)
        self.eta, self.seen = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3)

    def look(self, network, images):
        features = torch.tanh(network.stem(images))
        return features, network.head(features)

    def z(self, features):
        away = torch.stack([(features - eta[:, None, None]).pow(2).sum(1).sqrt() for eta in self.eta], dim=1)
        return F.softmax(-away / 0.5, dim=1)

    def means(self, features, logits):
        for feature, predicted in zip(features, logits.argmax(1), strict=True):
            for c in range(3):
                if (predicted == c).sum() >= 2:
                    yield c, feature[:, predicted == c].mean(1)

    @torch.no_grad()
    def begin(self, total, count):
        for k in range(count):
            for i in range(self.whole):
                image = self.pairs["ahead", total, k, i]["unlabeled_pixel_values"].to(DEVICE)
                for c, mean in self.means(*self.look(self.fixed, image[None])):
                    self.eta[c] = (self.seen[c] * self.eta[c] + mean) / (self.seen[c] + 1)
                    self.seen[c] += 1

    def run(self):
        optimizer = torch.optim.SGD(self.student.parameters(), lr=self.lr)
        for t in range(self.steps):
            batch = on_device(collate([self.pairs[t * self.whole + i] for i in range(self.whole)]))
            images, labels = batch["unlabeled_pixel_values"], batch["labels"]
            with torch.no_grad():
                for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    mine.copy_(self.mu * mine + (1 - self.mu) * theirs)
                features, logits = self.look(self.teacher, images)
                corrected = (self.z(features) * F.softmax(self.look(self.fixed, images)[1], 1)).argmax(1)
                target = self.z(features.flip(-1))
                means = list(self.means(features, logits))
            upsampled = F.interpolate(self.look(self.student, batch["pixel_values"])[1], (8, 8), mode="bilinear")
            loss = F.cross_entropy(upsampled, labels, ignore_index=255)
            strong, _ = self.look(self.student, 0.5 * images.flip(-1))
            divergence = F.kl_div(self.z(strong).log(), target, reduction="none")[..., 2:]  # the left half is a hole
            loss = loss + 2.0 * divergence.mean()
            logits = self.look(self.student, images)[1]
            p = F.softmax(logits, 1)
            wrong = 1 - p.gather(1, corrected[:, None])
            loss = loss + 0.7 * (0.1 * F.cross_entropy(logits, corrected) + math.log(1e4) * wrong.mean())
            loss = loss - 0.3 * p.log().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for c, mean in means:
                self.eta[c] = self.momentum * self.eta[c] + (1 - self.momentum) * mean
        return self


def test_a_run_is_the_plain_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_fst.method.objectives.proda.strong_view", mirrored)
    options = {
        **{"objective": "proda", "rule": "mean_teacher", "teacher_momentum": 0.8, "momentum_warmup": False},
        **{"prototype_temperature": 0.5, "prototype_momentum": 0.9, "prototype_passes": 2.0},
        **{"unlabeled_weight": 0.7, "consistency_weight": 2.0, "regularizer_weight": 0.3},
        **{"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0},
        **{"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"},
    }
    trainer = tiny.trainer(tmp_path, **options)
    object.__setattr__(trainer.learning_objective, "least_places", 2)
    trainer.train()
    loop = Loop(tiny.images(6, 1), tiny.images(8, 2, labels=False), tiny.model().to(DEVICE))
    loop.begin(4, count=4)  # two passes over eight images, four a time
    loop.run()
    for mine, theirs in ((trainer.model, loop.student), (trainer.teacher.model, loop.teacher)):
        assert tiny.distance(tiny.weights(mine), tiny.weights(theirs)) < 1e-9
    assert tiny.distance([trainer.learning_objective.memory["prototypes"]], [loop.eta]) < 1e-9
    assert loop.seen.min() > 0
