"""The `official` preset is what the authors' code does: against recordings of it, and against its loops told anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from hf_fst.training.config import FSTConfig
from hf_fst.training.trainer import FSTTrainer
from tests.device import USE_CPU
from tests.official import CLASSES, IGNORE, Loop, toy

RECORDINGS = Path(__file__).parents[1] / "data"


def as_model_inputs(batch: dict) -> dict:
    return {
        "pixel_values": batch["img"],
        "labels": batch["gt"].reshape(len(batch["gt"]), *batch["gt"].shape[-2:]),
        "unlabeled_pixel_values": batch["target_img"],
    }


class Replay(FSTTrainer):
    """Learns from given batches in their order; `history` is student and teacher after every step."""

    def __init__(self, batches: list[dict], **kwargs):
        self.batches, self.history = batches, []
        items = [{"pixel_values": image, "labels": torch.zeros(1)} for b in batches for image in b["img"]]
        super().__init__(train_dataset=items, unlabeled_dataset=items, **kwargs)
        self.add_callback(Remember(self))

    def get_train_dataloader(self):
        super().get_train_dataloader()
        return DataLoader([as_model_inputs(b) for b in self.batches], batch_size=None)

    def lookahead_groups(self, count, size):
        for future in self.batches[self.state.global_step]["future"][:count]:
            yield [self._prepare_inputs(as_model_inputs(future))]


class Remember(TrainerCallback):
    """Both networks after every step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, *args, **kwargs):
        networks = self.trainer.networks().values()
        self.trainer.history.append([{k: v.clone() for k, v in n.state_dict().items()} for n in networks])


def replay(directory, batches, student, rule, lr=0.1, optimizer="sgd", reference=None, **options):
    options = {"objective": "pseudo_label", "unlabeled_weighting": "quality"} | options
    args = FSTConfig(
        output_dir=str(directory),
        preset="official",
        rule=rule,
        max_steps=len(batches),
        per_device_train_batch_size=len(batches[0]["img"]),
        max_grad_norm=0,
        report=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    steppers = {
        "sgd": lambda p: torch.optim.SGD(p, lr=lr),
        "momentum": lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=lr),
    }
    stepper = steppers[optimizer](student.parameters())
    constant = torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: 1.0)
    trainer = Replay(batches, model=student, args=args, optimizers=(stepper, constant), reference_model=reference)
    trainer.train()
    return trainer.history


def assert_same(history, students, teachers, tolerance=1e-12 if USE_CPU else 1e-9):  # recorded on a CPU
    assert len(history) == len(students)
    for t, (pair, student, teacher) in enumerate(zip(history, students, teachers, strict=True)):
        for name, mine, theirs in zip(("student", "teacher"), pair, (student, teacher), strict=True):
            for key, value in theirs.items():
                error = (mine[key].cpu() - value.cpu()).abs().max().item()
                assert error <= tolerance, f"step {t}, {name}, {key}: {error}"


@pytest.mark.parametrize(
    ("name", "variant", "rule"),
    [("fst_d_K3_sgd_plain", "fst_d", "fst_d"), ("dacs_K0_sgd_plain", "dacs", "mean_teacher")],
)
@pytest.mark.parametrize("who", ["the trainer", "the loops told anew"])
def test_the_recordings_of_the_authors_code_are_reproduced(tmp_path, name, variant, rule, who):
    recording = torch.load(RECORDINGS / f"{name}.pt", weights_only=False)
    student, alpha, threshold = toy(recording["init_student"]), recording["alpha"], recording["threshold"]
    batches = recording["data"]
    if who == "the trainer":
        history = replay(
            tmp_path, batches, student, rule, recording["lr"], teacher_momentum=alpha, confidence_threshold=threshold
        )
    else:
        flat = [{**b, "gt": b["gt"].squeeze(1)} for b in batches]
        loop = Loop(variant, flat, lr=recording["lr"], alpha=alpha, threshold=threshold).run(student)
        history = list(zip(loop.students, loop.teachers, strict=True))
    assert_same(history, recording["student"], recording["teacher"])


