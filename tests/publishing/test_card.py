"""The model card: what is written is read back the same by the Hub's own classes, and nothing private gets in."""

import dataclasses
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_fst.method.objectives import OBJECTIVES
from hf_fst.method.rules import RULES
from hf_fst.publishing import card
from hf_fst.training.config import FSTConfig
from hf_fst.training.settings import card_names
from tests.publishing.conftest import CLASSES, SYNTHETIC, make_facts, without_spaces


def test_metadata_is_read_back_by_the_hubs_model_card(written):
    data = ModelCard.load(written / "README.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-segmentation"
    assert data.metrics == ["mean_iou"]
    assert data.base_model == "nvidia/mit-b0"
    assert data.license == "apache-2.0"
    assert data.tags == ["semantic-segmentation", "self-training", "hf_fst", "fst_d"]
    assert data.datasets is None  # neither training set is on the Hub
    assert data.model_name == "Segformer-street-fst_d"


def test_eval_results_are_those_of_the_saved_teacher_by_dataset_config_and_split(written):
    street, city = ModelCard.load(written / "README.md").data.eval_results
    assert (street.dataset_type, street.dataset_name, street.dataset_config) == ("street", "Street", "real")
    assert (street.dataset_split, street.metric_type, street.metric_value) == ("validation", "mean_iou", 0.3457)
    assert (city.dataset_type, city.dataset_config, city.dataset_split) == ("owner/city", "fine", "test")
    assert city.metric_value == 0.25
    assert {street.task_type, city.task_type} == {"image-segmentation"}


def test_eval_results_folder_says_the_same_as_the_card(written):
    [path] = (written / ".eval_results").iterdir()
    assert path.name == "city-fine-test.yaml"
    [entry] = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("owner/city", "fine", 0.25)


def test_training_data_on_the_hub_is_named_in_the_metadata():
    on_hub = dataclasses.replace(SYNTHETIC, hub_id="owner/street")
    assert card.metadata(make_facts(labeled=on_hub, unlabeled=on_hub)).datasets == ["owner/street"]


def test_text_tells_rule_equation_numbers_cost_and_command(written):
    text = (written / "README.md").read_text()
    lines = without_spaces(text)
    assert "K times:  θ̃ ← θ̃ - γ∇L(θ̃, φ̃),  φ̃ ← μ'φ̃ + (1-μ')θ̃" in text
    assert "μ = 0.999, μ' = 0.99, K = 3" in text
    assert "|last|Street,real,validation|800|30.0|32.0|45.0|75.0|" in lines
    assert "|best(savedhere)|Street,real,validation|600|31.0|34.6|46.0|76.0|" in lines
    assert "|road|42.0|50.0|+8.0|" not in lines  # the table shows the last evaluation, which has no classes here
    assert "Training took 12 min 30 s for 800 steps" in text
    assert "31.2 images per second" in text
    assert "Peak memory of the process: 1.50 GiB." in text
    assert "hf-fst train street.yaml --seed 7 --rule fst_d --bf16 true\n" in text
    assert "Seed 7. Versions: python 3.11.9, torch 2.15.0." in text
    assert "3,714,658 parameters" in text
    assert "City: One country only." in text
    assert "City: research only, [owner/city](https://huggingface.co/datasets/owner/city)." in text
    assert "@inproceedings{du2022learning" in text


def test_class_table_leaves_absent_classes_out(tmp_path):
    run = make_facts(evaluations=make_facts().evaluations[:2])
    lines = without_spaces(card.make_card(run).text)
    assert "|road|42.0|50.0|+8.0|" in lines
    assert "|car|–|–|–|" in lines
    assert "|mean|31.0|34.5|+3.5|" in lines  # (.42 + .20) / 2 and (.50 + .19) / 2


@pytest.mark.parametrize("rule", card.RULES)
@pytest.mark.parametrize("published", [False, True])
def test_every_rule_makes_a_clean_card(rule, published):
    settings = {"momentum_warmup": True} if published else {}
    hub_id = "owner/model" if published else None
    text = str(card.make_card(make_facts(rule=rule, settings=settings, hub_id=hub_id, own_architecture=published)))
    assert card.RULES[rule][1] in text
    assert "None" not in text and "Undefined" not in text and "{{" not in text
    assert "\n\n\n" not in text
    assert ("After the virtual steps" in text) == ("θ_t - γ" in card.RULES[rule][1] or rule == "fst_d")
    assert ("student/" in text) == (rule != "supervised")
    assert ('name = "owner/model"' in text) == published
    assert ("import hf_fst.models" in text) == published


def test_a_network_with_foreign_code_is_shown_with_the_flag_it_needs():
    text = str(card.make_card(make_facts(foreign_code=True, hub_id="owner/model")))
    assert text.count("trust_remote_code=True)") == 3 and "import hf_fst.models" not in text
    assert "needs code that comes with it" in text
    assert "trust_remote_code" not in str(card.make_card(make_facts()))


def test_a_card_without_optional_facts_has_no_empty_places():
    run = make_facts(
        unlabeled=None, cost=None, base_model=None, license=None, recipe=None, evaluations=[], rule="MyRule",
        objective="MyObjective", saved="last", settings={},
    )  # fmt: skip
    text = str(card.make_card(run, figures=()))
    assert "None" not in text and "\n\n\n" not in text
    assert "This run was not evaluated." in text
    assert "a rule of its own, `MyRule`" in text
    assert "Seed not recorded." in text
    assert ".png" not in text
    assert "started from Python" in text


def test_rules_objectives_and_settings_are_those_of_the_package():
    assert set(card.RULES) == set(RULES)
    assert set(card.OBJECTIVES) == set(OBJECTIVES)
    assert set(card.SYMBOLS.values()) <= set(card_names(FSTConfig))


def test_code_of_the_card_runs(model_folder, monkeypatch, capsys):
    path = card.write_card(model_folder, make_facts())
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(model_folder)
    for block in blocks:
        names = {}
        exec(block, names)
        if "labels" in names:
            assert names["labels"].shape == (40, 60)
    assert "torch.Size([40, 60])" in capsys.readouterr().out
    assert {segment["label"] for segment in names["segments"]} <= set(CLASSES)


def test_a_name_of_a_recipe_may_have_blanks_but_no_folder_of_ones_own():
    assert card.command(make_facts(recipe="my run.yaml", overrides={})) == "hf-fst train 'my run.yaml'"
    assert card.command(make_facts(recipe="street-da", overrides={})) == "hf-fst train street-da"
    before = make_facts(recipe="examples/recipes/demo.yaml", overrides={})  # of a run of version 0.1
    assert card.command(before) == "hf-fst train examples/recipes/demo.yaml"
    with pytest.raises(ValueError, match="without its folder"):
        make_facts(recipe="alice/demo.yaml")


def test_a_model_without_a_run_gets_a_card_that_claims_nothing(model_folder):
    text = card.bare_card(model_folder, "owner/found")
    assert text.data.eval_results is None and text.data.license is None and text.data.model_name == "found"
    assert 'name = "owner/found"' in text.text and "student" not in text.text
    assert "Nothing was recorded about the training" in text.text and "Classes: road, car, sky." in text.text
    assert "\n\n\n" not in str(text) and "None" not in str(text)


def test_two_classes_without_names_have_a_card_too(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    del config["id2label"]  # as transformers saves them
    (model_folder / "config.json").write_text(json.dumps(config))
    assert "Classes: LABEL_0, LABEL_1." in card.bare_card(model_folder, "owner/found").text
    config |= {"model_type": "their-net", "auto_map": {"AutoConfig": "theirs.TheirConfig"}}
    (model_folder / "config.json").write_text(json.dumps(config))
    text = card.bare_card(model_folder, "owner/found").text
    assert text.count("trust_remote_code=True)") == 3 and "import hf_fst.models" not in text


def test_the_tables_of_a_supervised_run_have_one_network():
    facts_of_run = make_facts(rule="supervised", objective="supervised", unlabeled=None)
    assert [line.split("|")[4].strip() for line in card.results_table(facts_of_run).splitlines()[:3]] == [
        "mIoU",
        "---:",
        "32.0",
    ]
    rows = card.class_table(facts_of_run, facts_of_run.evaluations[1]).splitlines()
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == ["road", "50.0"]
