"""Pseudo-labels of collections: what is in the shards, that each image is there once, and what reads them."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hf_fst import cli
from hf_fst.data import LabelMap, load
from hf_fst.drawing.overlays import default_palette
from hf_fst.evaluation import Look
from hf_fst.prediction import label as module
from hf_fst.prediction.shards import read_footers
from tests.evaluation.conftest import NAMES, run_dir  # noqa: F401  the fixture
from tests.prediction.test_predict import by_hand, noise
from tests.recipes import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def images(tmp_path):
    """Seven images of two sizes, two of them in a folder inside."""
    folder = tmp_path / "images"
    for index in range(7):
        noise(folder / ("inside" if index > 4 else ".") / f"{index}.png", (48, 64) if index % 3 else (32, 40), index)
    return folder


SOURCES = ["0.png", "1.png", "2.png", "3.png", "4.png", "inside/5.png", "inside/6.png"]


def label(*argv):
    return cli.main(["label", *map(str, argv)])


def rows(output):
    loaded = datasets.load_dataset("parquet", data_dir=str(output))
    assert list(loaded) == ["train"]
    return loaded["train"]


def test_columns_equal_the_network_by_hand(run_dir, images, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    assert label(run_dir, images, "-o", out, "--shard_size", 3, "--batch_size", 2, "--workers", 2) == 0
    assert "images: 7 in 3 shards" in capsys.readouterr().out
    found = rows(out)
    assert found["source"] == SOURCES
    for row in found:
        pixels = np.asarray(Image.open(images / row["source"]))
        assert np.array_equal(np.asarray(row["image"]), pixels)
        probabilities = by_hand(run_dir, pixels).softmax(0)
        confidence, classes = (part.numpy() for part in probabilities.max(0))
        assert row["label"].mode == "P" and np.array_equal(np.asarray(row["label"]), classes)
        assert row["label"].getpalette()[:12] == default_palette(4).flatten().tolist()
        stored = np.asarray(row["confidence"], dtype=float)
        assert row["confidence"].mode == "L" and np.abs(stored - 255 * confidence).max() <= 0.5 + 1e-3
        assert row["mean_confidence"] == pytest.approx(confidence.mean(), abs=1e-5)
        shares = [(classes == index).mean() for index in range(4)]
        assert row["class_shares"] == pytest.approx(shares, abs=1e-6)
        assert row["teacher"] == run_dir.name and row["teacher_revision"].startswith("sha256:")
    table = pq.read_table(out / "data/train-00000-00000.parquet")
    assert b"LabelMap" not in table.schema.metadata[b"huggingface"]  # it loads where there is no hf_fst
    stored = table.column("image").to_pylist()
    assert stored[0] == {"bytes": (images / "0.png").read_bytes(), "path": "0.png"}  # as it was, without our folders


def test_uncertain_pixels_are_ignored(run_dir, images, tmp_path, capsys):  # noqa: F811
    assert label(run_dir, images, "-o", tmp_path / "out", "--confidence_threshold", 0.9, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    kept = []
    for row in rows(tmp_path / "out"):
        probabilities = by_hand(run_dir, np.asarray(row["image"])).softmax(0)
        confidence, classes = (part.numpy() for part in probabilities.max(0))
        expected = np.where(confidence < 0.9, 255, classes)
        assert np.array_equal(np.asarray(row["label"]), expected)
        kept.append((expected != 255).mean())
        assert sum(row["class_shares"]) == pytest.approx(kept[-1], abs=1e-5)
    assert 0 < np.mean(kept) < 1
    assert sum(result["class_shares"].values()) == pytest.approx(np.mean(kept), abs=1e-5)


def test_the_result_is_training_data(run_dir, images, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    label(run_dir, images, "-o", out, "--shard_size", 4, "--confidence_threshold", 0.5)
    assert list(datasets.load_dataset(str(out))) == ["train"] and len(datasets.load_dataset(str(out))["train"]) == 7
    streamed = datasets.load_dataset(str(out), streaming=True)["train"]
    assert [row["source"] for row in streamed] == SOURCES
    loaded = load("hub", str(out))["train"]
    assert isinstance(loaded.features["label"], LabelMap) and loaded.features["label"].names == NAMES
    assert loaded.features["label"].palette == default_palette(4).tolist()
    recipe = tiny.write(
        tmp_path / "r.yaml", dataset="hub", data_dir=str(out), eval_split=False, eval_strategy="no", rule="supervised",
        objective="supervised", load_best_model_at_end=False, save_strategy="no",
    )  # fmt: skip
    assert cli.main(["train", recipe, "-o", str(tmp_path / "trained")]) == 0
    config = json.loads((tmp_path / "trained/config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(NAMES)}


def as_parquet(images, folder):
    folder.mkdir()
    for shard, names in enumerate([SOURCES[:3], SOURCES[3:]]):
        content = [{"bytes": (images / name).read_bytes(), "path": name} for name in names]
        features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
        made = datasets.Dataset.from_dict({"image": content, "caption": names}, features=features)
        made.to_parquet(folder / f"part{shard}.parquet")


def as_tar(images, folder):
    folder.mkdir()
    for shard, names in enumerate([SOURCES[:3], SOURCES[3:]]):
        with tarfile.open(folder / f"part{shard}.tar", "w") as tar:
            for name in names:
                content = (images / name).read_bytes()
                info = tarfile.TarInfo(Path(name).name)
                info.size = len(content)
                tar.addfile(info, BytesIO(content))


@pytest.mark.parametrize("make, suffix, column", [(as_parquet, "parquet", "image"), (as_tar, "tar", "png")])
def test_streamed_collections_give_the_labels_of_the_folder(run_dir, images, tmp_path, make, suffix, column):  # noqa: F811
    make(images, tmp_path / "shards")
    label(run_dir, images, "-o", tmp_path / "plain")
    extra = ["--image", column] if suffix == "tar" else []
    assert label(run_dir, tmp_path / "shards", "-o", tmp_path / "out", "--shard_size", 2, *extra) == 0
    plain, found = rows(tmp_path / "plain"), rows(tmp_path / "out")
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert found["source"] == [f"part{shard}.{suffix}#{row}" for shard, row in places]
    assert len(read_footers(tmp_path / "out")) == 4  # 2 + 1 and 2 + 2
    for one, other in zip(plain, found, strict=True):
        assert np.array_equal(np.asarray(one["image"]), np.asarray(other["image"]))
        assert np.array_equal(np.asarray(one["label"]), np.asarray(other["label"]))


def test_bad_images_are_left_out_and_told(run_dir, images, tmp_path, capsys):  # noqa: F811
    (images / "2.png").write_bytes(b"no picture")
    argv = [run_dir, images, "-o", tmp_path / "out", "--shard_size", 3]
    assert label(*argv) == 1
    output = capsys.readouterr()
    assert "2.png is not an image" in output.err and "images: 6 in 3 shards" in output.out
    assert output.err.splitlines()[-1] == "hf-fst: 1 of 7 files failed, see above; the others are done."
    assert rows(tmp_path / "out")["source"] == [name for name in SOURCES if name != "2.png"]
    assert label(*argv, "--json") == 1  # nothing to do, but it is still told
    again = json.loads(capsys.readouterr().out)
    assert again["labeled_now"] == 0 and again["failed"][0]["file"] == "2.png"


def test_a_lost_shard_is_made_again_and_nothing_else(run_dir, images, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    argv = [run_dir, images, "-o", out, "--shard_size", 2, "--json"]
    label(*argv)
    before = {path.name: path.read_bytes() for path in (out / "data").iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    (out / "data/train-00000-00001.parquet").unlink()
    capsys.readouterr()
    assert label(*argv) == 0
    assert json.loads(capsys.readouterr().out)["labeled_now"] == 2
    assert {path.name: path.read_bytes() for path in (out / "data").iterdir()} == before
    assert [path.name for path in (out / "data").iterdir() if path.stat().st_mtime_ns != times[path.name]] == [
        "train-00000-00001.parquet"
    ]


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_set(run_dir, tmp_path, capsys):  # noqa: F811
    images, out = tmp_path / "many", tmp_path / "out"
    for index in range(240):
        noise(images / f"{index:03}.png", (96, 128), index)
    argv = [str(run_dir), str(images), "-o", str(out), "--shard_size", "8"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "hf_fst.cli", "label", *argv]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    for _ in range(6000):
        if len(list((out / "data").glob("*.parquet"))) >= 3 or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work
    survived = {path: path.stat().st_mtime_ns for path in (out / "data").glob("*.parquet")}
    assert 3 <= len(survived) < 30
    assert label(*argv, "--json") == 0
    assert json.loads(capsys.readouterr().out)["labeled_now"] == 240 - 8 * len(survived)
    assert all(path.stat().st_mtime_ns == before for path, before in survived.items())
    assert rows(out)["source"] == [f"{index:03}.png" for index in range(240)]
    assert not list((out / "data").glob(".*"))


@pytest.mark.parametrize("option, value, sentence", [
    ("--confidence_threshold", 1.5, "confidence_threshold is 1.5; use a number from 0 to 1."),
    ("--image", "photo", "{0}/shards has no column of images or their bytes under the name photo; its columns are image "
        "(PIL.Image.Image), caption (string): name another with --image, or store the bytes of the files."),
])  # fmt: skip
def test_wrong_options_are_told(run_dir, images, tmp_path, capsys, option, value, sentence):  # noqa: F811
    as_parquet(images, tmp_path / "shards")
    assert label(run_dir, tmp_path / "shards", "-o", tmp_path / "out", option, value) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"hf-fst: {sentence.format(tmp_path)}"


@pytest.mark.parametrize("option", ["image", "config", "revision"])
def test_options_of_tables_are_not_ignored_for_a_folder(run_dir, images, tmp_path, capsys, option):  # noqa: F811
    assert label(run_dir, images, "-o", tmp_path / "out", f"--{option}", "x") == 1
    sentence = f"hf-fst: {option} is 'x', but {images} holds files, which have none; leave it out."
    assert capsys.readouterr().err.splitlines()[-1] == sentence


def test_a_shard_of_no_images_is_wrong_usage(run_dir, images, tmp_path, capsys):  # noqa: F811
    assert label(run_dir, images, "-o", tmp_path / "out", "--shard_size", 0) == 2
    assert "--shard_size" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_collection_or_settings_that_changed_are_refused(run_dir, images, tmp_path, capsys):  # noqa: F811
    argv = [run_dir, images, "-o", tmp_path / "out"]
    label(*argv)
    assert label(*argv, "--shard_size", 2) == 1
    assert "was started with shard_size 500, but now shard_size is 2" in capsys.readouterr().err
    noise(images / "new.png")
    assert label(*argv) == 1
    assert "was started with collection" in capsys.readouterr().err
    assert label(*argv, "--overwrite") == 0 and len(rows(tmp_path / "out")) == 8


def test_foreign_files_among_the_shards_are_refused(run_dir, images, tmp_path, capsys):  # noqa: F811
    label(run_dir, images, "-o", tmp_path / "out")
    (tmp_path / "out/data/mine.parquet").write_bytes(b"")
    assert label(run_dir, images, "-o", tmp_path / "out") == 1
    assert "mine.parquet cannot be read" in capsys.readouterr().err


def test_no_collection(run_dir, tmp_path, capsys):  # noqa: F811
    assert label(run_dir, tmp_path / "none", "-o", tmp_path / "out") == 1
    assert "none; give a folder, a Parquet or .tar file, or a Hub id." in capsys.readouterr().err
    assert label(run_dir, "someone/none", "-o", tmp_path / "out") == 1
    assert "There is no dataset 'someone/none' on the Hub or in a folder" in capsys.readouterr().err
    assert label(run_dir, "my images", "-o", tmp_path / "out") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "hf-fst: There is no dataset 'my images' on the Hub or in a folder" in last


def test_several_views_have_probabilities_too(run_dir, images, tmp_path):  # noqa: F811
    result = module.label_collection(
        run_dir, images / "1.png", tmp_path / "out", look=Look(scales=(0.75, 1.0), flip=True), progress=False
    )
    row = rows(tmp_path / "out")[0]
    stored = np.asarray(row["confidence"], dtype=float) / 255
    assert stored.mean() == pytest.approx(result["mean_confidence"], abs=2e-3)
    assert 0.25 <= stored.min() and torch.isfinite(torch.tensor(row["mean_confidence"]))


def test_a_pixel_exactly_at_the_threshold_is_kept(run_dir, images, tmp_path):  # noqa: F811
    segmenter = module.Segmenter(str(run_dir))
    _, confidence = segmenter.confident_classes([segmenter.read({"bytes": None, "path": str(images / "0.png")})])[0]
    threshold = np.sort(confidence, axis=None)[confidence.size // 2].item()  # that of a pixel
    assert label(run_dir, images / "0.png", "-o", tmp_path / "out", "--confidence_threshold", repr(threshold)) == 0
    (row,) = rows(tmp_path / "out")
    ignored = np.asarray(row["label"]) == 255
    assert np.array_equal(ignored, confidence < np.float32(threshold)) and not ignored[confidence == threshold].any()
