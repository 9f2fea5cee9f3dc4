"""Strong augmentation: each image draws for itself, stays an image, and keeps its geometry."""

from __future__ import annotations

import pytest
import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as IMAGE_MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as IMAGE_STD

from hf_fst.method.augmentation import StrongAugmentation, blur_kernel

MEAN, STD = torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), torch.tensor(IMAGE_STD).view(1, 3, 1, 1)


def normalized(count=16, dtype=torch.float32):
    """The same random image, `count` times (count,3,24,32)."""
    colors = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0)).repeat(count, 1, 1, 1)
    return ((colors - MEAN) / STD).to(dtype)


def changed(images, out):
    return ((images - out).abs().flatten(1).amax(1) > 1e-3).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_image_draws_its_own_jitter_and_stays_an_image(dtype):
    images = normalized(dtype=dtype)
    torch.manual_seed(0)
    out = StrongAugmentation(1.0, 0.2, 0.0)(images)
    assert out.dtype == dtype and out.shape == images.shape
    colors = out.float() * STD + MEAN
    slack = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert colors.min() >= -slack and colors.max() <= 1 + slack
    brightness = colors.mean((1, 2, 3))
    assert brightness.unique().numel() > 8 and brightness.std() > 0.02


def test_jitter_and_blur_come_with_their_probabilities():
    images = normalized(400)
    torch.manual_seed(0)
    jittered = changed(images, StrongAugmentation(0.8, 0.2, 0.0)(images))
    blurred = changed(images, StrongAugmentation(0.0, 0.2, 0.5)(images))
    assert sum(jittered) / 400 == pytest.approx(0.8, abs=0.08)
    assert sum(blurred) / 400 == pytest.approx(0.5, abs=0.1)


def test_blur_smooths_and_keeps_the_colour():
    images = normalized(8)
    torch.manual_seed(0)
    out = StrongAugmentation(0.0, 0.2, 1.0)(images)

    def roughness(x):
        return x.diff(dim=-1).abs().mean((1, 2, 3))

    assert (roughness(out) < roughness(images)).all()
    assert roughness(out).unique().numel() > 1  # each its own sigma
    assert torch.allclose(out.mean((2, 3)), images.mean((2, 3)), atol=0.05)


@pytest.mark.parametrize("size", [(1, 1), (64, 2), (2, 64)])
def test_images_of_a_few_pixels_are_blurred_as_far_as_they_go(size):
    images = torch.randn(2, 3, *size)
    assert StrongAugmentation(0.0, 0.0, 1.0)(images).isfinite().all()


def test_a_constant_image_is_untouched_by_blur_and_geometry_never_moves():
    image = torch.zeros(1, 3, 24, 32)
    image[..., 10:14, 12:16] = 1.0
    torch.manual_seed(1)
    out = StrongAugmentation(1.0, 0.2, 1.0)(image).mean(1)[0]
    rows, columns = (out - out[0, 0]).abs().amax(1), (out - out[0, 0]).abs().amax(0)
    assert (rows.argmax().item(), columns.argmax().item()) in {(r, c) for r in range(10, 14) for c in range(12, 16)}
    assert (out[0] - out[0, 0]).abs().max() < 1e-4


def test_nothing_asked_for_changes_nothing_and_draws_nothing():
    images = normalized(2)
    before = torch.get_rng_state()
    assert StrongAugmentation(0.0, 0.2, 0.0)(images) is images
    assert torch.equal(before, torch.get_rng_state())


def test_the_torch_seed_alone_decides():
    images = normalized(4)
    augment = StrongAugmentation(0.8, 0.2, 0.5)
    outs = []
    for _ in range(2):
        torch.manual_seed(5)
        outs.append(augment(images))
    assert torch.equal(*outs)


@pytest.mark.parametrize("height, kernel", [(512, 51), (640, 63), (500, 49), (96, 9), (8, 3)])
def test_blur_kernel_is_odd_and_a_tenth_of_the_height(height, kernel):
    # DACS: floor(ceil(0.1 H) - 0.5 + ceil(0.1 H) % 2)
    assert blur_kernel(height) == kernel


@pytest.mark.parametrize("like", ["dacs", "unimatch"])
def test_padding_does_not_change_the_colors_of_the_image_beside_it(like):
    images = normalized(6) * torch.linspace(0.1, 1.5, 6).view(-1, 1, 1, 1)
    padded = torch.nn.functional.pad(images, (0, 40, 0, 30))
    valid = torch.nn.functional.pad(torch.ones(6, 24, 32, dtype=torch.bool), (0, 40, 0, 30))
    augment = StrongAugmentation(0.8, 0.5, 0.0, like=like)
    for seed in range(4):  # the order of the steps is drawn
        torch.manual_seed(seed)
        alone = augment(images)
        torch.manual_seed(seed)
        beside = augment(padded, valid)[..., :24, :32]
        torch.testing.assert_close(beside, alone, atol=1e-5, rtol=0)
        assert not torch.allclose(alone, images, atol=0.1)
