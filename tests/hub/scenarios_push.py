"""`hf-fst push`: what is published, where, and what is said when it fails."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerImageProcessor

from hf_fst import cli
from hf_fst.publishing.push import command
from tests.hub.server import CUT, READER, TOKEN
from tests.models.tiny import tiny as own_network
from tests.recipes import tiny

NETWORK = {"config.json", "model.safetensors", "preprocessor_config.json"}

RELEASED = Path(__file__).parents[2] / "model_cards" / "fst-street-da"

pytestmark = pytest.mark.usefixtures("no_waiting")


def logits(name, **options) -> torch.Tensor:
    """What a model says to a fixed image."""
    model = AutoModelForSemanticSegmentation.from_pretrained(name, **options).eval()
    image = torch.linspace(-1, 1, 3 * 32 * 48).view(1, 3, 32, 48)
    with torch.inference_mode():
        return model(image).logits


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with its card, and what must never leave it."""
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny.write(folder / "r.yaml", tiny.STREET, rule="fst_d", report=True)
    assert cli.main(["train", recipe, "-o", str(folder / "out"), "--run_name", "private-name"]) == 0
    (folder / "out" / "train.log").write_text("/somewhere/private")
    return folder / "out"


@pytest.fixture
def model_dir(tmp_path):
    """A model without a run."""
    folder = tmp_path / "model"
    own_network("deeplabv3plus-resnet101-cityscapes").save_pretrained(folder)
    SegformerImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


def commits(hub, repo_id):
    repo = hub.repos.get(("models", repo_id))
    return len(repo.commits) - 1 if repo else 0  # the first made it


