"""`FSTTrainer.predict`: logits of images of any sizes, in the order of the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import tiny
from tests.device import DEVICE


@pytest.fixture
def trainer(tmp_path):
    return tiny.trainer(tmp_path, rule="mean_teacher", per_device_eval_batch_size=2)


def alone(trainer, item) -> np.ndarray:
    """The logits of one image, from the network itself."""
    with torch.no_grad():
        return trainer.model.eval()(item["pixel_values"][None].to(DEVICE)).logits[0].cpu().numpy()


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("sizes", [((8, 8), (12, 8)), ((8, 8), (8, 8), (6, 10)), ((6, 4), (8, 8), (8, 8))])
def test_images_of_several_sizes_within_a_batch_and_across_batches(trainer, sizes, labels):
    items = [tiny.images(1, seed, size, labels)[0] for seed, size in enumerate(sizes)]
    found = trainer.predict(items)
    assert found.predictions.shape == (len(sizes),)
    for logits, item in zip(found.predictions, items, strict=True):
        assert np.allclose(logits, alone(trainer, item), atol=1e-12)
    if labels:
        for ids, item in zip(found.label_ids, items, strict=True):
            assert np.array_equal(ids, item["labels"].numpy())
    else:
        assert found.label_ids is None


def test_images_of_one_size_are_one_array(trainer):
    items = tiny.images(3)
    found = trainer.predict(items)
    assert np.allclose(found.predictions, np.stack([alone(trainer, item) for item in items]), atol=1e-12)
    assert np.array_equal(found.label_ids, torch.stack([item["labels"] for item in items]).numpy())


def test_crops_that_say_where_they_are_padding(trainer):
    items = [item | {"valid": torch.ones(8, 8, dtype=torch.bool)} for item in tiny.images(2)]
    assert trainer.predict(items).predictions.shape == (2, 3, 4, 4)


def test_batches_are_left_apart_where_that_is_asked_for(trainer):
    trainer.args.eval_do_concat_batches = False
    assert [len(batch) for batch in trainer.predict(tiny.images(3)).predictions] == [2, 1]
    assert trainer.args.eval_do_concat_batches is False and "eval_teacher_mean_iou" in trainer.evaluate(tiny.images(1))
