"""A run that is interrupted and resumed is the run that was not: student, teacher, optimizer and metrics, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from hf_fst.rules import DeepFST, ImprovedFST, WideFST
from hf_fst.trainer import FSTTrainer
from tests import tiny
from tests.architectures import make


class Augmented(Dataset):
    """Images that look different each time they are drawn."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = dict(self.items[index])
        item["pixel_values"] = item["pixel_values"] + 0.3 * torch.randn(3, 1, 1)
        return item


class StopAt(TrainerCallback):
    """Ends a run after some step, as an interruption would, once its checkpoint is there."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = control.should_save = True


def run(directory, name, rule, *, stop=None, resume=None, best=False, **options):
    size = (32, 32)
    labeled = Augmented(tiny.images(4, 1, size, dtype=torch.float32))
    unlabeled = Augmented(tiny.images(6, 2, size, labels=False, dtype=torch.float32))
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True} if best else {}
    trainer = FSTTrainer(
        make(name, seed=0),
        tiny.config(
            directory,
            objective="class_mix",
            confidence_threshold=0.4,
            learning_rate=0.01,
            teacher_momentum=0.9,
            save_strategy="steps",
            save_steps=2 if best else 100,
            max_steps=6,
            logging_strategy="steps",
            logging_steps=2,
            **evaluation,
            **options,
        ),
        rule=rule,
        train_dataset=labeled,
        unlabeled_dataset=unlabeled,
        eval_dataset=tiny.images(3, 3, (30, 34), dtype=torch.float32) if best else None,
        callbacks=[StopAt(stop)] if stop else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    moments = [t for state in trainer.optimizer.state.values() for t in state.values()]
    ignored = ("runtime", "per_second", "flos")
    history = [
        {key: value for key, value in entry.items() if not any(word in key for word in ignored)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]
    return tiny.weights(trainer.model), tiny.weights(trainer.teacher.model), moments, history


# three steps an epoch with one micro-batch a group, two with two
CASES = {
    "inside": ("segformer", DeepFST(2), 4, {}),
    "boundary-accumulated": ("segformer", ImprovedFST("different"), 2, {"gradient_accumulation_steps": 2}),
    "inside-workers": ("segformer", WideFST(2), 4, {"dataloader_num_workers": 2}),
    "inside-best": ("segformer", DeepFST(1), 4, {"best": True}),
}
MORE = {
    "boundary": ("segformer", DeepFST(2), 3, {}),
    "inside-other-images": ("segformer", WideFST(2), 2, {}),
    "inside-accumulated": ("segformer", DeepFST(2), 3, {"gradient_accumulation_steps": 2}),
    "inside-carried": ("segformer", DeepFST(2), 4, {"lookahead_state": "carry", "teacher_buffers": "batch"}),
    "inside-beit": ("beit", DeepFST(1), 4, {}),
    "boundary-upernet": ("upernet_swin", DeepFST(1), 3, {}),
    "inside-accumulated-workers-best": (
        "segformer",
        WideFST(2),
        3,
        {"gradient_accumulation_steps": 2, "dataloader_num_workers": 2, "best": True},
    ),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)])
def test_resumed_run_is_the_uninterrupted_run(tmp_path, case):
    name, rule, stop, options = (CASES | MORE)[case]
    whole = run(tmp_path / "whole", name, rule, **options)
    run(tmp_path / "parts", name, rule, stop=stop, **options)
    parts = run(tmp_path / "parts", name, rule, resume=True, **options)
    for uninterrupted, resumed in zip(whole[:3], parts[:3], strict=True):
        assert len(resumed) > 0 and tiny.same(uninterrupted, resumed)
    logged = {entry["step"]: entry for entry in whole[3] if "loss" in entry}
    for entry in parts[3]:
        # what was logged over the interruption itself is a mean over fewer steps
        if "loss" in entry and entry["step"] > stop + 2:
            assert entry == logged[entry["step"]]
    scores = [[str(sorted(e.items())) for e in h if "eval_teacher_mean_iou" in e] for h in (whole[3], parts[3])]
    assert scores[0] == scores[1] and bool(scores[0]) == options.get("best", False)
    assert len(set(scores[0])) == len(scores[0])  # and the scores are not idle


def test_the_number_of_workers_does_not_matter(tmp_path):
    runs = [run(tmp_path, "segformer", WideFST(2), dataloader_num_workers=n) for n in (0, 1)]
    for one, other in zip(*runs, strict=True):
        assert str(one) == str(other) if isinstance(one[0], dict) else tiny.same(one, other)


def test_a_checkpoint_without_marker_or_of_another_run_is_refused(tmp_path):
    run(tmp_path, "segformer", DeepFST(1), stop=1)
    run(tmp_path, "segformer", DeepFST(1), stop=2, resume=True)
    checkpoint = tmp_path / "checkpoint-2"
    for name, rule, sentence in (
        ("segformer", WideFST(1), f"The checkpoint {checkpoint} is of rule 'fst_d' but this run has 'fst_w'; "),
        ("beit", DeepFST(1), f"The checkpoint {checkpoint} is of model_type 'segformer' but this run has 'beit'; "),
    ):
        with pytest.raises(ValueError) as error:
            run(tmp_path, name, rule, resume=str(checkpoint))
        assert str(error.value) == sentence + "resume with the same."
    (checkpoint / "complete.json").unlink()
    with pytest.raises(ValueError) as error:
        run(tmp_path, "segformer", DeepFST(1), resume=str(checkpoint))
    assert str(error.value) == (
        f"The checkpoint {checkpoint} is incomplete (it has no complete.json); use {tmp_path / 'checkpoint-1'}."
    )
    # told only to resume, it takes the last complete one
    weights = run(tmp_path, "segformer", DeepFST(1), resume=True)
    whole = run(tmp_path / "whole", "segformer", DeepFST(1))
    assert tiny.same(weights[0], whole[0]) and tiny.same(weights[1], whole[1])


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(ValueError) as error:
        run(tmp_path, "segformer", DeepFST(1), resume=True)
    assert str(error.value) == f"{tmp_path} holds no complete checkpoint to resume from."
