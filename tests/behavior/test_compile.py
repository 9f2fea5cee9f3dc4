"""torch.compile and a look-ahead go together: the compiled student is the same modules and weights."""

from __future__ import annotations

import pytest
import torch

from hf_fst.method.rules import DeepFST, WideFST
from tests import tiny


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", [DeepFST(2), WideFST(2)], ids=repr)
def test_a_compiled_look_ahead_is_the_one_that_is_not(tmp_path, rule, backend):
    networks = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": backend}):
        torch._dynamo.reset()
        trainer = tiny.trainer(
            tmp_path,
            tiny.model(batch_norm=True, dropout=0.3),
            trainer_options={"rule": rule},
            gradient_accumulation_steps=2,
            learning_rate=0.05,
            max_grad_norm=0.5,
            teacher_momentum=0.8,
            momentum_warmup=False,
            **options,
        )
        trainer.train()
        networks.append((tiny.weights(trainer.networks()["student"]), tiny.weights(trainer.teacher.model)))
        assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule) == bool(options)
    for plain, compiled in zip(*networks, strict=True):
        assert tiny.distance(plain, compiled) < 1e-12
