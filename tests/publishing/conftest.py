"""Facts of an invented run, and a card and a model made from them."""

import copy

import numpy as np
import pytest
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from hf_fst.publishing import card
from hf_fst.publishing.facts import Cost, DatasetFacts, Evaluation, RunFacts, Scores

CLASSES = ["road", "car", "sky"]
SYNTHETIC = DatasetFacts("street", "Street", "train", 200, config="synthetic", license="Apache-2.0")
REAL = DatasetFacts("street", "Street", "train", 300, config="real", license="Apache-2.0")
CITY = DatasetFacts(
    "city", "City", "test", 500, config="fine", hub_id="owner/city", license="research only", note="One country only."
)
VALIDATION = DatasetFacts("street", "Street", "validation", 100, config="real", license="Apache-2.0")


def make_facts(**changes):
    values = {
        "rule": "fst_d",
        "objective": "class_mix",
        "architecture": "SegformerForSemanticSegmentation",
        "parameters": 3714658,
        "classes": CLASSES,
        "labeled": SYNTHETIC,
        "unlabeled": REAL,
        "evaluations": [
            Evaluation("last", 800, VALIDATION, Scores(0.30, 0.4, 0.7), Scores(0.32, 0.45, 0.75)),
            Evaluation(
                "best",
                600,
                VALIDATION,
                Scores(0.31, 0.4, 0.71, [0.42, float("nan"), 0.20]),
                Scores(0.34567, 0.46, 0.76, [0.50, None, 0.19]),
            ),
            Evaluation("best", 600, CITY, Scores(0.2), Scores(0.25)),
        ],
        "steps": 800,
        "settings": {"lookahead_steps": 3, "teacher_momentum": 0.999, "lookahead_momentum": 0.99, "seed": 7},
        "versions": {"python": "3.11.9", "torch": "2.15.0"},
        "saved": "best",
        "cost": Cost("2 CPU threads", 750.0, 31.25, 3 * 2**29, "process"),
        "base_model": "nvidia/mit-b0",
        "license": "apache-2.0",
        "recipe": "street.yaml",
        "overrides": {"seed": 7, "rule": "fst_d", "bf16": True},
    }
    return RunFacts(**copy.deepcopy(values | changes))


def without_spaces(text):
    return [line.replace(" ", "") for line in text.splitlines()]


@pytest.fixture
def written(tmp_path):
    card.write_card(tmp_path, make_facts())
    return tmp_path


@pytest.fixture
def model_folder(tmp_path):
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 1], mlp_ratios=[1, 1], decoder_hidden_size=8, id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "image.jpg")
    return tmp_path
