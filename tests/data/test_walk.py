"""One walk over folders: what is there is used or named, links are followed once, names match in any Unicode form."""

import json
import os
import re
import unicodedata
import warnings

import numpy as np
import PIL.Image
import pytest

from hf_fst.data import DataError, load
from hf_fst.data.files import walk
from hf_fst.data.splits import read_list
from tests.data import trees


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def names(walked, root):
    return [path.relative_to(root).as_posix() for path in walked.files]


def pair(root, image, mask, ids=((0, 1), (1, 0))):
    ids = np.array(ids, np.uint8)
    for name, content in ((image, np.zeros((*ids.shape, 3), np.uint8)), (mask, ids)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(content).save(root / name)
    (root / "id2label.json").write_text(json.dumps(["a", "b"]))


def sizes(made):
    return {split: len(rows) for split, rows in made.items()}


def quiet(function):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function()


def test_nested_files_are_found_in_order_and_others_named(tmp_path):
    for name in ("b.png", "a/2.JPG", "a/1.png", "a/notes.txt", ".hidden/x.png", "a/.y.png"):
        touch(tmp_path / name)
    found = walk(tmp_path)
    assert names(found, tmp_path) == ["a/1.png", "a/2.JPG", "b.png"]
    assert {path.name: why for path, why in found.unused.items()} == {"notes.txt": "a file of another kind"}
    flat = walk(tmp_path, nested=False)
    assert names(flat, tmp_path) == ["b.png"] and list(flat.unused) == [tmp_path / "a"]


def test_links_are_followed_once_and_lead_out_of_no_loop(tmp_path):
    root = tmp_path / "root"
    touch(root / "z/1.png"), touch(tmp_path / "elsewhere/2.png")
    (root / "a").symlink_to(root / "z")  # comes before the folder itself
    (root / "z/up").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "file.png").symlink_to(tmp_path / "elsewhere/2.png")
    (root / "nowhere.png").symlink_to(tmp_path / "gone.png")
    found = walk(root)
    assert names(found, root) == ["again/2.png", "file.png", "z/1.png"]
    assert found.unused == {
        root / "z/up": "a link to a folder that contains it",
        root / "nowhere.png": "a broken link",
    }


def test_pipes_and_names_that_are_no_text_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    open(os.path.join(os.fsencode(tmp_path), b"bad\xff.png"), "wb").close()
    for name in ("screen\u202fshot.png", "\u3000a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.png"):  # of a NAS
        touch(tmp_path / name)
    found = walk(tmp_path)
    assert len(found.files) == 2
    assert sorted(found.unused.values()) == ["its name is not valid text", "not a regular file"]


def test_names_in_either_unicode_form_are_a_pair(tmp_path):
    composed, apart = (unicodedata.normalize(form, "straße_é") for form in ("NFC", "NFD"))
    assert composed != apart
    pair(tmp_path, f"images/{composed}.png", f"masks/{apart}.png")
    assert sizes(quiet(lambda: load("folder", tmp_path))) == {"train": 1}
    (tmp_path / "list.txt").write_text(apart)
    assert read_list(tmp_path / "list.txt") == [composed]


def test_nested_folders_are_seen_by_default_or_named(tmp_path):
    pair(tmp_path, "images/1.png", "masks/1.png")
    pair(tmp_path, "images/city/1.png", "masks/city/1.png")
    assert sizes(quiet(lambda: load("folder", tmp_path))) == {"train": 2}
    with pytest.warns(
        UserWarning, match=r"Not used in .*: images/city, masks/city \(a subfolder, but nested is false\)"
    ):
        assert sizes(load("folder", tmp_path, nested=False)) == {"train": 1}
    assert len(load("folder", tmp_path, images=".", masks=None)["train"]) == 4


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Valid"])
def test_every_name_of_a_split_is_known(tmp_path, name):
    (
        pair(tmp_path, "train/images/1.png", "train/masks/1.png"),
        pair(tmp_path, f"{name}/images/1.png", f"{name}/masks/1.png"),
    )
    assert sizes(quiet(lambda: load("folder", tmp_path, id2label=str(tmp_path / name / ".." / "id2label.json")))) == {
        "train": 1,
        "validation": 1,
    }


