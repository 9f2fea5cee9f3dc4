"""Strong views: maps move as their images do, and as the authors of ProDA move labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hf_fst.method.views import COLORS, MOVES, View, moved, rotation, strong_view
from tests.recorded import ids, recorded

# what is recorded, as a matrix for an image of 64 x 96 pixels; their shift to the side is over the height of the image
RECORDED = {
    "Rotate_20.0": rotation(20, 2 / 3),
    "ShearX_0.2": MOVES["shear_x"](0.2 / 0.3, 2 / 3),
    "ShearY_-0.2": MOVES["shear_y"](-0.2 / 0.3, 2 / 3),
    "TranslateX_16.0": MOVES["translate_x"](16 / 64 / 0.3, 2 / 3),
    "TranslateY_-8.0": MOVES["translate_y"](-8 / 64 / 0.3, 2 / 3),
    "Hflip": [[-1, 0, 0], [0, 1, 0]],
}


@pytest.mark.parametrize("name", RECORDED)
def test_labels_move_as_the_authors_move_them(name):
    inputs, outputs = recorded("proda_label_transforms")
    labels = ids(inputs["label"])
    matrix = torch.tensor([RECORDED[name]], dtype=torch.float64)
    found = moved((labels + 1).double(), matrix, "nearest").long() - 1  # 0 is outside
    differing = found.where(found >= 0, 255) != ids(outputs[name])
    # a place halfway between two pixels may go to either: rounding decides, which depends on the processor's kernel
    size = torch.tensor([labels.shape[3], labels.shape[2]], dtype=torch.float64)
    places = ((F.affine_grid(matrix, list(labels.shape), align_corners=False) + 1) * size - 1) / 2
    tie = ((places % 1 - 0.5).abs() < 1e-9).any(dim=3)
    assert not (differing & ~tie).any() and differing.sum() <= 0.01 * differing.numel()


def test_labels_are_cut_out_as_the_authors_cut():
    inputs, outputs = recorded("proda_label_transforms")
    holes = torch.zeros(1, 1, 64, 96, dtype=torch.bool)
    holes[..., 8:24, 8:24] = True
    still = torch.eye(3)[None, :2]
    shown = View(torch.zeros(1, 3, 64, 96), still, holes).shows(torch.ones(1, 16, 24, dtype=torch.bool))
    assert torch.equal(ids(inputs["label"])[:, 0].masked_fill(~shown, 255), ids(outputs["Cutout_8_8_24_24"])[:, 0])


def views(images: int, **options) -> tuple[torch.Tensor, View]:
    """A ramp to the right in the first channel and one downward in the second, and its views."""
    right, down = torch.linspace(-1, 1, 48).expand(32, 48), torch.linspace(-1, 1, 32).view(-1, 1).expand(32, 48)
    pictures = torch.stack([right, down, right * 0]).double().expand(images, 3, 32, 48)
    torch.manual_seed(0)
    return pictures, strong_view(pictures, **options)


def test_maps_move_as_their_images(monkeypatch):
    monkeypatch.setattr("hf_fst.method.views.COLORS", COLORS[:1])  # the color that changes none
    images, view = views(40, count=6)
    shown = view.shows(torch.ones(40, 32, 48, dtype=torch.bool)).unsqueeze(1)
    assert torch.allclose(view.move(images) * shown, view.images * shown, atol=1e-12)
    # each image has its own draw, and maps of another size move alike
    assert len({tuple(matrix.flatten().tolist()) for matrix in view.matrices}) > 30
    small = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="bilinear")
    again = torch.nn.functional.interpolate(view.move(small), scale_factor=2.0, mode="bilinear")
    inside = torch.nn.functional.avg_pool2d(shown.double(), 9, 1, 4) == 1
    assert ((again - view.images) * inside).abs().max() < 0.1


def test_padding_holes_and_what_is_outside_are_not_shown():
    _, view = views(60, count=4)
    valid = torch.ones(60, 32, 48, dtype=torch.bool)
    valid[:, :, 24:] = False
    assert not (view.shows(valid) & view.holes.squeeze(1)).any()
    assert (view.images.masked_select(view.holes.expand(-1, 3, -1, -1)) == 0).all()
    assert view.holes.sum() == 60 * 10 * 10  # a third of the short side
    still = torch.tensor([[[1, 0, 0], [0, 1, 0]]], dtype=view.matrices.dtype)
    kept = (view.matrices == still).all(dim=(1, 2))
    mirrored = (view.matrices == still * torch.tensor([[-1, 1, 1], [1, 1, 1]])).all(dim=(1, 2))
    assert kept.any() and mirrored.any()
    assert torch.equal(view.shows(valid)[kept], (valid & ~view.holes.squeeze(1))[kept])
    assert torch.equal(view.shows(valid)[mirrored], (valid.flip(-1) & ~view.holes.squeeze(1))[mirrored])


@pytest.mark.parametrize("which", range(1, len(COLORS)))
def test_each_color_operation_changes_colors_and_keeps_them_in_range(which):
    torch.manual_seed(0)
    image = 0.2 + 0.5 * torch.rand(3, 16, 24)
    for strength in (0.1, 0.9):
        changed = COLORS[which](image, strength)
        assert changed.shape == image.shape and 0 <= changed.min() <= changed.max() <= 1
    assert not torch.equal(changed, image)


def test_rotation_keeps_lengths():
    """A quarter turn of a square brings its right side to the top."""
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    image[..., 7] = 1
    turned = moved(image, torch.tensor([rotation(90, 1.0)], dtype=torch.float64), "nearest")
    assert turned[0, 0, 0].sum() == 8 and turned.sum() == 8
