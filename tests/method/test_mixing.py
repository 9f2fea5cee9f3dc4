"""ClassMix and CutMix masks: what is chosen, how much, and anew for each image."""

from __future__ import annotations

import math

import pytest
import torch

from hf_fst.method.mixing import class_mask, cut_mask, mix


def chosen(labels, mask) -> list[set[int]]:
    """Classes kept in each image; fails if a class is kept in part."""
    sets = []
    for image, kept in zip(labels, mask.squeeze(1), strict=True):
        sets.append(set(image[kept].tolist()))
        assert not sets[-1] & set(image[~kept].tolist()), "a class was cut apart"
    return sets


@pytest.mark.parametrize("present", [1, 2, 3, 4, 7])
def test_class_mix_keeps_half_of_the_classes_of_each_image_rounded_up(present):
    labels = (torch.arange(64).view(1, 8, 8) % present + 2).repeat(3, 1, 1)
    labels[:, 0] = 255
    torch.manual_seed(0)
    for _ in range(20):
        for classes in chosen(labels, class_mask(labels, 19)):
            assert len(classes) == math.ceil(present / 2) and 255 not in classes


def test_class_mix_chooses_every_class_equally_often_and_anew_for_each_image():
    labels = torch.arange(4).view(1, 2, 2).repeat(2000, 1, 1)
    torch.manual_seed(0)
    sets = chosen(labels, class_mask(labels, 4))
    share = [sum(c in s for s in sets) / len(sets) for c in range(4)]
    assert share == pytest.approx([0.5] * 4, abs=0.05)  # 4.5 standard deviations
    assert len({frozenset(s) for s in sets}) == 6


def test_class_mix_counts_classes_of_the_image_alone():
    labels = torch.stack([torch.full((4, 4), 1), torch.arange(16).view(4, 4) % 4 + 2])
    torch.manual_seed(0)
    for _ in range(20):
        first, second = chosen(labels, class_mask(labels, 8))
        assert first == {1} and len(second) == 2


def test_class_mix_over_the_batch_chooses_among_all_its_classes_and_void():
    # classes 0 to 4 and void are six: three are chosen for each image, whether it has them or not
    labels = torch.stack([torch.arange(16).view(4, 4) % 3, torch.arange(16).view(4, 4) % 2 + 3])
    labels[0, 0, 0] = 255
    torch.manual_seed(0)
    seen = [set(), set()]
    for _ in range(200):
        for i, classes in enumerate(chosen(labels, class_mask(labels, 8, "batch"))):
            seen[i].add(frozenset(classes))
    assert frozenset({0, 1, 2}) in seen[0] and frozenset({3, 4}) in seen[1]
    assert frozenset() in seen[1]  # where all three are the other image's
    assert any(255 in classes for classes in seen[0]) and {len(classes) for classes in seen[0]} == {1, 2, 3}


def test_class_mix_of_an_image_without_labels_keeps_nothing():
    assert not class_mask(torch.full((2, 4, 4), 255), 5).any()


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (31, 17), (5, 64)])
def test_cut_mix_cuts_a_rectangle_of_half_the_area_inside_the_image(size):
    height, width = size
    torch.manual_seed(0)
    rectangles = set()
    for cut in ~cut_mask(200, size, torch.device("cpu")).squeeze(1):
        rows, columns = cut.any(1).nonzero().flatten(), cut.any(0).nonzero().flatten()
        h, w = len(rows), len(columns)
        assert cut.sum() == h * w == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert width // 2 + 1 <= w < width
        assert h == round(height * width / 2 / w)
        rectangles.add((rows[0].item(), columns[0].item(), h, w))
    assert len(rectangles) > 5
    assert min(r[1] for r in rectangles) == 0 and max(r[1] + r[3] for r in rectangles) == width


def test_cut_mix_cuts_with_the_given_probability():
    torch.manual_seed(0)
    device = torch.device("cpu")
    assert cut_mask(50, (8, 8), device, 0.0).all()
    assert not cut_mask(50, (8, 8), device, 1.0).flatten(1).all(1).any()
    inside = ~cut_mask(2000, (8, 8), device, 0.3)
    assert inside.flatten(1).any(1).double().mean().item() == pytest.approx(0.3, abs=0.05)
    assert inside[:, 0, [0, -1]].any(0).all() and inside[:, 0, :, [0, -1]].any(0).all()  # anywhere, all the same


def test_masks_depend_on_the_torch_seed_alone():
    labels = torch.randint(0, 5, (2, 8, 8))
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append((class_mask(labels, 5), cut_mask(2, (8, 8), torch.device("cpu"))))
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])


def test_mix_takes_the_first_where_the_mask_is_true():
    mask = torch.tensor([[[[True, False]]]])
    images = mix(mask, torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
    assert images[0, :, 0].tolist() == [[1, 0]] * 3
    assert mix(mask, torch.tensor([[[4, 5]]]), torch.tensor([[[6, 7]]])).tolist() == [[[4, 7]]]
