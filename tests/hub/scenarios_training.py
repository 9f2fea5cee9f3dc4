"""`push_to_hub` while and after training: what is published when, and what a failure costs; data sets on the Hub."""

import json

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForSemanticSegmentation
from transformers.utils import logging

from hf_fst import cli
from hf_fst.data import load
from tests import tiny as networks
from tests.hub.server import CUT, TOKEN
from tests.recipes import tiny

NETWORK = {"config.json", "model.safetensors", "preprocessor_config.json"}

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def train(tmp_path, capsys):
    """Runs `hf-fst train` with `--push_to_hub`; gives the directory, the exit code and what stands on stderr."""

    def trained(name, *options, **keys):
        recipe = tiny.write(tmp_path / f"{name}.yaml", tiny.STREET, rule="fst_d", push_to_hub=True, **keys)
        capsys.readouterr()
        code = cli.main(["train", recipe, "-o", str(tmp_path / name), *options])
        return tmp_path / name, code, capsys.readouterr().err

    return trained


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


def messages(hub, repo_id):
    return list(hub.repos["models", repo_id].messages.values())[1:]


def test_the_end_of_a_run_is_one_commit_with_card_and_scores(hub, train):
    out, code, _ = train("ended", hub_strategy="end", report=True, hub_private_repo=True, hub_token=TOKEN)
    assert code == 0 and messages(hub, "alice/ended") == ["End of training"]
    files = hub.files("alice/ended")
    assert files["model.safetensors"] == weights(out)
    assert files["student/model.safetensors"] == weights(out / "student") != weights(out)
    assert files["results.json"] == (out / "results.json").read_bytes()
    assert 'name = "alice/ended"' in files["README.md"].decode() == (out / "README.md").read_text()
    assert hub.repos["models", "alice/ended"].private
    for name, content in files.items():
        assert TOKEN.encode() not in content and str(out).encode() not in content, name
        assert name in ("README.md", "fst_run.json") or b"alice" not in content, name  # there: where it is


def test_every_save_puts_the_teacher_of_the_checkpoint_at_the_root(hub, train):
    out, code, _ = train("saved", hub_always_push=True, hub_model_id="alice/steps", hub_revision="runs/a")
    assert code == 0
    said = messages(hub, "alice/steps")
    assert said == ["Training in progress, step 1", "Training in progress, step 2", "End of training"]
    repo = hub.repos["models", "alice/steps"]
    trees = [repo.commits[sha] for sha, message in repo.messages.items() if message.startswith("Training")]
    for number, tree in enumerate(trees, 1):
        checkpoint = out / f"checkpoint-{number}"
        assert tree["model.safetensors"] == weights(checkpoint / "teacher")
        assert tree["student/model.safetensors"] == weights(checkpoint) != weights(checkpoint / "teacher")
        own = NETWORK | {f"student/{name}" for name in NETWORK}
        assert set(tree) == own | {"README.md", ".gitattributes"}
    assert hub.files("alice/steps") == {}  # all of it went to the branch
    assert hub.files("alice/steps", "runs/a")["model.safetensors"] == weights(out)


def test_training_goes_on_from_the_last_checkpoint_on_the_hub(hub, train, tmp_path):
    out, code, _ = train("first", "--max_steps", "1", hub_strategy="checkpoint")
    files = hub.files("alice/first")
    assert code == 0 and {"last-checkpoint/optimizer.pt", "last-checkpoint/teacher/model.safetensors"} <= set(files)
    assert "last-checkpoint/training_args.bin" not in files  # it holds the token and folders
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, name
    folder = snapshot_download("alice/first", allow_patterns="last-checkpoint/*", local_dir=tmp_path / "download")
    options = ["--resume_from_checkpoint", f"{folder}/last-checkpoint", "--push_to_hub", "false"]
    resumed, code, _ = train("resumed", *options)
    assert code == 0
    history = json.loads((resumed / "history.json").read_text())
    assert [entry["step"] for entry in history if "labeled_loss" in entry] == [1, 2]


