"""Universal segmenters as per-pixel classifiers."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    EomtConfig,
    Mask2FormerConfig,
    OneFormerConfig,
    SwinConfig,
    VideomtConfig,
)

from hf_fst.errors import UserError
from hf_fst.method.rules import RULES
from hf_fst.models import UniversalSegmenter, UniversalSegmenterConfig
from hf_fst.models.universal import per_pixel_log_probabilities
from tests import tiny as tiny_run
from tests.tolerance import assert_same_logits, assert_same_weights

NAMES = {0: "road", 1: "car", 2: "sky"}
NUMBERS = {rule: {"fst_d": "lookahead_steps", "fst_w": "lookahead_students"}.get(rule) for rule in RULES}


def swin() -> SwinConfig:
    return SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def segmenter_config(kind: str):
    decoder = {
        "backbone_config": swin(),
        "hidden_dim": 32,
        "encoder_feedforward_dim": 16,
        "dim_feedforward": 16,
        "num_attention_heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 6,
        "id2label": NAMES,
    }
    if kind == "mask2former":
        return Mask2FormerConfig(**decoder, feature_size=32, mask_feature_size=32)
    if kind == "oneformer":
        text = {"text_encoder_width": 8, "text_encoder_num_layers": 1, "text_encoder_vocab_size": 20}
        return OneFormerConfig(**decoder, conv_dim=32, mask_dim=32, query_dec_layers=1, dropout=0.0, **text)
    return EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_blocks=1,
        image_size=64,
        num_queries=6,
        num_upscale_blocks=1,
        id2label=NAMES,
    )


def adapter(kind: str) -> UniversalSegmenter:
    torch.manual_seed(0)
    task_inputs = list(range(19)) + [0] * 58 if kind == "oneformer" else None
    config = UniversalSegmenterConfig(segmenter_config=segmenter_config(kind), task_inputs=task_inputs)
    return UniversalSegmenter(config).eval()


PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_log_probabilities_of_two_queries_worked_by_hand():
    # Query 0: classes (1/2, 1/4), nothing 1/4, mask 1/2. Query 1: classes (1/8, 5/8), nothing 1/4, mask 3/4.
    classes = torch.tensor([[[4.0, 2.0, 2.0], [1.0, 5.0, 2.0]]]).log()
    masks = torch.tensor([0.0, math.log(3)]).reshape(1, 2, 1, 1)
    found = per_pixel_log_probabilities(classes, masks)
    expected = torch.tensor([1 / 2 * 1 / 2 + 1 / 8 * 3 / 4, 1 / 4 * 1 / 2 + 5 / 8 * 3 / 4]).log()
    torch.testing.assert_close(found.flatten(), expected)


def test_impossible_classes_keep_logits_and_gradients_finite():
    classes = torch.tensor([[[0.0, -200.0, 0.0]]], requires_grad=True)
    masks = torch.full((1, 1, 2, 2), -300.0, requires_grad=True)
    found = per_pixel_log_probabilities(classes, masks)
    F.cross_entropy(found, torch.ones(1, 2, 2, dtype=torch.long)).backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(classes.grad).all() and torch.isfinite(masks.grad).all()


@pytest.mark.parametrize("kind", ["mask2former", "oneformer", "eomt"])
def test_adapter_agrees_with_the_wrapped_model_learns_and_survives_saving(kind, tmp_path):
    model = adapter(kind)
    inputs = {"pixel_values": PIXELS}
    if kind == "oneformer":
        inputs["task_inputs"] = torch.tensor(model.config.task_inputs).expand(2, -1)
    with torch.no_grad():
        queries = model.segmenter(**inputs)
        logits = model(PIXELS).logits
    assert logits.shape == (2, 3, *queries.masks_queries_logits.shape[-2:])
    probabilities = queries.class_queries_logits.softmax(-1)[:, :, :3]
    for label in range(3):
        expected = (probabilities[:, :, label, None, None] * queries.masks_queries_logits.sigmoid()).sum(1)
        torch.testing.assert_close(logits[:, label].exp(), expected)

    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.config.id2label == NAMES
    assert_same_weights(loaded, model)
    with torch.no_grad():
        assert_same_logits(loaded(PIXELS).logits, logits)

    labels = torch.ones(2, 64, 64, dtype=torch.long)
    labels[:, :, 32:] = 2
    labels[:, 0] = 255
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = model(PIXELS, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "rule", [rule if rule == "fst_d" else pytest.param(rule, marks=pytest.mark.slow) for rule in RULES]
)
@pytest.mark.parametrize("kind", ["mask2former", "oneformer", "eomt"])
def test_every_rule_trains_it(kind, rule, tmp_path):
    model = adapter(kind)
    before = tiny_run.weights(model)
    sets = tuple(tiny_run.images(2, seed, (64, 64), dtype=torch.float32) for seed in (1, 2))
    options = {"max_steps": 2, "learning_rate": 1e-3, "lookahead_steps": 1, "lookahead_students": 2}
    options = {
        key: value for key, value in options.items() if key in ("max_steps", "learning_rate") or NUMBERS[rule] == key
    }
    trainer = tiny_run.trainer(tmp_path, model, sets=sets, rule=rule, ddp_find_unused_parameters=False, **options)
    result = trainer.train()
    assert math.isfinite(result.training_loss) and not tiny_run.same(tiny_run.weights(model), before)
    if rule != "supervised":
        assert not tiny_run.same(tiny_run.weights(trainer.teacher.model), before)


def test_loss_at_the_size_of_the_masks_is_the_cross_entropy_of_the_log_probabilities():
    model = adapter("eomt")
    with torch.no_grad():
        logits = model(PIXELS).logits
        labels = torch.randint(3, logits[:, 0].shape, generator=torch.Generator().manual_seed(2))
        loss = model(PIXELS, labels=labels).loss
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_other_classes_replace_the_class_predictor(tmp_path):
    adapter("eomt").save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} <= {
        f"segmenter.{name}" for name in ("class_predictor.weight", "class_predictor.bias", "criterion.empty_weight")
    }
    assert loaded(PIXELS).logits.shape[1] == 5


def test_wrapping_shares_the_weights_of_the_model():
    segmenter = AutoModelForUniversalSegmentation.from_config(segmenter_config("mask2former")).eval()
    model = UniversalSegmenter.wrap(segmenter)
    assert model.segmenter is segmenter and not model.training
    assert model.config.id2label == NAMES
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_oneformer_without_its_task_is_refused():
    with pytest.raises(ValueError, match="OneFormer needs the tokens of its task text"):
        UniversalSegmenter(UniversalSegmenterConfig(segmenter_config=segmenter_config("oneformer")))


@pytest.mark.parametrize("kind", ["mask2former", "eomt"])
def test_a_raw_segmenter_is_refused_with_what_to_write(tmp_path, kind):
    segmenter = AutoModelForUniversalSegmentation.from_config(segmenter_config(kind))
    with pytest.raises(
        UserError, match=r"which has no logits; wrap it: hf_fst.models.UniversalSegmenter.wrap\(model\)"
    ):
        tiny_run.trainer(tmp_path, segmenter, rule="mean_teacher")


def test_a_segmenter_of_videos_is_refused():
    with pytest.raises(ValueError, match="VidEoMT segments videos; give a segmenter of images"):
        UniversalSegmenter(UniversalSegmenterConfig(segmenter_config=VideomtConfig(hidden_size=16)))
