"""Datasets of one's own given to a plain `FSTTrainer`: refused at once, or looked at in the first batch."""

from __future__ import annotations

import math
import re

import datasets
import numpy as np
import pytest
import torch

from hf_fst.data import View
from hf_fst.errors import UserError
from hf_fst.training.batches import look_at_first
from tests import tiny
from tests.data import trees


@pytest.fixture
def raw(tmp_path):
    """A `datasets.Dataset` with the columns image and label."""
    from hf_fst.data import load

    trees.folder(tmp_path / "d", count=4)
    return load("folder", str(tmp_path / "d"))["train"]


def inputs(rows):
    """What `with_transform` is for."""
    pixels = [torch.tensor(np.asarray(image), dtype=torch.float64).permute(2, 0, 1) / 255 for image in rows["image"]]
    return {"pixel_values": pixels, "labels": [np.asarray(label) for label in rows["label"]]}


@pytest.mark.parametrize("name", ["train_dataset", "unlabeled_dataset", "eval_dataset"])
def test_raw_images_are_refused_at_once_with_how_to_wrap_them(tmp_path, raw, name):
    given = {"train_dataset": tiny.images(2), "unlabeled_dataset": tiny.images(2), "eval_dataset": None, name: raw}
    sets = given["train_dataset"], given["unlabeled_dataset"]
    with pytest.raises(ValueError) as error:
        tiny.trainer(tmp_path, sets=sets, rule="mean_teacher", trainer_options={"eval_dataset": given["eval_dataset"]})
    make = "Evaluation()" if name == "eval_dataset" else "training(512)"
    assert str(error.value) == (
        f"{name} is a datasets.Dataset with the columns image, label, but pixel_values are expected; wrap it: "
        f"hf_fst.data.View(dataset, hf_fst.data.transforms.{make})."
    )


def test_all_splits_at_once_and_streams_are_refused(tmp_path, raw):
    for given, message in (
        (
            datasets.DatasetDict(train=raw, test=raw),
            "train_dataset is a dictionary of train, test; give one of these.",
        ),
        (iter(tiny.images(2)), "train_dataset is a stream, which cannot be "),
        (
            raw.to_iterable_dataset(),
            "train_dataset is a stream, which cannot be indexed; give a dataset with a",
        ),
    ):
        with pytest.raises(ValueError) as error:
            tiny.trainer(tmp_path, sets=(given, tiny.images(2)), rule="mean_teacher")
        assert str(error.value).startswith(message)


def test_a_dataset_with_a_transform_or_a_format_of_its_own_is_trained_on(tmp_path, raw):
    transformed = raw.with_transform(inputs)
    rows = [transformed[i] for i in range(4)]
    columns = datasets.Dataset.from_dict({key: [np.asarray(row[key]) for row in rows] for key in rows[0]})
    weights = []
    for given in (transformed, columns, columns.with_format("numpy"), rows):
        trainer = tiny.trainer(
            tmp_path, tiny.model(dtype=torch.float32), sets=(given, given), rule="mean_teacher", max_steps=2
        )
        trainer.train()
        weights.append(tiny.weights(trainer.model))
    assert all(tiny.same(weights[0], others) for others in weights[1:])


def test_double_pixels_are_rounded_to_the_precision_of_the_weights(tmp_path):
    double = tiny.images(4, 1), tiny.images(4, 2)
    single = tuple([{**row, "pixel_values": row["pixel_values"].float()} for row in rows] for rows in double)
    scores = []
    for sets in (double, single):
        options = {"trainer_options": {"eval_dataset": sets[1]}, "max_steps": 2, "rule": "mean_teacher"}
        trainer = tiny.trainer(tmp_path, tiny.model(dtype=torch.float32), sets=sets, **options)
        trainer.train()
        scores.append((tiny.weights(trainer.model), trainer.evaluate()["eval_teacher_mean_iou"]))
    assert tiny.same(scores[0][0], scores[1][0]) and scores[0][1] == scores[1][1]


@pytest.mark.parametrize("side", ["labeled", "unlabeled"])
def test_images_of_several_sizes_are_one_sentence(tmp_path, side):
    rows = {"labeled": tiny.images(4, 1), "unlabeled": tiny.images(4, 2, labels=False)}
    rows[side] = [*rows[side][:2], *tiny.images(2, 3, size=(8, 6), labels=side == "labeled")]
    with pytest.raises(ValueError, match=r"pixel_values of a batch have the shapes .*\(3, 8, 6\).*, but one size is"):
        tiny.trainer(
            tmp_path, sets=(rows["labeled"], rows["unlabeled"]), rule="mean_teacher", per_device_train_batch_size=4
        ).train()