def test_all_checkpoints_stay_on_the_hub(hub, train):
    _, code, _ = train("all", hub_strategy="all_checkpoints", hub_always_push=True)
    assert code == 0
    assert {"checkpoint-1/complete.json", "checkpoint-2/complete.json"} <= set(hub.files("alice/all"))


def test_who_may_not_push_is_told_before_anything_is_trained(hub, train, tmp_path):
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "recipe.yaml").write_text("of an earlier run")
    out, code, error = train("refused", "--overwrite", hub_model_id="bob/model")
    assert code == 1
    assert error.splitlines()[-1] == (
        "hf-fst: Nothing was trained, since bob/model cannot be pushed to: the token may not write there (403); use one "
        "with write access, or your own namespace; then start again."
    )
    assert [path.name for path in out.iterdir()] == ["recipe.yaml"] and ("models", "bob/model") not in hub.repos


def test_a_failed_push_keeps_the_run_and_says_what_to_type(hub, train):
    hub.fail("POST", "/commit/", CUT)
    out, code, error = train("hung-up", hub_strategy="end", report=True)
    assert code == 1 and error.strip().endswith(f"then run `hf-fst push {out} alice/hung-up`.")
    assert {"model.safetensors", "results.json", "README.md"} <= {path.name for path in out.iterdir()}
    assert hub.files("alice/hung-up") == {}
    hub.faults.clear()
    assert cli.main(["push", str(out), "alice/hung-up"]) == 0
    assert hub.files("alice/hung-up")["model.safetensors"] == weights(out)


def test_a_push_that_fails_on_the_way_is_a_warning_and_the_last_one_counts(hub, train):
    hub.fail("POST", "/commit/", 503, times=1)
    logging.enable_propagation()
    warnings = []
    logger = logging.get_logger("hf_fst.training.hub_strategy")
    logger.addFilter(lambda record: warnings.append(record.getMessage()) or True)
    out, code, _ = train("unlucky", "--max_steps", "1")
    assert code == 0 and messages(hub, "alice/unlucky") == ["End of training"]
    assert len(warnings) == 1 and "the Hub itself failed (503)" in warnings[0]
    assert f"`hf-fst push {out / 'checkpoint-1'} alice/unlucky` tries again" in warnings[0]


def test_a_trainer_in_python_writes_the_card_before_it_pushes(hub, tmp_path):
    sets = [networks.images(4, seed, (32, 32), labels, torch.float32) for seed, labels in ((1, True), (2, False))]
    network = AutoModelForSemanticSegmentation.from_config(
        AutoModelForSemanticSegmentation.from_pretrained("alice/ended").config
    )
    trainer = networks.trainer(tmp_path / "python", network, sets=sets, rule="mean_teacher", max_steps=1)
    trainer.train()
    info = trainer.push_to_hub("By hand", license="mit")
    assert info.commit_message == "By hand" and trainer.hub_model_id == "alice/python"
    files = hub.files("alice/python")
    assert b"license: mit" in files["README.md"] and b'name = "alice/python"' in files["README.md"]
    assert files["model.safetensors"] == weights(tmp_path / "python")


def test_data_sets_of_the_hub_come_back_with_their_labels(hub):
    streets = load("street", size=(32, 48), num_train=2, num_validation=1, num_test=1)
    streets.push_to_hub("alice/streets")
    again = datasets.load_dataset("alice/streets")
    ours = load("hub", "alice/streets")
    for split in ("train", "validation", "test"):
        assert again[split].features["label"].names == streets[split].features["label"].names
        for one, other, third in zip(streets[split], again[split], ours[split], strict=True):
            assert np.array_equal(np.asarray(one["label"]), np.asarray(other["label"]))
            assert np.array_equal(np.asarray(one["image"]), np.asarray(other["image"]))
            assert np.array_equal(np.asarray(one["label"]), np.asarray(third["label"]))
    assert datasets.load_dataset("alice/streets", split="train", streaming=True).take(1)
