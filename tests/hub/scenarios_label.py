"""`hf-fst label` of a dataset on the Hub, and its result on the Hub."""

import json

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi

from hf_fst import cli
from tests.evaluation.conftest import run_dir  # noqa: F401  the fixture
from tests.prediction.test_predict import noise

pytestmark = pytest.mark.usefixtures("no_waiting")


def test_a_dataset_on_the_hub_is_streamed_and_its_labels_are_published(run_dir, tmp_path, capsys):  # noqa: F811
    paths = [str(noise(tmp_path / f"images/{index}.png", seed=index)) for index in range(5)]
    views = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    views.push_to_hub("alice/views", num_shards=2)
    argv = ["label", str(run_dir), "alice/views", "-o", str(tmp_path / "out"), "--shard_size", "2", "--json"]
    assert cli.main(argv) == 0
    assert cli.main(["label", str(run_dir), str(tmp_path / "images"), "-o", str(tmp_path / "plain")]) == 0
    settings = json.loads((tmp_path / "out/label.json").read_text())["collection"]
    assert settings["dataset"] == "alice/views" and settings["revision"] == HfApi().dataset_info("alice/views").sha

    HfApi().create_repo("alice/labeled", repo_type="dataset")
    HfApi().upload_folder(repo_id="alice/labeled", repo_type="dataset", folder_path=tmp_path / "out")
    published = datasets.load_dataset("alice/labeled")["train"]
    plain = datasets.load_dataset("parquet", data_dir=str(tmp_path / "plain"))["train"]
    assert published["source"] == ["00000#0", "00000#1", "00000#2", "00001#0", "00001#1"]
    for one, other in zip(published, plain, strict=True):
        assert np.array_equal(np.asarray(one["image"]), np.asarray(other["image"]))
        assert np.array_equal(np.asarray(one["label"]), np.asarray(other["label"]))

    views.select([0]).push_to_hub("alice/views")
    capsys.readouterr()
    assert cli.main(argv) == 1
    assert "was started with collection" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["alice/nothing", "bob/none"])
def test_a_dataset_that_is_not_there_is_told(run_dir, tmp_path, capsys, name):  # noqa: F811
    assert cli.main(["label", str(run_dir), name, "-o", str(tmp_path / "out")]) == 1
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-fst: ")]
    assert len(sentences) == 1 and f"There is no dataset '{name}' on the Hub or in a folder" in sentences[0]
