"""Networks whose adapters lie apart from their base: merged they compute the same, and what does not fit is said."""

from __future__ import annotations

import json
import logging
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSemanticSegmentation, SegformerImageProcessor

from hf_fst.errors import MissingError, RunError, UserError
from hf_fst.models.loading import load, load_network
from hf_fst.training.checkpoints import save_network
from tests.evaluation.conftest import NAMES, tiny_model
from tests.models.tiny import image, tiny
from tests.tolerance import assert_same_logits, assert_same_weights
from tests.training.test_adapters import trained

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def lora(network, targets=("q_proj", "v_proj"), head: str | None = "decode_head"):
    """A network with LoRA whose weights matter from the start."""
    torch.manual_seed(5)
    saved = [head] if head else None
    options = {"target_modules": list(targets), "modules_to_save": saved, "init_lora_weights": False}
    return peft.get_peft_model(network, peft.LoraConfig(r=2, **options))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A SegFormer for nine classes."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model(1, 9).save_pretrained(folder)
    SegformerImageProcessor(image_mean=[0.2] * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run of four steps whose student has LoRA and a new head for the four classes of `NAMES`."""
    folder = tmp_path_factory.mktemp("run")
    student = lora(load_network(base, id2label=dict(enumerate(NAMES))))
    return folder, trained(folder, network=student, save_strategy="steps", save_steps=4, report=True)


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run, to be spoiled, and its adapter_config.json as it may be written again."""
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)

    def change(**keys):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return folder, change


def by_peft(base, folder):
    """The adapted network, put together as the card says, without any of our code."""
    config = AutoConfig.from_pretrained(folder)
    network = AutoModelForSemanticSegmentation.from_pretrained(base, config=config, ignore_mismatched_sizes=True)
    return peft.PeftModel.from_pretrained(network, folder).eval()


def logits(network, pixels=PIXELS):
    with torch.no_grad():
        return network(pixel_values=pixels).logits


@pytest.mark.parametrize("place", ["", "checkpoint-4"])
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_teacher_and_student_are_the_adapted_networks(base, run, place, which):
    folder, trainer = run
    network = load_network(folder / place, which)
    inside = {"teacher": "", "student": "student"} if not place else {"teacher": "teacher", "student": ""}
    expected = logits(by_peft(base, folder / place / inside[which]))
    assert_same_logits(logits(network), expected)
    assert_same_logits(logits(network), logits(trainer.networks()[which].eval().cpu()))
    assert not torch.allclose(expected, logits(lora(load_network(base, id2label=dict(enumerate(NAMES))))), atol=1e-2)
    assert type(network).__name__ == "SegformerForSemanticSegmentation" and network.is_whole


def test_names_and_processor_are_those_of_the_run(copied, caplog):
    folder, _ = copied
    SegformerImageProcessor(image_mean=[0.4] * 3).save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        network, processor = load(folder)
    assert network.config.id2label == dict(enumerate(NAMES)) and list(processor.image_mean) == [0.4] * 3
    assert "MISMATCH" not in caplog.text  # of the base's head, which the adapter replaces
    renamed, _ = load(folder, id2label=dict(enumerate("abcd")))
    assert renamed.config.id2label[3] == "d"


def test_an_adapter_that_peft_saved_has_the_names_and_the_processor_of_its_base(base, tmp_path):
    adapted = lora(load_network(base)).eval()
    adapted.save_pretrained(tmp_path)
    network, processor = load(tmp_path)
    assert_same_logits(logits(network), logits(adapted))
    assert network.config.num_labels == 9 and list(processor.image_mean) == [0.2] * 3


def test_a_network_of_ours_with_lora_in_its_convolutions(tmp_path):
    name = "deeplabv3plus-resnet101-cityscapes"
    tiny(name).save_pretrained(tmp_path / "base")
    adapted = lora(load_network(tmp_path / "base"), ["conv3"], "decode_head").eval()
    adapted.save_pretrained(tmp_path / "adapter")
    pixels = image(name)
    assert_same_logits(logits(load_network(tmp_path / "adapter"), pixels), logits(adapted, pixels))
    assert not torch.allclose(logits(adapted, pixels), logits(load_network(tmp_path / "base"), pixels), atol=1e-2)


