"""The distance to a frozen network's features: which places count, and the distance worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_fst.method.objectives.feature_distance import FeatureDistance


class Features(nn.Module):
    """Its feature map (B,2,1,2) is a weight, and an image's first pixel in the first channel of the second place."""

    def __init__(self, start=0.0):
        super().__init__()
        self.map = nn.Parameter(torch.full((1, 2, 1, 2), start, dtype=torch.float64))

    def forward(self, pixel_values, output_hidden_states=None):
        features = self.map.repeat(len(pixel_values), 1, 1, 1)
        features[:, 0, 0, 1] += pixel_values[:, 0, 0, 0]
        return SemanticSegmenterOutput(logits=features, hidden_states=(features * 0, features))


def distance(**options):
    return FeatureDistance(**{"reference": Features(), "weight": 0.5, "num_labels": 3, **options})


# two places of 2x4 pixels; the shares of the class that rules them are 6/8 and 5/8
LABELS = torch.tensor([[[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 2, 2, 0, 2, 2, 2]]])


def test_a_place_counts_from_the_least_share_on():
    assert distance().places(LABELS, (1, 2)).tolist() == [[[True, False]]]
    assert distance(min_share=5 / 8).places(LABELS, (1, 2)).tolist() == [[[True, True]]]
    assert distance(min_share=7 / 8).places(LABELS, (1, 2)).tolist() == [[[False, False]]]


def test_pixels_without_label_take_their_share_and_are_no_class():
    labels = LABELS.masked_fill(LABELS == 2, 255)
    assert distance().places(labels, (1, 2)).tolist() == [[[True, False]]]
    assert not distance(min_share=0.0).places(torch.full((1, 2, 8), 255), (1, 2)).any()
    assert not distance().places(LABELS.masked_fill(LABELS == 1, 255), (1, 2)).any()


@pytest.mark.parametrize(
    ("classes", "expected"), [(None, [True, True]), ([1], [True, False]), ([0, 2], [False, True])]
)
def test_only_places_of_the_given_classes_count(classes, expected):
    assert distance(min_share=0.5, classes=classes).places(LABELS, (1, 2)).tolist() == [[expected]]


def test_the_loss_is_the_weighted_mean_of_euclidean_distances():
    """Two images; the student is 3 and 4 off in its two channels, and every place of the first image counts."""
    part = distance(min_share=0.5)
    labels = torch.cat([LABELS, torch.full_like(LABELS, 255)])
    batch = part.prepare({"pixel_values": torch.ones(2, 3, 2, 8, dtype=torch.float64), "labels": labels})
    assert batch["reference_features"][:, 0, 0].tolist() == [[0, 1], [0, 1]]  # the last of the hidden states
    student = batch["reference_features"] + torch.tensor([3.0, 4.0], dtype=torch.float64).view(1, 2, 1, 1)
    output = SemanticSegmenterOutput(hidden_states=(student,))
    totals = part.counts(batch)
    assert totals["places"] == 2
    assert part.loss(output, batch, totals).item() == 0.5 * (5 + 5) / 2
    # the mean is over the places of the whole group
    assert part.loss(output, batch, {"places": torch.tensor(8)}).item() == 0.5 * (5 + 5) / 8
    nowhere = {**batch, "distance_places": torch.zeros(2, 1, 2, dtype=torch.bool)}
    assert part.loss(output, nowhere, part.counts(nowhere)).item() == 0


def test_the_reference_is_a_frozen_copy():
    network = Features(start=2.0)
    part = distance(reference=network)
    with torch.no_grad():
        network.map.fill_(9.0)
    assert (part.reference.map == 2).all() and not part.reference.map.requires_grad and not part.reference.training
