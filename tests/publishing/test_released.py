"""The released checkpoints in model_cards/: they load from a clone, are what their cards say, and can be made again."""

import os
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from hf_fst.data import load
from hf_fst.evaluation.inference import Look
from hf_fst.evaluation.runner import evaluate_model
from hf_fst.publishing import card
from hf_fst.publishing.facts import RunFacts
from hf_fst.publishing.push import ADAPTER, NETWORK, files_of
from hf_fst.recipes import load_recipe
from hf_fst.recipes.load import as_dict

ROOT = Path(__file__).parents[2]
RELEASED = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))

pytestmark = pytest.mark.parametrize("directory", RELEASED, ids=lambda path: path.name)


def test_one_is_of_drawn_streets_and_one_of_photographs(directory):
    assert {path.name for path in RELEASED} == {"fst-street-da", "fst-drawn-to-photos"}


def test_teacher_and_student_load_from_the_clone_and_are_small(directory):
    teacher = AutoModelForSemanticSegmentation.from_pretrained(directory)
    student = AutoModelForSemanticSegmentation.from_pretrained(directory, subfolder="student")
    facts = RunFacts.load(directory)
    for network in (teacher, student):
        assert type(network).__name__ == facts.architecture
        assert sum(parameter.numel() for parameter in network.parameters()) == facts.parameters
        assert [name.replace(" ", "_") for name in network.config.id2label.values()] == facts.classes
    assert any(not torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    halved = directory.name == "fst-drawn-to-photos"
    assert AutoImageProcessor.from_pretrained(directory).do_resize == halved
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 16e6


def test_the_card_is_the_one_of_its_facts_and_says_the_same_as_its_metadata(directory):
    facts = RunFacts.load(directory)
    text = (directory / "README.md").read_text(encoding="utf-8")
    assert text == str(card.make_card(facts)), f"write it anew: hf-fst card model_cards/{directory.name}"
    data = ModelCard.load(directory / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-segmentation")
    assert data.license == facts.license is not None
    told = {(e.dataset_config, e.dataset_split): e.metric_value for e in data.eval_results}
    kept = [e for e in facts.evaluations if e.weights == facts.saved]
    assert told == {(e.dataset.config, e.dataset.split): round(e.teacher.mean_iou, 4) for e in kept}
    listed = (directory.parent / "README.md").read_text(encoding="utf-8")
    [row] = [line for line in listed.splitlines() if line.startswith(f"| [{directory.name}]")]
    assert row.split("|")[3].strip() == f"{100 * kept[-1].teacher.mean_iou:.1f}"


def test_nothing_but_what_is_published_lies_there(directory):
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert files == set(files_of(directory))
    needed = {name for name in NETWORK if "*" not in name and "index" not in name} - {*ADAPTER}
    assert needed <= files


def test_the_recipe_of_the_command_is_still_the_one_that_was_trained(directory):
    facts = RunFacts.load(directory)
    _, _, recipe, *words = shlex.split(card.command(facts))
    overrides = {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    now = as_dict(load_recipe(recipe, overrides))
    trained = yaml.safe_load((directory / "recipe.yaml").read_text(encoding="utf-8"))
    assert sorted(now.get("unlabeled_resize") or []) == sorted(trained.pop("unlabeled_resize", []))  # in either order
    assert {key: now.get(key) for key in trained} == trained


def scores(directory, which, count):
    if directory.name == "fst-street-da":
        data = load("street", look="real", size=[144, 240], num_train=1, num_validation=1, num_test=count or 200)[
            "test"
        ]
        return evaluate_model(directory, data, split="test", which=which, batch_size=10)
    if "HF_FST_CAMVID" not in os.environ:
        pytest.skip("Set HF_FST_CAMVID to the folder of CamVid to run this.")
    data = load("camvid", os.environ["HF_FST_CAMVID"])["test"]
    data = data if count is None else data.select(range(count))
    return evaluate_model(directory, data, split="test", which=which, batch_size=10, look=Look(resize=(180, 240)))


def test_it_scores_about_what_the_card_says_on_the_first_pictures(directory):
    told = RunFacts.load(directory).evaluations[-1]
    assert told.dataset.split == "test"
    # the first 20 of the 200 pictures; the spread of single pictures leaves some points
    assert scores(directory, "teacher", 20)["overall_accuracy"] == pytest.approx(
        told.teacher.overall_accuracy, abs=0.05
    )


@pytest.mark.slow
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_it_scores_what_the_card_says_on_all_test_pictures(directory, which):
    told = getattr(RunFacts.load(directory).evaluations[-1], which)
    measured = scores(directory, which, None)
    assert measured["mean_iou"] == pytest.approx(told.mean_iou, abs=5e-4)
    assert measured["per_category_iou"] == pytest.approx(told.per_category_iou, abs=2e-3)
