"""A step needs no `Trainer`: a hand-written loop with a model, an optimizer and an accelerator can look ahead too."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from hf_fst.method.lookahead import Context, LookAhead, Step
from hf_fst.method.rules import DeepFST
from hf_fst.method.teacher import EMATeacher
from hf_fst.training.journal import Journal
from tests.method.test_rules import Number, Square


def test_a_hand_written_loop_takes_the_step_of_the_equation():
    accelerator = Accelerator()
    student = Number().to(accelerator.device)
    teacher = EMATeacher(student)
    with torch.no_grad():
        teacher.model.theta.zero_()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.25)
    settings = LookAhead(mu=0.75, mu_ahead=0.25, warmup=False, virtual_steps=3, max_grad_norm=0)
    context = Context(teacher, Square(), optimizer, accelerator, settings, Journal(1), fresh_groups=None)
    group = [{"pixel_values": torch.zeros(1, dtype=torch.float64, device=accelerator.device)}]

    step = Step(context, student, group, number=0)
    step.look_ahead(DeepFST(3))
    assert teacher.model.theta.item() == 2.283203125  # worked by hand in test_rules.py
    assert student.theta.item() == 4
    loss, _ = step.gradient(group)
    optimizer.step()
    assert loss.item() == (4 - 2.283203125) ** 2
    assert student.theta.item() == 4 - 0.25 * 2 * (4 - 2.283203125)
