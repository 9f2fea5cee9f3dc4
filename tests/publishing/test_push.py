"""What is published of a directory, and what is said when it cannot be, without a server (see tests/hub for one)."""

import json
import zlib

import pytest
import safetensors.torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

from hf_fst.errors import PushError
from hf_fst.publishing.push import checkpoint_files, command, files_of, push


def fill(directory, *names):
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if name.endswith(".json") else "")
        if path.suffix == ".safetensors":
            safetensors.torch.save_file({}, path)
    return directory


@pytest.fixture
def run_dir(tmp_path):
    names = ["config.json", "model.safetensors", "student/config.json", "student/model.safetensors", "results.json"]
    (tmp_path / "out").mkdir()
    return fill(tmp_path / "out", *names, "training_args.bin", "train.log", "events.out", "checkpoint-3/optimizer.pt")


def test_what_is_published_is_a_list_of_names(run_dir):
    published = {
        "config.json",
        "model.safetensors",
        "student/config.json",
        "student/model.safetensors",
        "results.json",
    }
    assert set(files_of(run_dir)) == published
    fill(run_dir, "pictures/step-1.png", "student/optimizer.pt", "deep/config.json", "hub_token.txt", "tokens.json")
    assert set(files_of(run_dir)) == published
    fill(run_dir, "model-00001-of-00002.safetensors", "model.safetensors.index.json", "daformer.py", "curves.png")
    assert len(files_of(run_dir)) == 9


def test_results_on_data_that_is_not_on_the_hub_are_not_told_to_it(run_dir):
    (run_dir / ".eval_results").mkdir()
    for name, dataset in (("street", "street"), ("city", "owner/city")):
        text = f"- dataset: {{id: {dataset}, task_id: default}}\n  value: 0.5\n"
        (run_dir / ".eval_results" / f"{name}.yaml").write_text(text)
    assert [name for name in files_of(run_dir) if name.startswith(".eval")] == [".eval_results/city.yaml"]


def test_a_directory_without_a_model_is_named(tmp_path):
    fill(tmp_path, "config.json")
    with pytest.raises(FileNotFoundError, match=r"holds no model \(config.json and model.safetensors\); give the"):
        files_of(tmp_path)


def test_a_published_checkpoint_tells_no_folder_and_vouches_for_what_is_published(tmp_path):
    fill(tmp_path, "optimizer.pt", "training_args.bin", "teacher/config.json")
    state = {"global_step": 3, "best_model_checkpoint": "/home/alice/out/checkpoint-2", "best_metric": 0.3}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    marker = {
        "step": 3,
        "files": {name: [0, 0] for name in ("optimizer.pt", "training_args.bin", "trainer_state.json")},
    }
    (tmp_path / "complete.json").write_text(json.dumps(marker))
    files = checkpoint_files(tmp_path, "last-checkpoint")
    names = {"optimizer.pt", "teacher/config.json", "trainer_state.json", "complete.json"}
    assert set(files) == {f"last-checkpoint/{name}" for name in names}
    published = files["last-checkpoint/trainer_state.json"]
    assert json.loads(published)["global_step"] == 3 and json.loads(published)["best_model_checkpoint"] is None
    assert json.loads(files["last-checkpoint/complete.json"]) == {
        "step": 3,
        "files": {"optimizer.pt": [0, 0], "trainer_state.json": [len(published), zlib.crc32(published)]},
    }


ERRORS = [
    (OfflineModeIsEnabled("offline"), "huggingface_hub is offline; unset HF_HUB_OFFLINE"),
    (LocalTokenNotFoundError("none"), "there is no token; log in with `hf auth login` or set HF_TOKEN"),
    (PermissionError("401"), "the token may not write there; use one with write access, or your own namespace"),
    (ConnectionResetError("reset"), "the connection broke (ConnectionResetError); check that the Hub can be reached"),
    (TimeoutError("slow"), "the connection broke (TimeoutError); check that the Hub can be reached"),
    (ValueError("Invalid metadata\nin README.md."), "Invalid metadata in README.md; correct that"),
]


@pytest.mark.parametrize(("error", "sentence"), ERRORS, ids=lambda value: type(value).__name__)
def test_failures_on_the_way_are_one_sentence(run_dir, monkeypatch, error, sentence):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(PushError) as told:
        push(run_dir, "me/model", token="hf_secret", private=True)
    again = f"hf-fst push {run_dir} me/model --private"
    assert str(told.value) == f"{run_dir} was not published to me/model: {sentence}; then run `{again}`."


def test_the_command_to_run_again_can_be_pasted():
    assert command("my runs/a", "me/a", revision="b c", create_pr=True) == (
        "hf-fst push 'my runs/a' me/a --revision 'b c' --create-pr"
    )
