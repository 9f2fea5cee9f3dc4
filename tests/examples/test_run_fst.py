"""The example script and real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_fst import cli
from tests.data import trees
from tests.recipes import tiny

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(launcher: list[str], argv: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *launcher, str(ROOT / "examples/run_fst.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=400)


ONE = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
ONE += ["--mixed_precision", "no", "--dynamo_backend", "no"]
# what `accelerate launch` starts for several processes; on CPUs it would ask for MPI
TWO = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


@pytest.mark.slow
def test_a_process_ends_with_the_exit_code_and_one_sentence(tmp_path):
    recipe = tiny.write(tmp_path / "r.yaml", tiny.STREET, teacher_momentum=2)
    result = subprocess.run(
        [sys.executable, "-m", "hf_fst.cli", "train", recipe],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=400,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == "hf-fst: teacher_momentum is 2; use a number from 0 to 1."
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_script_under_accelerate_is_the_run_of_the_command(tmp_path):
    recipe = tiny.write(tmp_path / "r.yaml", tiny.STREET, rule="fst_d")
    assert cli.main(["train", recipe, "-o", str(tmp_path / "command")]) == 0
    result = launch(ONE, [recipe, "-o", str(tmp_path / "script")])
    assert result.returncode == 0, result.stderr[-3000:]
    for network in ("", "student"):
        one, two = (load_file(tmp_path / run / network / "model.safetensors") for run in ("command", "script"))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


RESNET = {"backbone_kwargs": {"layers": [1, 1, 1, 3], "channels": [4, 8, 16, 32], "stem_width": 4}}
SEMI = {"labeled": 2, "model_config": {**RESNET, "hidden_size": 8, "low_level_size": 8}}
MIT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
UDA = {
    "unlabeled_data_dir": "cityscapes",
    "unlabeled_resize": [128, 64],
    "rare_class_sampling": {"min_pixels": 10},
    "model_config": {"hidden_size": 16, "backbone_config": MIT},
}
PROTOCOLS = {
    "gta5": ("gta5-daformer", "fst", {**UDA, "resize": [128, 72]}),
    "synthia": ("synthia-daformer", "fst", {**UDA, "resize": [128, 76]}),
    "voc": ("voc-semi", "deeplabv3plus_cutmix-16th-fst", {**SEMI, "eval_crop": 40}),
    "cityscapes": ("cityscapes-semi", "plain-16th-fst", {**SEMI, "eval_window": 64, "eval_stride": 32}),
}
QUICK = {
    **{"pretrained_backbone": False, "crop_size": 64, "max_steps": 2, "dataloader_num_workers": 0, "use_cpu": True},
    **{"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "disable_tqdm": True},
}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize(
    "processes",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.distributed)],
)
def test_a_protocol_takes_two_steps_on_its_official_layout(tmp_path, name, processes):
    recipe, point, keys = PROTOCOLS[name]
    for side in {name, keys.get("unlabeled_data_dir", name)}:
        getattr(trees, side)(tmp_path / side)
    keys = {**QUICK, **keys, "data_dir": name, "per_device_train_batch_size": 2 // processes}
    keys |= {key: str(tmp_path / keys[key]) for key in ("data_dir", "unlabeled_data_dir") if key in keys}
    argv = [recipe, "--sweep", point, "-o", str(tmp_path / "out")]
    argv += [word for key, value in keys.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
    result = launch(TWO if processes == 2 else ONE, argv)
    assert result.returncode == 0, result.stderr[-3000:]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (results["processes"], results["steps"], results["rule"]) == (processes, 2, "fst_d")
    images = {"gta5": (4, 4), "synthia": (4, 4), "voc": (2, 6), "cityscapes": (2, 2)}[name]
    assert results["images"] == {"labeled": images[0], "unlabeled": images[1], "validation": 2}
    last = results["metrics"][0]
    assert last["images"] == 2 and 0 <= last["teacher"]["mean_iou"] <= 1
    if name == "synthia":  # terrain, truck and train do not count
        assert {9, 14, 16}.isdisjoint(results["scored_classes"]) and len(results["scored_classes"]) == 16
        ious = list(last["student"]["iou"].values())
        counted = [ious[i] for i in results["scored_classes"] if ious[i] is not None]
        assert last["student"]["mean_iou"] == pytest.approx(sum(counted) / len(counted))


@pytest.mark.distributed
def test_two_processes_make_one_run(tmp_path):
    recipe = tiny.write(tmp_path / "r.yaml", tiny.STREET, rule="fst_d", per_device_train_batch_size=1)
    result = launch(TWO, [recipe, "-o", str(tmp_path / "out")])
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("The teacher, which is the model to use, is in ") == 1
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["processes"] == 2
    assert [(entry["weights"], entry["images"]) for entry in results["metrics"]] == [
        ("last", 2),
        ("best", 2),
        ("best", 2),
    ]


@pytest.mark.distributed
def test_two_processes_say_what_is_wrong_once(tmp_path):
    keys = tiny.folders(tmp_path)
    (tmp_path / "labeled/images/1.png").write_bytes(b"no picture")
    recipe = tiny.write(tmp_path / "r.yaml", keys, rule="supervised", per_device_train_batch_size=2)
    result = launch(TWO, [recipe, "-o", str(tmp_path / "out")])
    assert result.returncode == 1
    sentence = f"hf-fst: {tmp_path}/labeled/images/1.png is not an image; replace it or remove it from the dataset."
    assert result.stderr.count(sentence) == 1
