"""What is faster is the same: one pass for all images of a micro-batch, checks that the host does not wait for."""

from __future__ import annotations

import pytest
import torch

from hf_fst.method import lookahead
from hf_fst.method.present import Statistics
from hf_fst.training.settings import make_objective
from tests import architectures, tiny
from tests.device import DEVICE


def trained(tmp_path, network, sets=None, **options):
    """Weights of student and teacher after three steps."""
    rule = {} if "rule" in options else {"rule": "fst_d", "lookahead_steps": 2}
    options = {"learning_rate": 0.05, "teacher_momentum": 0.8, **rule, **options}
    trainer = tiny.trainer(tmp_path, network, sets=sets, momentum_warmup=False, **options)
    trainer.train()
    return tiny.weights(trainer.networks()["student"]), tiny.weights(trainer.teacher.model), trainer


def quiet(name: str):
    """A network in float64 without noise and BatchNorm, with auxiliary heads where the architecture has some."""
    network = architectures.make(name).double()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if "drop_prob" in vars(module):
            module.drop_prob = 0.0
    for path, module in list(network.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            network.set_submodule(path, torch.nn.Identity())
    return network.to(DEVICE)


OBJECTIVES = {
    "pseudo_label": {"objective": "pseudo_label", "unlabeled_weighting": "quality", "confidence_threshold": 0.4},
    "class_mix": {"objective": "class_mix", "jitter_probability": 0.0, "blur_probability": 0.0},
    "cut_mix": {"objective": "cut_mix", "jitter_probability": 0.0, "blur_probability": 0.0},
    "accumulated": {"objective": "pseudo_label", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
    "hard pixels": {"objective": "pseudo_label", "ohem_threshold": 0.3, "ohem_min_kept": 5},
    "several": {"objective": "pseudo_label", "unlabeled_per_labeled": 2},
}


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
def test_labeled_and_mixed_images_in_one_pass_are_those_in_two(tmp_path, options):
    *two, _ = trained(tmp_path, tiny.model(), **options)
    *one, trainer = trained(tmp_path, tiny.model(), joint_forward="true", **options)
    assert trainer.learning_objective.passes == 1
    for a, b in zip(two, one, strict=True):
        assert tiny.distance(a, b) < 1e-12
    assert not tiny.same(two[0], tiny.weights(tiny.model()))


@pytest.mark.parametrize("options", [{}, {"feature_distance_weight": 0.5}], ids=["auxiliary heads", "features kept"])
def test_auxiliary_heads_and_features_see_their_own_rows(tmp_path, options):
    sets = tiny.images(4, 1, (32, 32)), tiny.images(4, 2, (32, 32), labels=False)
    name = "segformer" if options else "upernet_swin"
    options |= {"objective": "pseudo_label", "max_steps": 2, "optim": "sgd"}
    *two, _ = trained(tmp_path, quiet(name), sets, **options)
    *one, _ = trained(tmp_path, quiet(name), sets, joint_forward="true", **options)
    for a, b in zip(two, one, strict=True):
        assert tiny.distance(a, b) < 1e-11


def test_crops_of_two_sizes_go_through_one_after_the_other(tmp_path):
    sets = tiny.images(6, 1, (8, 8)), tiny.images(8, 2, (10, 12), labels=False)
    *two, _ = trained(tmp_path, tiny.model(), sets)
    *one, _ = trained(tmp_path, tiny.model(), sets, joint_forward="true")
    for a, b in zip(two, one, strict=True):
        assert tiny.distance(a, b) < 1e-12


@pytest.mark.parametrize("batch_norm", [False, True])
def test_auto_is_one_pass_unless_statistics_would_change(tmp_path, batch_norm):
    *auto, trainer = trained(tmp_path, tiny.model(batch_norm=batch_norm), joint_forward="auto")
    assert trainer.learning_objective.passes == 1 + batch_norm
    if batch_norm:
        *two, _ = trained(tmp_path, tiny.model(batch_norm=True))
        *one, _ = trained(tmp_path, tiny.model(batch_norm=True), joint_forward="true")
        assert tiny.same(auto[0], two[0]) and tiny.same(auto[1], two[1])
        assert tiny.distance(two[0], one[0]) > 1e-6  # joint statistics


def test_false_is_the_default_and_yaml_may_say_it_without_quotes(tmp_path):
    assert tiny.config(tmp_path).joint_forward == tiny.config(tmp_path, joint_forward=False).joint_forward == "false"
    settings = tiny.trainer(tmp_path, joint_forward=True).settings
    assert settings.joint_forward == "true"
    assert make_objective(settings, 3).passes == 2  # who makes it says whether the network allows it


@pytest.mark.parametrize("batches", ["same", "different"])
@pytest.mark.parametrize("state", ["restore", "carry"])
@pytest.mark.parametrize("rule", [{"rule": "fst_d", "lookahead_steps": 3}, {"rule": "fst_w", "lookahead_students": 2}])
def test_a_step_left_out_on_the_device_is_one_left_out_by_the_host(tmp_path, monkeypatch, rule, state, batches):
    sets = tiny.images(4, 1), tiny.images(4, 2, labels=False)
    sets[0][0]["pixel_values"][0, 0, 0] = float("nan")  # in some groups
    options = {
        **rule,
        "lookahead_batches": batches,
        "lookahead_state": state,
        "max_steps": 5,
        "per_device_train_batch_size": 1,
        "optim": "adamw_torch_fused",
        "weight_decay": 0.3,
    }
    runs, asked = [], lookahead.skips_on_device
    for on_device in (True, False):
        monkeypatch.setattr(lookahead, "skips_on_device", asked if on_device else lambda optimizer: False)
        *networks, trainer = trained(tmp_path, tiny.model(batch_norm=True), sets, **options)
        assert asked(trainer.optimizer.optimizer)
        runs.append((*networks, trainer.journal.skipped))
    assert tiny.same(runs[0][0], runs[1][0]) and tiny.same(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2] and runs[0][2]["virtual"] > 0


def test_statistics_are_put_back_where_a_flag_on_the_device_says_so(monkeypatch):
    monkeypatch.setattr(Statistics, "LARGE", 4)
    buffers = [torch.ones(3), torch.tensor(7), torch.ones(5), torch.ones(2, 2).double()]
    statistics = Statistics(buffers)
    for bad in (True, False):
        statistics.take()
        kept = [buffer.clone() for buffer in buffers]
        for buffer in buffers:
            buffer.add_(1).mul_(float("nan") if buffer.is_floating_point() and bad else 2)
        moved = [buffer.clone() for buffer in buffers]
        statistics.restore(where=torch.tensor(bad))
        assert all(torch.equal(b, k) for b, k in zip(buffers, kept if bad else moved, strict=True))
