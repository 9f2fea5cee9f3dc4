"""The teacher: its average, its buffers, its precision."""

from __future__ import annotations

import pytest
import torch

from hf_fst.method.teacher import EMATeacher, momentum_at
from tests import tiny
from tests.device import DEVICE


def moved(network, by=1.0):
    """Adds a number to every floating-point weight and one to every counter."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(by if tensor.is_floating_point() else 1)
    return network


def follow(teacher, student, momentum):
    teacher.follow(list(student.parameters()), list(student.buffers()), momentum)


@pytest.mark.parametrize("buffers, statistics, counter", [("copy", 4.0, 1), ("ema", 1.0, 1), ("batch", 0.0, 0)])
def test_parameters_are_averaged_and_buffers_go_by_the_policy(buffers, statistics, counter):
    student = tiny.model(batch_norm=True)
    teacher = EMATeacher(student, buffers)
    start = tiny.weights(student)
    follow(teacher, moved(student, 4.0), 0.75)  # 3/4·x + 1/4·(x + 4) = x + 1
    parameters = len(list(student.parameters()))
    for now, then in zip(tiny.weights(teacher.model)[:parameters], start[:parameters], strict=True):
        assert torch.allclose(now, then + 1, rtol=0, atol=1e-15)
    assert torch.allclose(teacher.model.norm.running_mean.cpu(), torch.full((4,), statistics, dtype=torch.float64))
    assert torch.allclose(teacher.model.norm.running_var.cpu(), torch.full((4,), 1 + statistics, dtype=torch.float64))
    assert teacher.model.norm.num_batches_tracked == counter


@pytest.mark.parametrize("momentum, who", [(0.0, "student"), (1.0, "teacher")])
def test_the_ends_of_the_momentum_are_exact(momentum, who):
    student = tiny.model()
    teacher = EMATeacher(student, "ema")
    start = tiny.weights(teacher.model)
    follow(teacher, moved(student, 0.1), momentum)
    expected = tiny.weights(student) if who == "student" else start
    assert tiny.same(tiny.weights(teacher.model), expected)


def test_the_teacher_is_a_frozen_copy_that_labels_without_noise():
    student = tiny.model(batch_norm=True, dropout=0.5).train()
    teacher = EMATeacher(student)
    assert student.training and not any(module.training for module in teacher.model.modules())
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert all(p.requires_grad for p in student.parameters())
    image = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    assert not teacher(image).logits.requires_grad
    assert torch.equal(teacher(image).logits, teacher(image).logits)
    moved(student)
    assert not tiny.same(tiny.weights(student), tiny.weights(teacher.model))


def test_with_batch_statistics_it_normalises_by_the_images_at_hand_and_has_no_dropout():
    student = tiny.model(batch_norm=True, dropout=0.5)
    teacher = EMATeacher(student, "batch")
    images = 3 + 5 * torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = images.to(DEVICE)
    features = student.stem(images)
    mean, variance = features.mean((0, 2, 3), keepdim=True), features.var((0, 2, 3), unbiased=False, keepdim=True)
    expected = student.head(torch.tanh((features - mean) / (variance + 1e-5).sqrt()))
    assert torch.allclose(teacher(images).logits, expected, atol=1e-12)


def test_a_half_precision_student_has_a_full_precision_teacher():
    student = tiny.model(dtype=torch.float32)
    teacher = EMATeacher(student)
    follow(teacher, student.to(torch.bfloat16), 0.5)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}


def test_warm_up_is_the_mean_of_all_students_until_the_constant_is_reached():
    assert [momentum_at(t, 0.75, True) for t in range(6)] == [0, 1 / 2, 1 - 1 / 3, 3 / 4, 0.75, 0.75]
    assert [momentum_at(t, 0.75, False) for t in (0, 100)] == [0.75, 0.75]


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError) as error:
        EMATeacher(tiny.model(), "average")
    assert str(error.value) == "teacher_buffers is 'average'; use one of copy, ema, batch."
