"""The model card: what is written is read back the same by the Hub's own classes, and nothing private gets in."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from hf_fst.evaluation import machine
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.method.rules import RULES
from hf_fst.publishing import card, facts
from hf_fst.publishing.facts import Cost, DatasetFacts, Evaluation, RunFacts, Scores
from hf_fst.publishing.report import rewrite_report, write_report
from hf_fst.training.config import FSTConfig
from hf_fst.training.settings import card_names

CLASSES = ["road", "car", "sky"]
SYNTHETIC = DatasetFacts("street", "Street", "train", 200, config="synthetic", license="Apache-2.0")
REAL = DatasetFacts("street", "Street", "train", 300, config="real", license="Apache-2.0")
CITY = DatasetFacts(
    "city", "City", "test", 500, config="fine", hub_id="owner/city", license="research only", note="One country only."
)
VALIDATION = DatasetFacts("street", "Street", "validation", 100, config="real", license="Apache-2.0")


def make_facts(**changes):
    values = {
        "rule": "fst_d",
        "objective": "class_mix",
        "architecture": "SegformerForSemanticSegmentation",
        "parameters": 3714658,
        "classes": CLASSES,
        "labeled": SYNTHETIC,
        "unlabeled": REAL,
        "evaluations": [
            Evaluation("last", 800, VALIDATION, Scores(0.30, 0.4, 0.7), Scores(0.32, 0.45, 0.75)),
            Evaluation(
                "best",
                600,
                VALIDATION,
                Scores(0.31, 0.4, 0.71, [0.42, float("nan"), 0.20]),
                Scores(0.34567, 0.46, 0.76, [0.50, None, 0.19]),
            ),
            Evaluation("best", 600, CITY, Scores(0.2), Scores(0.25)),
        ],
        "steps": 800,
        "settings": {"lookahead_steps": 3, "teacher_momentum": 0.999, "lookahead_momentum": 0.99, "seed": 7},
        "versions": {"python": "3.11.9", "torch": "2.15.0"},
        "saved": "best",
        "cost": Cost("2 CPU threads", 750.0, 31.25, 3 * 2**29, "process"),
        "base_model": "nvidia/mit-b0",
        "license": "apache-2.0",
        "recipe": "street.yaml",
        "overrides": {"seed": 7, "rule": "fst_d", "bf16": True},
    }
    return RunFacts(**copy.deepcopy(values | changes))


@pytest.fixture
def written(tmp_path):
    card.write_card(tmp_path, make_facts())
    return tmp_path


def without_spaces(text):
    return [line.replace(" ", "") for line in text.splitlines()]


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
    symbols = {key for _, _, symbols in card.RULES.values() for key in symbols.values()}
    assert symbols <= set(card_names(FSTConfig))


def test_settings_that_look_like_paths_stay_out():
    config = {
        "seed": 3,
        "learning_rate": 1e-3,
        "rule": "fst_w",
        "bf16": False,
        "lookahead_momentum": None,
        "optim": "/home/alice/optimizer.py",
        "output_dir": "/home/alice/runs/demo",
        "hub_model_id": "alice/model",
    }
    assert facts.settings_of(config) == {"rule": "fst_w", "learning_rate": 1e-3, "bf16": False, "seed": 3}
    assert facts.settings_of({"max_steps": 10, "num_train_epochs": 3}) == {"max_steps": 10}
    assert facts.settings_of({"max_steps": -1, "num_train_epochs": 3}) == {"max_steps": -1, "num_train_epochs": 3}


SECRETS = [
    "/home/alice/data",
    "data in /mnt/x",
    "~/data",
    "~alice/data",
    "../elsewhere/data",
    "./runs",
    "C:\\Users\\alice",
    "\\\\server\\share",
    "file:///data",
    "hf_" + "Ab1" * 11,
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "place",
    [
        lambda secret: {"labeled": dataclasses.replace(SYNTHETIC, title=secret)},
        lambda secret: {"unlabeled": dataclasses.replace(REAL, note=f"Images from {secret}")},
        lambda secret: {"classes": ["road", "car", secret]},
        lambda secret: {"settings": {"optim": secret}},
        lambda secret: {"overrides": {"objective": [secret]}},
        lambda secret: {"cost": Cost(secret, 1.0)},
        lambda secret: {"versions": {"torch": secret}},
        lambda secret: {"base_model": secret},
        lambda secret: {"recipe": secret},
        lambda secret: {"model_name": secret},
    ],
)
def test_a_path_or_a_token_is_refused_wherever_it_is_put(secret, place):
    with pytest.raises(ValueError, match="facts"):
        make_facts(**place(secret))


@pytest.mark.parametrize(
    "text", ["https://example.org/data", "1/8 labeled", "and/or", "road: 5 km/h", "hf_fst 0.1", "~5"]
)
def test_ordinary_text_is_not_taken_for_a_path(text):
    make_facts(labeled=dataclasses.replace(SYNTHETIC, note=text))


def test_hub_ids_are_told_from_local_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert facts.hub_id("nvidia/mit-b0") == "nvidia/mit-b0"
    assert facts.hub_id("gpt2") == "gpt2"
    for local in ("runs/demo", "./runs/other", "/data/model", "~/model", "a/b/c", "", None):
        assert facts.hub_id(local) is None


def test_facts_go_through_json_unchanged_and_make_the_same_card(tmp_path):
    run = make_facts(palette=[[1, 2, 3]] * 3)
    run.save(tmp_path)
    assert (
        json.loads((tmp_path / "fst_run.json").read_text())["evaluations"][1]["teacher"]["per_category_iou"][1] is None
    )
    again = RunFacts.load(tmp_path)
    assert again == run
    assert str(card.make_card(again)) == str(card.make_card(run))


def test_missing_or_foreign_facts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no fst_run.json"):
        RunFacts.load(tmp_path)
    for content in ("{", "{}", '{"labeled": {"colour": 1}}'):
        (tmp_path / "fst_run.json").write_text(content)
        with pytest.raises(ValueError, match="does not hold the facts of a run"):
            RunFacts.load(tmp_path)


def test_wrong_numbers_of_class_values_and_unknown_weights_are_refused():
    evaluation = Evaluation("best", 1, VALIDATION, Scores(0.1), Scores(0.1, per_category_iou=[0.1]))
    with pytest.raises(ValueError, match="1 class values for 3 classes"):
        make_facts(evaluations=[evaluation])
    with pytest.raises(ValueError, match="'best' or 'last'"):
        make_facts(saved="first")


def test_scores_are_read_from_a_log_entry():
    entry = {
        "eval_teacher_mean_iou": 0.3,
        "eval_teacher_iou_road": 0.5,
        "eval_teacher_iou_car": float("nan"),
        "step": 1,
    }
    assert Scores.from_metrics(entry, "teacher", CLASSES) == Scores(0.3, None, None, [0.5, None, None])
    with pytest.raises(ValueError, match="no test_teacher_mean_iou"):
        Scores.from_metrics(entry, "teacher", CLASSES, prefix="test")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(41.6, "42 s"), (60, "1 min 0 s"), (330, "5 min 30 s"), (3600 * 3 + 60 * 7 + 20, "3 h 7 min")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert card.duration(seconds) == text


def test_versions_and_hardware_name_no_machine():
    found = machine.versions()
    assert re.match(r"3\.\d+", found["python"]) and re.match(r"\d+\.\d+", found["torch"])
    assert re.match(r"\d+ CPU thread", machine.hardware("cpu"))
    make_facts(versions=found, cost=Cost(machine.hardware("cpu"), 1.0))


@pytest.fixture
def model_folder(tmp_path):
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 1], mlp_ratios=[1, 1], decoder_hidden_size=8, id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "image.jpg")
    return tmp_path


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


LOG = [
    {"step": 600, "loss": 1.0, "eval_student_mean_iou": 0.31, "eval_teacher_mean_iou": 0.34},
    {"step": 800, "loss": 0.9, "eval_student_mean_iou": 0.30, "eval_teacher_mean_iou": 0.32},
]


def test_report_writes_everything_and_the_card_shows_the_pictures(tmp_path):
    image, label = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), int)
    run = make_facts(evaluations=make_facts().evaluations[:2])
    path = write_report(tmp_path / "out", run, LOG, [(image, label, label, label)])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "fst_run.json", "curves.png", "class_iou.png", "samples.png"}
    shown = re.findall(r"!\[.*?\]\((.*?)\)", path.read_text())
    assert sorted(shown) == ["class_iou.png", "curves.png", "samples.png"]
    assert str(tmp_path) not in path.read_text()
    for name in shown:
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100


def test_a_second_report_removes_pictures_that_no_longer_hold(tmp_path):
    image, label = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), int)
    write_report(tmp_path, make_facts(), LOG, [(image, label, label, label)])
    path = write_report(tmp_path, make_facts(), [])
    assert {file.name for file in tmp_path.glob("*.png")} == set()
    assert ".png" not in path.read_text()


def test_templates_are_part_of_the_package():
    for template in (card.TEMPLATE, card.BARE_TEMPLATE):
        assert template.is_file() and template.parent == Path(card.__file__).parent


def test_a_card_is_written_anew_from_the_files_of_the_run(tmp_path):
    image, label = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), int)
    run = make_facts(evaluations=make_facts().evaluations[:2])
    first = write_report(tmp_path, run, LOG, [(image, label, label, label)]).read_text()
    history = [
        entry | {"eval_teacher_iou_road": None} for entry in LOG
    ]  # as JSON has what is nan in the trainer's log
    (tmp_path / "history.json").write_text(json.dumps(history))
    samples = (tmp_path / "samples.png").read_bytes()
    (tmp_path / "README.md").write_text("old")
    (tmp_path / "curves.png").unlink()
    assert rewrite_report(tmp_path).read_text() == first
    assert (tmp_path / "samples.png").read_bytes() == samples and (tmp_path / "curves.png").is_file()
    assert "license: mit\n" in rewrite_report(tmp_path, license="mit", model_name="Streets, FST-D").read_text()
    assert RunFacts.load(tmp_path).license == "mit"
    assert ModelCard.load(tmp_path / "README.md").data.model_name == "Streets, FST-D"
    with pytest.raises(ValueError, match="looks like a local path or a token"):
        rewrite_report(tmp_path, license="/home/alice/license")
    with pytest.raises(FileNotFoundError, match="has no fst_run.json"):
        rewrite_report(tmp_path / "elsewhere")


def test_runs_on_the_same_data_stand_beside_each_other(tmp_path):
    best = Evaluation("best", 700, CITY, Scores(0.3), Scores(0.26))
    elsewhere = Evaluation("best", 700, dataclasses.replace(CITY, config="coarse"), Scores(0.9), Scores(0.9))
    others = {
        "teacher": make_facts(rule="mean_teacher", model_name="other", evaluations=[elsewhere, best]),
        "baseline": make_facts(
            rule="supervised",
            objective="supervised",
            model_name="base",
            recipe=None,
            evaluations=[Evaluation("best", 700, CITY, Scores(0.235), Scores(0.235))],
        ),
    }
    for name, run in {"own": make_facts(), **others}.items():
        (tmp_path / name).mkdir()
        run.save(tmp_path / name)
    text = rewrite_report(tmp_path / "own", [tmp_path / name for name in others]).read_text()
    lines = without_spaces(text)
    assert "|**Segformer-street-fst_d**|fst_d|City,fine,test|20.0|25.0|" in lines
    assert "|other|mean_teacher|City,fine,test|30.0|26.0|" in lines
    assert "|base|supervised|City,fine,test|23.5|–|" in lines
    assert "90.0" not in text  # other data
    assert "- other: `hf-fst train street.yaml --seed 7 --rule fst_d --bf16 true`, 800 steps, seed 7." in text
    assert "On City, fine, test it is 1.0 points **below** other." in text
    assert "On City, fine, test it is 1.5 points above base." in text
    again = RunFacts.load(tmp_path / "own")
    assert str(card.make_card(again, ())) == text


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


def test_the_tables_of_a_supervised_run_have_one_network():
    facts_of_run = make_facts(rule="supervised", objective="supervised", unlabeled=None)
    assert [line.split("|")[4].strip() for line in card.results_table(facts_of_run).splitlines()[:3]] == [
        "mIoU",
        "---:",
        "32.0",
    ]
    rows = card.class_table(facts_of_run, facts_of_run.evaluations[1]).splitlines()
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == ["road", "50.0"]
