"""One owner of mean, deviation and rescale factor: the image processor that is saved with the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from transformers import (
    AutoImageProcessor,
    BeitImageProcessor,
    MobileViTImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from hf_fst import FSTConfig, objectives
from hf_fst.data import LabelMap, View
from hf_fst.data.transforms import Evaluation, Normalization, training
from hf_fst.errors import UserError
from hf_fst.evaluation.runner import evaluate_model
from hf_fst.models import build
from hf_fst.training.summary import samples_of
from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.device import USE_CPU
from tests.models.tiny import TINY

NAMES = ["dark", "bright"]
PROCESSORS = {
    "halves": BeitImageProcessor(do_resize=False, do_center_crop=False, image_std=[0.25, 0.5, 0.5]),
    "another factor": SegformerImageProcessor(do_resize=False, rescale_factor=1 / 64, image_mean=1.9, image_std=0.7),
    "blue first": MobileViTImageProcessor(do_resize=False, do_center_crop=False),
}


def network() -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    return SegformerForSemanticSegmentation(SegformerConfig(id2label=dict(enumerate(NAMES)), **sizes))


def saved(directory, processor=None) -> str:
    network().save_pretrained(directory)
    if processor is not None:
        processor.save_pretrained(directory)
    return str(directory)


def images() -> Dataset:
    """Noise, dark on the left, with more blue than red."""
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 1
    pictures = [rng.integers(0, 60, (32, 32, 3)) + [10, 40, 80] + 100 * mask[..., None] for _ in range(4)]
    rows = {"image": [picture.astype(np.uint8) for picture in pictures], "label": [mask] * 4}
    return Dataset.from_dict(rows).cast_column("image", Image()).cast_column("label", LabelMap(names=NAMES))


def trainer(model, tmp_path, *, transforms=None, processor=None, **options) -> FSTTrainer:
    train, evaluation = transforms or (training(32), Evaluation())
    options = {"rule": "mean_teacher", "learning_rate": 5e-3, "max_steps": 6, **options}
    return FSTTrainer(
        model,
        tiny.config(tmp_path / "run", **options),
        train_dataset=View(images(), train),
        unlabeled_dataset=View(images(), train, with_labels=False),
        eval_dataset=View(images(), evaluation),
        processing_class=processor,
    )


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_saved_model_is_trained_and_evaluated_with_its_own_numbers(name, tmp_path):
    processor = PROCESSORS[name]
    run = trainer(saved(tmp_path / "model", processor), tmp_path)
    wanted = processor(images=np.asarray(images()[0]["image"]), return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(run.eval_dataset[0]["pixel_values"], wanted, atol=1e-5)
    run.train()
    run.save_model()
    assert Normalization.of(AutoImageProcessor.from_pretrained(tmp_path / "run")) == run.normalization
    scores = run.evaluate(View(images(), Evaluation()))  # a dataset that comes later
    again = evaluate_model(tmp_path / "run", images(), split="train", progress=False)
    assert scores["eval_teacher_mean_iou"] == pytest.approx(again["mean_iou"], abs=1e-9)
    shown = samples_of(run)[0][0]
    assert np.array_equal(shown, np.asarray(images()[0]["image"]))


def test_transforms_with_other_numbers_are_refused(tmp_path):
    path = saved(tmp_path / "model", PROCESSORS["halves"])
    mine = Normalization((0.1,) * 3, (0.2,) * 3)
    with pytest.raises(UserError, match="images of train_dataset are normalized with mean 0.1, .* says mean 0.5"):
        trainer(path, tmp_path, transforms=(training(32, processor=mine), Evaluation()))
    with pytest.raises(UserError, match="images of eval_dataset are normalized with mean 0.1"):
        trainer(path, tmp_path, transforms=(training(32), Evaluation(processor=mine)))
    run = trainer(path, tmp_path)
    with pytest.raises(UserError, match="images of the evaluation are normalized with mean 0.1"):
        run.evaluate(View(images(), Evaluation(processor=mine)))


def test_the_processor_of_a_model_in_memory(tmp_path):
    """That of the transforms; else that of the directory it came from; else ImageNet's."""
    mine = Normalization((0.1,) * 3, (0.2,) * 3)
    assert trainer(network(), tmp_path, transforms=(training(32, processor=mine), Evaluation())).normalization == mine
    assert trainer(network(), tmp_path).normalization == Normalization()
    path = saved(tmp_path / "model", PROCESSORS["blue first"])
    loaded = SegformerForSemanticSegmentation.from_pretrained(path)
    assert trainer(loaded, tmp_path).normalization.bgr
    (tmp_path / "model/preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="image processor of .*model cannot be read"):
        trainer(loaded, tmp_path)
    assert trainer(loaded, tmp_path, processor=PROCESSORS["halves"]).normalization.std == (0.25, 0.5, 0.5)


def test_a_processor_that_ones_own_images_need_not_follow_is_a_warning(tmp_path, caplog):
    rows = [{"pixel_values": np.zeros((3, 32, 32), np.float32), "labels": np.zeros((32, 32), np.int64)}]
    args = FSTConfig(output_dir=str(tmp_path / "run"), rule="supervised", use_cpu=USE_CPU)
    FSTTrainer(network(), args, train_dataset=rows, processing_class=PROCESSORS["halves"])
    FSTTrainer(network(), args, train_dataset=View(images(), training(32)))
    assert "image processor" not in caplog.text
    FSTTrainer(network(), args, train_dataset=rows)
    assert "saved with an image processor of mean 0.485, 0.456, 0.406 and deviation" in caplog.text


def test_efficientnet_lite_has_the_numbers_of_its_weights(tmp_path):
    lite = build("upernet-efficientnet-lite0", 2, **TINY["upernet-efficientnet-lite0"])
    run = trainer(lite, tmp_path)
    assert run.normalization == Normalization((127 / 255,) * 3, (128 / 255,) * 3)
    black = View(
        Dataset.from_dict({"image": [np.zeros((8, 8, 3), np.uint8)]}).cast_column("image", Image()), Evaluation()
    )
    (batch,) = run.get_test_dataloader(black)
    assert torch.allclose(batch["pixel_values"], torch.tensor(-127 / 128))


@pytest.mark.parametrize(
    "given", [None, objectives.PseudoLabelObjective(jitter_probability=1.0)], ids=["name", "object"]
)
def test_augmented_images_stay_images_under_the_numbers_of_the_processor(given, tmp_path):
    crops, path = training(32, flip=0), saved(tmp_path / "model", PROCESSORS["another factor"])
    run = trainer(path, tmp_path, transforms=(crops, Evaluation()), jitter_probability=1.0)
    if given is not None:
        made = run.learning_objective
        run = FSTTrainer(
            network(),
            tiny.config(tmp_path / "run", objective=None),
            objective=given,
            train_dataset=View(images(), crops),
            unlabeled_dataset=View(images(), crops, with_labels=False),
            processing_class=PROCESSORS["another factor"],
        )
        assert run.learning_objective.image_mean == made.image_mean
    pixels = torch.stack([run.unlabeled_dataset[i]["pixel_values"] for i in range(4)])
    torch.manual_seed(0)
    out = run.learning_objective.augment(pixels)
    colors = [run.normalization.colors(one).astype(int) for one in out]
    assert not torch.equal(out, pixels)
    for seen, row in zip(colors, images(), strict=True):
        before = np.asarray(row["image"]).astype(int)
        assert abs(seen.mean() - before.mean()) < 40 and np.corrcoef(seen.ravel(), before.ravel())[0, 1] > 0.8
