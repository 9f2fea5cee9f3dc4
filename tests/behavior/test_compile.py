"""torch.compile and a look-ahead go together: compiled networks are the same modules and weights."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from hf_fst.method.rules import DeepFST, ImprovedFST, MeanTeacher, NaiveFST, Supervised, WideFST
from tests import tiny

COMPILED = {"torch_compile": True}


def trained(tmp_path, rule, **options):
    torch._dynamo.reset()
    trainer = tiny.trainer(
        tmp_path,
        tiny.model(batch_norm=True, dropout=0.3),
        trainer_options={"rule": rule, "objective": "supervised"} if isinstance(rule, Supervised) else {"rule": rule},
        **({"objective": "supervised"} if isinstance(rule, Supervised) else {"teacher_momentum": 0.8}),
        learning_rate=0.05,
        max_grad_norm=0.5,
        **options,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "rule",
    [
        *(pytest.param(rule, marks=pytest.mark.slow) for rule in (Supervised(), NaiveFST(), ImprovedFST())),
        *(MeanTeacher(), DeepFST(2), WideFST(2)),
    ],
    ids=repr,
)
def test_a_compiled_look_ahead_is_the_one_that_is_not(tmp_path, rule, backend):
    networks = []
    for options in ({}, {**COMPILED, "torch_compile_backend": backend}):
        trainer = trained(tmp_path, rule, gradient_accumulation_steps=2, **options)
        networks.append([tiny.weights(network) for network in trainer.networks().values()])
        assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule) == bool(options)
        assert isinstance(trainer.teacher.faster, torch._dynamo.OptimizedModule) == bool(options)
    for plain, compiled in zip(*networks, strict=True):
        assert tiny.distance(plain, compiled) < 1e-12


@pytest.mark.parametrize("objective", ["class_mix", "entropy_drop"])
def test_nothing_is_compiled_again_when_training_and_evaluation_take_turns(tmp_path, objective):
    graphs = []

    class Count(DeepFST):
        def look_ahead(self, step):
            super().look_ahead(step)
            graphs.append(counters["stats"]["unique_graphs"])

    counters.clear()
    options = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2, "max_steps": 6}
    torch._dynamo.reset()
    trainer = tiny.trainer(
        tmp_path,
        tiny.model(batch_norm=True),
        trainer_options={"eval_dataset": tiny.images(4, 3)},
        rule="fst_d",
        lookahead_steps=2,
        objective=objective,
        torch_compile_backend="eager",
        logging_strategy="steps",
        logging_steps=2,
        **COMPILED,
        **options,
    )
    trainer.rule = Count(2)
    trainer.train()
    assert graphs[1] > 0 and graphs[1:] == graphs[1:2] * 5
