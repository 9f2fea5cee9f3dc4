"""Students with adapters (`peft`): one base in memory, adapters alone learn and are saved."""

from __future__ import annotations

from copy import deepcopy

import peft
import pytest
import torch

from hf_fst.method.rules import DeepFST, WideFST
from hf_fst.method.teacher import EMATeacher
from hf_fst.training.adapters import keep_base_statistics
from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.architectures import make
from tests.device import DEVICE
from tests.tolerance import assert_same_logits


def adapted(seed: int = 0, head: bool = True):
    """SegFormer with LoRA in its queries and values, and its head trained as a whole."""
    base = make("segformer", seed)
    base.config.name_or_path = "base"
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,  # with the usual zeros an adapter would not matter at first
        modules_to_save=["decode_head"] if head else None,
    )
    torch.manual_seed(seed + 1)
    return peft.get_peft_model(base, config)


def trained(directory, rule=None, network=None, *, resume=None, evaluation=False, **options):
    """A trainer after four steps."""
    size = (64, 64)  # smaller images leave attention a single key, and its weights without a gradient
    sets = tiny.images(4, 1, size, dtype=torch.float32), tiny.images(6, 2, size, labels=False, dtype=torch.float32)
    trainer = tiny.trainer(
        directory,
        adapted() if network is None else network,
        sets=sets,
        trainer_options={
            "rule": DeepFST(2) if rule is None else rule,
            "eval_dataset": tiny.images(3, 3, size, dtype=torch.float32) if evaluation else None,
        },
        learning_rate=0.01,
        teacher_momentum=0.5,
        max_steps=4,
        **options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run with checkpoints at steps 2 and 4, and the weights that it started from."""
    directory = tmp_path_factory.mktemp("run")
    network = adapted()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trainer = trained(directory, network=network, save_strategy="steps", save_steps=2)
    trainer.save_model()
    return directory, trainer, start


def base_names(network) -> set[str]:
    """Parameters of the frozen base."""
    return {name for name, _ in network.named_parameters() if "lora_" not in name and ".modules_to_save." not in name}


def test_look_ahead_and_average_touch_adapters_and_head_alone(run):
    _, trainer, start = run
    for network in trainer.networks().values():
        frozen = base_names(network)
        assert len(frozen) > 20
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, start[name]) == (name in frozen), name
        # nor do the statistics of the frozen head's own copy move
        for name, buffer in network.named_buffers():
            assert torch.equal(buffer, start[name]) == (".modules_to_save." not in name), name


def test_there_is_one_copy_of_the_base_in_memory(run):
    _, trainer, _ = run
    student, teacher = (dict(network.named_parameters()) for network in trainer.networks().values())
    frozen = base_names(trainer.model)
    for name in student:
        assert (student[name].data_ptr() == teacher[name].data_ptr()) == (name in frozen), name
    own = sum(p.nbytes for name, p in student.items() if name not in frozen)
    buffers = sum(b.nbytes for b in trainer.model.buffers())
    unique = {p.data_ptr(): p.nbytes for network in trainer.networks().values() for p in network.parameters()}
    base = sum(p.nbytes for name, p in student.items() if name in frozen)
    assert sum(unique.values()) == base + 2 * own
    # parameters, buffers, and AdamW's two moments and a counter of 4 bytes for each tensor that learns
    moments = 2 * own + 4 * (len(student) - len(frozen))
    assert trainer.lookahead_memory() == own + buffers + moments


def test_wide_remembers_no_base(tmp_path):
    trainer = trained(tmp_path, WideFST(3, "same"))
    student, teacher = (dict(network.named_parameters()) for network in trainer.networks().values())
    for name in base_names(trainer.model):
        assert student[name].data_ptr() == teacher[name].data_ptr()
    start = adapted().state_dict()
    assert all(torch.equal(student[name], start[name]) for name in base_names(trainer.model))


@pytest.mark.parametrize("where, network", [("", "teacher"), ("student", "student")])
def test_what_is_saved_loads_with_peft_alone_and_merges(run, where, network):
    directory, trainer, _ = run
    loaded = peft.PeftModel.from_pretrained(make("segformer", 0), directory / where).eval().to(DEVICE)
    ours = deepcopy(trainer.networks()[network]).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    with torch.no_grad():
        logits = loaded(pixel_values=images).logits
        assert_same_logits(logits, ours(pixel_values=images).logits)
        assert not torch.allclose(logits, adapted().eval()(pixel_values=images).logits, atol=1e-3)
        merged = loaded.merge_and_unload()
        assert not any("lora" in name for name, _ in merged.named_parameters())
        assert torch.allclose(merged(pixel_values=images).logits, logits, rtol=1e-6, atol=1e-6)


def test_a_resumed_run_is_the_uninterrupted_run(run, tmp_path):
    directory, whole, _ = run
    resumed = trained(tmp_path, resume=str(directory / "checkpoint-2"))
    assert tiny.same(tiny.weights(whole.model), tiny.weights(resumed.model))
    assert tiny.same(tiny.weights(whole.teacher.model), tiny.weights(resumed.teacher.model))


def test_a_checkpoint_of_other_adapters_is_refused(run, tmp_path):
    directory, _, _ = run
    with pytest.raises(ValueError) as error:
        trained(tmp_path, network=adapted(head=False), resume=str(directory / "checkpoint-2"))
    assert str(error.value).startswith(f"The adapter in {directory / 'checkpoint-2'} is not the model's: ")


def test_statistics_of_the_frozen_base_stand_still_and_those_of_a_trained_head_move():
    network = adapted().train()
    keep_base_statistics(network)
    modes = {
        name: module.training for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    }
    assert {".modules_to_save." in name for name in modes} == {True, False}
    assert all(training == (".modules_to_save." in name) for name, training in modes.items())


def test_a_frozen_weight_that_is_not_shared_is_a_copy_that_rounding_does_not_touch(tmp_path):
    network = make("segformer", 0)
    for parameter in network.segformer.parameters():
        parameter.requires_grad_(False)
    start = tiny.weights(network.segformer)
    trainer = trained(tmp_path, WideFST(3, "same"), network)
    backbone = trainer.teacher.model.segformer
    assert tiny.same(tiny.weights(backbone), start)
    assert not any(
        p.data_ptr() == q.data_ptr()
        for p, q in zip(backbone.parameters(), network.segformer.parameters(), strict=True)
    )


def test_without_sharing_the_teacher_of_an_adapted_student_would_hold_a_second_base():
    network = adapted()
    shared, copied = EMATeacher(network, share_frozen=True), EMATeacher(network)
    pointers = {p.data_ptr() for p in network.parameters()}
    assert sum(p.data_ptr() in pointers for p in shared.model.parameters()) == len(base_names(network))
    assert not any(p.data_ptr() in pointers for p in copied.model.parameters())


def test_an_adapted_student_is_evaluated_reported_and_its_best_checkpoint_loaded(tmp_path):
    trainer = trained(
        tmp_path,
        evaluation=True,
        report=True,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    best = trainer.state.best_global_step
    assert best in (2, 4) and (tmp_path / "README.md").is_file()
    for where, network in (("", "student"), ("teacher", "teacher")):
        loaded = peft.PeftModel.from_pretrained(make("segformer", 0), tmp_path / f"checkpoint-{best}" / where)
        ours = trainer.networks()[network].state_dict()
        assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())


def test_adapters_whose_base_nobody_has_are_not_pushed_and_that_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(FSTTrainer, "init_hf_repo", lambda *args: None)
    with pytest.raises(ValueError, match="publishes the adapter, .* but None is not on the Hub; publish that first"):
        tiny.trainer(tmp_path, adapted(), push_to_hub=True)