def test_a_merged_network_learns_as_a_whole_and_is_saved_as_one(run, tmp_path):
    network = load_network(run[0])
    assert all(parameter.requires_grad for parameter in network.parameters())
    network.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert_same_weights(load_network(tmp_path), network)


def test_an_adapter_may_lie_on_an_adapted_network(run, tmp_path):
    second = lora(load_network(run[0], "student")).eval()
    second.save_pretrained(tmp_path)
    assert_same_logits(logits(load_network(tmp_path)), logits(second))


def test_a_base_of_less_precision_becomes_as_precise_as_the_adapter(tmp_path):
    tiny_model(1).bfloat16().save_pretrained(tmp_path / "base")
    adapted = lora(load_network(tmp_path / "base").float()).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    network = load_network(tmp_path / "adapter")
    assert network.dtype == torch.float32
    assert_same_logits(logits(network), logits(adapted))


def test_a_whole_network_takes_the_place_of_an_adapter(run, copied):
    folder, trainer = copied[0], run[1]
    save_network(trainer.accelerator, tiny_model(2), SegformerImageProcessor(), folder)
    assert_same_logits(logits(load_network(folder)), logits(tiny_model(2)))


@pytest.mark.parametrize(
    "keys, kind, words",
    [
        (
            {"base_model_name_or_path": None},
            UserError,
            "does not name the base network; write its directory or Hub id",
        ),
        (
            {"base_model_name_or_path": "./gone"},
            MissingError,
            "is an adapter, whose base network does not load: There is no model './gone'; give a directory",
        ),
        ({"r": 3}, UserError, "does not fit its base network .*lora_A.weight has shape .2, 8. there and .3, 8. here"),
        ({"target_modules": ["elsewhere"]}, UserError, "cannot be merged into its base network: "),
        ({"peft_type": "NOTHING"}, UserError, "cannot be merged into its base network: "),
        ({"modules_to_save": None}, UserError, "does not fit its base network .* there and none here; give the base"),
    ],
)
def test_what_does_not_fit_is_one_sentence(copied, keys, kind, words):
    folder, change = copied
    change(**keys)
    with pytest.raises(kind, match=f"{folder}.*{words}"):
        load_network(folder)


def test_another_base_does_not_fit(copied, tmp_path):
    folder, change = copied
    tiny("deeplabv3plus-resnet101-cityscapes").save_pretrained(tmp_path / "other")
    change(base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(UserError, match="base network"):
        load_network(folder)


def test_a_new_head_that_was_not_saved_is_not_made_up(base, tmp_path):
    adapted = lora(load_network(base, id2label={0: "a", 1: "b"}), head=None)
    adapted.save_pretrained(tmp_path)
    adapted.get_base_model().config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="weights are neither in .* the first is decode_head.classifier.bias; a head"):
        load_network(tmp_path)


def test_damaged_files_are_said(copied):
    folder, change = copied
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor * torch.nan for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="values that are not finite"):
        load_network(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be merged"):
        load_network(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="has no adapter_model.safetensors; download or save the adapter again"):
        load_network(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config.json of .* cannot be read"):
        load_network(folder)


def test_other_classes_need_the_merged_network(run):
    with pytest.raises(
        UserError, match="is an adapter whose network has 4 classes, but 2 are wanted; .*save_pretrained"
    ):
        load_network(run[0], id2label={0: "a", 1: "b"})


def test_without_peft_the_extra_is_named(run, monkeypatch):
    monkeypatch.setattr("hf_fst.models.adapters.is_peft_available", lambda: False)
    with pytest.raises(RunError, match=r'is an adapter, which needs peft: pip install "hf_fst\[peft\]"'):
        load_network(run[0])
