"""What transformers checks of its own models, checked of ours, at tiny widths."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from tests.tolerance import assert_same_logits, assert_same_weights

from .tiny import TINY, image, labels_for, tiny

NAMES = list(TINY)
ATTENTION = [name for name in NAMES if "resnet" not in name]
# Of 64x96 pixels: stride 4 but for those below. The semi-supervised stem rounds up: 64 -> 32 -> 17 (3x3 pooling of a
# padded 32, stride 2, ceil), -> 9 at stride 8, and 9 * 8 = 72 after three pixel shuffles.
LOGIT_SIZES = {
    "deeplabv2-resnet50": (8, 12),
    "pspnet-resnet101": (8, 12),
    "deeplabv2-resnet101-semi": (9, 13),
    "pspnet-resnet101-semi": (72, 104),
    "deeplabv3plus-resnet101-cityscapes": (17, 25),
    "upernet-beit-base": (16, 16),
    # Patches of 14 in 56x70 and of 16 in 64x96 pixels, 8 times finer.
    "dpt-dinov2-small": (32, 40),
    "dpt-dinov3-small": (32, 48),
}


@pytest.mark.parametrize("name", NAMES)
def test_saved_network_loads_whole_and_gives_the_same_logits(name, tmp_path):
    model, pixel_values = tiny(name), image(name)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)

    assert type(loaded) is type(model)
    assert not any(info.values()), info
    assert_same_weights(loaded, model)
    with torch.no_grad():
        assert_same_logits(loaded(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_alone_gives_what_it_gives_in_a_batch(name):
    model, pixel_values = tiny(name), image(name, batch=3)
    with torch.no_grad():
        together = model(pixel_values)
        alone = model(pixel_values[1:2])
    scale = together.logits.abs().max().item()
    torch.testing.assert_close(alone.logits, together.logits[1:2], rtol=0, atol=1e-4 * scale)
    assert together.logits.shape == (3, 5, *LOGIT_SIZES.get(name, (16, 24)))


# timm's backbones recompute in a way of their own, which transformers does not switch on
@pytest.mark.parametrize("name", [name for name in NAMES if "efficientnet" not in name])
def test_checkpointing_changes_neither_gradients_nor_running_statistics(name):
    pixel_values = image(name)
    labels = labels_for(pixel_values)
    results = []
    for checkpointing in (False, True):
        model = tiny(name)
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model.train()
        torch.manual_seed(3)
        model(pixel_values, labels=labels).loss.backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
        results.append((gradients, dict(model.named_buffers())))
    (plain, plain_buffers), (checkpointed, checkpointed_buffers) = results
    torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(checkpointed_buffers, plain_buffers)


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_weight_learns_from_logits_and_auxiliary_logits_alone(name):
    model, pixel_values = tiny(name).train(), image(name)
    output = model(pixel_values)
    total = output.logits.float().square().mean()
    for logits in (output.auxiliary_logits or {}).values():
        total = total + logits.float().square().mean()
    total.backward()
    without = [key for key, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_cross_entropy_of_the_labeled_pixels_and_the_weighted_one_of_the_auxiliary_head(name):
    model, pixel_values = tiny(name), image(name)
    labels = labels_for(pixel_values)
    labels[:, -1] = -100
    with torch.no_grad():
        output = model(pixel_values, labels=labels)
    assert (output.auxiliary_logits is None) == (model.auxiliary_head is None)
    counted, expected = (labels != 255) & (labels != -100), 0.0
    for logits, weight in ((output.logits, 1.0), ((output.auxiliary_logits or {}).get("auxiliary_head"), 0.4)):
        if logits is not None:
            sized = torch.nn.functional.interpolate(
                logits, labels.shape[-2:], mode="bilinear", align_corners=model.config.align_corners
            )
            chosen = sized.log_softmax(1).gather(1, labels.clamp(0, 4)[:, None])[:, 0]
            expected -= weight * chosen[counted].mean()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("name", NAMES)
def test_one_training_image_is_enough(name):
    model, pixel_values = tiny(name).train(), image(name, batch=1)
    assert torch.isfinite(model(pixel_values, labels=labels_for(pixel_values)).loss)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_implementations_agree(name):
    model, pixel_values = tiny(name), image(name)
    logits = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert model.backbone.config._attn_implementation == implementation
        with torch.no_grad():
            logits[implementation] = model(pixel_values).logits
    torch.testing.assert_close(logits["eager"], logits["sdpa"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_implementation_can_be_chosen_at_loading(name, tmp_path):
    tiny(name).save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.backbone.config._attn_implementation == "eager"