def test_another_number_of_channels_than_the_network_takes_is_one_sentence():
    config = tiny.model().config
    config.num_channels = 3
    batch = {"pixel_values": torch.zeros(2, 1, 4, 4), "labels": torch.zeros(2, 4, 4, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"shape \(2, 1, 4, 4\), but the network takes 3 channels"):
        look_at_first(batch, config)
    with pytest.raises(ValueError, match="unlabeled_pixel_values of a batch"):
        look_at_first(
            {**batch, "pixel_values": torch.zeros(2, 3, 4, 4), "unlabeled_pixel_values": torch.zeros(2, 4, 4, 4)},
            config,
        )
    config.num_channels = 1
    look_at_first(batch, config)


@pytest.mark.parametrize("key", ["labels", "unlabeled_labels"])
def test_ids_that_a_collator_makes_are_refused_before_a_device_stumbles_over_them(tmp_path, key):
    def collator(items):
        batch = torch.utils.data.default_collate(items)
        batch[key] = batch[key] + 1
        return batch

    trainer = tiny.trainer(
        tmp_path,
        sets=(tiny.images(4), tiny.images(4)),
        rule="mean_teacher",
        trainer_options={"data_collator": collator},
    )
    with pytest.raises(
        ValueError, match=f"The {key} of a batch have ids from 1 to 256, but the model has the classes"
    ):
        trainer.train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.full((1, 3, 2, 2), 200.0)}, "The pixel_values reach 200: are they normalized"),
        ({"labels": torch.full((1, 2, 2), 255)}, "No pixel of the first labels has a class: all are ignored"),
        ({"labels": torch.tensor([[[0, 255], [0, 0]]])}, r"need LabelMap\(id_map=\{0: 0, 255: 1\}\)"),
        ({}, None),
    ],
)
def test_what_is_probably_not_meant_in_the_first_batch_is_a_warning(caplog, change, message):
    config = tiny.model().config
    config.id2label = {0: "background", 1: "building", 2: "road"}
    batch = {"pixel_values": torch.ones(1, 3, 2, 2), "labels": torch.tensor([[[0, 1], [255, 0]]]), **change}
    look_at_first(batch, config)
    assert not caplog.records if message is None else caplog.records
    if message is not None:
        (record,) = caplog.records
        assert re.search(message, record.message)


def test_one_class_alone_is_refused_with_what_to_give(tmp_path):
    network = tiny.model()
    network.config.id2label = {0: "thing"}
    with pytest.raises(ValueError, match="has only one class, so there is nothing to learn; give it two, as num"):
        tiny.trainer(tmp_path, network, rule="supervised")


@pytest.mark.parametrize("key", ["semantic_loss_ignore_index", "loss_ignore_index"])
def test_another_ignored_label_in_a_config_is_refused(tmp_path, key):
    network = tiny.model()
    setattr(network.config, key, 0)
    with pytest.raises(
        ValueError, match=f"^{key} of the TinySegmenter is 0, but hf_fst ignores labels of 255 and -100"
    ):
        tiny.trainer(tmp_path, network, rule="supervised")
    setattr(network.config, key, -100)
    tiny.trainer(tmp_path, network, rule="supervised")


@pytest.mark.parametrize("while_training", [False, True])
def test_an_evaluation_without_labels_ends_with_a_sentence_not_without_a_score(tmp_path, while_training):
    options = {"eval_strategy": "steps", "eval_steps": 1} if while_training else {}
    trainer = tiny.trainer(
        tmp_path, rule="mean_teacher", trainer_options={"eval_dataset": tiny.images(2, labels=False)}, **options
    )
    with pytest.raises(ValueError, match=r"^The evaluated images have no labels \(they have pixel_values\)"):
        trainer.train() if while_training else trainer.evaluate()
    assert trainer.state.global_step == 0
    assert trainer.predict(tiny.images(2, labels=False)).predictions.shape[0] == 2


def test_an_evaluation_without_a_pixel_to_score_ends_with_a_sentence(tmp_path):
    blank = [{**item, "labels": torch.full_like(item["labels"], 255)} for item in tiny.images(2)]
    trainer = tiny.trainer(tmp_path, rule="mean_teacher", trainer_options={"eval_dataset": blank})
    with pytest.raises(
        ValueError, match="^No pixel of the evaluated images has a class, so there is nothing to score"
    ):
        trainer.evaluate()
    assert trainer.evaluate(tiny.images(2))["eval_teacher_mean_iou"] >= 0


def test_rows_that_a_view_refuses_stay_refused(raw):
    with pytest.raises(ValueError, match="has a transform of its own"):
        View(raw.with_transform(inputs), None)


def test_a_view_without_masks_is_refused_at_once_with_its_columns(tmp_path, raw):
    cases = {
        "train_dataset has no column `label` (its columns: image, mask); rename the one with the masks, as "
        "dataset.rename_column('mask', 'label'), and cast it with dataset.cast_column('label', "
        "hf_fst.data.LabelMap(names=[...])).": View(raw.rename_column("label", "mask"), None),
        "train_dataset is a View with with_labels=False, but labels are learned; leave that out.": View(
            raw, None, False
        ),
    }
    for message, view in cases.items():
        for given in (view, torch.utils.data.Subset(view, [0, 1])):
            with pytest.raises(UserError) as error:
                tiny.trainer(tmp_path, sets=(given, tiny.images(2)), rule="mean_teacher")
            assert str(error.value) == message


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"labels": torch.full((4, 4), 3)},
            "In item 5 of the evaluation set labels have ids from 3 to 3, but the model",
        ),
        (
            {"labels": torch.full((4, 4), 0.5)},
            "In item 5 of the evaluation set labels are float32 numbers with fractions",
        ),
        ({"pixel_values": torch.full((3, 4, 4), math.nan)}, "The pixels of an image are nan or infinite; correct the"),
    ],
)
def test_a_wrong_item_of_an_evaluation_is_named(tmp_path, wrong, message, workers):
    rows = tiny.images(8)
    rows[5] = {**rows[5], **wrong}
    options = {"trainer_options": {"eval_dataset": rows}, "dataloader_num_workers": workers}
    with pytest.raises(UserError, match=message):
        tiny.trainer(tmp_path, rule="mean_teacher", **options).evaluate()
