"""Exported programs of the networks, at tiny widths."""

import pytest
import torch

from .tiny import TINY, image, tiny


@pytest.mark.parametrize("name", list(TINY))
def test_exported_program_gives_the_same_logits(name):
    model, pixel_values = tiny(name), image(name)
    with torch.no_grad():
        program = torch.export.export(model, (pixel_values,), strict=False)
        expected = model(pixel_values)
        output = program.module()(pixel_values)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
