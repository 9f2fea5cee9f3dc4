"""Loading in bfloat16, with another number of classes, and exporting, at tiny widths."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

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
            torch.testing.assert_close(kept[key], tensor, rtol=0, atol=0)
    with torch.no_grad():
        assert loaded(image(name)).logits.shape[1] == 3


@pytest.mark.parametrize("name", NAMES)
def test_exported_program_gives_the_same_logits(name):
    model, pixel_values = tiny(name), image(name)
    with torch.no_grad():
        program = torch.export.export(model, (pixel_values,), strict=False)
        expected = model(pixel_values)
        output = program.module()(pixel_values)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
