"""A run with LoRA on a base from the Hub: published as it is, and used from there."""

import json

import pytest
from huggingface_hub import HfApi, ModelCard

from hf_fst import cli
from hf_fst.models.loading import load_network
from tests.evaluation.conftest import NAMES, tiny_model
from tests.models.test_adapters import logits, lora
from tests.prediction.test_predict import noise
from tests.tolerance import assert_same_logits
from tests.training.test_adapters import trained

pytestmark = pytest.mark.usefixtures("no_waiting")

ADAPTER = {"config.json", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"}


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """A run of LoRA and a new head on alice/base, published at its end."""
    folder = tmp_path_factory.mktemp("run")
    tiny_model(1, 9).push_to_hub("alice/base")
    student = lora(load_network("alice/base", id2label=dict(enumerate(NAMES))))
    options = {"push_to_hub": True, "hub_model_id": "alice/adapter", "report": True, "hub_strategy": "end"}
    trainer = trained(folder, network=student, **options)
    trainer.push_to_hub()
    return folder, trainer


def test_adapter_and_card_are_published_and_load_from_there(hub, run, tmp_path):
    folder, trainer = run
    files = hub.files("alice/adapter")
    assert set(files) >= ADAPTER | {f"student/{name}" for name in ADAPTER} | {"README.md", "fst_run.json"}
    assert not any("model.safetensors" in name and "adapter" not in name for name in files)
    card = ModelCard.load("alice/adapter")
    assert card.data.library_name == "peft" and card.data.base_model == "alice/base"
    assert 'base = "alice/base"' in card.text and 'name = "alice/adapter"' in card.text
    for which, network in trainer.networks().items():
        assert_same_logits(logits(load_network("alice/adapter", which)), logits(network.eval().cpu()))
    image = noise(tmp_path / "a.png")
    assert cli.main(["predict", "alice/adapter", str(image), "-o", str(tmp_path / "out")]) == 0


def test_a_run_is_pushed_and_one_without_a_card_gets_one(hub, run, tmp_path):
    assert cli.main(["push", str(run[0]), "alice/pushed"]) == 0
    assert (
        hub.files("alice/pushed")["adapter_model.safetensors"] == (run[0] / "adapter_model.safetensors").read_bytes()
    )
    adapted = lora(load_network("alice/base"))
    adapted.save_pretrained(tmp_path)
    (tmp_path / "README.md").unlink()
    assert cli.main(["push", str(tmp_path), "alice/bare"]) == 1
    adapted.get_base_model().config.save_pretrained(tmp_path)
    assert cli.main(["push", str(tmp_path), "alice/bare"]) == 0
    assert 'base = "alice/base"' in ModelCard.load("alice/bare").text


def test_a_base_that_does_not_come_is_one_sentence(hub, run, tmp_path, capsys):
    folder = tmp_path / "moved"
    adapted = lora(load_network("alice/base"))
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    image = noise(tmp_path / "a.png")
    for base, status, words in (("alice/gone", None, "alice/gone"), ("alice/base2", 500, "alice/base2")):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        if status:
            HfApi().create_repo(base)
            hub.fail("HEAD", f"{base}/resolve", status)
        assert cli.main(["predict", str(folder), str(image), "-o", str(tmp_path / "out")]) == 1
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-fst: ")]
        assert f"{folder} is an adapter, whose base network does not load: " in said and words in said, said
    hub.faults.clear()
