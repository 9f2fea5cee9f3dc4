"""The authors' networks, recorded at tiny widths, converted: the same features and logits."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from hf_fst.models import convert
from tests.tolerance import assert_same_logits, assert_same_weights

from .seeded import seeded_input, seeded_state

DATA = Path(__file__).parent / "data"
RECORDINGS = {
    "daformer_tiny": (
        "daformer-mit-b0",
        {
            "hidden_size": 16,
            "backbone_config": {
                "hidden_sizes": [8, 16, 24, 32],
                "depths": [1, 1, 2, 1],
                "num_attention_heads": [1, 2, 3, 4],
            },
        },
    ),
    "deeplabv2red_r50_tiny": (
        "deeplabv2-resnet50",
        {"backbone_kwargs": {"channels": [4, 8, 16, 32], "stem_width": 4}},
    ),
}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("recording", RECORDINGS)
def test_converted_checkpoint_gives_the_authors_features_and_logits(recording, tmp_path):
    recorded = torch.load(DATA / f"{recording}.pt", weights_only=True)
    name, overrides = RECORDINGS[recording]
    path = tmp_path / "iter_40000.pth"
    teacher = seeded_state(recorded["layout"])
    # The student's weights are others, so that taking the wrong network would show.
    student = {f"model.{key}": tensor + 1 for key, tensor in teacher.items()}
    torch.save({"meta": {}, "state_dict": {**student, **{f"ema_model.{k}": t for k, t in teacher.items()}}}, path)

    model = convert(path, name, "teacher", report=lambda line: None, **overrides)
    pixel_values = seeded_input(recorded["input_shape"])
    with torch.no_grad():
        output = model(pixel_values, output_hidden_states=True)
    assert relative_error(output.logits, recorded["logits"]) < 1e-4
    assert len(output.hidden_states) == len(recorded["features"]) == 4
    for level, expected in zip(output.hidden_states, recorded["features"], strict=True):
        assert relative_error(level, expected) < 1e-4

    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    assert_same_weights(loaded, model)
    with torch.no_grad():
        assert_same_logits(loaded(pixel_values).logits, output.logits)
