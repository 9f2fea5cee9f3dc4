"""Methods without a teacher of their own: one that is the student of the step itself, and one that never follows."""

from __future__ import annotations

import pytest
from transformers import TrainerCallback

from hf_fst.errors import UserError
from hf_fst.training.config import FSTConfig
from hf_fst.training.settings import resolve
from tests import tiny


class Remember(TrainerCallback):
    """Weights and statistics of student and teacher as the gradient of each step is taken."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append([tiny.weights(network) for network in self.networks.values()])


def run(tmp_path, follows, **options):
    remember = Remember()
    options = {"rule": "mean_teacher", "teacher_follows": follows, "learning_rate": 0.1, **options}
    trainer = tiny.trainer(tmp_path, tiny.model(batch_norm=True), callbacks=[remember], **options)
    start, remember.networks = tiny.weights(trainer.model), trainer.networks()
    trainer.train()
    return trainer, start, remember.seen


def parameters(trainer) -> int:
    return len(list(trainer.model.parameters()))


def test_a_live_teacher_labels_with_the_weights_of_the_student_whatever_the_momentum(tmp_path):
    trainer, _, seen = run(tmp_path, "live", teacher_momentum=0.5, momentum_warmup=True)
    count = parameters(trainer)
    assert len(seen) == 3
    for student, teacher in seen:
        assert tiny.same(student[:count], teacher[:count])
    assert not tiny.same(seen[0][0], seen[1][0])


@pytest.mark.parametrize("buffers", ["copy", "batch"])
def test_what_a_live_teacher_leaves_is_the_student(tmp_path, buffers):
    trainer, *_ = run(tmp_path, "live", teacher_buffers=buffers)
    assert tiny.same(tiny.weights(trainer.teacher.model), tiny.weights(trainer.model))


@pytest.mark.parametrize("buffers", ["copy", "ema"])
def test_a_teacher_that_never_follows_is_the_network_of_the_start_its_statistics_too(tmp_path, buffers):
    _, start, seen = run(tmp_path, "never", teacher_buffers=buffers)
    assert all(tiny.same(teacher, start) and not tiny.same(student, start) for student, teacher in seen[1:])


@pytest.mark.parametrize("follows", ["live", "never"])
@pytest.mark.parametrize("rule", ["naive_fst", "improved_fst", "fst_d", "fst_w"])
def test_a_look_ahead_needs_a_teacher_that_remembers(tmp_path, rule, follows):
    with pytest.raises(UserError) as error:
        FSTConfig(output_dir=str(tmp_path), rule=rule, teacher_follows=follows)
    assert str(error.value) == (
        f"teacher_follows is '{follows}', so there is no teacher that rule '{rule}' could let look ahead; use rule "
        "'mean_teacher', or teacher_follows 'before'."
    )


def test_the_settings_say_what_is_in_force(tmp_path):
    args = FSTConfig(output_dir=str(tmp_path), rule="mean_teacher", teacher_follows="live")
    assert (resolve(args).teacher_momentum, resolve(args).momentum_warmup) == (0.0, False)
