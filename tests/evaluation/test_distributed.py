"""Two processes count what one counts."""

import json

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from tests.data import trees
from tests.evaluation import two_processes
from tests.evaluation.conftest import tiny_model
from tests.processes import on_two


@pytest.mark.distributed
def test_two_processes_equal_one(run_dir, tmp_path):
    alone = two_processes.count_in_every_way(Accelerator(cpu=True), run_dir, tmp_path)
    on_two("tests.evaluation.two_processes", run_dir, tmp_path)
    predictions, labels = two_processes.maps()
    for rank in range(2):
        found = json.loads((tmp_path / f"found_{rank}.json").read_text())
        assert found["sharded"] == alone["sharded"] and found["sharded"][0] == found["sharded"][1]
        assert found["boundary"] == alone["boundary"]
        for batch_size in (1, 2, 3):
            counts, images, seen = found[f"gathered {batch_size}"]
            assert counts == alone["sharded"][0] and images == two_processes.COUNT
            assert seen > two_processes.COUNT  # there were padding images to leave out
        assert found["whole"] == alone["whole"] and found["sliding"] == alone["sliding"]
    assert sum(map(sum, alone["sharded"][0])) == int((labels != 255).sum())
    for name in ("whole", "sliding"):
        files = sorted(path.name for path in (tmp_path / f"out_2_{name}" / "predictions").iterdir())
        assert files == [f"street_{index}.png" for index in range(two_processes.COUNT)]
        for file in files:
            one, two = (tmp_path / f"out_{world}_{name}" / "predictions" / file for world in (1, 2))
            assert one.read_bytes() == two.read_bytes()
        assert json.loads((tmp_path / f"out_2_{name}" / "evaluation.json").read_text())["processes"] == 2


@pytest.mark.distributed
@pytest.mark.parametrize("options", [[], ["--window", "32", "--stride", "24"]])
def test_the_command_on_two_processes_equals_a_count_of_the_pictures_it_saves(tmp_path, options):
    labels = trees.camvid(tmp_path / "camvid", counts=(1, 5, 1))["val"]
    tiny_model(1, 11).save_pretrained(tmp_path / "model")
    command = ["eval", tmp_path / "model", "camvid", "--data_dir", tmp_path / "camvid", *options]
    on_two("hf_fst.cli", *command, "--save_predictions", "-o", tmp_path / "out")
    counts = np.zeros((12, 11), dtype=np.int64)
    for name, label in labels.items():
        prediction = np.asarray(Image.open(tmp_path / "out/predictions" / f"{name}.png"))
        np.add.at(counts, (label, prediction), 1)
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert (result["processes"], result["images"]) == (2, 5)
    assert result["confusion_matrix"] == counts[:11].tolist()
    assert np.count_nonzero(counts[:11].sum(axis=0)) > 1
