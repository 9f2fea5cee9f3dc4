"""The trainer around the rules: models, files, evaluation, health, and steps that must not count."""

from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor, pipeline

from hf_fst.method.objectives import ClassMixObjective, PseudoLabelObjective
from hf_fst.method.rules import DeepFST, NaiveFST, Supervised, WideFST
from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.architectures import ARCHITECTURES, make
from tests.tolerance import assert_same_logits, assert_same_weights


def photos(dtype=torch.float32):
    """Two labelled and two unlabelled images of 32 by 32 pixels."""
    size = (32, 32)
    return tiny.images(2, 1, size, dtype=dtype), tiny.images(2, 2, size, labels=False, dtype=dtype)


def logits(network, pixels):
    with torch.no_grad():
        return network.eval()(pixel_values=pixels.to(network.device)).logits.cpu()


# models and files


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_segmentation_model_is_trained_saved_and_loaded(tmp_path, name):
    network = make(name)
    start = tiny.weights(network)
    trainer = tiny.trainer(
        tmp_path,
        network,
        sets=photos(),
        rule="fst_d",
        lookahead_steps=2,
        objective="class_mix",
        max_steps=1,
        momentum_warmup=False,
        teacher_momentum=0.5,
        learning_rate=0.01,
    )
    trainer.train()
    assert not tiny.same(start, tiny.weights(trainer.model))
    assert all(tensor.isfinite().all() for tensor in tiny.weights(trainer.teacher.model))
    trainer.save_model()
    for folder, kept in ((tmp_path / "student", trainer.model), (tmp_path, trainer.teacher.model)):
        loaded = AutoModelForSemanticSegmentation.from_pretrained(folder).to(kept.device)
        assert_same_weights(loaded, kept)
        pixels = photos()[0][0]["pixel_values"][None]
        assert_same_logits(logits(loaded, pixels), logits(kept, pixels))
    assert not tiny.same(tiny.weights(trainer.model), tiny.weights(trainer.teacher.model))


def test_the_output_directory_works_in_a_pipeline(tmp_path):
    network = make("segformer")
    network.config.id2label = {0: "road", 1: "sky", 2: "car"}
    network.config.label2id = {"road": 0, "sky": 1, "car": 2}
    trainer = tiny.trainer(tmp_path, network, sets=photos(), rule="fst_d", max_steps=1)
    trainer.train()
    trainer.save_model()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8))
    found = pipeline("image-segmentation", model=str(tmp_path))(picture)
    assert {part["label"] for part in found} <= {"road", "sky", "car"}
    assert sum((np.array(part["mask"]) > 0).sum() for part in found) == 40 * 48


def test_a_directory_is_a_model_and_new_classes_get_a_new_head(tmp_path):
    make("segformer").save_pretrained(tmp_path / "saved")
    SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path / "saved")
    names = {0: "a", 1: "b", 2: "c", 3: "d"}
    trainer = FSTTrainer(
        str(tmp_path / "saved"),
        tiny.config(tmp_path / "run", rule="mean_teacher"),
        train_dataset=photos()[0],
        unlabeled_dataset=photos()[1],
        id2label=names,
    )
    assert trainer.model.config.id2label == names
    assert logits(trainer.model, torch.zeros(1, 3, 32, 32)).shape[1] == 4
    assert trainer.class_names == ["a", "b", "c", "d"]


def test_supervised_saves_the_student_in_both_places(tmp_path):
    trainer = tiny.trainer(tmp_path, make("segformer"), sets=photos(), rule="supervised", max_steps=1)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "student"):
        assert_same_weights(AutoModelForSemanticSegmentation.from_pretrained(folder), trainer.model)


