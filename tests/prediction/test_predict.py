"""Predictions of folders and videos as files, against the network run by hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

from hf_fst import cli
from hf_fst.drawing.overlays import default_palette, overlay
from hf_fst.evaluation import Look
from hf_fst.prediction.files import list_inputs, output_names
from hf_fst.prediction.segmenter import palette_of
from tests.evaluation.conftest import NAMES, run_dir, tiny_model  # noqa: F401  the fixture
from tests.publishing.conftest import make_facts


def noise(path, size=(48, 64), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def by_hand(model_dir, pixels):
    """Logits (C, H, W) of an image (H, W, 3), without any of the package's code."""
    model = AutoModelForSemanticSegmentation.from_pretrained(model_dir)
    values = (np.asarray(pixels, dtype=np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    values = torch.tensor(values, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        return F.interpolate(model(pixel_values=values).logits, pixels.shape[:2], mode="bilinear")[0]


def predict(*argv):
    return cli.main(["predict", *map(str, argv)])


def indices(path):
    image = Image.open(path)
    assert image.mode == "P"
    return np.asarray(image)


@pytest.fixture
def images(tmp_path):
    """A folder with nested folders, two files of one stem, an odd file, another size."""
    folder = tmp_path / "images"
    for index, name in enumerate(["a.png", "a.jpg", "b.png", "night/a.png", "night/rain/c.tif"]):
        noise(folder / name, (48, 64) if index else (32, 40), seed=index)
    (folder / "notes.txt").write_text("mine")
    return folder


def expected_files():
    return ["a.jpg.png", "a.png.png", "b.png", "night/a.png", "night/rain/c.png"]


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestImages:
    @pytest.mark.parametrize("options", [[], ["--batch_size", "3", "--workers", "2"], ["--student"]])
    def test_equal_the_network_by_hand(self, run_dir, images, tmp_path, capsys, options):  # noqa: F811
        out = tmp_path / "out"
        assert predict(run_dir, images, "-o", out, *options) == 0
        assert written(out / "predictions") == expected_files()
        where = run_dir / "student" if options == ["--student"] else run_dir
        for name, source in {"a.png.png": "a.png", "night/rain/c.png": "night/rain/c.tif"}.items():
            pixels = np.asarray(Image.open(images / source))
            expected = by_hand(where, pixels).argmax(0).numpy()
            assert np.array_equal(indices(out / "predictions" / name), expected)
            assert len(np.unique(expected)) > 1
        output = capsys.readouterr()
        assert "images: 5 predicted, other files left alone: 1; " in output.out and "5/5" in output.err

    def test_the_palette_is_in_the_file_and_ignored_is_black(self, run_dir, images, tmp_path):  # noqa: F811
        predict(run_dir, images / "b.png", "-o", tmp_path / "out")
        palette = Image.open(tmp_path / "out/predictions/b.png").getpalette()
        assert palette[: 3 * len(NAMES)] == default_palette(4).flatten().tolist() and palette[-3:] == [0, 0, 0]

    def test_overlays_have_a_legend_below(self, run_dir, images, tmp_path):  # noqa: F811
        out = tmp_path / "out"
        smooth = np.indices((48, 64)).transpose(1, 2, 0)[..., [0, 1, 1]] * [4, 3, 2]
        Image.fromarray(smooth.astype(np.uint8)).save(images / "b.png")
        assert predict(run_dir, images / "b.png", "-o", out) == 0
        assert not (out / "overlays").exists()
        assert predict(run_dir, images / "b.png", "-o", out, "--overlays") == 0  # what is missing is made
        picture = np.asarray(Image.open(out / "overlays/b.jpg"), dtype=int)
        height = 48
        assert picture.shape[0] > height and picture.shape[1] == 64
        found = indices(out / "predictions/b.png")
        expected = overlay(np.asarray(Image.open(images / "b.png")), found, default_palette(4))
        assert np.abs(picture[:height] - expected).mean() < 8  # JPEG, of colors at half the size
        assert (picture[height:] > 200).mean() > 0.3  # on white

    def test_windows_scales_and_mirroring_are_used(self, run_dir, images, tmp_path):  # noqa: F811
        from hf_fst.evaluation import segment
        from hf_fst.prediction.segmenter import Segmenter

        argv = ["--window", 32, "--stride", 24, "--scales", "1,1.5", "--flip"]
        assert predict(run_dir, images / "b.png", "-o", tmp_path / "out", *argv) == 0
        segmenter = Segmenter(run_dir)
        picture = segmenter.read({"path": str(images / "b.png"), "bytes": None})
        logits = segment(segmenter.network, picture.pixel_values[None], look=Look(32, 24, (1, 1.5), True))
        found = indices(tmp_path / "out/predictions/b.png")
        assert np.array_equal(found, logits[0].argmax(0).numpy())
        assert not np.array_equal(found, segmenter.classes([picture])[0])

    def test_the_size_of_the_runs_evaluation_is_taken(self, images, tmp_path, run_dir):  # noqa: F811
        from transformers import SegformerImageProcessor

        tiny_model(1).save_pretrained(tmp_path / "run")
        SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path / "run")
        (tmp_path / "run/recipe.yaml").write_text("eval_resize: [32, 24]\n")
        predict(tmp_path / "run", images / "b.png", "-o", tmp_path / "small")
        predict(tmp_path / "run", images / "b.png", "-o", tmp_path / "full", "--resize", "none")
        small, full = (indices(tmp_path / name / "predictions/b.png") for name in ("small", "full"))
        assert small.shape == full.shape == (48, 64) and not np.array_equal(small, full)
        assert json.loads((tmp_path / "small/predict.json").read_text())["resize"] == [24, 32]


class TestGoingOn:
    def test_what_is_there_is_not_made_again(self, run_dir, images, tmp_path, capsys):  # noqa: F811
        out = tmp_path / "out"
        predict(run_dir, images, "-o", out)
        (out / "predictions/b.png").unlink()
        kept = (out / "predictions/night/a.png").stat().st_mtime_ns
        capsys.readouterr()
        assert predict(run_dir, images, "-o", out, "--json") == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["images"], result["skipped"], result["ignored"]) == (1, 4, 1)
        assert (out / "predictions/night/a.png").stat().st_mtime_ns == kept
        assert written(out / "predictions") == expected_files()

    def test_an_image_that_changed_is_predicted_again(self, run_dir, images, tmp_path):  # noqa: F811
        out = tmp_path / "out"
        predict(run_dir, images, "-o", out)
        path = noise(images / "b.png", seed=99)
        later = (out / "predictions/b.png").stat().st_mtime + 5
        os.utime(path, (later, later))
        predict(run_dir, images, "-o", out)
        expected = by_hand(run_dir, np.asarray(Image.open(path))).argmax(0).numpy()
        assert np.array_equal(indices(out / "predictions/b.png"), expected)

    def test_other_settings_or_another_model_are_refused_unless_told(self, run_dir, images, tmp_path, capsys):  # noqa: F811
        out = tmp_path / "out"
        predict(run_dir, images, "-o", out)
        before = indices(out / "predictions/b.png")
        (out / "mine.txt").write_text("mine")
        capsys.readouterr()
        assert predict(run_dir, images, "-o", out, "--window", 32) == 1
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"hf-fst: {out} was started with window null, but now window is [32, 32]; use the same, give another folder, "
            "or --overwrite to start over."
        )
        assert predict(run_dir, images, "-o", out, "--student") == 1
        assert "was started with model" in capsys.readouterr().err
        assert np.array_equal(indices(out / "predictions/b.png"), before)
        assert predict(run_dir, images / "b.png", "-o", out, "--student", "--overwrite") == 0
        assert not np.array_equal(indices(out / "predictions/b.png"), before)
        assert written(out / "predictions") == ["b.png"] and (out / "mine.txt").read_text() == "mine"

    def test_predictions_of_unknown_origin_are_refused(self, run_dir, images, tmp_path, capsys):  # noqa: F811
        (tmp_path / "out/predictions").mkdir(parents=True)
        (tmp_path / "out/predictions/mine.png").write_text("mine")
        for flags in ([], ["--overwrite"]):
            assert predict(run_dir, images, "-o", tmp_path / "out", *flags) == 1
            assert "holds predictions/ but no predict.json that says how it was made" in capsys.readouterr().err
        assert (tmp_path / "out/predictions/mine.png").read_text() == "mine"

    def test_nothing_half_written_is_left(self, run_dir, images, tmp_path, monkeypatch, capsys):  # noqa: F811
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        assert predict(run_dir, images, "-o", tmp_path / "out") == 1
        assert "predict.json cannot be written (No space left on device)" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".lock"] == []


