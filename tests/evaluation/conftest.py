"""A tiny model saved as a training run saves it, and a tiny dataset of image files of different sizes."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from hf_fst.data.labels import LabelMap

NAMES = ["sky", "road", "car", "tree"]
SIZES = [(48, 64), (64, 48), (48, 64), (32, 32), (48, 64), (48, 64), (64, 48)]  # (height, width)


def tiny_model(seed, num_labels=4):
    torch.manual_seed(seed)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        id2label=dict(enumerate((NAMES + [f"class {index}" for index in range(4, num_labels)])[:num_labels])),
    )
    model = SegformerForSemanticSegmentation(config)
    for parameter in model.parameters():  # the usual small start predicts one class everywhere
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A run's directory: the teacher with its image processor, the student in student/."""
    folder = tmp_path_factory.mktemp("run")
    tiny_model(1).save_pretrained(folder)
    tiny_model(2).save_pretrained(folder / "student")
    SegformerImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


def make_dataset(folder, sizes=SIZES, num_labels=4):
    random = np.random.default_rng(0)
    columns = {"image": [], "label": []}
    for index, (height, width) in enumerate(sizes):
        image, label = folder / f"street_{index}.png", folder / f"street_{index}_label.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(image)
        ids = random.integers(0, num_labels + 1, (height, width), dtype=np.uint8)
        ids[ids == num_labels] = 255
        Image.fromarray(ids).save(label)
        columns["image"].append(str(image))
        columns["label"].append(str(label))
    names = (NAMES + [f"class {index}" for index in range(4, num_labels)])[:num_labels]
    features = datasets.Features(image=datasets.Image(), label=LabelMap(names=names))
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return datasets.DatasetDict(validation=make_dataset(tmp_path_factory.mktemp("data")))
