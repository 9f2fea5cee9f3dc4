"""The best weights may be chosen without labels, by how much a pixel tells of its class."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from hf_fst import cli
from hf_fst.errors import UserError
from hf_fst.evaluation.counting import mutual_information
from tests import tiny
from tests.recipes import tiny as recipes


def by_hand(network, items):
    """(H(mean p) - mean H(p)) / log C over all pixels of all images, in numpy."""
    pixels = torch.stack([item["pixel_values"] for item in items]).to(network.device)
    with torch.no_grad():
        logits = network.eval()(pixel_values=pixels).logits.double()
    p = nn.functional.interpolate(logits, pixels.shape[-2:], mode="bilinear").softmax(1).cpu().numpy()
    mean = p.mean(axis=(0, 2, 3))
    return (-(mean * np.log(mean)).sum() + (p * np.log(p)).sum(axis=1).mean()) / np.log(p.shape[1])


@pytest.mark.parametrize(
    ("sums", "score"),
    [
        ([2, 2, 0], 1),  # two pixels of each class, all of them sure
        ([4, 0, 0], 0),  # one class for all
        ([2, 2, 4 * math.log(2)], 0),  # nothing known of any pixel
        ([1, 3, 0], 2 - 0.75 * math.log2(3)),  # H(1/4, 3/4) in bits
    ],
)
def test_the_score_is_mutual_information_in_the_unit_of_the_classes(sums, score):
    assert mutual_information(torch.tensor(sums, dtype=torch.float64)) == pytest.approx(score)


@pytest.mark.parametrize("labels", [True, False])
def test_the_best_weights_are_that_score_best_without_labels(tmp_path, labels):
    evaluated = tiny.images(3, 5, (8, 12), labels=labels)
    trainer = tiny.trainer(
        tmp_path,
        rule="fst_d",
        trainer_options={"eval_dataset": evaluated},
        metric_for_best_model="label_free",
        load_best_model_at_end=True,
        max_steps=4,
        learning_rate=0.5,
        **{
            f"{what}_{key}": value for what in ("eval", "save") for key, value in (("strategy", "steps"), ("steps", 1))
        },
    )
    trainer.train()
    logged = {e["step"]: e["eval_label_free"] for e in trainer.state.log_history if "eval_label_free" in e}
    best = max(logged, key=logged.__getitem__)
    assert len(set(logged.values())) > 1 and trainer.state.best_global_step == best
    assert logged[best] == pytest.approx(by_hand(trainer.teacher.model, evaluated))
    assert labels == any("eval_teacher_mean_iou" in entry for entry in trainer.state.log_history)


def test_images_without_labels_are_refused_where_scores_need_them(tmp_path):
    trainer = tiny.trainer(tmp_path, trainer_options={"eval_dataset": tiny.images(2, labels=False)})
    with pytest.raises(UserError, match="no labels .* metric_for_best_model 'label_free'"):
        trainer.evaluate()


@pytest.mark.parametrize("rule", ["fst_d", "supervised"])
def test_a_recipe_without_validation_labels_is_chosen_on_its_unlabeled_images(tmp_path, capsys, rule):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    keys = steps | {"eval_split": False, "test_split": False, "metric_for_best_model": "label_free"}
    recipe = recipes.write(tmp_path / "recipe.yaml", recipes.STREET, rule=rule, report=True, **keys)
    assert cli.main(["train", recipe, "-o", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [step for step, _ in results["label_free"]] == [1, 2] and results["metrics"] == []
    step, best = max(results["label_free"], key=lambda pair: pair[1])
    assert f"at step {step} (label_free {best:.3f})" in capsys.readouterr().out