def test_splits_inside_the_folders_of_images_are_splits_too(tmp_path):
    for split in ("train", "val"):
        pair(tmp_path, f"images/{split}/1.png", f"masks/{split}/1.png")
    assert sizes(quiet(lambda: load("folder", tmp_path))) == {"train": 1, "validation": 1}
    touch(tmp_path / "images/more/2.png")
    with pytest.warns(UserWarning, match=r"images/more \(not in the folder of a split\)"):
        load("folder", tmp_path)


def test_what_is_not_used_is_named(tmp_path):
    pair(tmp_path, "images/1.png", "masks/1.png")
    touch(tmp_path / "images/2.heic"), touch(tmp_path / "masks/1.json"), touch(tmp_path / "val/images/1.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load("folder", tmp_path)
    told = [str(warning.message) for warning in caught]
    assert f"Not used in {tmp_path}: images/2.heic, masks/1.json (a file of another kind)." in told
    assert f"Not used in {tmp_path}: val (a split, but there is no train/ beside it)." in told
    for split in ("train", "val"):
        pair(tmp_path, f"{split}/images/1.png", f"{split}/masks/1.png")
    (tmp_path / "id2label.json").write_text('["a", "b"]')
    with pytest.warns(UserWarning, match=r"images, masks \(a folder that is not a split\)"):
        assert sizes(load("folder", tmp_path)) == {"train": 1, "validation": 1}


def test_two_names_of_one_split_are_one_sentence(tmp_path):
    for split in ("train", "val", "valid"):
        pair(tmp_path, f"{split}/images/1.png", f"{split}/masks/1.png")
    (tmp_path / "id2label.json").write_text('["a", "b"]')
    with pytest.raises(ValueError, match=r"/val and valid are both validation; keep one of them"):
        load("folder", tmp_path)


@pytest.mark.parametrize(
    ("image", "mask", "options"),
    [
        ("images/c/x_leftImg8bit.png", "masks/c/x_gtFine_labelIds.png", ("_leftImg8bit.png", "_gtFine_labelIds.png")),
        ("all/x.jpg", "all/x_mask.png", (".jpg", "_mask.png")),
        ("all/x.png", "all/x_mask.png", (None, "_mask.png")),
        ("x.png", "masks/x_L.png", (".png", "_L.png")),
        ("all/x.PNG", "all/x_Mask.PNG", (".png", "_mask.png")),
    ],
)
def test_suffixes_pair_images_and_masks(tmp_path, image, mask, options):
    pair(tmp_path, image, mask)
    places = [place.split("/")[0] if "/" in place else "." for place in (image, mask)]
    made = load("folder", tmp_path, images=places[0], masks=places[1], image_suffix=options[0], mask_suffix=options[1])
    assert np.asarray(made["train"][0]["label"]).tolist() == [[0, 1], [1, 0]] and len(made["train"]) == 1


def test_a_wrong_suffix_and_masks_of_another_kind_are_one_sentence(tmp_path):
    pair(tmp_path, "images/1.png", "masks/1.png")
    with pytest.raises(ValueError, match="The suffix '_mask.jpg' does not end in one of .png"):
        load("folder", tmp_path, mask_suffix="_mask.jpg")
    (tmp_path / "masks/1.png").rename(tmp_path / "masks/1.jpg")
    with pytest.raises(ValueError, match=r"masks holds no files \*.png, .* \(it holds \*.jpg\)"):
        load("folder", tmp_path)


def test_id_map_and_colors_work_in_a_folder(tmp_path):
    pair(tmp_path, "images/1.png", "masks/1.png", ids=[[0, 1, 2]])
    for id_map in ([255, 0, 1], {1: 0, 2: 1, 0: 255}):
        made = load("folder", tmp_path, id_map=id_map)
        assert np.asarray(made["train"][0]["label"]).tolist() == [[255, 0, 1]]
    PIL.Image.fromarray(np.array([[[9, 9, 9], [0, 0, 200], [0, 0, 200]]], np.uint8)).save(tmp_path / "masks/1.png")
    (tmp_path / "colors.json").write_text("[[9, 9, 9], [0, 0, 200]]")
    for colors in ([[9, 9, 9], [0, 0, 200]], "colors.json"):
        assert np.asarray(load("folder", tmp_path, colors=colors)["train"][0]["label"]).tolist() == [[0, 1, 1]]


def test_palettes_that_disagree_are_one_sentence_with_both_files(tmp_path):
    def save(name, ids, colors):
        pair(tmp_path, f"images/{name}.png", f"masks/{name}.png")
        trees.save_palette(tmp_path / f"masks/{name}.png", np.array(ids), np.array(colors))

    red, blue = [200, 0, 0], [0, 0, 200]
    save("1", [[0, 1], [1, 0]], [[0, 0, 0], red])
    save("2", [[0, 0], [0, 0]], [[0, 0, 0], blue])  # does not use the index that differs
    for name, color in (("4", red), ("5", blue)):  # of what is ignored
        save(name, [[0, 255], [0, 0]], [*[[0, 0, 0]] * 255, color])
    quiet(lambda: load("folder", tmp_path))
    save("3", [[0, 1], [1, 0]], [[0, 0, 0], blue])
    with pytest.raises(DataError, match=re.escape(f"In the palette of {tmp_path}/masks/")) as caught:
        load("folder", tmp_path)
    assert "1.png index 1 is (" in str(caught.value) and "3.png" in str(caught.value)
    made = load("folder", tmp_path, colors=[[0, 0, 0], red, blue], id_map=[0, 1, 1])
    assert made["train"].features["label"].palette == [[0, 0, 0], red]  # pictures have the colors of the masks
    assert [np.asarray(row["label"])[0, 1] for row in made["train"]] == [1, 0, 1, 255, 255]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lists_and_names_are_read_in_each_encoding(tmp_path, encoding):
    (tmp_path / "list.txt").write_bytes("größe\r\nb\r\n".encode(encoding))
    assert read_list(tmp_path / "list.txt") == ["größe", "b"]
    pair(tmp_path, "images/1.png", "masks/1.png")
    (tmp_path / "id2label.json").write_bytes('["ä", "b"]'.encode(encoding))
    assert load("folder", tmp_path)["train"].features["label"].names == ["ä", "b"]
    (tmp_path / "list.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(ValueError, match="is not text in UTF-8 or UTF-16"):
        read_list(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("JPEGImages/a.jpg SegmentationClass/a.png", "JPEGImages/a.jpg"),
        ("a.jpg\ta.png", "a.jpg"),
        ("a a", "a"),
        ("a.jpg a.png", "a.jpg"),
        ("my scan 1.png", "my scan 1.png"),
        ("scan 1.png", "scan 1.png"),
        ("folder of mine/a.png", "folder of mine/a.png"),
    ],
)
def test_two_columns_are_told_from_names_with_blanks(tmp_path, line, name):
    (tmp_path / "list.txt").write_text(line)
    assert read_list(tmp_path / "list.txt") == [name]


def test_published_lists_of_two_columns_choose_the_images(tmp_path):
    raw = list(trees.voc(tmp_path / "voc")["train"])
    (tmp_path / "2").mkdir()
    for file, ids in (("labeled", raw[:2]), ("unlabeled", raw[2:])):
        lines = [f"JPEGImages/{name}.jpg SegmentationClass/{name}.png" for name in ids]
        (tmp_path / f"2/{file}.txt").write_bytes("\n".join(lines).encode("utf-16"))
    made = load("voc", tmp_path / "voc", labeled=2, splits=str(tmp_path))
    assert sizes(made)["train"] == 2 and sizes(made)["unlabeled"] == len(raw) - 2
