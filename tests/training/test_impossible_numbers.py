"""Numbers and names with which no run could go on are refused when the config is made, in a sentence."""

from __future__ import annotations

import pytest
import torch
from transformers import IntervalStrategy, SegformerConfig, SegformerForSemanticSegmentation

from hf_fst.data import transforms
from hf_fst.errors import UserError
from hf_fst.evaluation import Look
from hf_fst.training.config import FSTConfig
from tests import tiny
from tests.recipes import tiny as recipe

WRONG = {
    "seed": (-1, 2**32, 2**70),
    "data_seed": (-3,),
    "learning_rate": (-0.5, float("nan"), float("inf")),
    "weight_decay": (-1, float("nan")),
    "adam_beta1": (1.5, -0.1),
    "adam_beta2": (2,),
    "adam_epsilon": (-1e-8,),
    "max_grad_norm": (-1,),
    "per_device_train_batch_size": (0, -2, 10**30),
    "per_device_eval_batch_size": (0,),
    "gradient_accumulation_steps": (0, -1),
    "dataloader_num_workers": (-1,),
    "lookahead_steps": (-1, 10**30, 10**9),
    "unlabeled_per_labeled": (0, 10**30),
    "report_to": ("wandbb", ["tensorboard", "nothing"]),
    "torch_compile_backend": ("nothing",),
    "torch_compile_mode": ("nothing",),
    "remove_unused_columns": (True,),
    "max_steps": (0, -5),
    "num_train_epochs": (0, -1.5),
    "save_steps": (0, -1),
    "logging_steps": (-3,),
    "eval_delay": (-1,),
    "save_total_limit": (-2,),
    "eval_accumulation_steps": (0,),
    "ddp_timeout": (0,),
    "ddp_backend": ("telepathy",),
    "log_level": ("loud",),
    "log_level_replica": ("loud",),
    "optim_args": ("momentum", "momentum=0.5", "beta1=x"),
    "lr_scheduler_kwargs": ({"wobble": 1}, "wobble"),
    "lr_scheduler_type": ("warmup_stable_decay",),
    "gradient_checkpointing_kwargs": ({"often": True},),
    "dataloader_prefetch_factor": (0, 4),
    "dataloader_persistent_workers": (True,),
    "warmup_steps": (-1, -0.1, "10%"),
    "torch_empty_cache_steps": (0, 1.5),
    "ddp_bucket_cap_mb": (0,),
    "bf16": ("yes",),
    "fp16": (2,),
    "push_to_hub": ("true",),
    "save_strategy": ("sometimes", 5),
    "eval_strategy": (None, "step"),
    "logging_strategy": ([],),
    "optim": ("adam", 7),
    "hub_strategy": ("never",),
    "metric_for_best_model": (1,),
    "activation_checkpointing_kwargs": ("fast", {"often": True}),
    "accelerator_config": (3, ["split_batches"]),
    "fsdp_config": (True,),
    "parallelism_config": ("two",),
    "label_names": ("labels",),
    "output_dir": ("", 3),
    "eval_classes": ([],),
    "feature_distance_classes": ([],),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_cannot_be_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(UserError, match=name) as error:
        FSTConfig(**{"output_dir": str(tmp_path), name: value})
    assert "\n" not in str(error.value) and ";" in str(error.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"save_steps": 1.5}, "save_steps is 1.5; give a whole number of steps, or a share of all of them below 1"),
        ({"logging_steps": 0}, "logging_steps is 0; use a number above 0"),
        ({"eval_strategy": "steps", "eval_steps": 2.5}, "eval_steps is 2.5; give a whole number"),
        ({"eval_strategy": "steps", "eval_steps": float("nan")}, "eval_steps is nan; use a finite number"),
        ({"fp16": True, "bf16": True}, "cannot be used .*fp16.*bf16.*; correct them"),
        ({"fp16_full_eval": True, "bf16_full_eval": True}, "cannot be used .*; correct them"),
        ({"load_best_model_at_end": True}, "cannot be used .*load_best_model_at_end.*; correct them"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 6},
            "cannot be used .*load_best_model_at_end.*; correct them",
        ),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "cannot be used .*reduce_lr_on_plateau.*; correct them"),
        ({"fsdp": "everything"}, "cannot be used .*everything.*; correct them"),
        ({"accelerator_config": {"speed": 9}}, "cannot be used .*speed.*; correct them"),
        ({"debug": "everything"}, "cannot be used .*everything.*; correct them"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        FSTConfig(output_dir=str(tmp_path), **options)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this GPU may be one that can")
def test_what_the_machine_cannot_do_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be used .*tf32.*; correct them"):
        FSTConfig(output_dir=str(tmp_path), tf32=True)


def test_evaluations_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="eval_strategy is 'epoch', but eval_dataset is missing; give it, or leave"):
        tiny.trainer(tmp_path, rule="mean_teacher", eval_strategy="epoch")


