"""Features are perturbed between encoder and decode head in networks of every kind, or the network is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from hf_fst.errors import UserError
from hf_fst.method.features import head_of, perturbed_features
from hf_fst.method.objectives import UniMatchObjective, UniMatchV2Objective
from hf_fst.models import UniversalSegmenter
from tests import architectures, tiny
from tests.device import DEVICE, on_device
from tests.models.tiny import tiny as ours

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OURS = ["deeplabv3plus-resnet101-unimatch", "pspnet-resnet101", "deeplabv2-resnet50", "daformer-mit-b0"]
OURS += ["dpt-dinov2-small", "upernet-swin-base", "upernet-efficientnet-lite0"]


def network(name):
    model = architectures.make(name) if name in architectures.ARCHITECTURES else ours(name).to(DEVICE)
    side = 32 if name in architectures.ARCHITECTURES else 56 if name.startswith("dpt-") else 64
    return model, torch.nn.functional.interpolate(PIXELS.to(DEVICE), (side, side))


@pytest.mark.parametrize("name", [*architectures.ARCHITECTURES, *OURS])
def test_what_the_head_takes_is_changed_and_nothing_else(name):
    model, pixels = network(name)
    model.eval()
    with torch.no_grad():
        plain = model(pixel_values=pixels).logits
        seen = []
        with perturbed_features(model, lambda x: seen.append(x.shape) or torch.cat([x, x + torch.rand_like(x)])):
            both = model(pixel_values=pixels).logits
        again = model(pixel_values=pixels).logits
    assert seen and all(shape[0] == len(pixels) for shape in seen)
    assert len(both) == 2 * len(plain)
    torch.testing.assert_close(both[: len(plain)], plain, atol=1e-5, rtol=1e-4)
    assert not torch.equal(both[len(plain) :], plain)
    assert torch.equal(again, plain) and not head_of(model)._forward_pre_hooks


@pytest.mark.parametrize("objective", [pytest.param("unimatch", marks=pytest.mark.slow), "unimatch_v2"])
@pytest.mark.parametrize("name", [*architectures.ARCHITECTURES, OURS[0], "dpt-dinov2-small"])
def test_networks_take_a_step_with_a_look_ahead(name, objective, tmp_path):
    model, pixels = network(name)
    sets = tuple(tiny.images(2, seed, pixels.shape[-2:], dtype=torch.float32) for seed in (1, 2))
    options = {"objective": objective, "rule": "fst_d", "lookahead_steps": 1, "max_steps": 1, "learning_rate": 0.01}
    trainer = tiny.trainer(tmp_path, model, sets=sets, confidence_threshold=0.0, **options)
    trainer.train()
    assert trainer.state.global_step == 1 and not trainer.journal.skipped.get("real")


def universal():
    config = EomtConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_queries=4, num_blocks=1, image_size=32
    )
    return UniversalSegmenter.wrap(EomtForUniversalSegmentation(config))


@pytest.mark.parametrize("name", ["unimatch", "unimatch_v2"])
def test_a_network_without_such_a_part_is_refused_in_a_sentence(name, tmp_path):
    with pytest.raises(UserError) as error:
        tiny.trainer(tmp_path, universal(), objective=name, rule="mean_teacher")
    assert str(error.value) == (
        f"objective '{name}' perturbs what the decode head takes, but UniversalSegmenter has no part named decode_head, "
        "neck, segmentation_head or head; use a network of hf_fst.models, SegFormer, UPerNet, BEiT or DPT, or objective "
        "'cut_mix'."
    )


def test_a_head_that_takes_no_features_is_refused_when_it_is_called():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, pixel_values):
            return self.head(pixel_values.mean((2, 3)))

    model = Flat()
    with pytest.raises(UserError, match="head of Flat is called without feature maps"), perturbed_features(model, abs):
        model(PIXELS)


@pytest.mark.parametrize("name", ["unimatch", "unimatch_v2"])
def test_a_compiled_network_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=f"objective '{name}' perturbs features inside the network, .* torch_compile"):
        tiny.trainer(tmp_path, objective=name, rule="mean_teacher", torch_compile=True)


@pytest.mark.parametrize("kind", [UniMatchObjective, UniMatchV2Objective])
def test_a_feature_stream_differs_from_the_clean_one_and_from_step_to_step(kind):
    """With drawn masks, twice the same batch gives two losses."""
    model = tiny.model()
    objective = kind(confidence_threshold=0.0, jitter_probability=0.0, gray_probability=0.0, blur_probability=0.0)
    labeled, unlabeled = tiny.images(2, 1), tiny.images(2, 2)
    batch = {
        "pixel_values": torch.stack([item["pixel_values"] for item in labeled]),
        "labels": torch.stack([item["labels"] for item in labeled]),
        "unlabeled_pixel_values": torch.stack([item["pixel_values"] for item in unlabeled]),
    }
    batch = objective.prepare(lambda images: model(images), on_device(batch))
    key = "feature_loss" if kind is UniMatchObjective else "unlabeled_loss"

    def loss():
        terms = objective.terms(model, None, batch, objective.counts(batch))
        return next(losses[key].item() for losses in terms if key in losses)

    torch.manual_seed(0)
    assert len({loss() for _ in range(4)}) > 1
