"""What a run prints: a summary before it, its log in words, and where things are after it."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import pytest

from hf_fst import cli
from hf_fst.recipes import progress
from hf_fst.recipes.progress import in_words
from tests.data import trees
from tests.recipes import tiny

SCORED = {
    "eval_split": "validation",
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "load_best_model_at_end": True,
}


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a summary by their titles, each on one line."""
    found: dict[str, list[str]] = {}
    for row in re.findall(r"^  (\w+) +((?:.+\n)(?: {11}.+\n)*)", text, re.MULTILINE):
        found.setdefault(row[0], []).append(" ".join(row[1].split()))
    return found


@pytest.fixture
def printed(tmp_path, capsys, monkeypatch):
    """Trains on two folders with these keys over the tiny ones, and gives what is on stdout."""
    monkeypatch.setenv("COLUMNS", "80")
    folders = tiny.folders(tmp_path)

    def run(**keys) -> str:
        recipe = tiny.write(tmp_path / "my.yaml", folders, **keys)
        capsys.readouterr()
        assert cli.main(["train", recipe, "-o", str(tmp_path / "out"), "--picture_steps", "0"]) == 0
        return capsys.readouterr().out

    return run


def test_a_summary_says_what_will_be_done(printed, tmp_path):
    text = printed(**SCORED, dataset_options={"validation_share": 0.25}, crop_size=64, max_steps=2)
    summary, _, rest = text.partition("\n\n")
    assert summary.startswith("my:\n")
    assert all(len(line) <= 80 or str(tmp_path) in line for line in summary.splitlines())  # a path stays whole
    found = rows(summary + "\n")
    assert found["images"] == ["3 labeled, 4 unlabeled, 1 validation"]
    # 40 x 48 of 64 x 64 pixels are image
    padding = f"{100 * (1 - 40 * 48 / 64**2):.1f}"
    assert found["sizes"] == [
        f"48 x 40; crops of 64 x 64 pixels, of which padding is {padding}% of the labeled ones and {padding}% of the "
        "unlabeled ones"
    ]
    (classes,) = found["classes"]
    shares = [float(share) for share in re.findall(r"class [01] ([\d.]+)%", classes)]
    assert classes.startswith("2; of the labeled pixels ") and sum(shares) == pytest.approx(100, abs=0.11)
    assert found["network"][0].startswith("segformer with random weights; ")
    assert found["method"][0].startswith("rule mean_teacher: the teacher remembers 1000 steps")
    assert found["steps"] == [
        "2 steps of 2 labeled and 2 unlabeled crops; an evaluation every 1, and the best is kept"
    ]
    assert found["writes"][0].startswith(f"{tmp_path}/out: the teacher, the student in student/, results.json")
    assert "validation has 1 image, so that scores are mostly chance" in " ".join(found["warning"])
    assert "give a smaller crop_size" in " ".join(found["warning"])
    assert (
        f"The teacher, which is the model to use, is in {tmp_path}/out, the student in {tmp_path}/out/student." in rest
    )
    commands = [shlex.split(line[20:]) for line in rest.partition("Next:\n")[2].splitlines()]
    assert [words[:2] for words in commands] == [["hf-fst", "predict"], ["hf-fst", "demo"], ["hf-fst", "push"]]
    assert commands[0][2:4] == [f"{tmp_path}/out", f"{tmp_path}/unlabeled"]


def test_under_supervised_no_teacher_is_named(printed, tmp_path):
    text = printed(rule="supervised", max_steps=1)
    assert "teacher" not in text.lower() and f"The model is in {tmp_path}/out." in text
    assert rows(text)["images"] == ["4 labeled"]


def test_files_that_are_skipped_and_not_used_are_counted(printed, tmp_path):
    (tmp_path / "labeled/images/notes.txt").write_text("mine")
    (tmp_path / "unlabeled/images/bad.jpg").write_bytes(b"<html>")
    text = printed(on_bad_image="skip", max_steps=1)
    assert rows(text)["images"] == ["4 labeled, 5 unlabeled; skipped, as they cannot be read: 1"]
    warnings = " ".join(rows(text)["warning"])
    assert "bad.jpg is not an image" in warnings and "Not used in" in warnings and "notes.txt" in warnings


def test_a_choice_of_labels_that_was_not_published_is_said(printed, tmp_path):
    masks = trees.voc(tmp_path / "voc")["train"]
    own = dict.fromkeys(("unlabeled_dataset", "unlabeled_data_dir", "unlabeled_options"))
    keys = own | {"dataset": "voc", "data_dir": str(tmp_path / "voc"), "labeled": 2, "max_steps": 1}
    found = rows(printed(**keys))
    assert found["images"][0].endswith("; labels chosen by split_seed 0")
    assert "not by the published lists" in " ".join(found["warning"])
    first, second, *others = masks
    for name, ids in (("labeled", [first, second]), ("unlabeled", others)):
        (tmp_path / "lists/2").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"lists/2/{name}.txt").write_text("\n".join(ids))
    shutil.rmtree(tmp_path / "out")
    found = rows(printed(**keys, dataset_options={"splits": str(tmp_path / "lists")}))
    assert found["images"][0].endswith("; labels chosen by lists")
    assert "published" not in " ".join(found.get("warning", []))
    assert json.loads((tmp_path / "out/results.json").read_text())["labeled_by"] == "lists"


