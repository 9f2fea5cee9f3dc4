"""Networks by id or directory."""

from __future__ import annotations

import logging

import pytest
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from hf_fst.errors import MissingError, UserError
from hf_fst.models.loading import load, load_network, locate


def saved(directory):
    sizes = {"depths": [1] * 4, "hidden_sizes": [4] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 4}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **sizes)).save_pretrained(directory)
    return str(directory)


def test_a_model_without_an_image_processor_gets_one_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        network, processor = load(saved(tmp_path))
    assert network.config.num_labels == 3 and not processor.do_resize
    assert "has no image processor" in caplog.text


def test_its_own_image_processor_is_used_unless_one_is_given(tmp_path):
    SegformerImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(saved(tmp_path))
    assert list(load(str(tmp_path))[1].image_mean) == [0.1, 0.2, 0.3]
    mine = SegformerImageProcessor()
    assert load(str(tmp_path), processor=mine)[1] is mine


def test_a_head_with_other_classes_is_replaced(tmp_path):
    network, _ = load(saved(tmp_path), id2label={0: "road", 1: "car"})
    assert network.config.num_labels == 2 and network.config.label2id == {"road": 0, "car": 1}


def test_teacher_and_student_of_a_run_and_of_its_checkpoints(tmp_path):
    run, checkpoint = tmp_path / "run", tmp_path / "run/checkpoint-5"
    for place in (run, run / "student", checkpoint, checkpoint / "teacher"):
        saved(place)
    assert locate(run, "teacher") == locate(run) == (str(run), "")
    assert locate(run, "student") == (str(run), "student")
    assert locate(checkpoint, "student") == locate(checkpoint) == (str(checkpoint), "")
    assert locate(checkpoint, "teacher") == (str(checkpoint), "teacher")
    assert locate("someone/model", "student") == ("someone/model", "student")
    load(run, "student")  # which has no image processor of its own


def test_a_trained_head_is_replaced_only_on_request(tmp_path):
    with pytest.raises(UserError, match="has 3 classes but the dataset has 2; set replace_head: true"):
        load_network(saved(tmp_path), id2label={0: "road", 1: "car"}, replace_head=False)


def test_what_is_missing_is_one_sentence(tmp_path):
    for name in ("nowhere", "./no/where", "/no/where", "a/b/c"):
        with pytest.raises(MissingError, match=f"There is no model '{name}'; give a directory .* or a Hub id"):
            locate(name)
    with pytest.raises(MissingError, match="has no config.json, so it holds no teacher; give a directory"):
        load(tmp_path, "teacher")
    saved(tmp_path)
    with pytest.raises(MissingError, match="student has no config.json, so it holds no student"):
        load(tmp_path, "student")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="No segmentation model can be loaded from"):
        load(tmp_path)
    with pytest.raises(UserError, match="which is 'both'; give 'teacher' or 'student'"):
        load(tmp_path, "both")


@pytest.mark.parametrize(
    "content", ["", '{"image_mean": [0.5, 0.', "[1, 2]", '"yes"', '{"image_processor_type": "None"}']
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_an_image_processor_that_cannot_be_read_is_an_error(tmp_path, name, content):
    path = saved(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"The image processor of {path} cannot be read"):
        load(path)
    load(path, processor=SegformerImageProcessor())


def test_a_link_to_an_image_processor_that_is_gone_is_an_error(tmp_path):
    path = saved(tmp_path)
    (tmp_path / "preprocessor_config.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(UserError, match="cannot be read"):
        load(path)