def test_a_push_is_one_commit_that_loads_as_teacher_and_student(hub, run_dir, capsys):
    assert cli.main(["push", str(run_dir), "street", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["url"].endswith(f"/alice/street/commit/{said['commit']}") and said["pull_request"] is None
    assert commits(hub, "alice/street") == 1
    for subfolder in ("", "student"):
        published = logits("alice/street", subfolder=subfolder)
        assert torch.equal(published, logits(run_dir / subfolder))
    assert not torch.equal(logits("alice/street"), logits("alice/street", subfolder="student"))
    assert not AutoImageProcessor.from_pretrained("alice/street").do_resize


def test_only_what_belongs_to_the_model_is_published(hub, run_dir):
    files = hub.files("alice/street")
    about = {"README.md", "recipe.yaml", "results.json", "history.json", "fst_run.json"}
    about |= {"curves.png", "class_iou.png", "samples.png"}
    assert set(files) == NETWORK | {f"student/{name}" for name in NETWORK} | about
    assert (run_dir / "checkpoint-2" / "optimizer.pt").is_file()  # there was more to publish
    for name, content in files.items():
        for secret in (str(run_dir), str(run_dir.parent), "private-name", "/somewhere", TOKEN):
            assert secret.encode() not in content, f"{name} tells {secret}"


def test_the_published_card_names_its_repository_and_an_edited_one_stays(hub, run_dir, tmp_path):
    card = ModelCard.load("alice/street")
    assert 'name = "alice/street"' in card.text and card.data.pipeline_tag == "image-segmentation"
    assert 'name = "."' in (run_dir / "README.md").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "README.md").write_text((copy / "README.md").read_text() + "\nMine.\n")
    assert cli.main(["push", str(copy), "alice/edited"]) == 0
    assert hub.files("alice/edited")["README.md"] == (copy / "README.md").read_bytes()


def test_a_checkpoint_is_published_with_its_teacher_at_the_root(hub, run_dir):
    assert cli.main(["push", str(run_dir / "checkpoint-1"), "alice/step"]) == 0
    assert torch.equal(logits("alice/step"), logits(run_dir / "checkpoint-1" / "teacher"))
    assert torch.equal(logits("alice/step", subfolder="student"), logits(run_dir / "checkpoint-1"))
    assert not any("optimizer" in name or "training_args" in name for name in hub.files("alice/step"))


def test_a_private_repository_cannot_be_seen_by_others(hub, run_dir):
    assert cli.main(["push", str(run_dir), "alice/hidden", "--private"]) == 0
    assert torch.equal(logits("alice/hidden"), logits(run_dir))
    with pytest.raises(OSError, match="alice/hidden"):
        logits("alice/hidden", token=READER)


def test_a_revision_is_a_branch_of_its_own(hub, run_dir):
    for _ in range(2):  # it is made the first time
        assert cli.main(["push", str(run_dir), "alice/branches", "--revision", "step-2"]) == 0
    assert hub.files("alice/branches") == {}
    assert torch.equal(logits("alice/branches", revision="step-2"), logits(run_dir))


def test_a_pull_request_leaves_the_branch_alone(hub, run_dir, model_dir, capsys):
    assert cli.main(["push", str(model_dir), "alice/requested"]) == 0
    before = hub.files("alice/requested")
    capsys.readouterr()
    # somebody who may only read may ask
    assert cli.main(["push", str(run_dir), "alice/requested", "--create-pr", "--token", READER, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pull_request"].endswith("/alice/requested/discussions/1")
    assert hub.files("alice/requested") == before
    assert torch.equal(logits("alice/requested", revision="refs/pr/1"), logits(run_dir))


def test_a_second_push_leaves_nothing_of_the_first_but_what_is_not_ours(hub, run_dir, model_dir):
    assert cli.main(["push", str(run_dir), "alice/twice"]) == 0
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="alice/twice")
    assert cli.main(["push", str(model_dir), "alice/twice"]) == 0
    files = set(hub.files("alice/twice"))
    assert files == NETWORK | {"README.md", "notes.txt", "deeplabv3plus.py", "resnet.py", "segmentation.py"}


def test_a_network_of_ours_carries_its_code_and_a_card_that_claims_nothing(hub, model_dir):
    assert cli.main(["push", str(model_dir), "alice/own"]) == 0
    assert torch.equal(logits("alice/own"), logits(model_dir))
    assert {"deeplabv3plus.py", "resnet.py", "segmentation.py"} <= set(hub.files("alice/own"))
    card = ModelCard.load("alice/own")
    assert card.data.pipeline_tag == "image-segmentation" and card.data.license is None
    assert not card.data.eval_results and "trust_remote_code=True" in card.text and 'name = "alice/own"' in card.text
    assert "student" not in card.text


def test_a_released_checkpoint_is_published_to_any_namespace(hub):
    assert cli.main(["push", str(RELEASED), "fst-street-da"]) == 0
    for subfolder in ("", "student"):
        assert torch.equal(logits("alice/fst-street-da", subfolder=subfolder), logits(RELEASED / subfolder))
    card = ModelCard.load("alice/fst-street-da")
    assert 'name = "alice/fst-street-da"' in card.text
    told, stored = (
        {e.dataset_split: e.metric_value for e in c.data.eval_results}
        for c in (card, ModelCard.load(RELEASED / "README.md"))
    )
    assert told == stored and len(told) == 2


# what can go wrong

WRONG = [
    (400, "the Hub refused the files"),
    (401, "log in with `hf auth login`"),
    (403, "use one with write access"),
    (404, "there is no such repository"),
    (409, "changed the repository"),
    (429, "rate limit is reached"),
    (500, "the Hub itself failed"),
    (503, "the Hub itself failed"),
    (CUT, "the connection broke"),
]
FAULTS = [("POST", "/commit/", *wrong) for wrong in WRONG] + [
    ("POST", "/preupload/", *WRONG[2]),
    ("POST", "/objects/batch", *WRONG[5]),
    ("PUT", "/lfs/", *WRONG[7]),
    ("PUT", "/lfs/", *WRONG[8]),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[2]}-{fault[1].strip('/').replace('/', '-')}")
def test_a_failure_is_one_sentence_and_nothing_is_published(hub, run_dir, capsys, fault):
    *place, status, sentence = fault
    repo_id = f"alice/fails{FAULTS.index(fault)}"
    hub.fail(*place, status)
    hub.large.clear()  # so that the weights are sent again
    capsys.readouterr()
    assert cli.main(["push", str(run_dir), repo_id]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"hf-fst: {run_dir} was not published to {repo_id}: ") and sentence in error
    assert error.endswith(f"then run `{command(run_dir, repo_id)}`.") and "Traceback" not in error
    assert commits(hub, repo_id) == 0 and hub.files(repo_id) == {}
    if status in (503, CUT):
        hub.faults.clear()
        assert cli.main(command(run_dir, repo_id).split()[1:]) == 0
        assert commits(hub, repo_id) == 1


def test_a_connection_that_breaks_once_while_weights_are_sent_is_no_failure(hub, run_dir):
    hub.large.clear()
    hub.fail("PUT", "/lfs/", CUT, times=1)
    assert cli.main(["push", str(run_dir), "alice/shaky"]) == 0
    assert torch.equal(logits("alice/shaky"), logits(run_dir))


@pytest.mark.parametrize(
    ("repo_id", "token", "sentence"),
    [("alice/none", "hf_wrong", "does not accept the token"), ("bob/model", TOKEN, "your own namespace")],
)
def test_who_may_not_write_is_told(hub, run_dir, capsys, repo_id, token, sentence):
    assert cli.main(["push", str(run_dir), repo_id, "--token", token]) == 1
    error = capsys.readouterr().err
    assert sentence in error and token not in error
    assert ("models", repo_id) not in hub.repos


def test_what_cannot_be_published_is_said_before_anything_is_sent(hub, run_dir, tmp_path, capsys):
    def refused(folder, repo="alice/refused", *options, code=1):
        before = len(hub.log)
        assert cli.main(["push", str(folder), repo, *options]) == code
        assert len(hub.log) == before
        return capsys.readouterr().err

    assert "holds no model (config.json and model.safetensors)" in refused(tmp_path)
    assert "give an id such as owner/name" in refused(run_dir, "a/b/c")
    assert "exclude each other" in refused(run_dir, "alice/refused", "--create-pr", "--revision", "x", code=2)
    secrets = {
        "results.json": json.dumps({"command": "hf-fst train /data/private.yaml"}),
        "recipe.yaml": "token: hf_" + "Ab1" * 11,
        "README.md": "See /home/alice/runs.",
    }
    for name, text in secrets.items():
        copy = tmp_path / name
        shutil.copytree(run_dir, copy)
        (copy / name).write_text(text)
        error = refused(copy)
        assert f"Line 1 of {copy / name} holds what looks like" in error and "Ab1" not in error