def made_up(count: int, futures: int = 0, seed: int = 3) -> list[dict]:
    draw = torch.Generator().manual_seed(seed)

    def one():
        labels = torch.randint(CLASSES, (2, 4, 4), generator=draw).repeat_interleave(4, 1).repeat_interleave(4, 2)
        labels[:, :2, :7] = IGNORE
        images = [F.avg_pool2d(torch.randn(2, 3, 16, 16, generator=draw).double(), 3, 1, 1) * 2 for _ in range(2)]
        return {"img": images[0], "gt": labels, "target_img": images[1] + 0.3}

    return [{**one(), "future": [one() for _ in range(futures)]} for _ in range(count)]


ADAPTATION = {
    "fst_d, K = 1": ("fst_d", "fst_d", {"count": 1}, {"lookahead_steps": 1}),
    "fst_d, momentum": ("fst_d", "fst_d", {"optimizer": "momentum"}, {}),
    "fst_d, AdamW": ("fst_d", "fst_d", {"optimizer": "adamw", "lr": 0.01}, {}),
    "fst_d, ignored rows": (
        "fst_d",
        "fst_d",
        {"ignore_top": 2, "ignore_bottom": 3},
        {"pseudo_ignore_top": 2, "pseudo_ignore_bottom": 3},
    ),
    "fst_w": ("fst_w", "fst_w", {}, {}),
    "fst_w, N = 2, AdamW": (
        "fst_w",
        "fst_w",
        {"count": 2, "optimizer": "adamw", "lr": 0.01},
        {"lookahead_students": 2},
    ),
    "mean teacher, AdamW": ("dacs", "mean_teacher", {"optimizer": "adamw", "lr": 0.01}, {}),
}


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("case", ADAPTATION)
def test_domain_adaptation_is_the_authors_loop(tmp_path, case, batch_norm):
    variant, rule, loop, options = ADAPTATION[case]
    batches = made_up(5, loop.get("count", 3) if variant == "fst_w" else 0)
    expected = Loop(variant, batches, **loop).run(toy(batch_norm=batch_norm))
    step = {key: loop[key] for key in ("lr", "optimizer") if key in loop}
    options = {"teacher_momentum": 0.9, "confidence_threshold": 0.45} | options
    history = replay(tmp_path, batches, toy(batch_norm=batch_norm), rule, **step, **options)
    assert_same(history, expected.students, expected.teachers)


def test_the_feature_distance_is_the_authors(tmp_path):
    batches, reference = made_up(4), toy(seed=5)
    expected = Loop("fst_d", batches, distance=0.3, reference=reference, distance_classes=(1, 2)).run(toy())
    history = replay(
        tmp_path,
        batches,
        toy(),
        "fst_d",
        reference=reference,
        teacher_momentum=0.9,
        confidence_threshold=0.45,
        feature_distance_weight=0.3,
        feature_distance_classes=[1, 2],
    )
    assert_same(history, expected.students, expected.teachers)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("ohem", [None, (0.3, 50), (0.3, 300), (0.3, 10000)])
@pytest.mark.parametrize(("variant", "rule"), [("semi_baseline", "mean_teacher"), ("semi_fst", "fst_d")])
def test_semi_supervised_training_is_the_authors_loop(tmp_path, variant, rule, ohem, batch_norm):
    batches = made_up(4, seed=4)  # of these no entropy lies at the limit, where rounding would decide
    loop = Loop(variant, batches, optimizer="momentum", lr=0.05, alpha=0.8, ohem=ohem)
    expected = loop.run(toy(batch_norm=batch_norm))
    options = {"ohem_threshold": ohem[0], "ohem_min_kept": ohem[1]} if ohem else {}
    history = replay(
        tmp_path,
        batches,
        toy(batch_norm=batch_norm),
        rule,
        lr=0.05,
        optimizer="momentum",
        teacher_momentum=0.8,
        **{"objective": "entropy_drop", "unlabeled_weighting": None, "cut_probability": 0.0, **options},
    )
    assert_same(history, expected.students, expected.teachers)