def test_a_checkpoint_is_the_student_with_the_teacher_inside_and_a_marker(tmp_path):
    trainer = tiny.trainer(
        tmp_path, make("segformer"), sets=photos(), rule="fst_d", max_steps=2, save_strategy="steps", save_steps=1
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    facts = json.loads((checkpoint / "complete.json").read_text())
    files = {name: (checkpoint / name).read_bytes() for name in facts["files"]}
    assert {key: facts[key] for key in ("step", "rule", "model_type")} == {
        "step": 2,
        "rule": "fst_d",
        "model_type": "segformer",
    }
    assert facts["files"] == {name: [len(content), zlib.crc32(content)] for name, content in files.items()}
    there = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert set(files) == there - {"complete.json"}
    for folder, network in ((checkpoint, trainer.model), (checkpoint / "teacher", trainer.teacher.model)):
        assert_same_weights(AutoModelForSemanticSegmentation.from_pretrained(folder), network)
        assert (folder / "preprocessor_config.json").is_file()
    assert (checkpoint / "optimizer.pt").is_file() and (checkpoint / "trainer_state.json").is_file()


def test_a_checkpoint_that_is_written_anew_does_not_count_until_it_is_whole(tmp_path, monkeypatch):
    options = {"sets": photos(), "rule": "fst_d", "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    tiny.trainer(tmp_path, make("segformer"), **options).train()
    assert (tmp_path / "checkpoint-1" / "complete.json").is_file()
    again = tiny.trainer(tmp_path, make("segformer"), **options)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(KeyboardInterrupt):
        again.train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()
    assert not (tmp_path / "checkpoint-1" / "complete.json").exists()


def test_old_checkpoints_go_only_when_a_new_one_is_complete(tmp_path, monkeypatch):
    options = {"sets": photos(), "rule": "fst_d", "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = tiny.trainer(tmp_path, make("segformer"), max_steps=3, **options)
    seen = []
    write = trainer._save_rng_state

    def look(directory):
        seen.append(sorted(path.parent.name for path in tmp_path.glob("checkpoint-*/complete.json")))
        write(directory)

    monkeypatch.setattr(trainer, "_save_rng_state", look)
    trainer.train()
    assert seen == [[], ["checkpoint-1"], ["checkpoint-2"]]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_pushing_writes_the_teacher_where_people_look_for_the_model(tmp_path):
    trainer = tiny.trainer(tmp_path, make("segformer"), sets=photos(), rule="mean_teacher", max_steps=1)
    with torch.no_grad():
        for parameter in trainer.teacher.model.parameters():
            parameter.fill_(0.5)
    trainer.save_model(_internal_call=True)  # what Trainer.push_to_hub does first
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert all((parameter == 0.5).all() for parameter in loaded.parameters())


# what cannot be trained


def test_missing_images_are_named(tmp_path):
    with pytest.raises(ValueError) as error:
        tiny.trainer(tmp_path, sets=(tiny.images(2), None), rule="fst_d", objective="class_mix")
    assert str(error.value) == (
        "objective 'class_mix' learns from unlabeled images but unlabeled_dataset is missing; give it, or use rule "
        "'supervised'."
    )


def test_an_objective_that_needs_a_teacher_is_refused_without_one(tmp_path):
    with pytest.raises(ValueError) as error:
        tiny.trainer(tmp_path, rule="supervised", trainer_options={"objective": ClassMixObjective(num_labels=3)})
    assert str(error.value) == (
        "rule 'supervised' has no teacher, but objective 'class_mix' learns from its labels; "
        "use objective 'supervised' or another rule."
    )


def test_training_needs_labelled_images_and_none_of_the_sets_may_be_empty(tmp_path):
    with pytest.raises(ValueError, match="Training needs train_dataset"):
        tiny.trainer(tmp_path, sets=(None, None), rule="mean_teacher").train()
    with pytest.raises(ValueError, match="The unlabeled set is empty"):
        tiny.trainer(tmp_path, sets=(tiny.images(2), []), rule="mean_teacher").train()


# steps that must not count


def spoil(items, *numbers, value=float("nan")):
    for number in numbers:
        items[number]["pixel_values"] = torch.full_like(items[number]["pixel_values"], value)
    return items


@pytest.mark.parametrize("buffers", ["copy", "ema", "batch"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_finite_loss_is_skipped_and_poisons_nothing(tmp_path, buffers, value):
    sets = spoil(tiny.images(6, 1), 2, value=value), spoil(tiny.images(6, 2, labels=False), 5, value=value)
    trainer = tiny.trainer(
        tmp_path,
        tiny.model(batch_norm=True),
        sets=sets,
        rule="fst_d",
        max_steps=6,
        per_device_train_batch_size=1,
        teacher_buffers=buffers,
        teacher_momentum=0.5,
        weight_decay=0.5,
        learning_rate=0.1,
        logging_strategy="steps",
        logging_steps=1,
    )
    weights = []

    class Record(DeepFST):
        def look_ahead(self, step):
            weights.append([p.detach().clone() for p in trainer.model.parameters()])
            super().look_ahead(step)

    trainer.rule = Record(2)
    trainer.train()
    weights.append([p.detach().clone() for p in trainer.model.parameters()])
    for network in (trainer.model, trainer.teacher.model):
        assert all(tensor.isfinite().all() for tensor in tiny.weights(network))
    # every image comes once in six steps: one or two are bad
    stayed = [tiny.same(a, b) for a, b in zip(weights, weights[1:], strict=False)]
    bad = sum(stayed)
    assert bad in (1, 2) and trainer.journal.skipped == {"real": bad, "virtual": 2 * bad}
    logged = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    skipped = [entry.get("skipped_real_steps", 0) for entry in logged]
    assert skipped == list(np.cumsum(stayed))  # said in the log of the very step
    assert ["loss" not in entry for entry in logged] == stayed
    assert all(math.isfinite(entry["loss"]) for entry in logged if "loss" in entry)


def test_a_virtual_step_without_finite_loss_alone_is_skipped(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="fst_w", lookahead_students=2, max_steps=2, teacher_momentum=0.5)
    clean = trainer.lookahead_groups

    def spoiled(count, size):
        for k, group in enumerate(clean(count, size)):
            yield [{**b, "pixel_values": b["pixel_values"] * float("nan")} for b in group] if k == 0 else group

    trainer.lookahead_groups = spoiled
    trainer.train()
    assert trainer.journal.skipped == {"real": 0, "virtual": 2}
    assert all(tensor.isfinite().all() for tensor in tiny.weights(trainer.teacher.model))


def test_too_many_such_steps_in_a_row_stop_the_run(tmp_path):
    trainer = tiny.trainer(
        tmp_path,
        sets=(spoil(tiny.images(2), 0, 1), tiny.images(2, 2, labels=False)),
        rule="fst_d",
        max_steps=9,
        max_nonfinite_steps=3,
    )
    with pytest.raises(RuntimeError) as error:
        trainer.train()
    assert str(error.value) == (
        "The loss or its gradient was not finite for 3 steps in a row (last: step 3, labeled_loss, gradient); lower the "
        "learning rate or look at their images."
    )


class SpoiledGradient(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("nan")


class SpoiledObjective(PseudoLabelObjective):
    """Its labeled loss is finite, the gradient of it is not."""

    def labeled_term(self, student, batch, totals):
        return {
            name: SpoiledGradient.apply(loss) for name, loss in super().labeled_term(student, batch, totals).items()
        }


def test_a_finite_loss_with_a_gradient_that_is_none_moves_nobody(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="fst_d", lookahead_steps=2, max_steps=2, teacher_momentum=0.5)
    trainer.learning_objective = SpoiledObjective()
    before = [tensor.clone() for tensor in trainer.model.parameters()]
    trainer.train()
    assert trainer.journal.skipped == {"real": 2, "virtual": 4}
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert all(tensor.isfinite().all() for tensor in tiny.weights(trainer.teacher.model))


def test_a_look_ahead_that_is_interrupted_leaves_the_student_in_the_present(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="fst_d", lookahead_steps=2, max_steps=1, learning_rate=0.5)
    before = [tensor.clone() for tensor in trainer.model.parameters()]

    def interrupted(parameters, buffers, momentum, follow=trainer.teacher.follow):
        if any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)):
            raise KeyboardInterrupt
        follow(parameters, buffers, momentum)

    trainer.teacher.follow = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_stream_cannot_be_trained_on(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(tiny.images(2))

    with pytest.raises(ValueError) as error:
        tiny.trainer(tmp_path, sets=(Stream(), tiny.images(2, 2, labels=False)))
    assert str(error.value) == (
        "train_dataset is a stream, which cannot be drawn by index; give a dataset with a length."
    )


@pytest.mark.parametrize("rule", ["supervised", "fst_d"])
def test_a_batch_without_any_labelled_pixel_has_a_finite_loss(tmp_path, rule):
    labeled = tiny.images(2)
    for item in labeled:
        item["labels"] = torch.full_like(item["labels"], 255)
    objective = {} if rule == "supervised" else {"objective": "class_mix"}
    trainer = tiny.trainer(
        tmp_path,
        sets=(labeled, tiny.images(2, 2, labels=False)),
        rule=rule,
        logging_strategy="steps",
        logging_steps=1,
        **objective,
    )
    trainer.train()
    assert trainer.journal.skipped == {"real": 0, "virtual": 0}
    losses = [entry["labeled_loss"] for entry in trainer.state.log_history if "labeled_loss" in entry]
    assert losses == [0, 0, 0]
    assert all(tensor.isfinite().all() for tensor in tiny.weights(trainer.model))


# evaluation


def mixed_sizes(count=5):
    """Images of one size with labels of another, and of sizes that differ."""
    items = []
    for i in range(count):
        size = (8 + 4 * (i % 3), 12)
        pixels = tiny.images(1, 10 + i, size, labels=False)[0]["pixel_values"]
        labels = tiny.images(1, 20 + i, (2 * size[0] + 1, 30))[0]["labels"]
        items.append({"pixel_values": pixels, "labels": labels})
    items[0]["labels"][0, :3] = -100
    return items


def counted(network, items):
    """Confusion matrix by a loop over images in numpy."""
    matrix = np.zeros((3, 3), dtype=int)
    for item in items:
        coarse = logits(network, item["pixel_values"][None]).float()
        full = nn.functional.interpolate(coarse, item["labels"].shape, mode="bilinear", align_corners=False)
        prediction, labels = full.argmax(1)[0].numpy(), item["labels"].numpy()
        for c in range(3):
            for d in range(3):
                matrix[c, d] += ((labels == c) & (prediction == d)).sum()
    return matrix


def expected_metrics(name, matrix):
    hits, rows, columns = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        iou, accuracy = hits / (rows + columns - hits), hits / rows
    result = {
        f"eval_{name}_mean_iou": np.nanmean(iou),
        f"eval_{name}_mean_accuracy": np.nanmean(accuracy),
        f"eval_{name}_overall_accuracy": hits.sum() / rows.sum(),
    }
    return result | {f"eval_{name}_iou_LABEL_{c}": iou[c] for c in range(3)}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("rule", ["supervised", "mean_teacher"])
def test_student_and_teacher_are_scored_on_labels_of_full_size(tmp_path, rule, batch_size):
    trainer = tiny.trainer(
        tmp_path,
        tiny.model(batch_norm=True),
        rule=rule,
        per_device_eval_batch_size=batch_size,
        learning_rate=0.1,
        momentum_warmup=False,
        trainer_options={"eval_dataset": mixed_sizes()},
    )
    trainer.train()
    trainer.model.train()
    metrics = trainer.evaluate()
    expected = expected_metrics("student", counted(trainer.model, mixed_sizes()))
    if rule != "supervised":
        expected |= expected_metrics("teacher", counted(trainer.teacher.model, mixed_sizes()))
    scores = {key: value for key, value in metrics.items() if "student" in key or "teacher" in key}
    assert scores == pytest.approx(expected, abs=1e-12, nan_ok=True)
    again = trainer.evaluate()  # counts do not add up over calls
    assert {key: again[key] for key in scores} == pytest.approx(scores, abs=0, nan_ok=True)


def test_the_best_model_is_the_one_with_the_best_teacher(tmp_path):
    network = make("segformer")
    trainer = tiny.trainer(
        tmp_path,
        network,
        sets=photos(),
        rule="fst_d",
        max_steps=4,
        learning_rate=0.02,
        teacher_momentum=0.5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        trainer_options={"eval_dataset": photos()[0]},
    )
    trainer.train()
    history = [e for e in trainer.state.log_history if "eval_teacher_mean_iou" in e]
    best = max(history, key=lambda e: e["eval_teacher_mean_iou"])
    assert trainer.state.best_global_step == best["step"]
    now = trainer.evaluate()
    for key in ("eval_student_mean_iou", "eval_teacher_mean_iou"):
        assert now[key] == best[key]


def test_predict_gives_the_students_logits_and_evaluation_still_scores(tmp_path):
    items = photos()[0]
    trainer = tiny.trainer(
        tmp_path, make("segformer"), sets=photos(), rule="mean_teacher", trainer_options={"eval_dataset": items}
    )
    pixels = torch.stack([item["pixel_values"] for item in items])
    found = trainer.predict(items).predictions
    assert np.allclose(found, logits(trainer.model, pixels).numpy(), atol=1e-6)
    assert "eval_teacher_mean_iou" in trainer.evaluate()


# what is logged


def logged(tmp_path, **options):
    unlabeled = tiny.images(8, 2)  # with labels, for diagnostics
    trainer = tiny.trainer(
        tmp_path,
        tiny.model(batch_norm=True, dropout=0.3),
        sets=(tiny.images(6, 1), unlabeled),
        **{
            "rule": "fst_d",
            "objective": "class_mix",
            "confidence_threshold": 0.4,
            "max_steps": 4,
            "learning_rate": 0.1,
            "teacher_momentum": 0.5,
            "logging_strategy": "steps",
            "logging_steps": 1,
            **options,
        },
    )
    trainer.train()
    return trainer


SHARES = ["pseudo_confidence", "pseudo_above_threshold", "pseudo_disagreement", "pseudo_changed"]
TRUTH = ["pseudo_accuracy", "pseudo_mean_iou"]


def test_terms_and_health_of_the_pseudo_labels_are_logged(tmp_path):
    trainer = logged(tmp_path)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 4
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["labeled_loss"] + entry["unlabeled_loss"], abs=1e-5)
        assert all(0 <= entry[key] <= 1 for key in SHARES + TRUTH)
        assert sum(entry[f"pseudo_share_LABEL_{c}"] for c in range(3)) == pytest.approx(1, abs=1e-12)
    assert any(entry["pseudo_changed"] > 0 for entry in entries)


def test_truth_about_pseudo_labels_is_over_the_classes_that_are_evaluated(tmp_path):
    trainer = logged(tmp_path, eval_classes=[1])
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    # with one class the mIoU is that class's IoU, the accuracy the share of its pixels that is found: never below it
    assert all(entry["pseudo_mean_iou"] <= entry["pseudo_accuracy"] for entry in entries)
    everything = [entry for entry in logged(tmp_path).state.log_history if "loss" in entry]
    assert [e["pseudo_mean_iou"] for e in entries] != [e["pseudo_mean_iou"] for e in everything]


def test_truth_about_pseudo_labels_is_told_only_where_there_are_labels(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="fst_d", logging_strategy="steps", logging_steps=1)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert all(key in entry for key in SHARES) and not any(key in entry for key in TRUTH)


@pytest.mark.parametrize("rule", [DeepFST(2), NaiveFST(), WideFST(2, "different", "present")], ids=repr)
@pytest.mark.parametrize("buffers", ["copy", "batch"])
def test_looking_at_health_does_not_change_the_run(tmp_path, rule, buffers):
    networks = []
    for strategy in ("steps", "no"):
        trainer = tiny.trainer(
            tmp_path,
            tiny.model(batch_norm=True, dropout=0.3),
            sets=(tiny.images(6, 1), tiny.images(8, 2)),
            trainer_options={"rule": rule},
            objective="class_mix",
            learning_rate=0.1,
            teacher_momentum=0.5,
            logging_strategy=strategy,
            logging_steps=1,
            teacher_buffers=buffers,
        )
        trainer.train()
        networks.append((tiny.weights(trainer.model), tiny.weights(trainer.teacher.model)))
    for with_health, without in zip(*networks, strict=True):
        assert tiny.same(with_health, without)


@pytest.mark.parametrize("rule", [NaiveFST(), DeepFST(3)], ids=repr)
def test_changed_is_the_share_of_pixels_that_the_look_ahead_relabelled(tmp_path, rule):
    """Counted anew: labels of the teacher before and after the rule's look-ahead, on the same images."""
    trainer = tiny.trainer(
        tmp_path,
        sets=(tiny.images(6, 1), tiny.images(8, 2, labels=False)),
        trainer_options={"rule": rule},
        learning_rate=0.3,
        momentum_warmup=False,
        teacher_momentum=0.3,
        logging_strategy="steps",
        logging_steps=1,
    )
    expected = []

    def labels(images):
        coarse = trainer.teacher(images).logits
        return nn.functional.interpolate(coarse, images.shape[-2:], mode="bilinear").argmax(1)

    class Counted:
        def look_ahead(self, step):
            images, kept = step.group[0]["unlabeled_pixel_values"], tiny.weights(trainer.teacher.model)
            if not isinstance(rule, NaiveFST):  # the present is followed first
                trainer.teacher.follow(list(trainer.model.parameters()), [], 0.3)
            before = labels(images)
            with torch.no_grad():
                for now, then in zip(trainer.teacher.model.parameters(), kept, strict=True):
                    now.copy_(then)
            rule.look_ahead(step)
            expected.append((labels(images) != before).double().mean().item())

    trainer.rule = Counted()
    trainer.train()
    found = [entry["pseudo_changed"] for entry in trainer.state.log_history if "loss" in entry]
    assert found == pytest.approx(expected, abs=1e-12) and max(found) > 0


def test_a_run_without_labels_for_the_teacher_has_no_health(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="supervised", logging_strategy="steps", logging_steps=1)
    trainer.train()
    assert isinstance(trainer.rule, Supervised) and not trainer.has_teacher
    assert not any(key.startswith("pseudo_") for entry in trainer.state.log_history for key in entry)
