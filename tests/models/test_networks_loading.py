"""Loading in bfloat16, with another number of classes, and into a pipeline, at tiny widths."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor, pipeline

from tests.tolerance import assert_same_weights

from .tiny import TINY, image, tiny

NAMES = list(TINY)


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_runs_in_bfloat16(name, tmp_path):
    model, pixel_values = tiny(name), image(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        expected, logits = model(pixel_values).logits, loaded(pixel_values.bfloat16()).logits
    assert logits.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; the tiny networks are a few dozen layers deep.
    assert (logits.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_classes_replaces_the_classifiers_only(name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    changed = {key for key, *_ in info["mismatched_keys"]}
    assert changed and all(key.startswith(("decode_head.", "auxiliary_head.")) for key in changed)
    kept = loaded.state_dict()
    for key, tensor in model.state_dict().items():
        if key not in changed:
            assert torch.equal(kept[key], tensor)
    with torch.no_grad():
        assert loaded(image(name)).logits.shape[1] == 3


def test_network_runs_in_the_image_segmentation_pipeline(tmp_path, caplog):
    name = "upernet-swin-base"
    tiny(name, id2label={0: "road", 1: "car", 2: "sky", 3: "tree", 4: "sign"}).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(tmp_path)
    with caplog.at_level("ERROR"):
        segmenter = pipeline("image-segmentation", model=str(tmp_path))
    assert "not supported" not in caplog.text
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    segments = segmenter(picture)
    assert {segment["label"] for segment in segments} <= {"road", "car", "sky", "tree", "sign"}
    # Every pixel of the picture is in exactly one segment.
    assert (sum(np.asarray(segment["mask"]) > 0 for segment in segments) == 1).all()
    assert segments[0]["mask"].size == (50, 40)


def test_a_checkpoint_with_the_former_representation_head_loads_without_it(tmp_path):
    model = tiny("deeplabv3plus-resnet101-cityscapes")
    model.config.use_representation_head = True
    extra = {"decode_head.representation.4.weight": torch.ones(8, 8, 1, 1)}
    model.save_pretrained(tmp_path, state_dict={**model.state_dict(), **extra})
    loaded, found = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert_same_weights(loaded, model)
    assert not found["unexpected_keys"] and not found["missing_keys"]
