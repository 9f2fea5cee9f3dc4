"""UniMatch and UniMatch V2: recordings of the authors' functions, plain loops, padding, networks that fit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_fst.method.features import ComplementaryDropout, beside_dropped
from hf_fst.method.mixing import first_fitting, rectangle, small_cut_mask
from hf_fst.method.objectives import UniMatchObjective, UniMatchV2Objective, unimatch, unimatch_v2, weak_to_strong
from tests import tiny
from tests.device import DEVICE
from tests.invariants.test_equations import DIGITS, METHOD_CASES, RULES, compare
from tests.plain_unimatch import BOXES, DROPPED, THRESHOLD, PlainUniMatch, PlainUniMatchV2

RECORDINGS = Path(__file__).parents[1] / "data" / "competitors"
QUIET = {"jitter_probability": 0.0, "gray_probability": 0.0, "blur_probability": 0.0}


def recorded(name: str) -> dict:
    return torch.load(RECORDINGS / f"{name}.pt", weights_only=True)


class Playing(nn.Module):
    """Gives recorded logits: images say by their first channel which rows they are, and the head whether it sees twice as
    many features as images."""

    def __init__(self, clean: torch.Tensor, dropped: torch.Tensor):
        super().__init__()
        self.decode_head = nn.Identity()
        self.clean, self.dropped = clean, dropped

    def forward(self, pixel_values):
        features = self.decode_head(pixel_values[:, :1, :1, :1] + 1)  # no 0, which would survive a dropout
        rows = pixel_values[:, 0, 0, 0].long()
        perturbed = self.dropped[rows] if len(features) > len(rows) else self.dropped[:0]
        return SemanticSegmenterOutput(logits=torch.cat([self.clean[rows], perturbed]))


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 20, 20)


def test_views_and_losses_are_those_of_the_authors_loop(monkeypatch):
    record = recorded("unimatch_loss")
    given, wanted = {k: v.double() for k, v in record["inputs"].items()}, record["outputs"]
    boxes = iter([given["cutmix_box1"], given["cutmix_box2"]])
    monkeypatch.setattr(weak_to_strong, "small_cut_mask", lambda *_: (next(boxes) != 1).unsqueeze(1))
    objective = UniMatchObjective(align_corners=True, cut_partner="same", **QUIET)
    batch = {
        "pixel_values": rows(0, 1),
        "labels": given["mask_x"].long(),
        "unlabeled_pixel_values": rows(2, 3),
        "unlabeled_valid": given["ignore_mask"] != 255,
        "unlabeled_partner_pixel_values": rows(4, 5),
        "unlabeled_partner_valid": given["ignore_mask_mix"] != 255,
    }
    weak = torch.cat([given["pred_x"], given["pred_u_w"], given["pred_u_w_mix"]])
    batch = objective.prepare(Playing(weak, weak[:0]), batch)
    for i, labels in enumerate(batch["mixed_labels"].chunk(2), 1):
        box = given[f"cutmix_box{i}"] == 1
        ignored = torch.where(box, given["ignore_mask_mix"], given["ignore_mask"]) == 255
        assert torch.equal(labels, wanted[f"mask_u_w_cutmixed{i}"].long().masked_fill(ignored, 255))
        images = batch["mixed_pixel_values"].chunk(2)[i - 1]
        assert torch.equal(images, torch.where(box.unsqueeze(1), rows(4, 5), rows(2, 3)))

    strong = torch.cat([given["pred_u_s1"], given["pred_u_s2"]]).requires_grad_()
    clean, dropped = torch.cat([weak[:4], strong]), torch.cat([given["pred_u_w_fp"]] * 2)
    batch |= {"mixed_pixel_values": rows(4, 5, 6, 7)}
    first, second = objective.terms(Playing(clean, dropped), None, batch, objective.counts(batch))
    assert first["labeled_loss"].item() == pytest.approx(wanted["loss_x"].item() / 2, abs=1e-6)
    assert first["feature_loss"].item() == pytest.approx(wanted["loss_u_w_fp"].item() / 4, abs=1e-6)
    views = (wanted["loss_u_s1"] + wanted["loss_u_s2"]).item()
    assert second["unlabeled_loss"].item() == pytest.approx(views / 8, abs=1e-6)
    loss = sum(first.values()) + second["unlabeled_loss"]
    assert loss.item() == pytest.approx(wanted["loss"].item(), abs=1e-6)
    loss.backward()
    assert torch.allclose(strong.grad[:2].float(), wanted["grad_u_s1"], atol=1e-6)


def test_a_box_is_the_first_that_fits_as_in_the_authors_code():
    record = recorded("unimatch_cutmix_box")
    size = record["inputs"]["img_size"]
    for seed, wanted in record["outputs"]["y0_x0_y1_x1_by_seed"].items():
        random.seed(int(seed))
        np.random.seed(int(seed))
        if random.random() > 0.5:
            assert wanted == []
            continue
        area = np.random.uniform(0.02, 0.4) * size * size
        tries = [(np.random.uniform(0.3, 1 / 0.3), *np.random.randint(0, size, 2)) for _ in range(200)]
        ratio, left, top = torch.tensor(tries, dtype=torch.float64).T.unsqueeze(1)
        top, left, height, width = first_fitting(torch.tensor([area]), ratio, top, left, (size, size))
        found = [x.int().item() for x in (top, left, top + height, left + width)]
        assert found == wanted


def test_boxes_are_as_large_and_as_frequent_as_the_authors():
    wanted = recorded("unimatch_cutmix_box")["statistics"]
    torch.manual_seed(0)
    areas = (~small_cut_mask(4000, (64, 64), DEVICE, 0.5)).float().mean((1, 2, 3))
    some = areas[areas > 0]
    assert some.mean().item() == pytest.approx(wanted["mean_area"], abs=0.01)
    assert some.min().item() > 0.01 and some.max().item() < 0.4
    assert len(some) / 4000 == pytest.approx(0.5, abs=0.03)
    assert (~small_cut_mask(50, (20, 40), DEVICE, 1.0)).any((1, 2, 3)).all()
    corner = [torch.tensor(x).view(1, 1, 1) for x in (1, 2, 3, 4)]
    assert rectangle(*corner, (8, 8))[0].nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (2, 3, 4, 5)]


@pytest.mark.parametrize("tokens", [True, False])
def test_complementary_masks_are_those_of_the_authors(tokens):
    wanted = recorded("unimatch_dropout")["outputs"]
    ones = (lambda b: torch.ones(b, 4, 12)) if tokens else (lambda b: torch.ones(b, 12, 2, 2))
    for batch, seed in ((8, 80), (4, 81), (2, 82), (6, 83)):
        torch.manual_seed(seed)
        dropout = ComplementaryDropout(0.5)
        levels = [dropout(ones(batch)) for _ in range(4)]
        rows = [x[:, 0] if tokens else x[:, :, 0, 0] for x in levels]
        assert all(torch.equal(row.byte(), wanted[f"batch{batch}_seed{seed}"]) for row in rows)
        assert all((x == (x[:, :1] if tokens else x[:, :, :1, :1])).all() for x in levels)


def test_dropped_channels_are_those_of_the_authors():
    wanted = recorded("unimatch_dropout")["outputs"]
    torch.manual_seed(85)
    for level, channels in (("c1", 6), ("c4", 8)):
        both = beside_dropped(torch.ones(2, channels, 3, 3), 0.5)
        assert both[:2].eq(1).all()
        assert torch.equal(both[2:, :, 1, 2].byte(), wanted[f"v1_dropout2d_{level}_seed85"])
    torch.manual_seed(85)
    tokens = beside_dropped(torch.ones(2, 5, 6), 0.5)
    assert torch.equal(tokens[2:, 3].byte(), wanted["v1_dropout2d_c1_seed85"])


@pytest.fixture
def given_masks(monkeypatch):
    """The boxes and channel masks of the plain loops in the place of drawn ones."""
    calls = iter(range(10**6))

    def box(count, *_):
        return ~BOXES[next(calls) % 2, :count].unsqueeze(1).to(DEVICE)

    def beside(features, probability):
        channels = DROPPED.to(features)[torch.arange(len(features)) % 2]
        return torch.cat([features, features * channels[:, :, None, None]])

    def complementary(_):
        def masked(features):
            first = DROPPED.to(features)[: len(features) // 2]
            return features * torch.cat([first, 2 - first])[:, :, None, None]

        return masked

    monkeypatch.setattr(weak_to_strong, "small_cut_mask", box)
    monkeypatch.setattr(unimatch, "beside_dropped", beside)
    monkeypatch.setattr(unimatch_v2, "ComplementaryDropout", complementary)


LOOPS = {"unimatch": PlainUniMatch, "unimatch_v2": PlainUniMatchV2}


@pytest.mark.parametrize("case", METHOD_CASES)
@pytest.mark.parametrize("objective", LOOPS)
def test_training_is_a_plain_loop_under_every_rule(tmp_path, given_masks, objective, case):
    number = RULES.index(case)
    student, teacher = compare(
        tmp_path,
        case,
        kind=LOOPS[objective],
        more={"objective": objective, "confidence_threshold": THRESHOLD, **QUIET},
        batch_norm=True,
        buffers=["copy", "batch"][number % 2],
        accumulation=1 + number % 2,
        batch_size=2 - number % 2,
    )
    assert student < DIGITS and teacher < DIGITS


@pytest.mark.parametrize("kind", [UniMatchObjective, UniMatchV2Objective])
def test_padding_is_neither_pasted_nor_learned_from(monkeypatch, kind):
    everywhere = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    monkeypatch.setattr(weak_to_strong, "small_cut_mask", lambda *_: everywhere.clone())
    logits = torch.zeros(2, 3, 20, 20)
    logits[0, 1], logits[1, 2] = 9.0, 9.0
    valid = torch.ones(2, 20, 20, dtype=torch.bool)
    valid[0, 10:] = False  # of the image that the second one's box is filled with
    batch = {
        **{"pixel_values": rows(0, 0), "labels": torch.zeros(2, 20, 20, dtype=torch.long)},
        **{"unlabeled_pixel_values": rows(0, 1), "unlabeled_valid": valid},
    }
    objective = kind(confidence_threshold=0.0, **QUIET)
    batch = objective.prepare(Playing(logits, torch.empty(0)), batch)
    for view in batch["mixed_labels"].chunk(2):
        assert view[0].eq(2).all() and view[1, :10].eq(1).all() and view[1, 10:].eq(2).all()
    counts = objective.counts(batch)
    assert (counts["weak"], counts["first"], counts["second"]) == (600, 800, 800)


def test_two_views_of_an_image_come_with_it_where_they_are_asked_for(tmp_path):
    options = {"rule": "mean_teacher", "teacher_follows": "live", "objective": "unimatch", "max_steps": 1}
    for partner in ("next", "same"):
        trainer = tiny.trainer(tmp_path, cut_partner=partner, **options)
        trainer.train()
        assert ("unlabeled_partner_pixel_values" in trainer.group[0]) == (partner == "same")
