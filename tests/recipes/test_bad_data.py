"""Files that cannot be used: a run or an evaluation ends with code 1 and one sentence, also where a worker reads them."""

from __future__ import annotations

import re

import numpy as np
import PIL.Image
import pytest

from hf_fst import cli
from tests.data import trees
from tests.evaluation.conftest import tiny_model
from tests.recipes import tiny


def says(capsys, argv: list[str]) -> str:
    """Runs a command that must fail with code 1; the one sentence it says."""
    assert cli.main(argv) == 1
    errors = capsys.readouterr().err
    sentences = [line for line in errors.splitlines() if line.startswith("hf-fst: ")]
    assert len(sentences) == 1 and "Traceback" not in errors
    return sentences[0].removeprefix("hf-fst: ")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


def palette(path):
    PIL.Image.fromarray(np.arange(40 * 48 * 3, dtype=np.uint8).reshape(40, 48, 3)).quantize(16).save(path)


def rgb(path):
    PIL.Image.new("RGB", (48, 40), "teal").save(path)


def narrow(path):
    PIL.Image.new("L", (47, 40)).save(path)


def wide(path):
    PIL.Image.new("L", (70_000, 2)).save(path)


MASK, IMAGE = "labeled/masks/1.png", "labeled/images/1.png"
IDS = (
    r" has label ids out of range \(2, 3, 4, 5, 6, ...\): 0 to 1 and 255 \(ignored\) are accepted; correct the mask .*"
)
COLOR = r" is a color image \(RGB\), but a mask holds one class id per pixel, as a gray image or as a palette image .*"
SIZES = r" is 47 x 40 pixels, but its image .*/labeled/images/1.png is 48 x 40; they must have the same size."
WIDE = r" is 70000 x 2 pixels, but a side may have at most 32768; cut it into tiles."
BROKEN = r" is damaged \(.+\); replace it or remove it from the dataset."
CASES = [
    (cut_off, IMAGE, BROKEN),
    (cut_off, MASK, BROKEN),
    (palette, MASK, IDS),
    (rgb, MASK, COLOR),
    (narrow, MASK, SIZES),
    (wide, IMAGE, WIDE),
    (wide, MASK, WIDE),
]


@pytest.mark.parametrize(("spoil", "file", "expected"), CASES)
def test_a_bad_file_ends_training_with_one_sentence_from_a_worker(capsys, tmp_path, spoil, file, expected):
    keys = tiny.folders(tmp_path, count=2)
    spoil(tmp_path / file)
    recipe = tiny.write(tmp_path / "r.yaml", keys, rule="supervised", dataloader_num_workers=2)
    sentence = says(capsys, ["train", recipe, "-o", str(tmp_path / "out")])
    assert re.fullmatch(rf"(The mask )?{tmp_path}/{file}{expected}", sentence)


def test_a_bad_file_ends_an_evaluation_with_one_sentence_from_a_worker(capsys, tmp_path):
    tiny.folders(tmp_path, count=2)
    cut_off(tmp_path / IMAGE)
    tiny_model(0, 2).save_pretrained(tmp_path / "model")
    argv = ["eval", str(tmp_path / "model"), "folder", "--data_dir", str(tmp_path / "labeled"), "--split", "train"]
    assert re.fullmatch(rf"{tmp_path}/{IMAGE}{BROKEN}", says(capsys, [*argv, "--workers", "2"]))


def test_stems_that_do_not_match_end_training_with_one_sentence(capsys, tmp_path):
    keys = tiny.folders(tmp_path)
    (tmp_path / MASK).rename(tmp_path / "labeled/masks/one.png")
    recipe = tiny.write(tmp_path / "r.yaml", keys, rule="supervised")
    assert says(capsys, ["train", recipe, "-o", str(tmp_path / "out")]) == (
        f"1 of 4 images have no mask, the first is {tmp_path}/labeled/images/1.png, and 1 of 4 masks have no image, the "
        f"first is {tmp_path}/labeled/masks/one.png; give each a partner, or remove it: images/ and masks/ with "
        "files of the same stems (unlabeled images have a folder of their own); or say how the names of a pair end, as "
        "--dataset_options.image_suffix and --dataset_options.mask_suffix."
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("\n \n", "is empty; it must hold one id or path per line."),
        ("2007_000000\n../x", "names '../x'; paths must be relative to the dataset and must not contain `..`."),
        ("/etc/passwd", "names '/etc/passwd'; paths must be relative to the dataset and must not contain `..`."),
    ],
)
def test_a_bad_split_list_ends_training_with_one_sentence(capsys, tmp_path, lines, expected):
    trees.voc(tmp_path / "voc")
    (tmp_path / "labeled.txt").write_text(lines)
    (tmp_path / "unlabeled.txt").write_text("2007_000001")
    keys = {"dataset": "voc", "data_dir": str(tmp_path / "voc"), "labeled": 2}
    recipe = tiny.write(tmp_path / "r.yaml", keys, dataset_options={"splits": str(tmp_path)})
    assert says(capsys, ["train", recipe, "-o", str(tmp_path / "out")]) == (
        f"The split list {tmp_path}/labeled.txt {expected}"
    )


@pytest.mark.parametrize("rare", [None, {"min_pixels": 9}])
def test_a_bad_mask_that_may_be_chosen_is_skipped_where_that_is_asked_for(capsys, tmp_path, rare):
    keys = tiny.folders(tmp_path)
    cut_off(tmp_path / MASK)
    own = {key: keys[key] for key in ("dataset", "data_dir", "eval_split", "eval_strategy") if key in keys}
    own |= {"labeled": 2, "rare_class_sampling": rare, "check": rare is None, "load_best_model_at_end": False}
    argv = ["train", tiny.write(tmp_path / "run.yaml", own), "--output_dir", str(tmp_path / "out")]
    assert re.search(MASK + BROKEN, says(capsys, argv))
    assert cli.main([*argv, "--on_bad_image", "skip"]) == 0


LOADERS = {  # a builder of the layout, and the files of its training masks
    "camvid": (trees.camvid, "trainannot/*.png"),
    "cityscapes": (trees.cityscapes, "gtFine/train/*/*_labelIds.png"),
    "voc": (trees.voc, "SegmentationClassAug/*.png"),
}


@pytest.mark.parametrize("labeled", [2, "1/2"])
@pytest.mark.parametrize("name", LOADERS)
def test_loaders_that_choose_by_themselves_skip_a_bad_mask_as_well(capsys, tmp_path, name, labeled):
    build, masks = LOADERS[name]
    build(tmp_path / "data")
    broken = min((tmp_path / "data").glob(masks))
    broken.write_bytes(b"")
    keys = {"dataset": name, "data_dir": str(tmp_path / "data"), "labeled": labeled, "save_strategy": "no"}
    keys |= {"eval_split": False, "eval_strategy": "no", "load_best_model_at_end": False}
    argv = ["train", tiny.write(tmp_path / "run.yaml", keys), "--output_dir", str(tmp_path / "out")]
    assert says(capsys, argv) == f"{broken} is not an image; replace it or remove it from the dataset."
    assert cli.main([*argv, "--on_bad_image", "skip"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "skipped, as they cannot be read: 1 " in said and f"{broken} is not an image" in said
