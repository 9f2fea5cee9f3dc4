"""Four images are four images: 4 micro-batches of 1, 2 of 2 and 1 of 4 give the same run, without batch norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_fst.method.rules import DeepFST, ImprovedFST, MeanTeacher, NaiveFST, Supervised, WideFST
from tests import tiny


def uneven(size=(10, 10)):
    """Eight labeled images, the first 60% void and the second without any label, and eight unlabeled ones."""
    labeled = tiny.images(8, 1, size)
    labeled[0]["labels"][: size[0] * 6 // 10] = 255
    labeled[1]["labels"][:] = -100
    return labeled, tiny.images(8, 2, size, labels=False)


def segformer():
    """Without dropout, and without the BatchNorm of its head: it sees a micro-batch alone."""
    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    noise = dict.fromkeys(("hidden_dropout_prob", "drop_path_rate", "classifier_dropout_prob"), 0.0)
    torch.manual_seed(3)
    network = SegformerForSemanticSegmentation(SegformerConfig(num_labels=tiny.CLASSES, **sizes, **noise)).double()
    [name] = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    network.set_submodule(name, nn.Identity())
    return network


def result(tmp_path, rule, accumulation, optimizer="sgd", network=None, size=(10, 10), **options):
    optimizers = {
        "sgd": (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}),
        "adamw": (torch.optim.AdamW, {"lr": 0.01}),
    }
    quality = {"objective": "pseudo_label", "unlabeled_weighting": "quality", "confidence_threshold": 0.4}
    trainer = tiny.trainer(
        tmp_path,
        network,
        sets=uneven(size),
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


@pytest.mark.parametrize("rule", [DeepFST(2), WideFST(2)], ids=repr)
def test_the_split_of_a_group_does_not_matter_to_a_segformer_either(tmp_path, rule):
    whole, single = (result(tmp_path, rule, n, network=segformer(), size=(60, 64), max_steps=2) for n in (1, 4))
    assert tiny.distance(whole[0], single[0]) < 1e-12 and tiny.distance(whole[1], single[1]) < 1e-12


def test_the_quality_ratio_is_that_of_the_group(tmp_path):
    """Were it that of each micro-batch, the split would matter: the ratio differs between these images."""
    options = {"unlabeled_weighting": "quality", "confidence_threshold": 0.4}
    trainer = tiny.trainer(tmp_path, sets=uneven(), rule="mean_teacher", **options)
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
