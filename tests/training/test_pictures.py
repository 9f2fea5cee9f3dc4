"""Pictures of what training sees: what is in them, where they go, and that training does not notice."""

from __future__ import annotations

import copy
import io
import random
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.trainer_callback import TrainerState

from hf_fst.data.transforms import Normalization
from hf_fst.method.rules import RULES
from hf_fst.training.pictures import Pictures
from hf_fst.training.settings import Settings
from tests import tiny
from tests.device import noise_state

PALETTE = [[200, 0, 0], [0, 100, 0], [0, 0, 50]]


def trained(folder, rule="fst_d", **options):
    """A trainer after a few restless steps: batch norm, dropout, mixing, a teacher that moves fast."""
    objective = {} if rule == "supervised" else {"objective": "class_mix"}
    restless = {"learning_rate": 0.05, "teacher_momentum": 0.5, "momentum_warmup": False, "max_steps": 3}
    network = tiny.model(batch_norm=True, dropout=0.3)
    trainer = tiny.trainer(folder, network, rule=rule, **{**restless, **objective, **options})
    trainer.train()
    return trainer


def pictures_of(trainer):
    """The callback that draws."""
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Pictures))


def left_behind(trainer):
    """Every tensor and every random state that a run leaves."""
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    kind, keys, *rest = np.random.get_state()
    noise = [*noise_state(), torch.from_numpy(keys.astype(np.int64)), torch.tensor(rest)]
    noise.append(torch.tensor(random.getstate()[1]))
    return tiny.weights(trainer.model) + tiny.weights(trainer.teacher.model) + moments + noise


OPTIONS = [
    *[{"rule": rule} for rule in RULES],
    {"rule": "fst_w", "lookahead_labels": "present"},
    {"rule": "fst_d", "teacher_buffers": "batch", "gradient_accumulation_steps": 2},
    {"rule": "fst_d", "objective": "cut_mix", "unlabeled_per_labeled": 2, "lookahead_batches": "different"},
    {"rule": "mean_teacher", "objective": "supervised"},
    {"rule": "fst_d", "objective": "entropy_drop", "preset": "official"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
def test_a_run_with_pictures_is_bit_for_bit_the_run_without(tmp_path, options):
    with_pictures = left_behind(trained(tmp_path / "with", **options, picture_steps=2))
    without = left_behind(trained(tmp_path / "without", **options))
    assert tiny.same(with_pictures, without)
    assert sorted(path.name for path in (tmp_path / "with/pictures").iterdir()) == [
        "step-1.png",
        "step-2.png",
    ]
    assert not (tmp_path / "without/pictures").exists()


def test_the_first_step_and_every_so_many_get_a_picture(tmp_path):
    trained(tmp_path, max_steps=5, picture_steps=2)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"step-1.png", "step-2.png", "step-4.png"}


@pytest.mark.parametrize("steps", [None, 0])
def test_none_and_zero_draw_nothing(tmp_path, steps):
    trained(tmp_path, picture_steps=steps, max_steps=1)
    assert not (tmp_path / "pictures").exists()


def test_only_the_first_process_writes(tmp_path):
    trainer = trained(tmp_path, max_steps=1)
    trainer.settings = Settings(**{**vars(trainer.settings), "picture_steps": 1})
    pictures = pictures_of(trainer)
    assert pictures.watch(trainer.group[0])  # every process takes part in what is computed
    pictures.on_step_end(trainer.args, TrainerState(is_world_process_zero=False), None)
    assert not (tmp_path / "pictures").exists()


class Kept:
    """The callback of a trainer as it was at the end of the last step."""

    def __init__(self, trainer):
        self.trainer, self.last = trainer, None
        pictures = pictures_of(trainer)
        draw = pictures.on_step_end

        def on_step_end(*args, **kwargs):
            self.last = copy.copy(pictures)
            draw(*args, **kwargs)

        pictures.on_step_end = on_step_end


@pytest.mark.parametrize("rule", ["naive_fst", "fst_d", "fst_w", "mean_teacher"])
def test_labels_are_those_before_and_after_the_look_ahead(tmp_path, rule):
    """At step 0 teacher and student are equal, so that both φ and φ' are the start; after it the teacher is φ_1."""
    network = tiny.model()
    start = tiny.model()
    # so large a step that the imagined students label otherwise
    options = {"learning_rate": 5.0, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 1, "picture_steps": 1}
    trainer = tiny.trainer(tmp_path, network, rule=rule, teacher_momentum=0.5, momentum_warmup=False, **options)
    kept = Kept(trainer)
    trainer.train()
    seen = kept.last

    def labels(model):
        with torch.no_grad():
            logits = model.eval()(pixel_values=seen.images).logits
        return torch.nn.functional.interpolate(logits, (8, 8), mode="bilinear").argmax(dim=1)

    assert torch.equal(seen.labels_before, labels(start))
    assert torch.equal(seen.batch["pseudo_labels"], labels(trainer.teacher.model))
    assert torch.equal(seen.labels_student, labels(start))
    changes = (seen.labels_before != seen.batch["pseudo_labels"]).sum()
    assert changes == 0 if rule == "mean_teacher" else changes > 0


class Says:
    """A network or teacher that gives every image the same labels (H,W)."""

    buffers = "copy"

    def __init__(self, labels):
        self.labels = torch.tensor(labels)
        self.model = torch.nn.Module()

    def __call__(self, pixel_values):
        logits = torch.nn.functional.one_hot(self.labels, 3).permute(2, 0, 1)[None].double()
        return SemanticSegmenterOutput(logits=logits.expand(len(pixel_values), -1, -1, -1))

    def modules(self):
        return []

    def eval(self):
        return self


def watching(batch):
    """The callback of a stand-in for a trainer, at its first step."""
    parts = {"state": SimpleNamespace(global_step=0), "normalization": Normalization()}
    parts |= {"settings": SimpleNamespace(picture_steps=1), "learning_objective": SimpleNamespace(align_corners=False)}
    seen = Pictures(SimpleNamespace(**parts))
    assert seen.watch(batch)
    return seen


def test_changed_pixels_are_in_color_and_the_others_faded():
    crops = torch.zeros(1, 3, 2, 2)
    labels = torch.tensor([[[2, 255], [0, 0]]])
    seen = watching({"pixel_values": crops, "labels": labels, "unlabeled_pixel_values": crops})
    seen.before(Says([[0, 1], [1, 2]]))
    prepared = {
        "pseudo_labels": torch.tensor([[[0, 1], [1, 0]]]),
        "pseudo_confidence": torch.tensor([[[0.5, 0.5], [1.0, 1.0]]]),
        "mixed_pixel_values": crops,
        "mixed_labels": labels,
        "mixed_weight": torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]),
    }
    seen.after(Says([[1, 1], [1, 1]]), {**seen.batch, **prepared})
    first, second = (dict(row) for row in seen.rows(PALETTE))
    assert list(first) == [
        "labeled crop",
        "its labels (hatched: ignored)",
        "mixed image",
        "mixed labels (faded: weight 0)",
        "student on it",
    ]
    assert first["its labels (hatched: ignored)"].tolist() == [[[0, 0, 50], [255] * 3], [[200, 0, 0], [200, 0, 0]]]
    # 0.2 · color + 0.8 · 255, but for the pixel that counts
    assert first["mixed labels (faded: weight 0)"].tolist() == [
        [[0, 0, 50], [255, 255, 255]],
        [[244, 204, 204], [244, 204, 204]],
    ]
    assert list(second) == [
        "unlabeled crop",
        "teacher before look-ahead",
        "teacher after it: 25.0 % changed",
        "its confidence, mean 0.75",
        "student on it",
    ]
    # the pixel that went from 2 to 0 is in color
    assert second["teacher after it: 25.0 % changed"].tolist() == [
        [[244, 204, 204], [204, 224, 204]],
        [[204, 224, 204], [200, 0, 0]],
    ]
    assert second["student on it"].tolist() == [[[0, 100, 0]] * 2] * 2


