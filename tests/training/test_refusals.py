"""What cannot be trained is refused when the trainer is made, or else when the network is first used."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import schedulefree
import torch
from torch import nn
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerModel,
)
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import ModelOutput

from hf_fst.errors import UserError
from hf_fst.training.config import FSTConfig
from hf_fst.training.trainer import FSTTrainer
from tests import tiny

SEGMENTATION = "give a model for semantic segmentation, such as one of AutoModelForSemanticSegmentation."
OPTIMIZERS = "use 'adamw_torch', 'sgd' or another optimizer that updates weights only in step()."
FREE = (
    "which is schedule-free: the weights it trains are not those that are evaluated, so a teacher cannot follow them; "
)
BLANK = "No pixel of the 2 evaluated images has a class, so there is nothing to score; is the id map right?"
FUSED = "which updates weights during the backward pass, before the gradient of the group is complete; "


def refused(tmp_path, network=None, trainer_options=None, **options) -> str:
    with pytest.raises(ValueError) as error:
        tiny.trainer(tmp_path, network, trainer_options=trainer_options, rule="mean_teacher", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"])
def test_schedule_free_optimizers_by_name(tmp_path, name):
    assert refused(tmp_path, optim=name) == f"optim is {name!r}, {FREE}{OPTIMIZERS}"


def test_schedule_free_optimizers_as_objects_and_classes(tmp_path):
    network = tiny.model()
    optimizer = schedulefree.AdamWScheduleFree(network.parameters())
    sentence = f"the optimizer is AdamWScheduleFree, {FREE}{OPTIMIZERS}"
    assert refused(tmp_path, network, {"optimizers": (optimizer, None)}) == sentence
    options = {"optimizer_cls_and_kwargs": (schedulefree.AdamWScheduleFree, {})}
    assert refused(tmp_path, network, options) == sentence


@pytest.mark.parametrize("name", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_optimizers_that_step_in_the_backward_pass_by_name(tmp_path, name):
    assert refused(tmp_path, optim=name, optim_target_modules=["head"]) == f"optim is {name!r}, {FUSED}{OPTIMIZERS}"


def test_optimizers_that_step_in_the_backward_pass_as_objects(tmp_path):
    class Lomo(torch.optim.SGD):
        def fused_backward(self, loss, lr):
            """As that of lomo-optim."""

    network = tiny.model()
    options = {"optimizers": (Lomo(network.parameters(), lr=1.0), None)}
    assert refused(tmp_path, network, options) == f"the optimizer is Lomo, {FUSED}{OPTIMIZERS}"


def test_options_that_would_not_be_heeded(tmp_path):
    assert refused(tmp_path, label_smoothing_factor=0.1) == (
        "label_smoothing_factor is 0.1, but no objective smooths labels; leave it at 0."
    )
    assert refused(tmp_path, train_sampling_strategy="sequential") == (
        "train_sampling_strategy is 'sequential', but pairs are always drawn at random; leave it at 'random'."
    )
    assert refused(tmp_path, trainer_options={"compute_loss_func": print}) == (
        "compute_loss_func is given, but an objective computes the loss; give objective instead."
    )


def test_a_metric_of_ones_own_that_could_not_count_batch_by_batch(tmp_path):
    assert refused(tmp_path, trainer_options={"compute_metrics": lambda prediction: {}}).startswith(
        "compute_metrics takes no compute_result, but it is called after every batch"
    )
    assert refused(tmp_path, trainer_options={"preprocess_logits_for_metrics": lambda logits, labels: logits}) == (
        "preprocess_logits_for_metrics is given without compute_metrics, but the scores of student and teacher do not "
        "use it; give both, or leave it out."
    )


def test_a_metric_of_ones_own_does_not_choose_the_best_by_a_score_that_it_lacks(tmp_path):
    trainer = tiny.trainer(
        tmp_path,
        trainer_options={"eval_dataset": tiny.images(2), "compute_metrics": lambda prediction: {}},
        rule="mean_teacher",
        batch_eval_metrics=False,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None and trainer.args.metric_for_best_model == "loss"
    assert trainer.args.greater_is_better is False


def test_a_loss_of_ones_own_is_refused_in_a_subclass_and_on_the_trainer(tmp_path, monkeypatch):
    class Weighted:
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            """Would never be called."""

    class Mine(Weighted, FSTTrainer):
        """The override comes from a mixin."""

    sentence = (
        "overrides compute_loss, but an objective computes the loss; write a subclass of hf_fst.objectives.Objective "
        "and give it as objective."
    )
    with pytest.raises(UserError) as error:
        Mine(tiny.model(), tiny.config(tmp_path), train_dataset=tiny.images(2), unlabeled_dataset=tiny.images(2))
    assert str(error.value) == f"Mine {sentence}"
    trainer = tiny.trainer(tmp_path)
    trainer.compute_loss = lambda model, inputs, **kwargs: inputs["pixel_values"].sum()
    with pytest.raises(UserError) as error:
        trainer.train()
    assert str(error.value) == f"FSTTrainer {sentence}" and trainer.state.global_step == 0
    monkeypatch.setattr("transformers.Trainer.compute_loss", Weighted.compute_loss)  # for all trainers
    with pytest.raises(UserError, match=f"FSTTrainer {sentence}"):
        tiny.trainer(tmp_path)


def judged(tmp_path, evaluated, **options):
    options = {"eval_strategy": "steps", "eval_steps": 3, **options}
    return tiny.trainer(tmp_path, trainer_options={"eval_dataset": evaluated}, rule="mean_teacher", **options)


ACCEPTED = (
    "use one of teacher_mean_iou, teacher_mean_accuracy, teacher_overall_accuracy, student_mean_iou, "
    "student_mean_accuracy, student_overall_accuracy, or the IoU of a class, as teacher_iou_LABEL_0."
)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("teacher_mean_iuo", "did you mean 'teacher_mean_iou'?"), ("f1", ACCEPTED), ("loss", ACCEPTED)],
)
def test_a_metric_that_no_evaluation_gives_is_refused_at_once(tmp_path, name, hint):
    with pytest.raises(UserError) as error:
        judged(tmp_path, tiny.images(2), metric_for_best_model=name)
    assert str(error.value) == f"metric_for_best_model is {name!r}; {hint}"


def test_a_class_is_no_model(tmp_path):
    with pytest.raises(UserError) as error:
        tiny.trainer(tmp_path, tiny.TinySegmenter)
    assert str(error.value) == (
        "model is the class TinySegmenter; give a model of it, as TinySegmenter.from_pretrained(...)."
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lookahead_step", "did you mean 'lookahead_steps'?"), ("colour", "help(hf_fst.FSTConfig) lists them.")],
)
def test_an_option_that_is_not_there_is_one_sentence(name, hint):
    with pytest.raises(UserError) as error:
        FSTConfig(**{name: 3})
    assert str(error.value) == f"FSTConfig has no option {name!r}; {hint}"


@pytest.mark.parametrize("name", [None, "student_mean_iou"])
def test_the_worst_weights_are_not_chosen(tmp_path, name):
    with pytest.raises(UserError) as error:
        judged(tmp_path, tiny.images(2), metric_for_best_model=name, greater_is_better=False)
    assert str(error.value) == (
        "greater_is_better is False, but higher is better for every score of an evaluation; leave it out."
    )


def test_a_copy_of_the_options_asks_for_no_loss_either(tmp_path):
    steps = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 3, "eval_steps": 3}
    given = replace(tiny.config(tmp_path, rule="mean_teacher", load_best_model_at_end=True, **steps), seed=1)
    sets = {"train_dataset": tiny.images(2), "unlabeled_dataset": tiny.images(2), "eval_dataset": tiny.images(2)}
    args = FSTTrainer(tiny.model(), given, **sets).args
    assert args.metric_for_best_model == "teacher_mean_iou" and args.greater_is_better


@pytest.mark.parametrize(
    ("name", "sets"),
    [("eval_student_iou_LABEL_2", None), ("night_teacher_mean_iou", ("day", "night"))],
)
def test_every_score_that_is_logged_may_choose_the_best(tmp_path, name, sets):
    evaluated = tiny.images(2) if sets is None else {part: tiny.images(2, seed) for seed, part in enumerate(sets)}
    trainer = judged(tmp_path, evaluated, metric_for_best_model=name)
    trainer.train()
    assert trainer.state.best_metric == trainer.state.log_history[-2][f"eval_{name.removeprefix('eval_')}"]


@pytest.mark.parametrize(
    ("fill", "scored", "sentence"),
    [
        (
            255,
            None,
            "No pixel of the 2 evaluated images has a class, so there is nothing to score; is the id map right?",
        ),
        (
            -100,
            None,
            "No pixel of the 2 evaluated images has a class, so there is nothing to score; is the id map right?",
        ),
        (
            1,
            [0, 2],
            "No pixel of the 2 evaluated images has one of the classes 0, 2, so there is nothing to score; give other "
            "eval_classes or other images.",
        ),
    ],
)
def test_images_without_a_pixel_to_score_are_refused_before_the_first_step(tmp_path, fill, scored, sentence):
    evaluated = tiny.images(2)
    for item in evaluated:
        item["labels"].fill_(fill)
    trainer = judged(tmp_path, evaluated, eval_classes=scored)
    with pytest.raises(UserError) as error:
        trainer.train()
    assert str(error.value) == sentence and trainer.state.global_step == 0
    evaluated[-1]["labels"][0, 0] = 2  # one pixel is enough
    judged(tmp_path, evaluated, eval_classes=scored).train()


def test_deepspeed_with_the_alternative(tmp_path, monkeypatch):
    from hf_fst.training.trainer import FSTTrainer

    create = FSTTrainer.create_accelerator_and_postprocess

    def launched(self):
        create(self)
        self.is_deepspeed_enabled = True

    monkeypatch.setattr(FSTTrainer, "create_accelerator_and_postprocess", launched)
    assert refused(tmp_path) == (
        "DeepSpeed keeps its own copy of the weights, which a look-ahead cannot put back; use DDP or FSDP2."
    )
    assert refused(tmp_path, deepspeed={"zero_optimization": {"stage": 2}}) == (
        "deepspeed is given, but DeepSpeed keeps its own copy of the weights, which a look-ahead cannot put back; use "
        "DDP or FSDP2."
    )


def segformer():
    return SegformerConfig(num_labels=3, depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4)


def test_a_model_that_declares_an_output_without_logits(tmp_path):
    sentence = refused(tmp_path, SegformerModel(segformer()))
    ours = f"The output of SegformerModel is a BaseModelOutput, which has no logits; {SEGMENTATION}"
    # Trainer itself may refuse a bare encoder, in words of its own
    assert sentence == ours or "(SegformerModel)" in sentence


@dataclass
class ModelOutputWithMasks(ModelOutput):
    masks: torch.Tensor | None = None


class Declares(tiny.TinySegmenter):
    def forward(self, pixel_values, labels=None) -> tuple | ModelOutputWithMasks:
        """Never called."""


def test_a_model_of_ones_own_that_declares_an_output_without_logits(tmp_path):
    network = Declares(tiny.TinyConfig(num_labels=3))
    assert refused(tmp_path, network) == (
        f"The output of Declares is a ModelOutputWithMasks, which has no logits; {SEGMENTATION}"
    )


def test_a_module_without_classes(tmp_path):
    network = nn.Conv2d(3, 3, 1)
    assert refused(tmp_path, network) == f"The model is a Conv2d without config.num_labels; {SEGMENTATION}"


class Silent(tiny.TinySegmenter):
    """Does not declare what it returns."""

    result = staticmethod(lambda output: output)

    def forward(self, pixel_values, labels=None):
        return self.result(super().forward(pixel_values))


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (lambda output: (output.logits,), f"The output of Silent is a tuple without logits; {SEGMENTATION}"),
        (
            lambda output: SemanticSegmenterOutput(logits=output.logits.mean(dim=(2, 3))),
            f"The logits of Silent have shape (2, 3), but (images, 3, height, width) is needed; {SEGMENTATION}",
        ),
        (
            lambda output: SemanticSegmenterOutput(logits=output.logits[:, :2]),
            f"The logits of Silent have shape (2, 2, 4, 4), but (images, 3, height, width) is needed; {SEGMENTATION}",
        ),
    ],
)
@pytest.mark.parametrize("rule", ["supervised", "fst_d"])
def test_a_model_that_does_not_say_is_refused_when_it_is_first_used(tmp_path, monkeypatch, rule, result, sentence):
    monkeypatch.setattr(Silent, "result", staticmethod(result))
    network = Silent(tiny.TinyConfig(num_labels=3)).double()
    trainer = tiny.trainer(tmp_path, network, rule=rule)
    with pytest.raises(ValueError) as error:
        trainer.train()
    assert str(error.value) == sentence and trainer.state.global_step == 0


def test_a_classifier_of_whole_images_is_refused_when_it_is_first_used(tmp_path):
    network = SegformerForImageClassification(segformer())
    size = (32, 32)
    sets = (
        tiny.images(2, 1, size, dtype=torch.float32),
        tiny.images(2, 2, size, labels=False, dtype=torch.float32),
    )
    trainer = tiny.trainer(tmp_path, network, sets=sets, rule="mean_teacher")
    with pytest.raises(ValueError, match=r"The logits of SegformerForImageClassification have shape \(2, 3\), but"):
        trainer.train()


def test_what_looks_at_the_first_output_is_gone_after_it(tmp_path):
    network = tiny.model()
    trainer = tiny.trainer(tmp_path, network, rule="fst_d", max_steps=1)
    trainer.train()
    assert not network._forward_hooks and not trainer.teacher.model._forward_hooks
