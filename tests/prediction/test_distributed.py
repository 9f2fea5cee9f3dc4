"""Two processes write what one writes."""

import json

import pytest

from hf_fst.prediction.label import label_collection
from hf_fst.prediction.predict import predict_files
from tests.evaluation.conftest import run_dir  # noqa: F401  the fixture
from tests.prediction.test_label import SOURCES, as_parquet, images  # noqa: F401  the fixture
from tests.processes import on_two


def content(folder, suffix):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob(f"*{suffix}")}


@pytest.mark.distributed
def test_two_processes_equal_one(run_dir, images, tmp_path):  # noqa: F811
    as_parquet(images, tmp_path / "shards_in")
    (images / "3.png").write_bytes(b"no picture")
    (tmp_path / "two").mkdir()
    said = on_two("tests.prediction.two_processes", run_dir, images, tmp_path / "shards_in", tmp_path / "two")
    ranks = [json.loads((tmp_path / f"two/found_{rank}.json").read_text()) for rank in range(2)]

    one = tmp_path / "one"
    label_collection(run_dir, images, one / "folder", shard_size=2, progress=False)
    label_collection(run_dir, tmp_path / "shards_in", one / "shards", shard_size=2, progress=False)
    predict_files(run_dir, images, one / "predict", overlays=True, progress=False)
    for name, suffix in (("folder", ".parquet"), ("shards", ".parquet"), ("predict", ".png"), ("predict", ".jpg")):
        alone = content(one / name, suffix)
        assert alone and content(tmp_path / "two" / name, suffix) == alone
    for found in ranks:
        assert (found["folder"]["images"], found["folder"]["labeled_now"], found["folder"]["processes"]) == (6, 6, 2)
        assert [entry["file"] for entry in found["folder"]["failed"]] == ["3.png"]
        assert (found["shards"]["images"], found["shards"]["shards"]) == (len(SOURCES), 4)
        assert found["predict"]["images"] == 6 and len(found["predict"]["failed"]) == 1
        assert found["refused"] == 1
    assert said.count("was started with shard_size 2, but now shard_size is 500") == 1