def test_labeled_images_alone_make_one_row_each():
    batch = {"pixel_values": torch.zeros(3, 3, 2, 2), "labels": torch.zeros(3, 2, 2, dtype=torch.int64)}
    seen = watching(batch)
    seen.before(None)  # nobody labels
    seen.after(Says([[1, 1], [1, 1]]), batch)
    rows = seen.rows(PALETTE)
    assert [[title for title, _ in row] for row in rows] == [["labeled crop", "its labels", "student on it"]] * 2
    assert rows[0][2][1].tolist() == [[[0, 100, 0]] * 2] * 2


def test_images_come_back_from_their_normalization():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    values = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.array_equal(Normalization().colors(torch.from_numpy(values).permute(2, 0, 1)), image)


# where they go


def picture_of(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_tensorboard_gets_the_picture_that_lies_on_disk(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trained(tmp_path, picture_steps=2, report_to=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0})
    events.Reload()
    images = events.Images("pictures")
    assert [image.step for image in images] == [1, 2]
    on_disk = picture_of(tmp_path / "pictures/step-2.png")
    assert np.array_equal(picture_of(io.BytesIO(images[1].encoded_image_string)), on_disk)


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_gets_the_picture_that_lies_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trained(tmp_path, max_steps=1, picture_steps=1, report_to=["trackio"], project="pictures-test")
    (sent,) = (tmp_path / "trackio/media").rglob("*.png")
    assert np.array_equal(picture_of(sent), picture_of(tmp_path / "pictures/step-1.png"))


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_gets_the_picture_that_lies_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(tmp_path, max_steps=1, picture_steps=1, report_to=["wandb"])
    import wandb

    wandb.finish()
    (sent,) = (tmp_path / "wandb").rglob("pictures*.png")
    assert np.array_equal(picture_of(sent), picture_of(tmp_path / "pictures/step-1.png"))
