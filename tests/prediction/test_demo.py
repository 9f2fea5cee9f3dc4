"""The page: what it shows of an image, and that a person can use it in a real browser."""

import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import SegformerImageProcessor

from hf_fst import cli
from hf_fst.data import DataError
from hf_fst.drawing.overlays import overlay
from hf_fst.evaluation import Look
from hf_fst.prediction import demo as module
from hf_fst.prediction.segmenter import Segmenter
from hf_fst.recipes.evaluation import images_to_show
from tests.data import trees
from tests.evaluation.conftest import run_dir, tiny_model  # noqa: F401  the fixture
from tests.prediction.test_predict import noise

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_what_is_shown_of_an_image(run_dir, tmp_path):  # noqa: F811
    path = noise(tmp_path / "a <b>.png")
    pixels = np.asarray(Image.open(path))
    page = module.Demo(run_dir)  # its files go when it goes
    seen = page.look(path)
    teacher, student = Segmenter(run_dir), Segmenter(run_dir, "student")
    picture = teacher.look(pixels)
    (classes, confidence), theirs = teacher.confident_classes([picture])[0], student.classes([picture])[0]
    assert np.array_equal(np.asarray(Image.open(seen["file"])), classes) and Image.open(seen["file"]).mode == "P"
    assert np.array_equal(seen["overlay"], overlay(pixels, classes, teacher.palette))
    assert np.array_equal(seen["compared"][0], overlay(pixels, theirs, teacher.palette))
    assert np.array_equal(seen["compared"][1], seen["overlay"])
    assert f"{100 * (theirs == classes).mean():.1f} % of the pixels" in seen["legend"]
    for index in np.unique(classes):
        assert f"{teacher.names[index]}</td>" in seen["legend"]
        assert f"{100 * (classes == index).mean():.1f} %" in seen["legend"]
    brightness = seen["confidence"].astype(float).sum(-1)
    assert brightness[confidence.argmax() // 64, confidence.argmax() % 64] == brightness.max()


def test_a_model_without_a_student_is_compared_with_the_image(tmp_path):
    tiny_model(1).save_pretrained(tmp_path / "alone")
    SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path / "alone")
    path = noise(tmp_path / "a.png")
    seen = module.Demo(tmp_path / "alone", Look(window=32)).look(path)
    assert np.array_equal(seen["compared"][0], np.asarray(Image.open(path))) and "agree" not in seen["legend"]


def test_names_of_classes_cannot_be_markup(run_dir, tmp_path):  # noqa: F811
    page = module.Demo(run_dir)
    page.teacher.names = ["<script>"] * 4
    assert "<script>" not in page.look(noise(tmp_path / "a.png"))["legend"]


def test_what_is_no_image_is_told(run_dir, tmp_path):  # noqa: F811
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="is not an image"):
        module.Demo(run_dir).look(tmp_path / "a.png")


def test_examples_are_streets_or_the_readers_own(run_dir, tmp_path):  # noqa: F811
    page = module.Demo(run_dir)
    assert [Image.open(path).mode for path in page.examples(None)] == ["RGB"] * module.EXAMPLES
    path = noise(tmp_path / "mine/a.png")
    assert page.examples(tmp_path / "mine") == [str(path)]
    rows = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    [example] = page.examples(rows)
    assert np.array_equal(np.asarray(Image.open(example)), np.asarray(Image.open(path)))


def test_a_hidden_class_shows_the_image(run_dir, tmp_path):  # noqa: F811
    page = module.Demo(run_dir)
    seen = page.look(noise(tmp_path / "a.png"))
    hidden, *others = seen["present"]
    drawn, (student, teacher) = page.draw(seen["pixels"], seen["maps"], others)
    for picture, classes in ((teacher, seen["maps"][0]), (student, seen["maps"][1])):
        there = classes == hidden
        assert np.array_equal(picture[there], seen["pixels"][there])
        assert np.array_equal(picture[~there], overlay(seen["pixels"], classes, page.teacher.palette)[~there])
    assert np.array_equal(drawn, teacher) and (seen["maps"][0] == hidden).any()


def test_images_of_a_run_are_shown_where_everybody_may_see_them(tmp_path):
    def images_of(recipe):
        (tmp_path / "recipe.yaml").write_text(recipe)
        return images_to_show(tmp_path)

    street = "dataset_options: {num_train: 2, num_validation: 3, num_test: 1}"
    assert len(images_of(f"dataset: street\nrule: supervised\n{street}")) == 3
    trees.camvid(tmp_path / "camvid")
    assert images_of(f"dataset: camvid\nrule: supervised\ndata_dir: {tmp_path}/camvid") is None
    assert images_of("dataset: folder\nrule: supervised\ndata_dir: nowhere") is None
    assert images_to_show(tmp_path / "camvid") is None


def test_without_gradio_it_says_what_to_install(run_dir, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["demo", str(run_dir)]) == 1
    sentence = 'hf-fst: The page is made with Gradio, which is not installed: pip install "hf_fst[demo]".\n'
    assert capsys.readouterr().err == sentence


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_a_person_uploads_an_image_sees_its_classes_and_downloads_them(run_dir, tmp_path):  # noqa: F811
    from playwright.sync_api import expect, sync_playwright

    path = noise(tmp_path / "mine.png", (96, 128))
    page_of = module.build_page(module.Demo(run_dir))
    address = module.launch_page(page_of, block=False)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 1400}, accept_downloads=True)
            page.set_default_timeout(60_000)
            foreign = []
            page.on("request", lambda request: foreign.append(request.url))
            page.goto(address)
            expect(page.locator("#download")).to_be_disabled(timeout=60_000)
            page.locator("#image input[type=file]").set_input_files(str(path))
            expect(page.locator("#legend table")).to_be_visible(timeout=60_000)
            text = page.locator("#legend").inner_text()
            classes = Segmenter(run_dir).classes([Segmenter(run_dir).look(np.asarray(Image.open(path)))])[0]
            shares = [f"{100 * (classes == index).mean():.1f} %" for index in np.unique(classes)]
            assert all(share in text for share in shares)
            for name in ("overlay", "confidence", "compared"):
                expect(page.locator(f"#{name} img").first).to_be_visible(timeout=60_000)
            expect(page.locator("#download")).to_be_enabled(timeout=60_000)
            with page.expect_download() as waiting:
                page.locator("#download").click()
            waiting.value.save_as(tmp_path / "classes.png")
            assert np.array_equal(np.asarray(Image.open(tmp_path / "classes.png")), classes)
            assert waiting.value.suggested_filename.endswith("-classes.png")

            page.locator("#examples button, #examples td, #examples .gallery-item").first.click()
            expect(page.locator("#legend")).not_to_have_text(text, timeout=60_000)
            with_all = page.locator("#overlay img").first.get_attribute("src")
            page.locator("#toggles input").first.focus()
            page.keyboard.press("Space")  # hides the first class
            expect(page.locator("#overlay img").first).not_to_have_attribute("src", with_all, timeout=60_000)

            middle = page.locator("#compared .image-container").inner_html()
            page.locator("#line input[type=range]").focus()
            page.keyboard.press("ArrowRight")
            page.wait_for_function(
                "before => document.querySelector('#compared .image-container').innerHTML != before", arg=middle
            )

            page.set_viewport_size({"width": 390, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert not [url for url in foreign if not url.startswith((address, "data:", "blob:"))]
            browser.close()
    finally:
        page_of.close()
    assert Path(tmp_path / "classes.png").is_file()
