"""Half-precision checkpoints, evaluation in half precision, and batches of one image."""

from __future__ import annotations

import pytest
import torch

from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.architectures import FEW, make

SIZE = (32, 32)


def sets(count: int = 2) -> tuple[list, list]:
    return tiny.images(count, 1, SIZE, dtype=torch.float32), tiny.images(count, 2, SIZE, False, dtype=torch.float32)


def trainer(folder, network, **options) -> FSTTrainer:
    more = {"eval_dataset": sets()[0], "processing_class": None}
    return tiny.trainer(folder, network, sets=sets(), trainer_options=more, max_steps=2, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", ["directory", "model", "model_init"])
def test_a_half_precision_checkpoint_is_trained_and_saved_in_float32(given, dtype, tmp_path):
    make("segformer").to(dtype).save_pretrained(tmp_path / "half")
    network = make("segformer").to(dtype) if given == "model" else str(tmp_path / "half")
    if given == "model_init":
        run = FSTTrainer(
            args=tiny.config(tmp_path / "run"),
            train_dataset=sets()[0],
            unlabeled_dataset=sets()[1],
            model_init=lambda: make("segformer").to(dtype),
        )
    else:
        run = trainer(tmp_path / "run", network, learning_rate=6e-5)
    before = tiny.weights(run.model)
    run.train()
    assert {weight.dtype for weight in run.model.parameters()} == {torch.float32}
    # in bf16 a step of 6e-5 would leave most weights as they are
    parameters = len(list(run.model.parameters()))
    pairs = list(zip(before, tiny.weights(run.model), strict=True))[:parameters]
    moved = sum(int((a != b).sum()) for a, b in pairs)
    assert moved > 0.7 * sum(a.numel() for a, _ in pairs)


@pytest.mark.parametrize("option, dtype", [("bf16_full_eval", torch.bfloat16), ("fp16_full_eval", torch.float16)])
def test_full_evaluation_in_half_precision_leaves_the_weights(option, dtype, tmp_path):
    run, usual = (
        trainer(tmp_path, make("upernet_convnext"), **{option: True}),
        trainer(tmp_path, make("upernet_convnext")),
    )
    before, seen = [tiny.weights(network) for network in run.networks().values()], set()
    for network in run.networks().values():
        network.decode_head.classifier.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    found, expected = run.evaluate(), usual.evaluate()
    logits = run.predict(sets()[0]).predictions
    assert seen == {dtype} and torch.from_numpy(logits[0] if isinstance(logits, tuple) else logits).isfinite().all()
    for name in ("eval_student_mean_iou", "eval_teacher_mean_iou"):
        assert found[name] == pytest.approx(expected[name], abs=0.05)
    for network, kept in zip(run.networks().values(), before, strict=True):
        assert tiny.same(tiny.weights(network), kept)
    run.train()
    usual.train()
    for one, other in zip(run.networks().values(), usual.networks().values(), strict=True):
        assert tiny.same(tiny.weights(one), tiny.weights(other))


@pytest.mark.parametrize("name", FEW)
def test_batches_of_one_image_train(name, tmp_path):
    """Behind a pooling to 1x1 such a batch has one value a channel, which `nn.BatchNorm2d` refuses."""
    run = trainer(tmp_path, make(name), per_device_train_batch_size=1)
    before = tiny.weights(run.model)
    assert torch.isfinite(torch.tensor(run.train().training_loss))
    assert not tiny.same(before, tiny.weights(run.model))


def test_larger_batches_compute_what_they_did(tmp_path):
    network = make("upernet_swin").train()
    pixels = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    plain = make("upernet_swin").train()
    trainer(tmp_path, network)
    for _ in range(2):
        torch.manual_seed(1)
        expected = plain(pixel_values=pixels).logits
        torch.manual_seed(1)
        assert torch.equal(network(pixel_values=pixels).logits, expected)
    assert tiny.same(tiny.weights(network), tiny.weights(plain))
