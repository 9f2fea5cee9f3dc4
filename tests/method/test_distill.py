"""Distillation: which labels a fixed network gives, the losses worked by hand, and who may look ahead."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_fst.errors import UserError
from hf_fst.method.objectives import DistillObjective
from hf_fst.training.settings import resolve
from tests import tiny
from tests.device import on_device
from tests.method.test_proda import Fixed, mirrored


class Reader(torch.nn.Module):
    """Logits of two classes: 0 and the first channel of the image."""

    def forward(self, pixel_values):
        x = pixel_values[:, :1]
        return SemanticSegmenterOutput(logits=torch.cat([x * 0, x], dim=1))


def batch(*rows, **more):
    values = torch.tensor([rows], dtype=torch.float64)
    images = torch.stack([values, values * 0, values * 0], dim=1)
    labels = torch.zeros(1, *values.shape[1:], dtype=torch.long)
    return {"pixel_values": images, "labels": labels, "unlabeled_pixel_values": images, **more}


def test_labels_are_of_the_mean_over_the_mirror_image_where_it_is_sure_and_move_with_the_view(monkeypatch):
    class Half(torch.nn.Module):
        """Sure on the left of what it sees: of class 1 there, of nothing on the right."""

        def forward(self, pixel_values):
            left = torch.tensor([9.0, 9.0, 0.0, 0.0], dtype=torch.float64)
            x = left.expand(len(pixel_values), 1, 1, 4)
            return SemanticSegmenterOutput(logits=torch.cat([x * 0, x], dim=1))

    monkeypatch.setattr("hf_fst.method.objectives.distill.strong_view", mirrored)
    objective = DistillObjective(reference=Half(), confidence_threshold=0.6)
    prepared = objective.prepare(None, batch([0, 0, 0, 0]))
    # the mean of sure and not sure, on either side
    mean = (1 / (1 + math.exp(-9)) + 0.5) / 2
    assert prepared["pseudo_confidence"].flatten().tolist() == pytest.approx([mean] * 4)
    assert DistillObjective(reference=Half()).prepare(None, batch([0, 0, 0, 0]))["mixed_labels"].eq(255).all()
    # the left half of the view is a hole
    assert prepared["mixed_labels"].tolist() == [[[255, 255, 1, 1]]]
    prepared = DistillObjective(reference=Reader()).prepare(None, batch([-9, 9, -9, 9]))
    assert prepared["mixed_labels"].tolist() == [[[255, 255, 1, 0]]]
    valid = torch.tensor([[[False, True, True, True]]])
    prepared = DistillObjective(reference=Reader()).prepare(None, batch([9, 9, 9, 9], unlabeled_valid=valid))
    assert prepared["pseudo_labels"].tolist() == [[[255, 1, 1, 1]]]
    assert prepared["mixed_labels"].tolist() == [[[255, 255, 1, 255]]]  # padding is at the right of the mirror image
    assert prepared["distilled"].tolist() == [[[True, True, True, False]]]


@pytest.mark.parametrize("form", ["kl", "coded"])
def test_the_losses_by_hand(form):
    logits = torch.tensor([math.log(3), 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    student = Fixed(logits, logits)
    objective = DistillObjective(reference=student, unlabeled_weight=0.5, distillation_weight=3.0, distillation=form)
    prepared = {
        **batch([1, 1]),
        "labels": torch.full((1, 1, 2), 255),
        "mixed_pixel_values": torch.zeros(1, 3, 1, 2),
        "mixed_labels": torch.tensor([[[1, 255]]]),
        # the second place is padding, which nothing is distilled from
        "reference_logits": torch.cat([-logits[..., :1], 50 * logits[..., 1:]], dim=3),
        "distilled": torch.tensor([[[True, False]]]),
    }
    _, found = objective.terms(student, None, prepared, objective.counts(prepared))
    assert found["unlabeled_loss"].item() == pytest.approx(0.5 * math.log(4))
    if form == "kl":
        divergence = 0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25)
    else:
        divergence = (0.25 * (math.log(0.25) - 0.75) + 0.75 * (math.log(0.75) - 0.25)) / 2
    assert found["distillation_loss"].item() == pytest.approx(3 * divergence)


def test_a_look_ahead_is_refused_and_no_rule_means_no_teacher(tmp_path):
    assert resolve(tiny.config(tmp_path, objective="distill")).rule == "supervised"
    with pytest.raises(UserError) as error:
        tiny.config(tmp_path, objective="distill", rule="fst_d")
    assert str(error.value) == (
        "objective 'distill' learns from a frozen network, so rule 'fst_d' would look ahead for nothing; use rule "
        "'supervised' or 'mean_teacher'."
    )


@pytest.mark.parametrize("rule", ["supervised", "mean_teacher"])
def test_a_run_pulls_the_student_to_the_reference(tmp_path, rule):
    labeled, unlabeled = tiny.images(6, 1), tiny.images(8, 2, labels=False)
    for item in labeled:
        item["labels"][:] = 255
    labeled[0]["labels"][0, 0] = labeled[3]["labels"][0, 0] = 0
    reference = tiny.model(seed=5)
    options = {"objective": "distill", "rule": rule, "learning_rate": 0.1, "max_steps": 20, "optim": "sgd"}
    options |= {"confidence_threshold": 0.3}
    trainer = tiny.trainer(
        tmp_path, sets=(labeled, unlabeled), trainer_options={"reference_model": reference}, **options
    )
    seen = on_device(torch.stack([item["pixel_values"] for item in unlabeled]))

    def apart():
        with torch.no_grad():
            return (trainer.model(seen).logits.softmax(1) - reference(seen).logits.softmax(1)).abs().mean().item()

    before = apart()
    trainer.train()
    assert apart() < 0.7 * before
