"""Features perturbed on their way from the encoder to the decode head, in any network whose head is a part of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import nn

from hf_fst.errors import UserError

#: names of what takes the encoder's features: of our networks, SegFormer, UPerNet, BEiT; of DPT; of MobileViT; of others
HEADS = ("decode_head", "neck", "segmentation_head", "head")


def head_of(network: nn.Module) -> nn.Module | None:
    """The outermost part of a network with the first name of `HEADS` that occurs; None if there is no such part."""
    for name in HEADS:
        found = [path for path, _ in network.named_modules() if path.rpartition(".")[2] == name]
        if found:
            return network.get_submodule(min(found, key=lambda path: path.count(".")))
    return None


def refuse_without_head(network: nn.Module, objective: str) -> None:
    """Refuse a network whose features cannot be perturbed.

    Raises:
        UserError: it has no part named as in `HEADS`.
    """
    if head_of(network) is None:
        raise UserError(
            f"objective {objective!r} perturbs what the decode head takes, but {type(network).__name__} has no part "
            f"named {', '.join(HEADS[:-1])} or {HEADS[-1]}; use a network of hf_fst.models, SegFormer, UPerNet, "
            "BEiT or DPT, or objective 'cut_mix'."
        )


@contextmanager
def perturbed_features(network: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside, the decode head of a network gets `change(x)` instead of each feature map x that it takes.

    `change` may lengthen the batch, as long as it does so for all maps alike: the logits then have as many rows.

    Args:
        network: the student, wrapped or not.
        change: of maps (B,C,h,w) or tokens (B,T,C).

    Raises:
        UserError: the head was called without maps or tokens.
    """
    network = extract_model_from_parallel(network, keep_torch_compile=False)
    changed = 0

    def changed_in(value):
        nonlocal changed
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() in (3, 4):
            changed += 1
            return change(value)
        if isinstance(value, list | tuple):
            return type(value)(map(changed_in, value))
        return {key: changed_in(item) for key, item in value.items()} if isinstance(value, dict) else value

    def before(head, args, kwargs):
        made = changed_in(args), changed_in(kwargs)
        if not changed:
            raise UserError(
                f"The decode head of {type(network).__name__} is called without feature maps (B,C,h,w) or tokens (B,T,C) "
                "that could be perturbed; use a network of hf_fst.models, SegFormer, UPerNet, BEiT or DPT."
            )
        return made

    handle = head_of(network).register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def by_channel(mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """`mask` (B,C) times `features` (B,C,h,w) or (B,T,C)."""
    return features * (mask[:, :, None, None] if features.dim() == 4 else mask[:, None])


def _channels(features: torch.Tensor) -> int:
    return features.shape[1 if features.dim() == 4 else 2]


def beside_dropped(features: torch.Tensor, probability: float) -> torch.Tensor:
    """`features` (B,...) and, behind them, the same with each channel dropped with `probability` (Dropout2d): (2B,...).

    UniMatch (Yang et al., 2023): each level draws for itself.
    """
    mask = F.dropout(features.new_ones(len(features), _channels(features)), probability)
    return torch.cat([features, by_channel(mask, features)])


class ComplementaryDropout:
    """Complementary channel dropout (UniMatch V2, Yang et al., arXiv 2410.10777), called with each level of a batch in
    which B first views are followed by the B second views of the same images.

    M ~ Bernoulli(0.5)·2 of shape (B,C) for the first view, 2 - M for the second: each channel is seen, doubled, in one of
    them. Of the pairs, a share chosen at random keeps all channels of both views. Levels of one width, as those of a
    plain vision transformer, have one mask.

    Args:
        kept_share: in [0, 1], of the pairs that keep all channels, rounded down.
    """

    def __init__(self, kept_share: float):
        self.kept_share = kept_share
        self.masks: dict[int, torch.Tensor] = {}

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """`features` (2B,C,h,w) or (2B,T,C), masked."""
        width = _channels(features)
        if width not in self.masks:
            pairs = len(features) // 2
            half = torch.full((pairs, width), 0.5, device=features.device)
            first = torch.binomial(torch.ones_like(half), half) * 2
            first[torch.randperm(pairs, device=features.device)[: int(pairs * self.kept_share)]] = 1
            self.masks[width] = torch.cat([first, 2 - first]).to(features.dtype)
        return by_channel(self.masks[width], features)
