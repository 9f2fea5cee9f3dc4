"""Networks by id or directory."""

from __future__ import annotations

import logging

from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from hf_fst.models.loading import from_hub


def saved(directory):
    sizes = {"depths": [1] * 4, "hidden_sizes": [4] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 4}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **sizes)).save_pretrained(directory)
    return str(directory)


def test_a_model_without_an_image_processor_gets_one_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        network, processor = from_hub(saved(tmp_path))
    assert network.config.num_labels == 3 and not processor.do_resize
    assert "has no image processor" in caplog.text


def test_its_own_image_processor_is_used_unless_one_is_given(tmp_path):
    SegformerImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(saved(tmp_path))
    assert list(from_hub(str(tmp_path))[1].image_mean) == [0.1, 0.2, 0.3]
    mine = SegformerImageProcessor()
    assert from_hub(str(tmp_path), mine)[1] is mine


def test_a_head_with_other_classes_is_made_anew(tmp_path):
    network, _ = from_hub(saved(tmp_path), id2label={0: "road", 1: "car"})
    assert network.config.num_labels == 2 and network.config.label2id == {"road": 0, "car": 1}
