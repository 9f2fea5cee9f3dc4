"""recipe.yaml, results.json and the card tell of the run that made the weights, whatever is refused or resumed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import safetensors.torch
import torch
import yaml

from hf_fst import cli
from hf_fst.errors import UserError
from hf_fst.recipes.output import LOCK_FILE, claimed
from tests.recipes import tiny

HOLDS = (
    "import sys, filelock\nwith filelock.FileLock(sys.argv[1], timeout=0): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The recipe and the directory of a run on street, with its card."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = tiny.write(folder / "r.yaml", tiny.STREET, report=True, learning_rate=0.01)
    assert cli.main(["train", recipe, "-o", str(folder / "out")]) == 0
    return recipe, folder / "out"


@pytest.fixture
def run(finished, tmp_path):
    """The arguments that made it, with a copy of its directory."""
    recipe, source = finished
    shutil.copytree(source, tmp_path / "out")
    return ["train", recipe, "-o", str(tmp_path / "out")], tmp_path / "out"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt(out):
    """Makes a run one that was killed before its last checkpoint was complete."""
    (out / "checkpoint-2/complete.json").unlink()
    for name in ("results.json", "README.md", "fst_run.json", "model.safetensors"):
        (out / name).unlink()


def test_resuming_a_finished_run_changes_nothing_and_says_so(run, capsys):
    argv, out = run
    before = contents(out)
    capsys.readouterr()
    assert cli.main([*argv, "--resume", "--json"]) == 0
    said = capsys.readouterr()
    assert f"The run in {out} is finished; nothing was changed." in said.err
    assert json.loads(said.out) == json.loads((out / "results.json").read_text())
    assert contents(out) == before


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(
    ("options", "differ"),
    [
        (["--max_steps", "4"], "max_steps 2 (now 4)"),
        (["--learning_rate", "1e-3", "--seed", "7"], "learning_rate 0.01 (now 0.001), seed 42 (now 7)"),
        (["--model_config.decoder_hidden_size", "16"], "model_config"),
        (["--rule", "fst_d"], "rule mean_teacher (now fst_d)"),
    ],
)
def test_other_settings_are_refused_and_change_nothing(says, run, killed, options, differ):
    argv, out = run
    if killed:
        interrupt(out)
    before = contents(out)
    sentence = says([*argv, "--resume", *options], 1)
    assert sentence.startswith(f"The run in {out} has {differ}")
    assert sentence.endswith(
        f"; resume it with the settings of its recipe.yaml, or start another run from its weights: --model {out} and "
        "another output_dir."
    )
    assert contents(out) == before


def test_what_changes_no_weight_may_change(run):
    argv, out = run
    interrupt(out)
    options = ["--resume", "--logging_steps", "5", "--save_total_limit", "1", "--license", "mit"]
    assert cli.main([*argv, *options]) == 0
    assert yaml.safe_load((out / "recipe.yaml").read_text())["license"] == "mit"
    assert "license: mit" in (out / "README.md").read_text()


def test_a_setting_that_is_spelled_out_is_no_other_setting(run):
    argv, out = run
    assert cli.main([*argv, "--resume", "--seed", "42", "--cat_max_ratio", "1.0"]) == 0


def test_a_refused_resume_of_a_damaged_checkpoint_changes_nothing(says, run):
    argv, out = run
    interrupt(out)
    (out / "checkpoint-1/optimizer.pt").write_bytes(b"damaged")
    before = contents(out)
    assert "optimizer.pt has changed since it was written" in says([*argv, "--resume", "--license", "mit"], 1)
    assert contents(out) == before


def test_a_checkpoint_of_another_run_needs_the_settings_of_that_run(says, run, tmp_path):
    argv, out = run
    argv = [*argv[:2], "-o", str(tmp_path / "more"), "--resume_from_checkpoint", str(out / "checkpoint-1")]
    assert "has weight_decay 0.0 (now 0.1);" in says([*argv, "--weight_decay", "0.1"], 1)
    assert cli.main(argv) == 0
    made, again = (safetensors.torch.load_file(place / "model.safetensors") for place in (out, tmp_path / "more"))
    assert all(torch.equal(made[name], again[name]) for name in made)


@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--resume"]])
def test_a_second_process_is_refused(says, run, option):
    argv, out = run
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(out / LOCK_FILE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout.readline() == "held\n"
        before = contents(out)
        assert says([*argv, *option], 1) == (
            f"Another process is training into {out}; wait for its end, or give another output_dir."
        )
        assert contents(out) == before
        other.stdin.close()


def test_a_live_run_holds_the_lock_to_its_end(run, monkeypatch):
    argv, out = run
    tries = []

    def publish(*arguments):
        tries.append(
            subprocess.run([sys.executable, "-c", HOLDS, str(out / LOCK_FILE)], capture_output=True, text=True)
        )

    monkeypatch.setattr("hf_fst.recipes.run.publish", publish)
    assert cli.main([*argv, "--overwrite"]) == 0
    assert tries[0].returncode and "Timeout" in tries[0].stderr
    assert not (out / LOCK_FILE).exists()


def test_a_lock_that_a_killed_process_left_is_none(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_FILE).touch()
    assert cli.main(["train", tiny.write(tmp_path / "r.yaml", tiny.STREET), "-o", str(tmp_path / "out")]) == 0


REFUSED = [
    (["--license", "my own"], 1, "facts.license is 'my own'; give a single word without slashes."),
    (["--metric_for_best_model", "teacher_miou"], 1, "metric_for_best_model is 'teacher_miou'; did you mean"),
    (
        ["--model_config.num_labels", "7"],
        2,
        "model_config has num_labels, but the classes are those of the dataset, 10",
    ),
    (
        ["--model_config.id2label", "{0: road}"],
        2,
        "model_config has id2label, but the classes are those of the dataset",
    ),
    (
        ["--model_config.decoder_hiden_size", "4"],
        2,
        "There is no key 'decoder_hiden_size' in model_config of segformer",
    ),
    (["--eval_classes", "[12]"], 2, "eval_classes names 12"),
]


@pytest.mark.parametrize(("options", "code", "begins"), REFUSED)
def test_what_can_be_refused_is_refused_before_anything_is_touched(says, run, tmp_path, options, code, begins):
    argv, out = run
    before = contents(out)
    assert says([*argv, "--overwrite", *options], code).startswith(begins)
    assert contents(out) == before
    assert says([*argv[:2], "-o", str(tmp_path / "deep/new"), *options], code).startswith(begins)
    assert not (tmp_path / "deep").exists()


def test_test_images_without_a_class_are_refused_too(says, tmp_path):
    keys = tiny.folders(tmp_path)
    for part in ("train", "test"):
        for kind in ("images", "masks"):
            shutil.copytree(tmp_path / "labeled" / kind, tmp_path / "split" / kind / part)
    shutil.copy(tmp_path / "labeled/id2label.json", tmp_path / "split")
    for mask in (tmp_path / "split/masks/test").iterdir():
        PIL.Image.new("L", (48, 40), 255).save(mask)
    recipe = tiny.write(tmp_path / "r.yaml", keys, eval_data_dir=str(tmp_path / "split"))
    for options in ([], ["--check", "false"]):
        sentence = says(["train", recipe, "-o", str(tmp_path / "out"), *options], 1)
        assert re.match("No pixel of the (4 )?test images has a class, so ", sentence)
    assert not (tmp_path / "out").exists()


def command_of(card) -> list[list[str]]:
    block = re.search(r"## How to make it again\n\n```bash\n(.*?)```", card.read_text(), re.DOTALL)[1]
    return [shlex.split(line)[1:] for line in block.splitlines()]


def test_the_commands_on_the_card_make_the_same_weights_again(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = tiny.write(tmp_path / "source.yaml", tiny.STREET, report=True, rule="supervised")
    assert cli.main(["train", recipe, "--max_steps", "1", "--output_dir", "runs/source"]) == 0
    tiny.write(tmp_path / "r.yaml", tiny.STREET, report=True)
    options = ["--model", "runs/source", "--model_config", "null", "--seed", "5", "--lr_scheduler_type", "cosine"]
    options += ["--unlabeled_options.seed", "3", "--random_resize", "[0.9, 1.1]", "--labeled", "1/2"]
    assert cli.main(["train", "r.yaml", *options, "-o", "out"]) == 0
    source, again = command_of(tmp_path / "out/README.md")
    assert source == ["train", "source.yaml", "--max_steps", "1", "--output_dir", "runs/source"]
    assert again == ["train", "r.yaml", *options]
    made = {name: content for name, content in contents(tmp_path / "out").items() if name.suffix == ".safetensors"}
    shutil.rmtree(tmp_path / "runs")
    shutil.move(tmp_path / "out", tmp_path / "before")
    assert cli.main(source) == 0 and cli.main([*again, "-o", "out"]) == 0
    for name, content in made.items():
        first, second = safetensors.torch.load(content), safetensors.torch.load_file(tmp_path / "out" / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_card_shows_no_folder_of_this_machine(tmp_path):
    keys = {**tiny.folders(tmp_path), "report": True, "max_steps": 1}
    (tmp_path / "lists").mkdir()
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    options = [
        "--id2label",
        str(tmp_path / "labeled/id2label.json"),
        "--unlabeled_options",
        "{images: ., masks: null}",
    ]
    options += ["--hub_private_repo", "true", "--data_dir", str(tmp_path / "labeled")]
    assert cli.main(["train", recipe, *options, "-o", str(tmp_path / "out")]) == 0
    [again] = command_of(tmp_path / "out/README.md")
    assert again == ["train", "r.yaml", "--id2label", "id2label.json", *options[2:4]]
    assert str(tmp_path) not in (tmp_path / "out/README.md").read_text()


def test_an_output_directory_that_cannot_be_made_is_a_sentence(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"out cannot be written to \(Permission denied\); give another output_dir"):
        claimed(tmp_path / "out").__enter__()
