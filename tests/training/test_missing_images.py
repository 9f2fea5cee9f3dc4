"""What cannot be trained is refused by the trainer in one sentence."""

from __future__ import annotations

import pytest

from hf_fst.method.objectives import ClassMixObjective
from tests import tiny


def test_missing_images_are_named(tmp_path):
    with pytest.raises(ValueError) as error:
        tiny.trainer(tmp_path, sets=(tiny.images(2), None), rule="fst_d", objective="class_mix")
    assert str(error.value) == (
        "objective 'class_mix' learns from unlabeled images but unlabeled_dataset is missing; give it, or use rule "
        "'supervised'."
    )


def test_an_objective_that_needs_a_teacher_is_refused_without_one(tmp_path):
    with pytest.raises(ValueError) as error:
        tiny.trainer(tmp_path, rule="supervised", trainer_options={"objective": ClassMixObjective(num_labels=3)})
    assert str(error.value) == (
        "rule 'supervised' has no teacher, but objective 'class_mix' learns from its labels; "
        "use objective 'supervised' or another rule."
    )


def test_training_needs_labelled_images_and_none_of_the_sets_may_be_empty(tmp_path):
    with pytest.raises(ValueError, match="Training needs train_dataset"):
        tiny.trainer(tmp_path, sets=(None, None), rule="mean_teacher").train()
    with pytest.raises(ValueError, match="The unlabeled set is empty"):
        tiny.trainer(tmp_path, sets=(tiny.images(2), []), rule="mean_teacher").train()
