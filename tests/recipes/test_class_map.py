"""`class_map`: two datasets with different classes, read with those that both have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hf_fst.errors import UsageError, UserError
from hf_fst.recipes.data import build_data
from hf_fst.recipes.dry_run import dry_run
from hf_fst.recipes.load import load_recipe, make_recipe, to_config
from hf_fst.training.settings import resolve
from tests.data.trees import save_gray
from tests.recipes import tiny

SOURCE = ["road", "person", "vehicle", "moon"]
TARGET = ["car", "street", "truck", "walker", "cat"]


def dataset(root: Path, names: list[str], ids: list[list[int]], split: str = "train") -> str:
    """A folder with one picture whose mask has these ids."""
    mask = np.array(ids, dtype=np.uint8)
    (root / split / "images").mkdir(parents=True)
    PIL.Image.new("RGB", mask.shape[::-1]).save(root / split / "images/a.png")
    save_gray(root / split / "masks/a.png", mask)
    (root / "id2label.json").write_text(json.dumps(names))
    return str(root)


def both(tmp_path: Path) -> dict:
    source = dataset(tmp_path / "source", SOURCE, [[0, 1, 2], [3, 255, 0]])
    target = dataset(tmp_path / "target", TARGET, [[0, 1, 2], [3, 4, 255]])
    dataset(tmp_path / "target", TARGET, [[3, 3, 4], [0, 1, 255]], "val")
    keys = {"dataset": "folder", "data_dir": source, "unlabeled_dataset": "folder", "unlabeled_data_dir": target}
    return {**keys, "crop_size": [2, 3], "model_config": tiny.MODEL, "rule": "mean_teacher"}


def data_of(keys: dict, **more):
    recipe = make_recipe({**keys, **more})
    config = to_config(recipe)
    return build_data(recipe, config, resolve(config).objective)


def ids(view) -> list[list[int]]:
    """The ids of a view's only mask, not cropped or mirrored."""
    return view.read(0)[1].tolist()


def test_masks_of_both_sides_hold_the_ids_of_the_common_classes(tmp_path):
    data = data_of(both(tmp_path), class_map={"person": "walker", "road": "street"})
    assert data.names == ["street", "walker"]  # as the target orders them
    assert ids(data.labeled) == [[0, 1, 255], [255, 255, 0]]
    assert ids(data.unlabeled) == [[255, 0, 255], [1, 255, 255]]
    assert ids(data.validation) == [[1, 1, 255], [255, 0, 255]]


def test_several_classes_of_either_side_become_one(tmp_path):
    classes = {"vehicle": ["truck", "car"], "moon": ["truck", "car"], "person": "street", "road": "street"}
    data = data_of(both(tmp_path), class_map=classes)
    assert data.names == ["vehicle", "street"]
    assert ids(data.labeled) == [[1, 1, 0], [0, 255, 1]]
    assert ids(data.unlabeled) == [[0, 1, 0], [255, 255, 255]]


def test_a_few_labeled_target_images_and_class_sampling_have_the_common_classes(tmp_path):
    keys = both(tmp_path)
    name = Path(keys["unlabeled_data_dir"]) / "train/{}/b.png"
    for part in ("images", "masks"):
        Path(str(name).format(part)).write_bytes(Path(str(name).format(part)).with_name("a.png").read_bytes())
    classes = {"road": "street", "person": "walker"}
    data = data_of(keys, class_map=classes, target_labeled=1, rare_class_sampling={"min_pixels": 0})
    assert data.few == 1 and ids(data.labeled.datasets[1]) == [[255, 0, 255], [1, 255, 255]]
    assert [(row["class"], row["pixels"]) for row in data.rare.table()] == [("street", 2), ("walker", 1)]


def test_the_target_may_be_known_from_its_evaluated_images_alone(tmp_path):
    keys = both(tmp_path)
    target = keys["unlabeled_data_dir"]
    keys |= {"unlabeled_data_dir": f"{target}/train", "unlabeled_options": {"masks": None}}
    keys |= {"eval_dataset": "folder", "eval_data_dir": target}
    data = data_of(keys, class_map={"person": "walker", "road": "street"})
    assert data.names == ["street", "walker"] and ids(data.validation) == [[1, 1, 255], [255, 0, 255]]
    no_labels = {key: value for key, value in keys.items() if "eval" not in key} | {"eval_split": False}
    assert data_of(no_labels, class_map={"person": "anyone", "road": "street"}).names == ["anyone", "street"]


@pytest.mark.parametrize(
    ("class_map", "sentence"),
    [
        ({"raod": "street", "person": "walker"}, "names 'raod', which is no class of dataset; did you mean 'road'?"),
        (
            {"road": "tar"},
            "names 'tar', which is no class of the target; its classes are car, street, truck, walker, ",
        ),
        ({"road": ["car", "truck"], "moon": "car"}, "has 'car' of the target in two places that differ; make them"),
        ({"road": ["car", "car"]}, "has 'car' of the target in two places that differ; make them the same."),
        (
            {"car": "car", "vehicle": []},
            "has 'vehicle': .., but one class or a list of classes of the target, by name",
        ),
        ({0: "street"}, "has 0: 'street', but one class or a list of classes of the target, by name, is expected"),
        ({"road": {"a": 1}}, "has 'road': {'a': 1}, but one class or a list"),
    ],
)
def test_a_wrong_map_is_refused_in_a_sentence(tmp_path, class_map, sentence):
    with pytest.raises(UsageError, match=f"^class_map {sentence}"):
        data_of(both(tmp_path), class_map=class_map)


def test_a_map_needs_two_sides_that_name_their_classes(tmp_path):
    keys = both(tmp_path)
    alone = {key: value for key, value in keys.items() if "unlabeled" not in key} | {"rule": "supervised"}
    with pytest.raises(UsageError, match="^class_map is set, but all images are of one dataset; set unlabeled_data"):
        data_of(alone, class_map={"road": "road"})
    other = dataset(tmp_path / "other", ["cat", "dog"], [[0, 1]], "val")
    dataset(tmp_path / "other", ["cat", "dog"], [[0, 1]])
    with pytest.raises(UserError, match="the images that are evaluated have cat, dog and the unlabeled ones car, "):
        data_of(keys, class_map={"road": "street"}, eval_dataset="folder", eval_data_dir=other)


def test_a_dry_run_counts_the_common_classes(tmp_path, capsys):
    path = tiny.write(tmp_path / "drawn.yaml", {"dataset": "street", "unlabeled_dataset": "camvid"})
    classes = {"road": "road", "vegetation": "tree", "car": "car"}
    assert dry_run(load_recipe(path, {"class_map": json.dumps(classes)}))["classes"] == 3
    with pytest.raises(UsageError, match="^class_map names 'trees', which is no class of the target; did you mean"):
        dry_run(load_recipe(path, {"class_map": '{"vegetation": "trees"}'}))
