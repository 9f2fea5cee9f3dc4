"""The two classes learn the same from the same images: what differs is the order in which they are drawn."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from tests import tiny
from tests.behavior.both import KINDS, images, make


def pair(tmp_path, **options):
    """Both classes with all images in each step, after training; the batch is the same but for its order."""
    trainers = []
    for kind in KINDS:
        trainer = make(
            kind,
            tmp_path / kind,
            network=tiny.model(batch_norm=True),
            **{"max_steps": 4, "per_device_train_batch_size": 4, "logging_strategy": "steps", "logging_steps": 1}
            | options,
        )
        trainer.train()
        trainers.append(trainer)
    return trainers


@pytest.mark.parametrize(
    "options",
    [
        {"optim": "adamw_torch", "weight_decay": 0.1},
        {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.1},
        {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0},
        {"optim": "sgd", "learning_rate": 0.5, "optim_args": "momentum=0.9"},
        {"optim": "rmsprop", "lr_scheduler_type": "cosine", "warmup_steps": 2},
        {"optim": "adagrad", "lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 0.9}},
        {"optim": "adamw_torch", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.5},
        {"optim": "adafactor"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_weights_schedule_and_losses_are_the_same(tmp_path, options):
    stock, ours = pair(tmp_path, **options)
    start = tiny.model(batch_norm=True)
    assert tiny.distance(tiny.weights(start), tiny.weights(ours.model)) > 1e-2
    assert tiny.distance(tiny.weights(stock.model), tiny.weights(ours.model)) < 1e-9
    for a, b in zip(stock.state.log_history, ours.state.log_history, strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "epoch", "step", "train_loss"):
            assert (key in a) == (key in b) and a.get(key, 0) == pytest.approx(b.get(key, 0), rel=1e-5)


def test_accumulation_is_the_same(tmp_path):
    """Without batch norm; the images of an epoch make one group, whatever their order."""
    trainers = []
    for kind in KINDS:
        options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "optim": "sgd"}
        trainers.append(make(kind, tmp_path / kind, max_steps=4, **options))
        trainers[-1].train()
    assert tiny.distance(*(tiny.weights(trainer.model) for trainer in trainers)) < 1e-12


def test_a_given_optimizer_and_schedule_are_used(tmp_path, kind):
    network = tiny.model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=2)
    trainer = make(
        kind,
        tmp_path,
        network=network,
        trainer_options={"optimizers": (optimizer, schedule)},
        max_steps=2,
        logging_strategy="steps",
        logging_steps=1,
    )
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer and trainer.lr_scheduler is schedule
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == [0.5, 0.25] and optimizer.param_groups[0]["lr"] == 0


def test_a_given_optimizer_class_is_used(tmp_path, kind):
    options = {"optimizer_cls_and_kwargs": (torch.optim.Adamax, {"lr": 0.01})}
    trainer = make(kind, tmp_path, trainer_options=options, max_steps=1)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.Adamax)


def test_norms_and_biases_do_not_decay(tmp_path, kind):
    trainer = make(kind, tmp_path, network=tiny.model(batch_norm=True), weight_decay=0.3, max_steps=1)
    assert set(trainer.get_decay_parameter_names(trainer.model)) == {"stem.weight", "head.weight"}
    trainer.train()
    decays = [(group["weight_decay"], len(group["params"])) for group in trainer.optimizer.param_groups]
    assert decays == [(0.3, 2), (0.0, 3)]


def test_a_seed_makes_a_model_and_a_run(tmp_path, kind):
    def fresh():
        return tiny.TinySegmenter(tiny.TinyConfig(num_labels=3, dropout=0.3)).double()

    networks = []
    for seed in (3, 3, 4):
        trainer = make(kind, tmp_path, trainer_options={"model_init": fresh}, max_steps=2, seed=seed)
        trainer.train()
        networks.append(tiny.weights(trainer.model))
    assert tiny.same(networks[0], networks[1]) and not tiny.same(networks[0], networks[2])


def test_training_twice_with_model_init_begins_anew(tmp_path, kind):
    def fresh():
        return tiny.TinySegmenter(tiny.TinyConfig(num_labels=3, dropout=0.3)).double()

    trainer = make(kind, tmp_path, trainer_options={"model_init": fresh}, max_steps=2)
    trainer.train()
    first = tiny.weights(trainer.model)
    trainer.train()
    assert tiny.same(first, tiny.weights(trainer.model))


def test_training_twice_goes_on_with_the_weights_and_counts_anew(tmp_path, kind):
    trainer = make(kind, tmp_path, max_steps=2, logging_strategy="steps", logging_steps=1)
    trainer.train()
    first = tiny.weights(trainer.model)
    output = trainer.train()
    assert output.global_step == 2 and not tiny.same(first, tiny.weights(trainer.model))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and output.training_loss == pytest.approx(sum(losses) / 2, abs=1e-6)


def test_a_learning_rate_of_zero_changes_nothing(tmp_path, kind):
    trainer = make(kind, tmp_path, max_steps=2, learning_rate=0.0)
    trainer.train()
    assert tiny.same(tiny.weights(tiny.model()), tiny.weights(trainer.model))


def test_a_collator_of_the_users_own_is_used(tmp_path, kind):
    sizes = []

    def collator(items):
        sizes.append(len(items))
        return {key: torch.stack([item[key] for item in items]) for key in ("pixel_values", "labels")}

    make(kind, tmp_path, train=images(4), trainer_options={"data_collator": collator}, max_steps=2).train()
    assert sizes[:2] == [2, 2]