def test_the_log_is_in_words_and_percent():
    entry = {"loss": 1.25, "labeled_loss": 1.0, "unlabeled_loss": 0.25, "grad_norm": 3.0, "learning_rate": 1e-3}
    entry |= {"pseudo_confidence": 0.5, "pseudo_above_threshold": 0.123, "pseudo_share_car": 0.9, "epoch": 1.0}
    assert "the look-ahead 2.0%" in in_words(50, entry | {"pseudo_changed": 0.02})
    assert in_words(50, entry | {"pseudo_changed": 0.0, "skipped_real_steps": 2}) == (
        "step 50: loss 1.25 = labeled 1 + unlabeled 0.25; pseudo-labels: mean confidence 50.0%, above the threshold "
        "12.3%; skipped real steps 2"
    )
    assert in_words(3, {"loss": 0.5, "labeled_loss": 0.5}) == "step 3: loss 0.5"
    scores = {"eval_student_mean_iou": 0.5, "eval_teacher_mean_iou": 0.625, "eval_student_iou_car": 0.1}
    assert in_words(500, scores | {"eval_runtime": 3.0}) == "step 500: validation mIoU student 50.0%, teacher 62.5%"
    assert in_words(500, {"eval_label_free": 0.25, "eval_runtime": 3.0}) == "step 500: label_free 0.250"
    assert in_words(500, {"train_runtime": 7500.0, "train_loss": 1.0}) == "500 steps in 2 h 5 min"


def test_the_time_of_all_steps_is_told_after_the_first(printed, monkeypatch):
    monkeypatch.setattr(progress, "TIMED", 1)
    (line,) = [line for line in printed(max_steps=4).splitlines() if " s a step: " in line]
    assert "2 steps take about " in line


def test_where_nothing_is_evaluated_that_is_said(printed):
    assert "No evaluation: the dataset has no split to evaluate on." in printed(max_steps=1)


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from hf_fst.training.trainer import FSTTrainer

    keys = tiny.folders(tmp_path) | {"save_strategy": "steps"}
    recipe = tiny.write(tmp_path / "my.yaml", keys, max_steps=4)
    real = FSTTrainer.training_step
    stop_at = 0

    def stopping(trainer, *arguments):
        if trainer.state.global_step == stop_at:
            raise KeyboardInterrupt
        return real(trainer, *arguments)

    monkeypatch.setattr(FSTTrainer, "training_step", stopping)
    out = tmp_path / "my out"
    argv = ["train", recipe, "-o", str(out), "--logging_steps", "2"]
    assert cli.main(argv) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    again = shlex.split(told.partition("To start again: ")[2])
    assert told.startswith("hf-fst: Stopped before the first checkpoint") and again[0] == "hf-fst"
    stop_at = 3
    assert cli.main(again[1:]) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"hf-fst: Stopped. To continue from {out}/checkpoint-3: hf-fst train ")
    stop_at = None
    assert cli.main(shlex.split(told.partition("checkpoint-3: ")[2])[1:]) == 0
    assert "Traceback" not in capsys.readouterr().err and (out / "results.json").is_file()


def test_a_run_shorter_than_its_warm_up_and_memory_is_told_what_to_give(printed):
    text = printed(rule="mean_teacher", max_steps=10, warmup_steps=200, teacher_memory=1000)
    warnings = " ".join(rows(text)["warning"])
    assert "the warm-up of 200 steps is as long as the run" in warnings and "give --warmup_steps 1." in warnings
    assert "remembers more steps (1000) than the run has; give --teacher_memory 2." in warnings


def test_a_run_set_by_epochs_is_told_so_too_and_counts_its_steps(printed):
    text = printed(rule="mean_teacher", max_steps=-1, num_train_epochs=3, teacher_memory=1000)
    assert rows(text)["steps"][0].startswith(
        "3 epochs, 6 steps of 2 labeled and 2 unlabeled crops"
    )  # 4 images, 2 a step
    assert "remembers more steps (1000) than the run has; give --teacher_memory 2." in " ".join(rows(text)["warning"])


def test_a_run_set_by_momentum_is_told_a_momentum(printed):
    warnings = " ".join(rows(printed(rule="mean_teacher", max_steps=8, teacher_momentum=0.99))["warning"])
    assert "remembers more steps (100) than the run has; give --teacher_momentum 0.5." in warnings


def test_a_run_longer_than_both_is_told_nothing(printed):
    text = printed(rule="mean_teacher", max_steps=10, warmup_steps=1, teacher_memory=5)
    assert "--warmup_steps" not in text and "--teacher_memory" not in text
