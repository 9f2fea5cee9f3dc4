"""A saved network that is damaged, or is another one, is refused in a sentence by whatever loads it."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BeitConfig, BeitForSemanticSegmentation

from hf_fst.commands.common import look
from hf_fst.errors import UserError
from hf_fst.models import build
from hf_fst.models.loading import load_network, processor_of
from hf_fst.prediction.segmenter import palette_of
from hf_fst.publishing.facts import RunFacts
from hf_fst.publishing.report import rewrite_report
from tests.evaluation.conftest import NAMES, tiny_model
from tests.models.tiny import TINY
from tests.publishing.conftest import make_facts

CODE = "give a model that was saved as safetensors"


class Payload:
    def __reduce__(self):
        return os.mkdir, ("never-made",)


@pytest.fixture
def folder(tmp_path):
    tiny_model(3).save_pretrained(tmp_path)
    return tmp_path


def weights(change):
    def edit(folder):
        state = load_file(folder / "model.safetensors")
        save_file(change(state), folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def content(make):
    def edit(folder):
        path = folder / "model.safetensors"
        path.write_bytes(make(path.read_bytes()))

    return edit


def config(**changes):
    def edit(folder):
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in (known | changes).items() if k != "label2id"})
        )

    return edit


def pickled(value, cut=None):
    def edit(folder):
        (folder / "model.safetensors").unlink()
        torch.save(value, folder / "pytorch_model.bin")
        (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:cut])

    return edit


def text(name, words):
    return lambda folder: (folder / name).write_text(words)


def without(state, name="decode_head.classifier.weight"):
    return {key: tensor for key, tensor in state.items() if key != name}


DAMAGED = {
    "cut": (content(lambda all: all[:-7]), "a file of its weights is damaged"),
    "cut in the header": (content(lambda all: all[:30]), "a file of its weights is damaged"),
    "empty": (content(lambda all: b""), "a file of its weights is damaged"),
    "a page": (content(lambda all: b"<html>not found</html>"), "a file of its weights is damaged"),
    "foreign": (
        weights(lambda state: {"other.weight": torch.ones(2)}),
        r"\d+ weights of a Segformer\w+ are missing in",
    ),
    "in part": (weights(without), "1 weights of a .* are missing in .*, the first is decode_head.classifier.weight"),
    "misshapen": (
        weights(lambda state: state | {"decode_head.classifier.weight": torch.ones(4, 5, 1, 1)}),
        r"other shapes than its config.json says, the first is decode_head.classifier.weight with \(4, 5, 1, 1\) for",
    ),
    "a pickle with code": (pickled({"a": Payload()}), CODE),
    "a pickle that is cut": (pickled({"a": torch.ones(99)}, cut=300), "damaged"),
    "no index": (text("model.safetensors.index.json", "{}"), "damaged"),
    "unknown type": (config(model_type="segfromer"), "segfromer"),
    "no type": (text("config.json", "{}"), "model_type"),
    "null": (text("config.json", "null"), "its config.json or its weights are damaged"),
    "no JSON": (text("config.json", "{"), "not a valid JSON file"),
    "too few stages": (config(hidden_sizes=[8]), "its config.json or its weights are damaged"),
    "no dtype": (config(dtype="float33"), "its config.json or its weights are damaged"),
    "a gap": (
        config(id2label={"0": "a", "1": "b", "3": "c", "4": "d"}),
        "names the classes 0, 1, 3, 4 in id2label, but",
    ),
    "from 1": (
        config(id2label={"1": "a", "2": "b", "3": "c", "4": "d"}),
        "all of 0 to 3 are needed; correct it there",
    ),
    "two of one name": (
        config(id2label={"0": "a", "1": "traffic light", "2": "b", "3": "traffic_light"}),
        "config.json of .* names the classes 1 and 3 'traffic light' and 'traffic_light' in id2label, which are one name",
    ),
    "no class": (config(id2label={}), "names the classes of no id"),
    "a list of classes": (config(id2label=NAMES), "damaged"),
    "other classes": (config(id2label={"0": "a"}), r"other shapes .* with \(4,\) for \(1,\)"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_model_is_one_sentence(folder, how):
    damage, sentence = DAMAGED[how]
    if how == "no index":
        (folder / "model.safetensors").unlink()
    damage(folder)
    with pytest.raises(UserError, match=sentence) as error:
        load_network(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert not os.path.exists("never-made")


def test_an_adapter_of_itself_is_one_sentence(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    with pytest.raises(UserError, match="is an adapter of itself; name its base network in adapter_config.json"):
        load_network(folder)


def test_a_processor_of_texts_is_one_sentence(folder):
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPTokenizer"}')
    with pytest.raises(UserError, match="cannot be read.*: It is a CLIPTokenizer. Try again, fix preprocessor_config"):
        processor_of(folder)


def test_names_of_classes_may_be_numbers(folder):
    config(id2label={"0": 7, "1": 8, "2": 9, "3": 10})(folder)
    assert load_network(folder).config.id2label == {0: "7", 1: "8", 2: "9", 3: "10"}


@pytest.mark.parametrize("given", [["a", "b"], {"0": "a", "1": "b"}])
def test_names_may_come_as_json_has_them(folder, given):
    assert load_network(folder, id2label=given).config.id2label == {0: "a", 1: "b"}
    with pytest.raises(UserError, match="^id2label is {'a': 0}; give {0: 'road', 1: 'car'} or .'road', 'car'.[.]$"):
        load_network(folder, id2label={"a": 0})


def test_training_takes_a_backbone_alone_or_another_head_but_nothing_foreign(folder):
    names = {0: "road", 1: "sky"}
    weights(without)(folder)
    assert load_network(folder, id2label=names).config.num_labels == 2
    weights(lambda state: {k: v for k, v in state.items() if k.startswith("segformer.")})(folder)
    assert load_network(folder, id2label=names).config.num_labels == 2
    with pytest.raises(UserError, match="id2label is empty; name one class at least"):
        load_network(folder, id2label={})
    first = next(name for name in load_file(folder / "model.safetensors") if name.endswith("weight"))
    weights(lambda state: state | {first: torch.ones(2, 2)})(folder)
    with pytest.raises(UserError, match="other shapes than its config.json says"):
        load_network(folder, id2label=names)
    weights(lambda state: {"other.weight": torch.ones(2)})(folder)
    with pytest.raises(UserError, match="are missing in"):
        load_network(folder, id2label=names)


def test_weights_that_no_output_depends_on_may_be_missing(folder):
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "image_size": 32,
    }
    more = {
        "patch_size": 8,
        "out_indices": [1, 2, 3, 4],
        "use_mask_token": True,
        "num_labels": 3,
        "use_auxiliary_head": False,
    }
    torch.manual_seed(0)
    BeitForSemanticSegmentation(BeitConfig(**sizes, **more)).save_pretrained(folder)
    weights(lambda state: without(state, "beit.embeddings.mask_token"))(folder)
    load_network(folder)
    weights(lambda state: without(state, "beit.embeddings.cls_token"))(folder)
    with pytest.raises(UserError, match="cls_token"):
        load_network(folder)


def test_a_backbone_of_foreign_weights_is_refused(folder):
    weights(lambda state: {"other.weight": torch.ones(2)})(folder)
    with pytest.raises(UserError, match="weights of a SegformerModel are missing in"):
        build("daformer-mit-b0", 3, str(folder), **TINY["daformer-mit-b0"])
    content(lambda all: all[:-7])(folder)
    with pytest.raises(UserError, match="of the backbone cannot be loaded: a file of its weights is damaged"):
        build("daformer-mit-b0", 3, str(folder), **TINY["daformer-mit-b0"])


@pytest.mark.parametrize(
    "words",
    ["eval_resize: [3,", "- 1", "", "eval_resize: wide", "resize: [3.5, 2]", "a: !!python/object:b {}", "\udcff"],
)
def test_a_broken_recipe_beside_a_model_is_named(tmp_path, words):
    (tmp_path / "recipe.yaml").write_bytes(words.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"recipe.yaml.* give --resize") as error:
        look(str(tmp_path), None, None, None, "1", False)
    assert "\n" not in " ".join(str(error.value).split())
    assert look(str(tmp_path), "none", None, None, "1", False).resize is None


FACTS = {
    "no JSON": lambda facts: None,
    "a list": lambda facts: [facts],
    "nothing": lambda facts: {},
    "another type": lambda facts: facts | {"settings": []},
    "no rule": lambda facts: facts | {"rule": None},
    "no id": lambda facts: facts | {"base_model": "a b//c"},
    "a dark color": lambda facts: facts | {"palette": [[1, 2, -3], [0, 0, 0], [0, 0, 0]]},
    "a color of two": lambda facts: facts | {"palette": [[1, 2], [0, 0, 0], [0, 0, 0]]},
}


@pytest.mark.parametrize("how", FACTS)
def test_broken_facts_beside_a_model_are_named(tmp_path, how):
    path = make_facts().save(tmp_path)
    changed = FACTS[how](json.loads(path.read_text()))
    path.write_bytes(b"\xff\xfe{" if changed is None else json.dumps(changed).encode())
    for read in (RunFacts.load, rewrite_report, lambda folder: palette_of(folder, ["road", "car", "sky"])):
        with pytest.raises(UserError, match="facts"):
            read(tmp_path)


@pytest.mark.parametrize("words", ["", "{", "{}", "[1]", "7"])
def test_a_broken_history_is_named(tmp_path, words):
    make_facts().save(tmp_path)
    (tmp_path / "history.json").write_text(words)
    with pytest.raises(UserError, match="history.json is not a training log; restore it, or delete it"):
        rewrite_report(tmp_path)
