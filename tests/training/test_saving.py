"""Any segmentation model is trained, saved and loaded; what a checkpoint and the output directory hold."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor, pipeline

from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.architectures import FEW, make
from tests.tolerance import assert_same_logits, assert_same_weights


def photos(dtype=torch.float32):
    """Two labelled and two unlabelled images of 32 by 32 pixels."""
    size = (32, 32)
    return tiny.images(2, 1, size, dtype=dtype), tiny.images(2, 2, size, labels=False, dtype=dtype)


def logits(network, pixels):
    with torch.no_grad():
        return network.eval()(pixel_values=pixels.to(network.device)).logits.cpu()


@pytest.mark.parametrize("name", FEW)
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


def test_without_a_report_the_output_directory_is_the_teacher_all_the_same(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="fst_d", report=False, save_strategy="no", max_steps=2)
    trainer.train()
    for folder, network in (tmp_path, trainer.teacher.model), (tmp_path / "student", trainer.model):
        assert_same_weights(type(network).from_pretrained(folder), network)
    assert not (tmp_path / "README.md").exists()


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
