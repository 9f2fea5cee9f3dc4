"""Two branches of a network as one model: how they start, which one answers, what is saved, exported and published."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from hf_fst.evaluation.counting import count
from hf_fst.models import MODELS, AuxiliaryDecoders, TwoBranches, UniversalSegmenter
from hf_fst.models.auxiliary import freeze_unused, return_auxiliary_logits
from hf_fst.models.loading import default_processor, load
from hf_fst.models.two_branches import OWN
from hf_fst.prediction.export import export_onnx
from hf_fst.prediction.segmenter import Segmenter
from hf_fst.publishing.card import bare_card
from tests import architectures
from tests import tiny as tiny_run
from tests.models.tiny import image, tiny
from tests.tolerance import assert_same_logits, assert_same_weights

OURS = ["deeplabv3plus-resnet101-unimatch", "dpt-dinov2-small", "upernet-swin-base"]
THEIRS = ["segformer", "upernet_convnext", "dpt"]


def one(name):
    """A network and images for it."""
    if name in OURS:
        return tiny(name), image(name)
    return architectures.make(name).eval(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_branches_differ_in_their_heads_alone_and_the_first_is_the_network(name):
    network, pixels = one(name)
    pair = TwoBranches.of(network)
    first, second = (branch.state_dict() for branch in pair.branches)
    differing = {key for key in first if not torch.equal(first[key], second[key])}
    assert differing and all("head" in key for key in differing)
    with torch.no_grad():
        output = pair(pixels, all_branches=True)
        assert_same_logits(pair(pixels).logits, network(pixels).logits)
        assert_same_logits(output.logits, network(pixels).logits)
    assert len(output.branches) == 2 and not torch.allclose(output.branches[1].logits, output.logits)
    assert pair(pixels).branches is None and pair.training == network.training
    assert pair.config.align_corners == getattr(network.config, "align_corners", False)


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_a_pair_loads_as_it_was_saved_and_the_configuration_says_who_answers(name, tmp_path):
    network, pixels = one(name)
    pair = TwoBranches.of(network)
    pair.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is TwoBranches and type(loaded.branches[1]) is type(network)
    assert_same_weights(loaded, pair)
    other = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, answer=1)
    with torch.no_grad():
        assert_same_logits(loaded(pixels).logits, pair(pixels).logits)
        assert_same_logits(other(pixels).logits, pair(pixels, all_branches=True).branches[1].logits)


def test_a_pair_takes_another_number_of_classes(tmp_path):
    network, pixels = one("deeplabv3plus-resnet101-unimatch")
    TwoBranches.of(network).save_pretrained(tmp_path)
    loaded, _ = load(tmp_path, id2label={0: "a", 1: "b"}, processor=default_processor())
    assert [output.logits.shape[1] for output in loaded(pixels, all_branches=True).branches] == [2, 2]


def test_its_loss_is_that_of_the_branches_that_ran():
    network, pixels = one("deeplabv3plus-resnet101-unimatch")
    pair = TwoBranches.of(network)
    labels = torch.zeros(2, *pixels.shape[-2:], dtype=torch.long)
    with torch.no_grad():
        each = [branch(pixels, labels=labels).loss for branch in pair.branches]
        assert pair(pixels, labels=labels).loss.item() == pytest.approx(each[0].item(), rel=1e-5)
        assert pair(pixels, labels=labels, all_branches=True).loss.item() == pytest.approx(sum(each).item(), rel=1e-5)


def test_what_no_output_of_either_branch_needs_is_frozen_and_no_more():
    network, pixels = one("upernet_convnext")
    pair = TwoBranches.of(network)
    return_auxiliary_logits(pair)
    assert freeze_unused(pair, pixels[0], all_branches=True) == []
    assert any(name.startswith("branches.1.") for name in freeze_unused(pair, pixels[0]))


def test_the_code_beside_a_checkpoint_makes_pairs_of_every_network_of_the_package():
    around = (AuxiliaryDecoders, TwoBranches, UniversalSegmenter)
    assert {model for _, model in OWN.values()} == {model for model in MODELS.values() if model not in around}


@pytest.mark.parametrize(
    ("answer", "flaw_detector"), [*(pytest.param(n, 0, marks=pytest.mark.slow) for n in (0, 1)), (1, 8)]
)
def test_what_is_predicted_evaluated_and_written_on_the_card_is_of_the_branch_that_answers(
    answer, flaw_detector, tmp_path
):
    network, _ = one("deeplabv3plus-resnet101-unimatch")
    pair = TwoBranches.of(network, flaw_detector)
    pair.config.answer = answer
    pair.save_pretrained(tmp_path)
    default_processor().save_pretrained(tmp_path)
    segmenter = Segmenter(tmp_path, device="cpu")
    pixels = np.asarray(PIL.Image.effect_noise((96, 64), 80).convert("RGB"))
    picture = segmenter.look(pixels)
    [found] = segmenter.classes([picture])
    with torch.no_grad():
        logits = pair.branches[answer](picture.pixel_values[None]).logits
    expected = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear", align_corners=True).argmax(1)[0]
    assert (found == expected.numpy()).mean() > 0.999
    counts = count(pair, picture.pixel_values[None], expected[None], 5)[0]
    assert counts.diagonal().sum() > 0.999 * counts.sum()
    exported = export_onnx(tmp_path, tmp_path / "model.onnx", size=(64, 96))
    assert exported["argmax_agreement"] > 0.99
    weights = sum(weight.numel() * weight.element_size() for weight in pair.branches[answer].state_dict().values())
    assert weights < exported["bytes"] < 1.5 * weights  # of one branch, not of both
    assert f"branch {answer + 1} answers" in str(bare_card(tmp_path, "owner/pair"))


def test_a_run_saves_resumes_and_says_on_its_card_which_branch_answers(tmp_path):
    sets = tiny_run.images(4, 1), tiny_run.images(4, 2, labels=False)
    options = {"objective": "cps", "rule": "fst_d", "lookahead_steps": 1, "learning_rate": 0.1}
    options |= {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "report": True, "use_cpu": True}
    whole = tiny_run.trainer(tmp_path / "whole", tiny_run.branches(batch_norm=True), sets=sets, **options)
    whole.train()
    resumed = tiny_run.trainer(tmp_path / "resumed", tiny_run.branches(batch_norm=True), sets=sets, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-1"))
    for name, network in whole.networks().items():
        assert tiny_run.same(tiny_run.weights(network), tiny_run.weights(resumed.networks()[name]))
    whole.save_model()
    whole.create_model_card()
    assert "Branch 1 answers, and only it runs." in (tmp_path / "whole/README.md").read_text()
    assert json.loads((tmp_path / "whole/config.json").read_text())["model_type"] == "two-branches"
