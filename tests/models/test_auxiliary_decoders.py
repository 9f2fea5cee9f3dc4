"""Auxiliary decoders around networks: what they read, what is saved, exported and published, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from hf_fst.errors import UsageError
from hf_fst.models import AuxiliaryDecoders
from hf_fst.models.auxiliary import freeze_unused
from hf_fst.models.loading import default_processor
from hf_fst.prediction.export import export_onnx
from hf_fst.publishing.card import bare_card
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import load_recipe
from hf_fst.recipes.network import build_network
from tests import tiny as tiny_run
from tests.models.test_two_branches import OURS, THEIRS, one
from tests.tolerance import assert_same_logits, assert_same_weights

DECODERS = {"dropout": 1, "feature_noise": 1}


@pytest.mark.parametrize("name", [*OURS, *THEIRS, "pspnet-resnet101-semi"])
def test_decoders_read_what_the_classifier_reads_and_all_is_saved(name, tmp_path):
    if name.startswith("pspnet"):
        from tests.models.tiny import image, tiny

        network, pixels = tiny(name), image(name)
    else:
        network, pixels = one(name)
    whole = AuxiliaryDecoders.of(network, DECODERS)
    with torch.no_grad():
        output = whole(pixels, all_branches=True)
        assert_same_logits(whole(pixels).logits, network(pixels).logits)
    first, second = (branch.logits for branch in output.branches[1:])
    assert first.shape[:2] == output.logits.shape[:2] and not torch.equal(first, second)
    whole.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is AuxiliaryDecoders and type(loaded.network) is type(network)
    assert_same_weights(loaded, whole)
    with torch.no_grad():
        assert_same_logits(loaded(pixels).logits, whole(pixels).logits)


def test_decoders_are_trained_where_all_outputs_are_asked_for():
    network, pixels = one("deeplabv3plus-resnet101-unimatch")
    whole = AuxiliaryDecoders.of(network, DECODERS)
    assert freeze_unused(whole, pixels[0], all_branches=True) == []
    assert all(name.startswith("auxiliary_heads.") for name in freeze_unused(whole, pixels[0]))


def test_what_is_exported_is_the_network_and_the_card_says_who_answers(tmp_path):
    onnx = pytest.importorskip("onnx")
    network, _ = one("deeplabv3plus-resnet101-unimatch")
    whole = AuxiliaryDecoders.of(network, DECODERS)
    whole.save_pretrained(tmp_path)
    default_processor().save_pretrained(tmp_path)
    exported = export_onnx(tmp_path, tmp_path / "model.onnx", size=(64, 96))
    assert exported["argmax_agreement"] > 0.99
    names = [weight.name for weight in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert names and not any("auxiliary_heads" in name for name in names)
    assert "The main decoder answers" in str(bare_card(tmp_path, "owner/whole"))


@pytest.mark.parametrize("objective", ["cct", "gct"])
def test_a_run_saves_and_resumes(objective, tmp_path):
    sets = tiny_run.images(4, 1), tiny_run.images(4, 2, labels=False)
    options = {"objective": objective, "rule": "fst_d", "lookahead_steps": 1, "learning_rate": 0.1}
    options |= {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "report": True}
    network = partial(tiny_run.network_of, objective, batch_norm=True)
    whole = tiny_run.trainer(tmp_path / "whole", network(), sets=sets, **options)
    whole.train()
    resumed = tiny_run.trainer(tmp_path / "resumed", network(), sets=sets, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-1"))
    for name, trained in whole.networks().items():
        assert tiny_run.same(tiny_run.weights(trained), tiny_run.weights(resumed.networks()[name]))
    whole.save_model()
    whole.create_model_card()
    answer = {"cct": "The main decoder answers.", "gct": "Branch 1 answers, and only it runs."}[objective]
    assert answer in (tmp_path / "whole/README.md").read_text()


def test_a_recipe_makes_what_its_objective_trains():
    config = {"model_type": "segformer", "hidden_sizes": [8] * 4, "depths": [1] * 4, "decoder_hidden_size": 8}

    def network(objective, **keys):
        return build_network(Recipe(model_config=dict(config), options={"objective": objective}, **keys), ["a", "b"])

    assert network("cct", auxiliary_decoders={"vat": 3}).config.perturbations == ["vat"] * 3
    assert len(network("cct").config.perturbations) == 30
    assert network("gct").config.flaw_detector == 64 and network("cps").flaw_detector is None
    assert type(network("cut_mix")).__name__ == "SegformerForSemanticSegmentation"
    with pytest.raises(UsageError, match="needs a convolution that classifies, but .* has none"):
        masks = {"model_type": "universal-segmenter", "segmenter_config": {"model_type": "mask2former"}}
        with torch.device("meta"):
            build_network(Recipe(model_config=masks, options={"objective": "cct"}), ["a", "b"])


def test_decoders_that_no_objective_trains_are_refused_in_a_sentence():
    recipe = "voc-cct", {"auxiliary_decoders": "{dropout: 0}"}, "r50-8th-published"
    with pytest.raises(UsageError, match=r"auxiliary_decoders is \{'dropout': 0.*\}; give \{perturbation: number\}"):
        load_recipe(*recipe)
    with pytest.raises(UsageError) as error:
        load_recipe("voc-cct", {"objective": "cut_mix"}, "r50-8th-published")
    assert str(error.value) == (
        "auxiliary_decoders is set but the objective is cut_mix; leave it out or use objective cct."
    )
    control = load_recipe("voc-cct", {"objective": "supervised", "rule": "supervised"}, "r50-8th-fst")
    assert control.auxiliary_decoders is not None
