"""Four images are four images: 4 micro-batches of 1, 2 of 2 and 1 of 4 give the same run, without batch norm."""

from __future__ import annotations

import pytest
import torch

from hf_fst.rules import DeepFST, ImprovedFST, MeanTeacher, NaiveFST, Supervised, WideFST
from tests import tiny


def uneven():
    """Eight labelled images, the first 60% void and the second without any label, and eight unlabelled ones."""
    labeled = tiny.images(8, 1, (10, 10))
    labeled[0]["labels"][:6] = 255
    labeled[1]["labels"][:] = -100
    return labeled, tiny.images(8, 2, (10, 10), labels=False)


def result(tmp_path, rule, accumulation, optimizer="sgd", **options):
    optimizers = {
        "sgd": (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}),
        "adamw": (torch.optim.AdamW, {"lr": 0.01}),
    }
    quality = {"objective": "pseudo_label", "unlabeled_weighting": "quality", "confidence_threshold": 0.4}
    trainer = tiny.trainer(
        tmp_path,
        sets=uneven(),
        trainer_options={"rule": rule, "optimizer_cls_and_kwargs": optimizers[optimizer]},
        **{
            **({} if isinstance(rule, Supervised) else quality),
            "objective": "supervised" if isinstance(rule, Supervised) else "pseudo_label",
            "learning_rate": 0.2,
            "max_grad_norm": 0.5,
            "teacher_momentum": 0.8,
            "momentum_warmup": False,
            "max_steps": 4,
            "per_device_train_batch_size": 4 // accumulation,
            "gradient_accumulation_steps": accumulation,
            "logging_strategy": "steps",
            "logging_steps": 1,
            **options,
        },
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return tiny.weights(trainer.model), tiny.weights(trainer.teacher.model), torch.tensor(losses)


RULES = [Supervised(), MeanTeacher(), NaiveFST(), ImprovedFST("different"), DeepFST(2), WideFST(2), WideFST(2, "same")]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_split_of_a_group_does_not_matter(tmp_path, rule, optimizer):
    whole, halves, single = (result(tmp_path, rule, n, optimizer) for n in (1, 2, 4))
    for other in (halves, single):
        assert tiny.distance(whole[0], other[0]) < 1e-12
        assert tiny.distance(whole[1], other[1]) < 1e-12
        assert torch.allclose(whole[2], other[2], rtol=0, atol=1e-6)  # logged in single precision


def test_the_quality_ratio_is_that_of_the_group(tmp_path):
    """Were it that of each micro-batch, the split would matter: the ratio differs between these images."""
    trainer = tiny.trainer(tmp_path, sets=uneven(), rule="mean_teacher", unlabeled_weighting="quality")
    trainer.learning_objective.confidence_threshold = 0.4
    prepared = [
        trainer.learning_objective.prepare(
            trainer.teacher, {"labels": a["labels"][None], "unlabeled_pixel_values": b["pixel_values"][None]}
        )
        for a, b in zip(*uneven(), strict=True)
    ]
    ratios = [(p["pseudo_confidence"] >= 0.4).double().mean().item() for p in prepared]
    assert max(ratios) - min(ratios) > 0.1 and 0.1 < sum(ratios) / 8 < 0.9


def test_the_group_is_looked_at_once_however_many_micro_batches(tmp_path):
    calls = []

    class Count:
        def look_ahead(self, step):
            calls.append(len(step.group))

    trainer = tiny.trainer(tmp_path, rule="mean_teacher", gradient_accumulation_steps=3, max_steps=3)
    trainer.rule = Count()
    trainer.train()
    assert calls == [3, 3, 3]
