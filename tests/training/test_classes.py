"""Class names of a network and of its data."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset

from hf_fst.data import LabelMap, View
from hf_fst.data.transforms import Evaluation, training
from hf_fst.errors import UserError
from tests import tiny

NAMES = ["road", "traffic light", "sky"]


def rows(names):
    """Two noisy images whose masks hold the ids 0 and 1."""
    mask = np.repeat(np.array([[0, 1]], dtype=np.uint8), 16, 0).repeat(8, 1)
    noise = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
    made = datasets.Dataset.from_dict({"image": list(noise), "label": [mask] * 2})
    return made.cast_column("image", datasets.Image()).cast_column("label", LabelMap(names=names))


def trainer(tmp_path, network, names=NAMES, evaluated=None, **options):
    view = View(rows(names), training(16))
    options = {"rule": "mean_teacher", "max_steps": 1, **options}
    more = {} if evaluated is None else {"trainer_options": {"eval_dataset": View(rows(evaluated), Evaluation())}}
    return tiny.trainer(tmp_path, network, sets=(view, View(rows(names), training(16), False)), **more, **options)


def named(*names):
    network = tiny.model(dtype=torch.float32)
    network.config.id2label = dict(enumerate(names))
    return network


@pytest.mark.parametrize("objective", ["pseudo_label", "cps", "cct"])
def test_a_network_without_names_gets_those_of_the_data(tmp_path, caplog, objective):
    network = tiny.network_of(objective, dtype=torch.float32)
    run = trainer(tmp_path, network, objective=objective)
    parts = [
        part for network in (run.model, run.teacher.model) for part in network.modules() if hasattr(part, "config")
    ]
    assert len(parts) == {"pseudo_label": 2, "cps": 6, "cct": 4}[objective]
    for part in parts:
        assert part.config.id2label == dict(enumerate(NAMES))
        assert part.config.label2id == {"road": 0, "traffic light": 1, "sky": 2}
    (record,) = [r for r in caplog.records if "name its classes" in r.message]
    assert record.message == (
        "The model does not name its classes; it now has those of train_dataset: road, traffic light, sky."
    )
    run.save_model()
    assert type(run.model).from_pretrained(tmp_path).config.id2label == dict(enumerate(NAMES))


def test_names_that_differ_in_case_blanks_and_underscores_are_the_same(tmp_path, caplog):
    run = trainer(tmp_path, named("Road", "traffic_light", "sky"))
    assert run.model.config.id2label[1] == "traffic_light" and not caplog.records


@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset"])
def test_the_same_names_in_another_order_are_refused(tmp_path, where):
    given = {"names": ["Sky", "road", "traffic_light"]} if where == "train_dataset" else {"evaluated": NAMES[::-1]}
    theirs = ", ".join(*given.values())
    with pytest.raises(UserError) as error:
        trainer(tmp_path, named(*NAMES), **given)
    assert str(error.value) == (
        f"The model has the classes road, traffic light, sky, and {where} has them in another order: {theirs}; bring the "
        "masks to the order of the model, as LabelMap(names=[...], id_map=[...]) does, or give the model that of the "
        "data as id2label."
    )


@pytest.mark.parametrize("network", [None, named(*NAMES)])
def test_another_number_of_classes_is_refused_with_both(tmp_path, network):
    network = tiny.model(dtype=torch.float32) if network is None else network
    own = ", ".join(network.config.id2label.values())
    many = [f"class {index}" for index in range(20)]
    with pytest.raises(UserError) as error:
        trainer(tmp_path, network, many)
    assert str(error.value) == (
        f"The model has 3 classes ({own}) and train_dataset 20 ({', '.join(many[:8])} and 12 more); give the model those "
        "of the data where it is made, as id2label=dict(enumerate(names)), or bring the masks to those of the model, as "
        "LabelMap(names=[...], id_map=[...]) does."
    )


def test_other_words_are_a_warning(tmp_path, caplog):
    run = trainer(tmp_path, named("road", "signal", "sky"))
    assert [record.message for record in caplog.records] == [
        "Class 1 is 'signal' for the model and 'traffic light' in train_dataset; they are treated as the same, and the "
        "model keeps its names."
    ]
    assert run.class_names == ["road", "signal", "sky"]


def test_joined_datasets_are_looked_into(tmp_path):
    both = ConcatDataset([View(rows(names), training(16)) for names in (NAMES, NAMES[::-1])])
    with pytest.raises(UserError, match="train_dataset has them in another order: sky, traffic light, road"):
        tiny.trainer(tmp_path, sets=(both, tiny.images(2)), rule="mean_teacher")


def test_each_model_of_a_search_gets_the_names(tmp_path):
    run = trainer(tmp_path, named(*NAMES))
    run.model_init = lambda: tiny.model(dtype=torch.float32)
    assert run.call_model_init().config.id2label == dict(enumerate(NAMES))
    assert run.teacher.model.config.id2label == dict(enumerate(NAMES))


def test_labels_of_the_unlabeled_set_need_not_fit(tmp_path):
    sets = (View(rows(NAMES), training(16)), View(rows([*NAMES, "tree"]), training(16)))
    assert tiny.trainer(tmp_path, named(*NAMES), sets=sets).model.config.id2label == dict(enumerate(NAMES))


def test_two_classes_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="^The model's config names the classes 0 and 2 'sky' and 'sky' in id2label"):
        trainer(tmp_path, named("sky", "road", "sky"))
