"""Presets, what follows from them, and their page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_fst.method.augmentation import StrongAugmentation
from hf_fst.method.losses import entropy, hard_pixels
from hf_fst.method.mixing import cut_mask
from hf_fst.method.objectives import CutMixObjective, EntropyDropObjective
from hf_fst.method.presets import preset_values
from hf_fst.recipes.load import load_recipe, to_config
from hf_fst.training.config import FSTConfig
from hf_fst.training.settings import resolve
from tests import tiny

ROOT = Path(__file__).parents[2]


def in_force(preset, rule, objective, name):
    """The value of an option; of one that the objective does not have, what the preset says."""
    value = getattr(resolve(FSTConfig("unused", preset=preset, rule=rule, objective=objective)), name)
    return preset_values(preset, rule, objective)[name] if value is None else value


def test_the_page_shows_what_is_in_force():
    text = (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, flags=re.M)
    shown = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    columns = [(None, "class_mix"), ("paper", "class_mix"), ("official", "class_mix"), ("official", "entropy_drop")]
    assert shown.keys() == preset_values("official", "fst_d", "class_mix").keys()
    for column, (preset, objective) in enumerate(columns):
        for name, cells in shown.items():
            base, *exceptions = [part.strip() for part in cells[column].split(",")]
            value = in_force(preset, "fst_d", objective, name)
            value = f"{value:.6g}" if isinstance(value, float) else value
            assert base == f"`{value}`", (name, preset, objective)
            for rule, other in (re.findall(r"`([\w.]+)`", part) for part in exceptions):
                assert str(in_force(preset, rule, objective, name)) == other != base.strip("`")


@pytest.mark.parametrize("rule", ["mean_teacher", "naive_fst", "improved_fst", "fst_d", "fst_w"])
@pytest.mark.parametrize("objective", ["class_mix", "entropy_drop"])
def test_an_exception_for_a_rule_is_on_the_page(rule, objective):
    exceptions = {("fst_w", "class_mix"), ("mean_teacher", "entropy_drop")}
    same = preset_values("official", rule, objective) == preset_values("official", "fst_d", objective)
    assert same != ((rule, objective) in exceptions)


@pytest.mark.parametrize("preset", [None, "paper", "official"])
def test_what_is_set_wins_over_the_preset(tmp_path, preset):
    given = {"lookahead_state": "restore", "momentum_warmup": False, "loss_reduction": "all", "lookahead_start": 5}
    args = FSTConfig(output_dir=str(tmp_path), preset=preset, rule="fst_d", objective="class_mix", **given)
    settings = resolve(args)
    expected = preset_values(preset, "fst_d", "class_mix") | given
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(("name", "preset"), [("paper", "paper"), ("official", "official")])
def test_a_preset_is_the_base_of_a_recipe(tmp_path, name, preset):
    recipe = tmp_path / "mine.yaml"
    base = ROOT / "examples" / "recipes" / "base" / f"{name}.yaml"
    recipe.write_text(f"defaults: [{base}]\nmodel: nobody/model\ndataset: street\n")
    settings = resolve(to_config(load_recipe(recipe)))
    for option, value in preset_values(preset, "fst_d", "class_mix").items():
        assert getattr(settings, option) == value


def test_an_objective_given_as_an_object_chooses_between_the_two_codes(tmp_path):
    for objective, rule, expected in (
        (EntropyDropObjective(), "fst_d", ("entropy_drop", "both")),
        (CutMixObjective(), "mean_teacher", ("cut_mix", "after")),
    ):
        options = {"preset": "official", "rule": rule, "objective": None}
        trainer = tiny.trainer(tmp_path, trainer_options={"objective": objective}, **options)
        assert (trainer.settings.objective, trainer.settings.teacher_follows) == expected


def test_labels_of_the_present_teacher_need_one_that_has_not_followed(tmp_path):
    with pytest.raises(ValueError, match="use teacher_follows 'before'"):
        FSTConfig(output_dir=str(tmp_path), rule="fst_w", lookahead_labels="present", teacher_follows="after")


def test_a_batch_is_augmented_or_not_as_a_whole():
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        changed = (StrongAugmentation(0.5, 0.2, 0.0, draw="batch")(images) - images).abs().amax(dim=(1, 2, 3)) > 1e-3
        seen.add((changed.any().item(), changed.all().item()))
    assert seen == {(False, False), (True, True)}
    torch.manual_seed(0)
    each = [(StrongAugmentation(0.5, 0.2, 0.0)(images) - images).abs().amax(dim=(1, 2, 3)) > 1e-3 for _ in range(10)]
    assert any(c.any() and not c.all() for c in each)


def test_a_batch_is_cut_or_not_as_a_whole():
    def cut(draw):
        return (~cut_mask(8, (8, 8), torch.device("cpu"), 0.5, draw)).any(dim=(1, 2, 3))

    torch.manual_seed(0)
    whole = [cut("batch") for _ in range(20)]
    assert (
        all(c.all() or not c.any() for c in whole) and any(c.all() for c in whole) and not all(c.all() for c in whole)
    )
    assert any(c.any() and not c.all() for c in (cut("image") for _ in range(5)))


def test_hard_pixels_are_those_below_the_threshold_or_the_hardest():
    # probabilities of the right class: .9 .8 .6 .5, and an ignored pixel
    right = torch.tensor([0.9, 0.8, 0.6, 0.5, 0.1], dtype=torch.float64)
    logits = torch.stack([right.log(), (1 - right).log()]).view(1, 2, 1, 5)
    labels = torch.tensor([[[0, 0, 0, 0, 255]]])

    def hard(threshold, min_kept):
        return hard_pixels(logits, labels, threshold, min_kept).flatten().tolist()

    assert hard(0.7, 1) == [False, False, True, True, False]
    assert hard(0.7, 3) == [False, True, True, True, False]
    assert hard(0.1, 0) == [False] * 5
    assert hard(0.1, 4) == hard(0.1, 100) == [True, True, True, True, False]


def test_entropy_of_a_coin_is_ln_2_and_of_certainty_0():
    logits = torch.tensor([[0.0, 40.0], [0.0, -40.0]], dtype=torch.float64).view(1, 2, 1, 2)
    expected = torch.tensor([[[2.0, 1.0]]], dtype=torch.float64).log()
    torch.testing.assert_close(entropy(logits, (1, 2)), expected, atol=1e-9, rtol=0)


def test_crops_of_two_sizes_cannot_go_through_the_network_together(tmp_path):
    trainer = tiny.trainer(tmp_path, objective="entropy_drop", rule="mean_teacher")
    batch = {
        "pixel_values": torch.zeros(1, 3, 8, 8).double(),
        "labels": torch.zeros(1, 8, 8).long(),
        "unlabeled_pixel_values": torch.zeros(1, 3, 8, 12).double(),
    }
    with pytest.raises(ValueError, match=r"labeled crops of \(8, 8\) and unlabeled ones of \(8, 12\)"):
        trainer.learning_objective.prepare(trainer.teacher, batch)


def test_the_feature_distance_of_a_segformer_is_zero_until_it_has_moved(tmp_path):
    sizes = {"depths": [1] * 4, "hidden_sizes": [4] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 4}
    config = SegformerConfig(
        num_labels=3, **sizes, hidden_dropout_prob=0.0, drop_path_rate=0.0, classifier_dropout_prob=0.0
    )
    sets = tiny.images(2, 1, (64, 64), dtype=torch.float32), tiny.images(2, 2, (64, 64), False, torch.float32)
    options = {"objective": "class_mix", "rule": "mean_teacher", "logging_strategy": "steps", "logging_steps": 1}
    options |= {"feature_distance_weight": 0.1, "feature_distance_classes": [0, 1, 2], "learning_rate": 0.01}
    for item in sets[0]:
        item["labels"] = torch.ones(64, 64, dtype=torch.long)
    trainer = tiny.trainer(tmp_path, SegformerForSemanticSegmentation(config), sets=sets, **options)
    trainer.train()
    distances = [entry["feature_distance"] for entry in trainer.state.log_history if "feature_distance" in entry]
    assert distances[0] == 0 < min(distances[1:])


def test_a_feature_distance_needs_feature_maps(tmp_path):
    with pytest.raises(ValueError, match="feature_distance_weight is set, but the model gives no feature maps"):
        tiny.trainer(tmp_path, objective="class_mix", rule="mean_teacher", feature_distance_weight=0.1)
