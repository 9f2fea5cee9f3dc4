"""What "the same" means for networks that were loaded from files.

Weights are compared bit for bit. Logits are not: a file that is mapped into memory gives weights at other addresses, and
kernels chosen by alignment, thread count or processor add the same products in another order.
"""

from __future__ import annotations

import torch

# Reordered sums of float32 differ by some epsilons (1.2e-7) of the largest summand, and the layers of the networks here
# pass that on; a wrong or missing weight changes logits by far more than this share of the largest one.
SHARE = 100 * torch.finfo(torch.float32).eps


def assert_same_weights(network: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Both have the same tensors under the same names, bit for bit."""
    ours, theirs = network.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].cpu(), tensor.cpu()), name


def assert_same_logits(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the order of float32 sums, relative to the largest logit."""
    torch.testing.assert_close(logits, expected, rtol=0, atol=SHARE * expected.abs().max().item())
