"""Exported programs of the networks, at tiny widths."""

import pytest
import torch

from .tiny import TINY, image, tiny

FAST = ("daformer-mit-b0", "deeplabv3plus-resnet101-cityscapes", "upernet-swin-base", "dpt-dinov2-small")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
)
def test_exported_program_gives_the_same_logits(name):
    model, pixel_values = tiny(name), image(name)
    with torch.no_grad():
        program = torch.export.export(model, (pixel_values,), strict=False)
        expected = model(pixel_values)
        output = program.module()(pixel_values)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
