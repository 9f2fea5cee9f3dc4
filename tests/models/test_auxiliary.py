"""Auxiliary heads of transformers' own networks learn under every objective, and nothing waits for a gradient."""

from copy import deepcopy

import pytest
import torch

from hf_fst.models import SegmentationOutput
from hf_fst.models.auxiliary import freeze_unused, return_auxiliary_logits
from tests import architectures, tiny
from tests.device import on_device

# transformers' networks with an auxiliary head, whose logits they keep to themselves
SILENT = ["beit", "data2vec", "upernet_swin", "upernet_convnext", "dpt"]
PIXELS = on_device(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", SILENT)
def test_auxiliary_logits_are_those_of_the_heads_own_loss(name):
    model = architectures.make(name).eval()
    labels = on_device(torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        before = model(PIXELS, labels=labels)
        assert "auxiliary_logits" not in before
        return_auxiliary_logits(model)
        return_auxiliary_logits(model)  # once is enough, twice does no harm
        output = model(PIXELS, labels=labels)
        plain = model(PIXELS)
    assert isinstance(output, SegmentationOutput) and torch.equal(output.logits, before.logits)
    assert torch.equal(output.loss, before.loss)
    (auxiliary,) = output.auxiliary_logits.values()
    assert torch.equal(plain.auxiliary_logits["auxiliary_head"], auxiliary)
    sized = [torch.nn.functional.interpolate(each, (32, 32), mode="bilinear") for each in (output.logits, auxiliary)]
    main, second = (torch.nn.functional.cross_entropy(each, labels) for each in sized)
    torch.testing.assert_close(output.loss, main + 0.4 * second)


def test_copies_keep_their_logits_apart_and_checkpoints_do_not_change(tmp_path):
    model = architectures.make("upernet_convnext").eval()
    return_auxiliary_logits(model)
    copy = deepcopy(model)
    with torch.no_grad():
        copy.auxiliary_head.classifier.weight.mul_(2)
        copy.auxiliary_head.classifier.bias.mul_(2)
        own, others = model(PIXELS), copy(PIXELS)
    assert torch.equal(others.auxiliary_logits["auxiliary_head"], 2 * own.auxiliary_logits["auxiliary_head"])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["segformer", "mobilevit"])
def test_networks_without_such_a_head_stay_as_they_are(name):
    model = architectures.make(name).eval()
    return_auxiliary_logits(model)
    with torch.no_grad():
        assert "auxiliary_logits" not in model(PIXELS)
    assert not model._forward_hooks


@pytest.mark.parametrize("name", [*SILENT, "segformer", "mobilenetv2"])
def test_every_trainable_weight_gets_a_gradient_once_the_unused_are_frozen(name):
    model = architectures.make(name).train()
    return_auxiliary_logits(model)
    before, state = tiny.weights(model), torch.get_rng_state()
    unused = freeze_unused(model, PIXELS[0])
    assert tiny.same(tiny.weights(model), before) and torch.equal(torch.get_rng_state(), state)
    assert model.training and all(weight.grad is None for weight in model.parameters())
    if name == "upernet_swin":
        assert unused == ["backbone.swin.layernorm.weight", "backbone.swin.layernorm.bias"]
    if name in ("upernet_convnext", "segformer"):
        assert unused == []
    if name == "beit":  # the last of four layers feeds no level, the auxiliary head does learn
        assert unused and all(key.startswith("beit.layers.3.") for key in unused)
    output = model(PIXELS)
    total = sum(x.square().mean() for x in (output.logits, *(output.get("auxiliary_logits") or {}).values()))
    total.backward()
    assert [k for k, weight in model.named_parameters() if (weight.grad is None) == weight.requires_grad] == []


@pytest.mark.parametrize("objective", ["supervised", "pseudo_label", "class_mix", "cut_mix", "entropy_drop"])
@pytest.mark.parametrize("name", ["beit", "upernet_swin"])
def test_a_run_trains_the_auxiliary_head_of_a_network_brought_along(name, objective, tmp_path):
    model = architectures.make(name)
    sets = tuple(tiny.images(2, seed, (32, 32), dtype=torch.float32) for seed in (1, 2))
    options = {"objective": objective, "rule": "fst_d", "lookahead_steps": 1, "max_steps": 1, "max_grad_norm": 0.0}
    options |= {
        "ddp_find_unused_parameters": False,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
    }
    trainer = tiny.trainer(tmp_path, model, sets=sets, **options)
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    trainer.train()
    after = dict(model.named_parameters())
    still = [key for key in before if after[key].requires_grad and torch.equal(after[key], before[key])]
    assert not [key for key in still if key.startswith("auxiliary_head.")]
    frozen = {key for key in before if not after[key].requires_grad}
    assert frozen and not [key for key in frozen if key.startswith(("auxiliary_head.", "decode_head."))]
    head = dict(trainer.teacher.model.named_parameters())["auxiliary_head.classifier.weight"]
    assert not torch.equal(head, before["auxiliary_head.classifier.weight"])
