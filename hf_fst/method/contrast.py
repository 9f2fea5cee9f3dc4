"""Contrast of pixels with classes, as in U2PL (Wang et al., 2022); pure tensor functions.

Representations are (B,D,h,w), the first B_l rows of labeled images, the others of unlabeled ones. `members` (B,C,h,w)
says which places have which class as (pseudo-)label, `low` and `high` (B,h,w) where the teacher's entropy is so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hf_fst.method.losses import IGNORE_INDEX


def members_of(labels: torch.Tensor, num_labels: int, coded: bool = False) -> torch.Tensor:
    """Labels (B,H,W), 255 being no class, as classes of places (B,C,H,W) bool.

    Args:
        labels: of images.
        num_labels: number of classes C.
        coded: as the authors' code does: the labels of all images land in the first, places without label as class 0.
    """
    known = labels != IGNORE_INDEX
    ones = F.one_hot(labels.masked_fill(~known, 0), num_labels).permute(0, 3, 1, 2).bool()
    if coded:
        ones = torch.cat([ones.any(dim=0, keepdim=True), torch.zeros_like(ones[1:])])
    return ones & known.unsqueeze(1)


def negatives(
    members: torch.Tensor,
    probabilities: torch.Tensor,
    high: torch.Tensor,
    labeled: int,
    ranks: tuple[int, int],
    coded: bool = False,
) -> torch.Tensor:
    """Which places are negatives of which class, (B,C,h,w) bool: unreliable ones that are probably not of it.

    Of unlabeled images those where the class is from the `ranks[0]`-th to before the `ranks[1]`-th most probable, counted
    from 0; of labeled ones those of another class where it is among the first `ranks[0]`.

    Args:
        members, high: see above.
        probabilities: the teacher's (B,C,h,w).
        labeled: number of labeled images B_l.
        ranks: lowest and highest rank, r_l and r_h.
        coded: only places whose own label is the class count, as in the authors' code, which leaves those of unlabeled
            images where the teacher's two passes disagree.
    """
    first, last = ranks
    rank = probabilities.argsort(dim=1, descending=True).argsort(dim=1)
    of_labeled = (rank < first) & ~members
    of_unlabeled = (rank >= first) & (rank < last)
    found = torch.cat([of_labeled[:labeled], of_unlabeled[labeled:]]) & high.unsqueeze(1) & (probabilities < 1)
    return found & members if coded else found


def class_contrast(
    student: torch.Tensor,
    teacher: torch.Tensor,
    members: torch.Tensor,
    probabilities: torch.Tensor,
    low: torch.Tensor,
    banks: list[torch.Tensor],
    threshold: float,
    queries: int,
    keys: int,
    temperature: float,
    coded: bool = False,
) -> torch.Tensor:
    """Σ_c CE over [positive, negatives] / (number of classes with reliable places), (); 0 where there is only one.

    For each class, `queries` anchors are drawn of the student's reliable places where the teacher gives the class more
    than `threshold`; the positive is the mean of the teacher's reliable places of the class, `keys` negatives for each
    anchor come from the class's bank. Logits are cosines over the temperature.

    Args:
        student, teacher: representations (B,D,h,w); gradient flows through the student's.
        members, low: see above.
        probabilities: the teacher's (B,C,h,w).
        banks: for each class, (n,D).
        threshold, queries, keys, temperature: δ_p, M, N and τ.
        coded: as in the authors' code, anchors and positive of the i-th class meet the bank of the i-th class present.
    """
    student, teacher = student.permute(0, 2, 3, 1), teacher.permute(0, 2, 3, 1)
    reliable = members & low.unsqueeze(1)
    valid = [c for c, there in enumerate(reliable.any(dim=3).any(dim=2).any(dim=0).tolist()) if there]
    loss = 0 * student.sum()
    if len(valid) < 2:
        return loss
    for i, c in enumerate(valid):
        own = i if coded else c
        anchors = student[reliable[:, own] & (probabilities[:, own] > threshold)]
        if not len(anchors) or not len(banks[c]):
            continue
        anchors = anchors[drawn(len(anchors), queries)]
        against = banks[c][drawn(len(banks[c]), queries * keys)].view(queries, keys, -1)
        positive = teacher[reliable[:, own]].mean(dim=0).expand(queries, 1, -1)
        both = torch.cat([positive, against.to(positive.dtype)], dim=1)
        cosines = F.cosine_similarity(anchors.unsqueeze(1), both, dim=2) / temperature
        loss = loss + F.cross_entropy(cosines, torch.zeros(queries, dtype=torch.long, device=cosines.device))
    return loss / len(valid)


def drawn(high: int, count: int) -> torch.Tensor:
    """`count` rows of `high`, with replacement."""
    return torch.randint(high, (count,))


def enqueued(bank: torch.Tensor | None, rows: torch.Tensor, size: int) -> torch.Tensor:
    """The last `size` of the rows of a bank (n,D), None for an empty one, and new ones (m,D)."""
    return (rows if bank is None else torch.cat([bank, rows.to(bank.dtype)]))[-size:]
