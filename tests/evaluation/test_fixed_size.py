"""Networks that take images of one size alone are given windows of it by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    BitConfig,
    DPTConfig,
    DPTForSemanticSegmentation,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    HieraConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_fst.errors import UserError
from hf_fst.evaluation.inference import Look, explain_size, predict, segment
from hf_fst.method.lookahead import Step
from hf_fst.models import UniversalSegmenter
from hf_fst.prediction.segmenter import Segmenter
from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.architectures import STAGES, UPERNET, VIT, make


def eomt() -> UniversalSegmenter:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1, "num_queries": 5}
    config = EomtConfig(image_size=32, patch_size=8, num_upscale_blocks=1, num_labels=3, **sizes)
    return UniversalSegmenter.wrap(EomtForUniversalSegmentation(config)).eval()


def hybrid() -> DPTForSemanticSegmentation:
    backbone = BitConfig(
        global_padding="same",
        layer_type="bottleneck",
        depths=[1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        embedding_size=8,
        num_groups=2,
        out_features=["stage1", "stage2", "stage3"],
        embedding_dynamic_padding=True,
    )
    config = DPTConfig(
        num_labels=3,
        is_hybrid=True,
        backbone_config=backbone,
        backbone_featmap_shape=[1, 16, 2, 2],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        patch_size=16,
        **VIT,
    )
    torch.manual_seed(0)
    return DPTForSemanticSegmentation(config).eval()


def on_hiera() -> UperNetForSemanticSegmentation:
    backbone = HieraConfig(
        image_size=[32, 32],
        patch_stride=[2, 2],
        embed_dim=4,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        out_features=STAGES,
    )
    torch.manual_seed(0)
    config = UperNetConfig(num_labels=3, backbone_config=backbone, auxiliary_in_channels=16, **UPERNET)
    return UperNetForSemanticSegmentation(config).eval()


def on(kind: str, **sizes) -> UperNetForSemanticSegmentation:
    """UPerNet on a backbone of transformers."""
    backbone = AutoConfig.for_model(kind, out_features=STAGES, **sizes)
    torch.manual_seed(0)
    config = UperNetConfig(num_labels=3, backbone_config=backbone, use_auxiliary_head=False, **UPERNET)
    return UperNetForSemanticSegmentation(config).eval()


VIT4 = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"patch_size": 4}
CUT = {
    "rf_detr_dinov2": {**VIT4, "num_windows": 2},
    "lw_detr_vit": {**VIT4, "num_windows": 4, "pretrain_image_size": 32, "window_block_indices": [0, 1]},
}


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make_network", [eomt, lambda: make("data2vec").eval(), hybrid, on_hiera])
def test_larger_images_are_windowed_and_smaller_ones_padded(make_network):
    network, large = make_network(), noise(48, 70)
    expected = segment(network, large, look=Look(window=32))
    assert torch.equal(segment(network, large), expected) and torch.equal(predict(network, large), expected.argmax(1))
    whole = noise(32, 32)
    with torch.no_grad():
        logits = network(pixel_values=whole).logits
    up = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")
    assert torch.allclose(segment(network, whole), up, atol=1e-6)
    small = whole[..., :20, :25].clone()
    padded = torch.zeros_like(whole)
    padded[..., :20, :25] = small
    assert torch.allclose(segment(network, small), segment(network, padded)[..., :20, :25], atol=1e-6)
    assert segment(network, noise(20, 70), look=Look(flip=True, scales=(0.5, 1.5))).isfinite().all()
    with pytest.raises(UserError, match=r"window is \(16, 16\), but .* takes images of \(32, 32\) alone"):
        segment(network, large, look=Look(window=16))


def test_what_takes_squares_alone_gets_them():
    network = make("dpt").eval()
    assert torch.equal(segment(network, noise(48, 80)), segment(network, noise(48, 80), look=Look(window=32)))
    with torch.no_grad():
        logits = network(pixel_values=noise(48, 48)).logits
    whole = torch.nn.functional.interpolate(logits, (48, 48), mode="bilinear")
    assert torch.equal(segment(network, noise(48, 48)), whole)  # a square is looked at as it is


@pytest.mark.parametrize("kind", CUT)
def test_sides_that_cannot_be_cut_into_windows_are_padded(kind):
    network, odd = on(kind, **CUT[kind]), noise(37, 50)  # multiples of 8 fit
    padded = torch.zeros(1, 3, 40, 56)
    padded[..., :37, :50] = odd
    expected = segment(network, padded)[..., :37, :50]
    assert torch.allclose(segment(network, odd), expected, atol=1e-6)
    assert torch.equal(predict(network, odd), expected.argmax(1))
    assert segment(network, odd, look=Look(window=22, scales=(0.75, 1.0), flip=True)).isfinite().all()


@pytest.mark.parametrize(
    ("network", "side", "sentence"),
    [
        (lambda: on("rf_detr_dinov2", **CUT["rf_detr_dinov2"]), 36, "multiples of 8; use a crop of 40x40"),
        (
            lambda: on("pvt_v2", hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4),
            16,
            "does not take images of 16x16 pixels .*, but takes 32x32; use that as the crop",
        ),
        (
            lambda: on("convnext", hidden_sizes=[8] * 4, depths=[1] * 4),
            15,
            "does not take images of 15x15 pixels .*, but takes 32x32; use that as the crop",
        ),
    ],
)
def test_crops_that_do_not_fit_are_one_sentence_with_a_size_that_does(tmp_path, network, side, sentence):
    sets = [tiny.images(2, seed, (side, side), dtype=torch.float32) for seed in (1, 2)]
    with pytest.raises(UserError, match=sentence):
        FSTTrainer(network(), tiny.config(tmp_path, max_steps=1), None, None, *sets).train()


def test_images_that_are_too_small_to_evaluate_are_one_sentence_with_a_size_that_is_not():
    network = on("convnext", hidden_sizes=[8] * 4, depths=[1] * 4)
    for look in (Look(), Look(window=15)):
        with pytest.raises(UserError, match="does not take images of 15x15 pixels .* takes 32x32; give windows of it"):
            segment(network, noise(15, 15), look=look)
    assert not network.training and segment(network, noise(33, 47)).isfinite().all()


def test_a_backbone_that_gives_no_maps_is_one_sentence():
    sizes = {"image_size": [64, 48], "patch_size": [16, 16], "hidden_size": 16, "num_hidden_layers": 4}
    network = on("vitpose_backbone", **sizes, num_attention_heads=2)
    for size in ((64, 48), (37, 50)):
        with pytest.raises(
            UserError, match="no size that was tried .* its backbone, vitpose_backbone; choose another"
        ):
            segment(network, noise(*size))


def test_images_of_another_type_are_no_fault_of_the_backbone():
    network = on("convnext", hidden_sizes=[8] * 4, depths=[1] * 4).to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="same|dtype") as caught:
        segment(network, noise(32, 32))
    assert "backbone" not in str(caught.value)


def test_gray_images_for_a_network_that_does_not_say_its_channels_are_one_sentence(tmp_path):
    sets = [[{**item, "pixel_values": item["pixel_values"][:1]} for item in tiny.images(4, seed)] for seed in (1, 2)]
    with pytest.raises(UserError, match="have 1 channels, but TinySegmenter takes 3; give"):
        tiny.trainer(tmp_path, sets=sets, rule="mean_teacher").train()


def test_a_fault_that_is_not_the_size_keeps_its_own_words(tmp_path, monkeypatch):
    trainer = tiny.trainer(tmp_path, rule="mean_teacher")
    monkeypatch.setattr(Step, "gradient", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        trainer.train()


def test_a_fault_of_the_device_is_not_taken_for_the_size_and_modes_come_back():
    network = tiny.model().train()
    part = next(network.children()).eval()
    for words in ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "anything else"):
        calls = []
        network.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        explain_size(network, torch.zeros(1, 3, 8, 8, dtype=torch.float64), RuntimeError(words), "")
        assert len(calls) == (0 if words.startswith("CUDA") else 1) and network.training and not part.training


def test_commands_and_training_too(tmp_path):
    eomt().save_pretrained(tmp_path / "model")
    EomtImageProcessor(do_split_image=True, size={"shortest_edge": 32}).save_pretrained(tmp_path / "model")
    segmenter = Segmenter(tmp_path / "model", device="cpu")
    picture = segmenter.look(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    assert segmenter.classes([picture])[0].shape == (40, 60) and "windows of 32" in segmenter.protocol

    def trainer(size):
        sets = [tiny.images(2, seed, (size, size), dtype=torch.float32) for seed in (1, 2, 3)]
        sets[2] = tiny.images(2, 3, (40, 60), dtype=torch.float32)
        config = tiny.config(tmp_path / "run", max_steps=1)
        return FSTTrainer(eomt(), config, None, None, *sets)

    run = trainer(32)
    run.train()
    assert run.evaluate()["eval_teacher_mean_iou"] >= 0
    with pytest.raises(UserError, match="have 48x48 pixels, but the network only takes images of 32x32"):
        trainer(48).train()
