"""The features of pixels that a network returns on demand are what its classifier reads."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from hf_fst.errors import UserError
from hf_fst.models.features import return_features
from tests import architectures
from tests.device import DEVICE
from tests.models import tiny as own

NAMES = [*architectures.ARCHITECTURES, *own.TINY]


def network_and_image(name):
    if name in architectures.ARCHITECTURES:
        return architectures.make(name).eval(), torch.randn(2, 3, 32, 32, device=DEVICE)
    return own.tiny(name).to(DEVICE), own.image(name).to(DEVICE)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_what_the_classifier_reads(name):
    network, image = network_and_image(name)
    with torch.no_grad():
        before = network(image).logits
        return_features(network)
        output = network(image)
        assert torch.equal(output.logits, before) and output.features.dim() == 4
        classifier = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "auxiliary" not in n]
        [last] = [m for m in classifier if m._forward_pre_hooks]
        assert last.out_channels == network.config.num_labels
        # nothing of the network lies between these features and the logits but resizing, a sum and pixel shuffles
        seen = []
        handle = last.register_forward_hook(lambda module, inputs, output: seen.append(output))
        again = network(image)
        handle.remove()
    assert torch.equal(last(output.features), seen[0]) and torch.equal(again.features, output.features)
    if output.features.shape[-2:] == output.logits.shape[-2:] and "deeplabv2" not in name:
        assert torch.allclose(seen[0], output.logits, atol=1e-6)


def test_copies_keep_their_features_apart_and_a_second_call_changes_nothing(tmp_path):
    network, image = network_and_image("segformer")
    return_features(network)
    return_features(network)
    copy = deepcopy(network)
    first, second = network(image), copy(2 * image)
    assert not torch.equal(first.features, second.features)
    assert len(network._forward_hooks) == len(network.decode_head.classifier._forward_pre_hooks) == 1
    first.features.sum().backward()
    assert any(parameter.grad is not None for parameter in network.segformer.parameters())
    assert network.decode_head.classifier.weight.grad is None
    network.save_pretrained(tmp_path)
    assert type(network).from_pretrained(tmp_path).state_dict().keys() == network.state_dict().keys()


def test_auxiliary_heads_are_not_the_classifier():
    network, image = network_and_image("deeplabv3plus-resnet101-cityscapes")
    return_features(network)
    output = network(image)
    assert output.features.shape[-2:] == output.logits.shape[-2:] and output.auxiliary_logits is not None


def test_a_network_that_classifies_masks_is_refused():
    class Masks(nn.Module):
        config = type("Config", (), {"num_labels": 3})

    with pytest.raises(UserError, match="a Masks has no convolution that classifies them; use a model such as"):
        return_features(Masks())