class TestBadFiles:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_told_at_the_end_and_stop_nothing(self, run_dir, images, tmp_path, capsys, workers):  # noqa: F811
        (images / "b.png").write_bytes(b"no picture")
        whole = (images / "night/a.png").read_bytes()
        (images / "night/a.png").write_bytes(whole[: len(whole) // 2])
        argv = [run_dir, images, "-o", tmp_path / "out", "--batch_size", 2, "--workers", workers]
        assert predict(*argv, "--json") == 1
        output = capsys.readouterr()
        result = json.loads(output.out)
        assert [Path(entry["file"]).name for entry in result["failed"]] == ["b.png", "a.png"]
        assert output.err.splitlines()[-3:-1] == [entry["reason"] for entry in result["failed"]]
        assert f"{images}/b.png is not an image" in output.err
        assert output.err.splitlines()[-1] == "hf-fst: 2 of 5 files failed, see above; the others are done."
        assert written(tmp_path / "out/predictions") == ["a.jpg.png", "a.png.png", "night/rain/c.png"]
        (images / "night/a.png").write_bytes(whole)
        (images / "b.png").unlink()
        assert predict(*argv) == 0

    def test_one_that_the_network_cannot_take_does_not_spoil_its_batch(self, run_dir, images, tmp_path, monkeypatch):  # noqa: F811
        from hf_fst.prediction import predict as module

        real = module.Segmenter.classes

        def short_of_memory(self, pictures):
            if sum(picture.pixels.shape[0] for picture in pictures) > 100:
                raise RuntimeError("out of memory")
            return real(self, pictures)

        monkeypatch.setattr(module.Segmenter, "classes", short_of_memory)
        noise(images / "large.png", (120, 30))
        result = module.predict_files(run_dir, images, tmp_path / "out", batch_size=6, progress=False)
        assert result["failed"] == [{"file": str(images / "large.png"), "reason": "out of memory"}]
        assert written(tmp_path / "out/predictions") == expected_files()

    @pytest.mark.parametrize("what, sentence", [
        ("nowhere", "There is no folder or file {0}; give one with images."),
        ("images/notes.txt", "{0} is not one of *.jpg"),
        ("empty", "{0} and the folders in it hold no files *.jpg"),
    ])  # fmt: skip
    def test_nothing_to_predict(self, run_dir, images, tmp_path, capsys, what, sentence):  # noqa: F811
        (tmp_path / "empty").mkdir()
        assert predict(run_dir, tmp_path / what, "-o", tmp_path / "out") == 1
        assert sentence.format(tmp_path / what) in capsys.readouterr().err


class TestNames:
    @pytest.mark.parametrize("files, names", [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["a.jpg", "a.png", "b.png"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),  # whose stem is a.jpg
        (["x/a.jpg", "y/a.jpg"], ["x/a", "y/a"]),
        (["A.jpg", "a.png"], ["A.jpg", "a.png"]),  # one file where letters' case does not count
    ])  # fmt: skip
    def test_are_short_where_they_can_be(self, files, names):
        assert output_names([Path("in", file) for file in files], Path("in")) == names

    def test_results_inside_the_folder_are_not_taken_for_images(self, run_dir, images):  # noqa: F811
        assert predict(run_dir, images, "-o", images) == 0
        assert predict(run_dir, images, "-o", images) == 0
        assert written(images / "predictions") == expected_files()

    def test_hidden_files_are_left_out(self, images):
        noise(images / ".thumbs/a.png")
        noise(images / ".b.png")
        assert len(list_inputs(images)[0]) == 5


def test_the_colors_are_those_of_the_run_also_where_names_have_blanks(tmp_path):
    colors = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    make_facts(classes=["road", "traffic_light", "sky"], palette=colors).save(tmp_path)  # as the log spells them
    assert palette_of(tmp_path, ["road", "traffic light", "sky"]).tolist() == colors
    assert palette_of(tmp_path, ["road", "car", "sky"]).tolist() == default_palette(3).tolist()
