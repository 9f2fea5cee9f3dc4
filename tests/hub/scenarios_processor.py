"""A model on the Hub whose image processor does not come or cannot be read, and one that has none."""

import logging

import pytest
from huggingface_hub import HfApi
from transformers import SegformerImageProcessor

from hf_fst import cli
from hf_fst.models.loading import processor_of
from tests.evaluation.conftest import tiny_model
from tests.hub.server import CUT
from tests.prediction.test_predict import noise
from tests.recipes import tiny

pytestmark = pytest.mark.usefixtures("no_waiting")

FILE = r"/resolve/[^/]+/preprocessor_config\.json"


@pytest.fixture
def published(hub, tmp_path):
    """Publishes a model under a new name: what is in the cache must not help."""

    def publish(name: str, processor: bool = True, content: str | None = None) -> str:
        tiny_model(1).save_pretrained(tmp_path / name)
        if processor:
            SegformerImageProcessor(do_resize=False, image_mean=[0.3] * 3).save_pretrained(tmp_path / name)
        if content is not None:
            (tmp_path / name / "preprocessor_config.json").write_text(content)
        HfApi().create_repo(f"alice/{name}")
        HfApi().upload_folder(repo_id=f"alice/{name}", folder_path=tmp_path / name)
        return f"alice/{name}"

    return publish


def commands(model: str, tmp_path) -> list[list[str]]:
    image = str(noise(tmp_path / "images/a.png"))
    keys = {
        **tiny.STREET,
        "model": model,
        "model_config": None,
        "replace_head": True,
        "output_dir": str(tmp_path / "r"),
    }
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    return [
        ["predict", model, image, "-o", str(tmp_path / "p")],
        ["label", model, str(tmp_path / "images"), "-o", str(tmp_path / "l")],
        ["eval", model, "street", "--options", "num_train=1", "num_validation=1", "num_test=1"],
        ["export", model, "-o", str(tmp_path / "it.onnx")],
        ["demo", model],
        ["train", recipe],
        ["train", recipe, "--dry_run"],
    ]


def test_every_command_says_that_the_processor_does_not_come(hub, published, tmp_path, capsys):
    model = published("commands")
    for argv in commands(model, tmp_path):
        for method in ("HEAD", "GET"):
            hub.fail(method, FILE, 500)
        capsys.readouterr()
        assert cli.main(argv) == 1, argv
        (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-fst: ")]
        assert f"The image processor of {model} cannot be read" in sentence, argv
    assert not (tmp_path / "r").exists() and not (tmp_path / "it.onnx").exists()


@pytest.mark.parametrize("method, status", [("HEAD", 403), ("GET", 403), ("GET", 500), ("HEAD", CUT), ("GET", CUT)])
def test_no_failure_of_the_hub_stands_for_a_model_without_a_processor(
    hub, published, tmp_path, capsys, method, status
):
    model = published(f"fails-{method}-{status}".lower())
    hub.fail(method, FILE, status)
    assert cli.main(commands(model, tmp_path)[0]) == 1
    assert f"The image processor of {model} cannot be read" in capsys.readouterr().err
    hub.faults.clear()
    assert list(processor_of(model).image_mean) == [0.3] * 3


@pytest.mark.parametrize("name, content", {"cut": '{"image_mean": [0.3, 0.', "empty": "", "a-list": "[1]"}.items())
def test_a_file_that_is_no_processor_is_an_error(published, tmp_path, capsys, name, content):
    model = published(name, content=content)
    assert cli.main(commands(model, tmp_path)[0]) == 1
    assert f"The image processor of {model} cannot be read" in capsys.readouterr().err


def test_a_model_that_truly_has_none_gets_that_of_imagenet_and_is_reported_once(published, tmp_path, caplog):
    model = published("without", processor=False)
    with caplog.at_level(logging.WARNING):
        assert cli.main(commands(model, tmp_path)[0]) == 0
        assert processor_of(model).image_mean[0] == 0.485
    said = [record for record in caplog.records if "has no image processor" in record.getMessage()]
    assert len(said) == 1
