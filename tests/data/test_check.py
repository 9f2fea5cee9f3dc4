"""A look at every file before training: what is counted, what is found wrong, and when a file is opened again."""

from __future__ import annotations

import json
import os

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors

from hf_fst.data import LabelMap, View, cached, load
from hf_fst.data import check as check_module
from hf_fst.data.check import Images, check
from hf_fst.data.masks import png
from hf_fst.data.transforms import training

NAMES = ["road", "car", "sky"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def scenes(root, masks, names=NAMES, seed=0, **options) -> View:
    """A view of random images, one for each mask of raw ids."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for i, mask in enumerate(masks):
        mask = np.array(mask, dtype=np.uint8)
        PIL.Image.fromarray(rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
        PIL.Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "id2label.json").write_text(json.dumps(list(names)))
    return View(load("folder", str(root), **options)["train"], training(2))


GOOD = [[[0, 1], [2, 255]], [[0, 0], [1, 2]]]


def findings(names=NAMES, **views) -> list[tuple[str, str]]:
    """Kind and sentence of everything that is wrong."""
    report = check({name.replace("_", " "): Images(view) for name, view in views.items()}, names)
    return [(finding.kind, finding.sentence) for finding in report.findings]


def test_sizes_classes_and_ignored_ids_are_counted(tmp_path):
    masks = [[[0, 1, 1], [2, 2, 255]], [[3, 3], [3, 1]], [[7, 7, 7, 7]]]
    view = scenes(tmp_path, masks, id_map={0: 255, 1: 0, 2: 1, 3: 2, 7: 255})
    report = check({"labeled": Images(view)}, NAMES)
    part = report.parts["labeled"]
    assert part.sizes.tolist() == [[2, 3], [2, 2], [1, 4]]
    assert part.class_pixels.tolist() == [[2, 2, 0], [1, 0, 3], [0, 0, 0]]
    assert part.ignored == {0: 1, 7: 4, 255: 1} and part.ignored_share == 6 / 14
    assert [os.path.basename(file) for file in part.files] == ["0.png", "1.png", "2.png"]
    found = report.as_dict()["parts"]["labeled"]
    assert found["sizes"] == {"2x2": 1, "3x2": 1, "4x1": 1}
    assert found["classes"][0] == {"class": "road", "pixels": 3, "share": 3 / 8, "images": 2}
    json.dumps(report.as_dict())


def test_several_processes_find_the_same_as_one(tmp_path, monkeypatch):
    view = scenes(tmp_path, GOOD * 5)
    first = check_module.look_at(Images(view, (4, 4)), "labeled")
    monkeypatch.setattr(cached, "FILES_A_PROCESS", 1)
    monkeypatch.setattr(cached.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "two")
    second = check_module.look_at(Images(view, (4, 4)), "labeled")
    assert first.digests == second.digests and len(set(first.digests)) == 10
    assert np.array_equal(first.class_pixels, second.class_pixels) and first.padding == second.padding == 0.75


def test_nothing_is_opened_again_until_a_file_changes(tmp_path, monkeypatch):
    view = scenes(tmp_path / "d", GOOD)
    first = check({"labeled": Images(view)}, NAMES)

    def opened(row, index, label_map):
        raise AssertionError("a file was opened")

    with monkeypatch.context() as patch:
        patch.setattr(check_module, "_look", opened)
        again = check({"labeled": Images(view)}, NAMES)
    assert again.as_dict() == first.as_dict() and again.parts["labeled"].digests == first.parts["labeled"].digests
    PIL.Image.fromarray(np.array(GOOD[1], dtype=np.uint8)).save(tmp_path / "d/masks/0.png")
    os.utime(tmp_path / "d/masks/0.png", (1, 1))
    assert check({"labeled": Images(view)}, NAMES).parts["labeled"].class_pixels.tolist() == [[2, 1, 1], [2, 1, 1]]


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path):
    view = scenes(tmp_path / "d", GOOD)
    path = tmp_path / "d/images/1.png"
    content, times = path.read_bytes(), (path.stat().st_atime, path.stat().st_mtime)
    path.write_bytes(b"?" * len(content))
    os.utime(path, times)
    assert [kind for kind, _ in findings(labeled=view)] == ["unreadable"]
    path.write_bytes(content)  # as a network drive that was away
    os.utime(path, times)
    assert findings(labeled=view) == []


def test_every_file_that_cannot_be_used_is_named(tmp_path):
    view = scenes(tmp_path / "d", GOOD * 2)
    images, masks = tmp_path / "d/images", tmp_path / "d/masks"
    (images / "0.png").write_bytes((images / "0.png").read_bytes()[:45])
    PIL.Image.new("L", (3, 2)).save(masks / "1.png")
    PIL.Image.new("L", (2, 2), 9).save(masks / "2.png")
    report = check({"labeled": Images(view)}, NAMES)
    (finding,) = report.findings
    assert finding.sentence.startswith(f"3 of 4 labeled images cannot be used, the first: {images}/0.png is damaged (")
    named = [images / "0.png", masks / "1.png", masks / "2.png"]
    assert all(str(path) in text for path, text in zip(named, finding.details, strict=True))
    assert finding.stops and report.parts["labeled"].class_pixels[:3].sum() == 0
    with pytest.raises(ValueError, match="3 of 4 labeled images cannot be used"):
        report.refuse(skip_unreadable=False)
    assert report.refuse(skip_unreadable=True) == [finding.sentence]


def test_a_file_of_validation_that_cannot_be_used_stops_whatever_is_skipped(tmp_path):
    views = {"labeled": scenes(tmp_path / "l", GOOD), "validation": scenes(tmp_path / "v", GOOD, seed=1)}
    (tmp_path / "v/images/0.png").write_bytes(b"")
    report = check({name: Images(view) for name, view in views.items()}, NAMES)
    with pytest.raises(ValueError, match=f"^{tmp_path}/v/images/0.png is not an image; [^.]*\\.$"):
        report.refuse(skip_unreadable=True)


def test_rows_of_bytes_are_named_by_their_number(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 2, 3), dtype=np.uint8)
    images = [{"bytes": png(picture), "path": None} for picture in pixels]
    images[1]["bytes"] = images[1]["bytes"][:40]
    features = datasets.Features(image=datasets.Image())
    view = View(datasets.Dataset.from_dict({"image": images}, features=features), training(2))
    part = check_module.look_at(Images(view), "unlabeled")
    assert part.files == ["row 0 (image)", "row 1 (image)"] and list(part.errors) == [1]
    assert part.errors[1].startswith("row 1 (image) is ")


def test_the_padding_is_that_of_the_crops(tmp_path):
    view = scenes(tmp_path, [np.zeros((20, 30)), np.zeros((50, 40))])
    for scale, factors in ((None, None), (None, (0.5, 2.0)), ((60, 30), (0.75, 1.5))):
        told = check_module.look_at(Images(view, (40, 32), scale, factors), "labeled").padding
        transform = training((40, 32), scale, factors)
        torch.manual_seed(0)
        outside = []
        for height, width in ((20, 30), (50, 40)):
            image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
            mask = tv_tensors.Mask(torch.zeros(height, width, dtype=torch.uint8))
            outside += [(transform(image, mask)[1] == 255).float().mean().item() for _ in range(300)]
        assert told == pytest.approx(np.mean(outside), abs=0.02), (scale, factors)
    assert check_module.look_at(Images(view), "labeled").padding is None


def test_crops_that_are_mostly_padding_are_told_with_the_cure(tmp_path):
    view = scenes(tmp_path, [[[0, 1], [2, 2]]])
    (finding,) = check({"labeled": Images(view, (4, 3))}, NAMES).findings
    assert finding.sentence == (
        "67% of the area of the labeled crops (3 x 4) is padding, since the images are about 2 x 2; give a smaller "
        "crop_size."
    )
    assert check({"labeled": Images(view, (2, 4))}, NAMES).findings == []  # half of it


def test_the_same_picture_in_two_parts_is_found_whatever_its_file(tmp_path):
    labeled, other = scenes(tmp_path / "l", GOOD), scenes(tmp_path / "u", GOOD, seed=1)
    assert findings(labeled=labeled, unlabeled=other, validation=scenes(tmp_path / "v", GOOD, seed=2)) == []
    copy = tmp_path / "u/images/1.bmp"
    PIL.Image.open(tmp_path / "l/images/0.png").save(copy)
    (tmp_path / "u/images/1.png").unlink()
    other = View(load("folder", str(tmp_path / "u"))["train"], training(2))
    same = f"the first: {copy} = {tmp_path}/l/images/0.png (labeled);"
    assert findings(labeled=labeled, unlabeled=other) == [
        (
            "duplicates",
            f"The unlabeled images include 1 of the labeled images, {same} take these out of the unlabeled ones.",
        )
    ]
    (kind, sentence), *more = findings(labeled=labeled, validation=other)
    assert kind == "duplicates" and not more
    assert sentence.startswith(
        f"The validation images include 1 of the training images, {same} scores on these mean little"
    )


@pytest.mark.parametrize(
    ("masks", "names", "message"),
    [
        ([[[0, 255], [0, 0]]], ["background", "building"], r"is 'background'.*need id_map: \{0: 0, 255: 1\}\)\.$"),
        ([[[0, 0], [0, 0]]], ["background", "building"], r"is 'background'.*; check the masks and the id map\.$"),
        ([[[0, 255], [0, 0]]], ["background", "building", "tree"], r"is 'background'.*id_map: \{0: 0, 255: 1\}\)\.$"),
        (
            [[[255, 255], [255, 255]]],
            NAMES,
            "^No pixel of the labels has a class: all are 255 .ignored.; check the",
        ),
        ([[[0, 255], [0, 0]]], ["building"], "^The only class is 'building'.* name the background too"),
    ],
)
def test_labels_that_teach_nothing_are_one_sentence_with_the_cure(tmp_path, masks, names, message):
    report = check({"labeled": Images(scenes(tmp_path, masks, names))}, names)
    with pytest.raises(ValueError, match=message):
        report.refuse(skip_unreadable=True)


def test_masks_of_0_and_255_are_read_as_the_sentence_says(tmp_path):
    names = ["background", "building"]
    view = scenes(tmp_path, [[[0, 255], [0, 0]]], names, id_map={0: 0, 255: 1})
    assert findings(names, labeled=view) == []


def test_classes_without_a_pixel_are_told_with_where_they_are(tmp_path):
    labeled = scenes(tmp_path / "l", [[[0, 2], [2, 255]]], [*NAMES, "tree"])
    validation = scenes(tmp_path / "v", [[[0, 1], [2, 255]]], [*NAMES, "tree"], seed=1)
    report = check({"labeled": Images(labeled), "validation": Images(validation)}, [*NAMES, "tree"])
    (finding,) = report.findings
    assert finding.sentence == (
        "No pixel of the labels is 'car' (id 1), 'tree' (id 3); check the class names and the id map, or leave the "
        "classes out."
    )
    assert finding.details == ["'car' (id 1) has pixels in validation", "'tree' (id 3) has no pixel in any mask"]
    assert report.refuse(skip_unreadable=False) == [finding.sentence]


def test_ids_that_start_at_1_are_told_with_the_id_map(tmp_path):
    ((kind, sentence),) = findings(labeled=scenes(tmp_path, [[[1, 1], [2, 2]]]))
    assert kind == "classes" and "if the mask ids start at 1, give id_map: {1: 0, 2: 1, ...}" in sentence


def test_a_large_ignored_share_is_told_with_the_ids_it_comes_from(tmp_path):
    masks = [[[0, 1, 9], [2, 9, 255]], [[9, 9, 9], [9, 9, 0]]]
    view = scenes(tmp_path / "a", masks, id_map={0: 0, 1: 1, 2: 2, 9: 255})
    ((kind, sentence),) = findings(labeled=view)
    assert kind == "ignored"
    assert sentence.startswith("67% of the pixels of the labels are ignored (id 9 58%, id 255 8%), so there is little")
    half = scenes(tmp_path / "b", [[[0, 1, 255], [2, 255, 255]]])
    assert findings(labeled=half) == []


def test_what_few_labels_of_the_target_add_counts(tmp_path):
    labeled = scenes(tmp_path / "l", [[[0, 1], [0, 1]]])
    few = scenes(tmp_path / "f", [[[2, 2], [2, 2]]], seed=1)
    assert [kind for kind, _ in findings(labeled=labeled)] == ["classes"]
    assert findings(labeled=labeled, labeled_target=few) == []


def test_images_to_score_need_a_pixel_with_a_class(tmp_path):
    labeled = scenes(tmp_path / "l", GOOD)
    empty = scenes(tmp_path / "v", [[[255, 255]]], seed=1)
    report = check({"labeled": Images(labeled), "test": Images(empty)}, NAMES)
    with pytest.raises(ValueError, match="^No pixel of the test images has a class"):
        report.refuse(skip_unreadable=True)


def test_a_label_map_without_a_map_knows_its_ids():
    assert LabelMap(names=NAMES).known()[:4] == [0, 1, 2, None] and LabelMap(names=NAMES).known()[255] == 255


def test_of_several_twins_the_first_labeled_one_is_named(tmp_path):
    labeled, few, other = (scenes(tmp_path / name, GOOD, seed=i) for i, name in enumerate("lfu"))
    for copy in ("l/images/1.png", "f/images/0.png", "u/images/1.png"):
        PIL.Image.open(tmp_path / "l/images/0.png").save(tmp_path / copy)
    ((kind, sentence),) = findings(labeled=labeled, labeled_target=few, unlabeled=other)
    assert kind == "duplicates"
    assert f"the first: {tmp_path}/u/images/1.png = {tmp_path}/l/images/0.png (labeled);" in sentence