def test_students_of_fst_w_are_bounded_too(tmp_path):
    with pytest.raises(UserError, match="lookahead_students is .* use a number from 1 to 1000"):
        FSTConfig(output_dir=str(tmp_path), rule="fst_w", lookahead_students=10**30)


def test_the_ends_of_what_can_be_are_taken(tmp_path):
    ends = {
        "seed": 2**32 - 1,
        "learning_rate": 0.0,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "lookahead_steps": 0,
    }
    assert FSTConfig(output_dir=str(tmp_path), **ends).seed == 2**32 - 1


def test_other_ways_to_say_the_same_are_taken(tmp_path):
    ways = {"bf16": 1, "output_dir": tmp_path, "report_to": ["none"], "eval_strategy": IntervalStrategy.NO}
    ways |= {
        "activation_checkpointing_kwargs": '{"use_reentrant": false}',
        "accelerator_config": {"even_batches": False},
    }
    config = FSTConfig(**ways)
    config.check()  # of what is made of it as well
    assert config.activation_checkpointing_kwargs == {"use_reentrant": False} and config.bf16
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3}
    assert FSTConfig(output_dir=str(tmp_path), **best).save_steps == 0.3


def test_a_tracker_that_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_fst.training.limits.get_available_reporting_integrations", lambda: ["trackio"])
    with pytest.raises(UserError, match="report_to is 'wandb', which is not installed; install it or leave it out"):
        FSTConfig(output_dir=str(tmp_path), report_to=["trackio", "wandb"])


def test_checkpointing_where_a_network_has_none(tmp_path):
    with pytest.raises(
        UserError, match="gradient_checkpointing is true, but TinySegmenter does not support it; leave it out"
    ):
        tiny.trainer(tmp_path, rule="mean_teacher", gradient_checkpointing=True)
    sizes = {key: value for key, value in recipe.MODEL.items() if key != "model_type"}
    network = SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **sizes))
    images = [tiny.images(2, seed, (32, 32), labels=seed == 1, dtype=torch.float32) for seed in (1, 2)]
    tiny.trainer(tmp_path, network, sets=images, rule="mean_teacher", gradient_checkpointing=True)


def test_steps_from_evaluation_to_evaluation_where_there_are_evaluations(tmp_path):
    with pytest.raises(UserError, match="eval_steps is -7; use a number above 0"):
        FSTConfig(output_dir=str(tmp_path), eval_strategy="steps", eval_steps=-7)
    FSTConfig(output_dir=str(tmp_path), save_strategy="no", save_steps=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"optim": "sgd", "optim_args": "momentum=0.9,beta1=0.5"},
            "of which 'beta1=0.5' changes nothing; leave it out",
        ),
        (
            {"optim": "sgd", "optim_args": "momentum=-1"},
            "optim is 'sgd' and optim_args 'momentum=-1', which cannot be",
        ),
        ({"adam_beta2": 1.0}, "optim is 'adamw_torch.*', which cannot be made .*beta"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}}, "with which no schedule can be"),
    ],
)
def test_optimizers_and_schedules_that_cannot_be_made(tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        FSTConfig(output_dir=str(tmp_path), **options)


def test_optimizers_and_schedules_with_arguments_of_their_own(tmp_path):
    FSTConfig(output_dir=str(tmp_path), optim="sgd", optim_args="momentum=0.9, nesterov=true")
    schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    FSTConfig(output_dir=str(tmp_path), dataloader_num_workers=2, dataloader_persistent_workers=True, **schedule)


def test_sharding_with_nobody_to_share(tmp_path):
    with pytest.raises(UserError, match="fsdp is given, but there is only one process.*accelerate launch"):
        tiny.trainer(tmp_path, rule="mean_teacher", fsdp="full_shard")


@pytest.mark.parametrize("option", [{"neftune_noise_alpha": 5.0}, {"use_liger_kernel": True}])
def test_options_for_text_are_refused(tmp_path, option):
    with pytest.raises(UserError, match=f"{next(iter(option))} is .* for language models"):
        tiny.trainer(tmp_path, rule="mean_teacher", **option)


@pytest.mark.parametrize(
    "make",
    [
        lambda: transforms.training(10**30),
        lambda: transforms.training((8, 40_000)),
        lambda: transforms.training(8, scale=(0, 8)),
        lambda: transforms.training(8, random_scale=(0.5, float("inf"))),
        lambda: transforms.Evaluation((10**30, 8)),
        lambda: transforms.CenterCrop(-1),
    ],
)
def test_crops_and_sizes_that_no_machine_could_make(make):
    with pytest.raises(UserError, match="; give (sides of 1 to 32768 pixels|0 < low <= 1 <= high <= 100)"):
        make()


@pytest.mark.parametrize(
    "options",
    [{"scales": (float("inf"),)}, {"scales": (float("nan"),)}, {"scales": (1e30,)}, {"scales": ()}, {"resize": (0, 0)},
     {"resize": (10**6, 5)}, {"window": 0}],
)  # fmt: skip
def test_views_that_no_machine_could_make(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Look(**options)
