"""The datasets of a recipe: which sides it names, what they give, what the card says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_fst.data import DATASETS
from hf_fst.data.about import ABOUT
from hf_fst.errors import UsageError
from hf_fst.recipes.data import build_data, scored_classes
from hf_fst.recipes.load import make_recipe, to_config
from hf_fst.recipes.results import data_facts
from hf_fst.recipes.sides import Side, labeled_by, sides
from hf_fst.training.settings import resolve
from tests.data import trees
from tests.recipes import tiny


def build(recipe):
    config = to_config(recipe)
    return build_data(recipe, config, resolve(config).objective)


def data_of(keys: dict):
    return build(make_recipe(keys))


@pytest.mark.parametrize(
    ("keys", "unlabeled", "evaluation"),
    [
        ({}, None, None),
        ({"unlabeled_options": {"a": 1}}, Side("camvid", "A", {"a": 1}), None),
        ({"unlabeled_data_dir": "B"}, Side("camvid", "B", None), None),
        ({"unlabeled_dataset": "cityscapes"}, Side("cityscapes", None, None), None),
        (
            {"unlabeled_dataset": "cityscapes", "unlabeled_data_dir": "B", "eval_options": {"c": 1}},
            Side("cityscapes", "B", None),
            Side("cityscapes", "B", {"c": 1}, "validation"),
        ),
        (
            {"unlabeled_data_dir": "B", "eval_split": "test", "eval_dataset": "camvid"},
            Side("camvid", "B", None),
            Side("camvid", "B", None, "test"),
        ),
        (
            {"unlabeled_dataset": "voc", "unlabeled_data_dir": "B", "eval_dataset": "camvid"},
            Side("voc", "B", None),
            Side("camvid", "A", None, "validation"),
        ),
        ({"eval_dataset": "voc", "eval_data_dir": "C"}, None, Side("voc", "C", None, "validation")),
    ],
)
def test_a_side_without_a_folder_lies_where_one_of_its_name_does(keys, unlabeled, evaluation):
    named = sides(make_recipe({"dataset": "camvid", "data_dir": "A", **keys}))
    expected = {"labeled": Side("camvid", "A", None), "unlabeled": unlabeled, "evaluation": evaluation}
    assert named == {key: side for key, side in expected.items() if side is not None}


def test_every_dataset_has_words_and_the_classes_that_its_loader_gives(tmp_path):
    assert ABOUT.keys() == DATASETS.keys()
    for name in ("camvid", "cityscapes", "gta5", "synthia", "voc"):
        getattr(trees, name)(tmp_path / name)
    for name, about in ABOUT.items():
        if about.classes is not None:
            options = {"num_train": 1, "num_validation": 1, "num_test": 1} if name == "street" else {}
            loaded = DATASETS[name](None if name == "street" else str(tmp_path / name), **options)
            assert loaded["train"].features["label"].names == list(about.classes)


def test_the_facts_of_a_card_follow_the_sides():
    sizes = {"size": [32, 48], "num_train": 4, "num_validation": 2, "num_test": 3}
    keys = {"dataset": "street", "dataset_options": {"look": "synthetic", **sizes}, "crop_size": 32}
    facts = data_facts(recipe := make_recipe({**keys, "unlabeled_options": sizes | {"look": "real"}}), build(recipe))
    assert {key: (fact.config, fact.split, fact.images) for key, fact in facts.items()} == {
        **{"labeled": ("synthetic", "train", 4), "unlabeled": ("real", "train", 4)},
        **{"evaluation": ("real", "validation", 2), "test": ("real", "test", 3)},
    }
    semi = make_recipe({**keys, "labeled": "1/4"})
    facts = data_facts(semi, build(semi))
    assert (facts["labeled"].config, facts["labeled"].images) == (
        "synthetic, 1/4 of the labels, chosen by split_seed 0",
        1,
    )
    assert (facts["unlabeled"].config, facts["unlabeled"].images) == ("synthetic", 3)
    assert facts["labeled"].license == "Apache-2.0" and facts["labeled"].title == "street (drawn by hf_fst)"


@pytest.mark.parametrize(
    ("keys", "by"),
    [
        ({"dataset": "voc"}, None),
        ({"dataset": "voc", "labeled": 662}, "split_seed 0"),
        ({"dataset": "voc", "labeled": 662, "dataset_options": {"splits": "lists/pascal/"}}, "pascal"),
        ({"dataset": "folder", "labeled": "my/lists/few.txt"}, "few.txt"),
        ({"dataset": "camvid", "labeled": "1/8"}, "the lists of hf_fst"),
        ({"dataset": "camvid", "labeled": 45}, "the lists of hf_fst"),
        ({"dataset": "camvid", "labeled": 44}, "split_seed 0"),
        ({"dataset": "camvid", "labeled": "1/8", "split_seed": 3}, "split_seed 3"),
    ],
)
def test_what_chose_the_labeled_images_is_known(keys, by):
    recipe = make_recipe(keys)
    assert labeled_by(recipe, sides(recipe)["labeled"]) == by


def test_semi_supervised_takes_the_rest_as_unlabeled_and_evaluates_on_its_own_splits(tmp_path):
    trees.camvid(tmp_path, counts=(5, 2, 3))
    data = data_of({"dataset": "camvid", "data_dir": str(tmp_path), "labeled": 2, "resize": [24, 18], "crop_size": 16})
    assert [len(view) for view in (data.labeled, data.unlabeled, data.validation, data.test)] == [2, 3, 2, 3]
    assert data.labeled[0]["pixel_values"].shape == (3, 16, 16)
    item = data.test[0]
    assert item["pixel_values"].shape == (3, 18, 24) and item["labels"].shape == (36, 48)  # labels keep their size
    assert data.names[8] == "car"


def test_domain_adaptation_evaluates_on_the_unlabeled_side(tmp_path):
    trees.gta5(tmp_path / "gta5")
    trees.cityscapes(tmp_path / "city")
    keys = {
        **{"dataset": "gta5", "data_dir": str(tmp_path / "gta5"), "resize": [48, 32]},
        **{"unlabeled_dataset": "cityscapes", "unlabeled_data_dir": str(tmp_path / "city")},
        **{"unlabeled_resize": [64, 32], "crop_size": 24, "cat_max_ratio": 0.75},
        "rare_class_sampling": {"min_pixels": 10, "temperature": 0.1},
    }
    data = data_of(keys)
    assert len(data.labeled) == 4 and len(data.unlabeled) == 4 and len(data.validation) == 2 and data.test is None
    assert data.validation[0]["pixel_values"].shape == (3, 32, 64)
    assert data.labeled[0]["pixel_values"].shape == (3, 24, 24) and "labels" in data.unlabeled[0]
    assert "labels" not in data_of({**keys, "unlabeled_diagnostics": False}).unlabeled[0]


def test_a_few_target_images_keep_their_labels_and_join_the_labeled_ones(tmp_path):
    raw = trees.gta5(tmp_path / "gta5")["train"]
    city = trees.cityscapes(tmp_path / "city", counts=(5, 2, 0))
    keys = {
        **{"dataset": "gta5", "data_dir": str(tmp_path / "gta5"), "resize": [48, 32], "crop_size": 24},
        **{"unlabeled_dataset": "cityscapes", "unlabeled_data_dir": str(tmp_path / "city")},
        **{"unlabeled_resize": [64, 32], "target_labeled": 2},
    }
    data = data_of(keys)
    assert len(raw) == 4 and len(city["train"]) == 5
    assert (len(data.labeled), data.few, len(data.unlabeled), len(data.validation)) == (6, 2, 3, 2)
    few = {value["path"] for value in data.labeled.datasets[1].stored["image"]}
    rest = {value["path"] for value in data.unlabeled.stored["image"]}
    assert len(few | rest) == 5 and not few & rest and all("leftImg8bit" in path for path in few)
    assert all(data.labeled[i]["labels"].shape == (24, 24) for i in (0, 5))
    rare = data_of(
        {**keys, "target_labeled": "2/5", "target_labeled_share": 0.9, "rare_class_sampling": {"min_pixels": 5}}
    )
    assert rare.labeled.sources[0] is rare.rare and rare.labeled.probabilities.tolist() == pytest.approx([0.1, 0.9])
    recipe = make_recipe({**keys, "target_labeled": 2})
    facts = data_facts(recipe, data)
    assert (facts["labeled"].images, facts["labeled"].config) == (6, "and 2 of Cityscapes")
    with pytest.raises(UsageError, match="^target_labeled is set, but there is no unlabeled_dataset to take it from;"):
        data_of({"dataset": "gta5", "data_dir": str(tmp_path / "gta5"), "target_labeled": 2})
    with pytest.raises(ValueError, match="^5 labeled images are asked for, but 1 to 4 can be chosen here.$"):
        data_of({**keys, "target_labeled": 5})


def test_the_labeled_side_is_evaluated_where_the_unlabeled_one_has_no_such_split(tmp_path):
    keys = tiny.folders(tmp_path, count=5)
    keys = {key: value for key, value in keys.items() if key not in ("eval_split", "eval_strategy")}
    data = data_of({**keys, "dataset_options": {"validation_share": 0.4}, "crop_size": 32, "eval_crop": 30})
    assert [len(view) for view in (data.labeled, data.unlabeled, data.validation)] == [3, 5, 2]
    assert data.sides["evaluation"].name == "folder" and data.test is None
    assert data.validation[0]["labels"].shape == (30, 30)


def test_without_a_crop_size_crops_are_as_large_as_the_first_image(tmp_path):
    trees.camvid(tmp_path)
    data = data_of({"dataset": "camvid", "data_dir": str(tmp_path), "labeled": 2, "resize": [24, 18]})
    assert data.labeled[0]["pixel_values"].shape == (3, 18, 24)


def test_labeled_images_come_from_a_list_a_share_or_a_count(tmp_path):
    keys = {**tiny.folders(tmp_path, count=5), "unlabeled_dataset": None, "unlabeled_data_dir": None}
    keys |= {"unlabeled_options": None, "crop_size": 32}
    (tmp_path / "list.txt").write_text("images/3.png\n1\n")
    listed = data_of({**keys, "labeled": str(tmp_path / "list.txt")})
    stored = listed.labeled.stored["image"]
    assert [Path(value["path"]).name for value in stored] == ["3.png", "1.png"]
    assert len(listed.unlabeled) == 3
    assert len(data_of({**keys, "labeled": "1/4"}).labeled) == 2  # rounded up, as the published splits are
    assert len(data_of({**keys, "labeled": 4}).unlabeled) == 1
    (tmp_path / "list.txt").write_text("9\n")
    with pytest.raises(ValueError, match="names '9', which matches 0 images of train; give names that match"):
        data_of({**keys, "labeled": str(tmp_path / "list.txt")})


def test_splits_that_are_not_there_are_named(tmp_path):
    trees.camvid(tmp_path)
    keys = {"dataset": "camvid", "data_dir": str(tmp_path), "labeled": 2}
    with pytest.raises(ValueError, match="The dataset 'camvid' has no split 'tset' .it has train, unlabeled, "):
        data_of({**keys, "test_split": "tset"})
    assert data_of({**keys, "test_split": False, "eval_split": False}).test is None
    asking = {"eval_split": False, "eval_on_start": True}
    with pytest.raises(ValueError, match="^eval_split is false, but the recipe .*; set eval_on_start: false.$"):
        data_of({**keys, **asking})
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    with pytest.raises(ValueError, match="; set eval_strategy: no and load_best_model_at_end: false.$"):
        data_of({**keys, "eval_split": False, **best})
    folders = tiny.folders(tmp_path / "own")
    with pytest.raises(ValueError, match="The dataset 'folder' has no split 'validation' .it has train"):
        data_of({**{k: v for k, v in folders.items() if "eval" not in k}, "eval_strategy": "steps", "eval_steps": 1})


def test_labels_of_two_sides_must_have_the_same_classes(tmp_path):
    trees.camvid(tmp_path / "camvid")
    keys = {"dataset": "street", "dataset_options": tiny.STREET["dataset_options"]}
    with pytest.raises(ValueError, match="^Training has the classes road, .* but validation has sky, building, "):
        data_of({**keys, "unlabeled_dataset": "camvid", "unlabeled_data_dir": str(tmp_path / "camvid")})


def test_labels_of_a_few_target_images_must_have_the_same_classes_too(tmp_path):
    trees.camvid(tmp_path / "camvid")
    trees.voc(tmp_path / "voc")
    keys = {"dataset": "camvid", "data_dir": str(tmp_path / "camvid"), "unlabeled_dataset": "voc", "target_labeled": 2}
    asked = {"unlabeled_data_dir": str(tmp_path / "voc"), "eval_dataset": "camvid", "unlabeled_diagnostics": False}
    with pytest.raises(ValueError, match="but the target has background, aeroplane"):
        data_of({**keys, **asked, "crop_size": 16})


def test_means_are_taken_over_the_wanted_classes():
    names = ["a", "b", "c"]
    assert scored_classes(make_recipe({}), names) is None
    assert scored_classes(make_recipe({"eval_classes": ["c", 0]}), names) == [2, 0]
    nineteen = [str(i) for i in range(19)]
    assert len(scored_classes(make_recipe({"eval_classes": "synthia_16"}), nineteen)) == 16
    with pytest.raises(UsageError, match="^eval_classes names 'd', but the classes are a, b, c.$"):
        scored_classes(make_recipe({"eval_classes": ["d"]}), names)


def test_id2label_is_for_datasets_that_do_not_name_their_classes(tmp_path):
    trees.camvid(tmp_path)
    with pytest.raises(UsageError, match="the dataset 'camvid' names its classes itself; leave it out."):
        data_of({"dataset": "camvid", "data_dir": str(tmp_path), "labeled": 2, "id2label": "names.json"})


@pytest.mark.parametrize(("key", "value"), [("min_pixels", "lots"), ("tries", 1.5), ("scale_by_crop", "yes")])
def test_numbers_of_rare_class_sampling_that_are_none_are_one_sentence(tmp_path, key, value):
    keys = tiny.folders(tmp_path) | {"rare_class_sampling": {key: value}}
    with pytest.raises(UsageError, match=f"^{key} of rare_class_sampling is {value!r}; give "):
        data_of(keys)
