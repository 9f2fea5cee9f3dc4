"""Cross pseudo supervision: recordings of the authors' functions, a plain loop, padding, networks that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_fst.errors import UserError
from hf_fst.method.losses import hard_pixels
from hf_fst.method.mixing import toggled_boxes, toggled_cut_mask
from hf_fst.method.objectives import CPSObjective, cps
from hf_fst.models.two_branches import TwoBranchesOutput
from tests import tiny
from tests.device import DEVICE
from tests.invariants.test_equations import DIGITS, METHOD_CASES, RULES, compare
from tests.plain import Plain

RECORDINGS = Path(__file__).parents[1] / "data" / "competitors"


def recorded(name: str) -> dict:
    return torch.load(RECORDINGS / f"{name}.pt", weights_only=True)


class Playing(nn.Module):
    """Gives recorded logits of two branches: the first channel of an image says which row it is."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor):
        super().__init__()
        self.logits = first, second

    def forward(self, pixel_values, all_branches):
        rows = pixel_values[:, 0, 0, 0].long()
        outputs = tuple(TwoBranchesOutput(logits=logits[rows]) for logits in self.logits)
        return TwoBranchesOutput(logits=outputs[0].logits, branches=outputs)


def rows(*numbers: int, side: int = 20) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, side, side)


def test_losses_and_gradients_are_those_of_the_authors_loop():
    record = recorded("cps_loss")
    given, wanted = record["inputs"], record["outputs"]
    predictions = {key: given[key].clone().requires_grad_() for key in given if key.startswith("pred_")}
    network = Playing(*(torch.cat([predictions[f"pred_{kind}_{k}"] for kind in ("sup", "unsup")]) for k in "lr"))
    objective = CPSObjective(unlabeled_weight=given["cps_weight"], cut_probability=0.0, align_corners=True)
    batch = {
        "pixel_values": rows(0, 1),
        "labels": given["labels"].long(),
        "unlabeled_pixel_values": rows(2, 3),
    }
    with torch.no_grad():
        batch = objective.prepare(network, batch)
    for peer, side in enumerate(("max_r", "max_l")):  # each branch learns what the other one says
        seen = torch.cat([batch["labeled_peer_labels"][peer], batch["peer_labels"][peer]])
        assert torch.equal(seen, wanted[side].long())
    first, second = objective.terms(network, None, batch, objective.counts(batch))
    supervised = (wanted["loss_sup_l"] + wanted["loss_sup_r"]).item()
    assert first["labeled_loss"].item() == pytest.approx(supervised, abs=1e-12)
    cross = first["cross_labeled_loss"] + second["unlabeled_loss"]
    assert cross.item() == pytest.approx(wanted["cps_loss_weighted"].item(), abs=1e-12)
    loss = first["labeled_loss"] + cross
    assert loss.item() == pytest.approx(wanted["loss"].item(), abs=1e-12)
    loss.backward()
    gradient = predictions["pred_unsup_l"].grad
    torch.testing.assert_close(gradient, wanted["grad_pred_unsup_l"], atol=1e-12, rtol=0)
    norms = {key: predictions[key].grad.norm().item() for key in predictions}
    assert norms == pytest.approx({key: value.item() for key, value in wanted["grad_norms"].items()}, abs=1e-12)


def test_with_cut_mix_images_labels_and_losses_are_those_of_the_authors_loop(monkeypatch):
    record = recorded("cps_cutmix")
    given, wanted = record["inputs"], record["outputs"]
    monkeypatch.setattr(cps, "toggled_cut_mask", lambda *_: given["mask"] == 0)
    images = {"unlabeled_pixel_values": given["u0"].clone(), "unlabeled_partner_pixel_values": given["u1"].clone()}
    for start, pixels in zip((0, 2), images.values(), strict=True):  # of a corner that no box covers
        assert (given["mask"][:, :, 0, 0] == 0).all()
        pixels[:, 0, 0, 0] = torch.tensor([start, start + 1])
    says = given["teacher_logits"]
    teacher = Playing(*(torch.cat([says[f"image{i}_net{k}"] for i in (0, 1)]) for k in (1, 2)))
    objective = CPSObjective(unlabeled_weight=1.0, cut_partner="same", align_corners=True)
    labeled = {"pixel_values": rows(0, side=16), "labels": torch.zeros(1, 16, 16, dtype=torch.long)}
    batch = objective.prepare(teacher, labeled | images)
    assert torch.equal(batch["mixed_pixel_values"][:, 1:], wanted["mixed"][:, 1:])
    assert torch.equal(batch["peer_labels"][1], wanted["ps_label_1"].long())
    assert torch.equal(batch["peer_labels"][0], wanted["ps_label_2"].long())
    learns = [given["student_logits"][f"net{k}"].clone().requires_grad_() for k in (1, 2)]
    _, terms = objective.terms(Playing(*learns), None, batch, objective.counts(batch))
    assert terms["unlabeled_loss"].item() == pytest.approx(wanted["cps_loss"].item(), abs=1e-12)
    terms["unlabeled_loss"].backward()
    torch.testing.assert_close(learns[0].grad, wanted["grad_net1"], atol=1e-12, rtol=0)


def test_boxes_are_those_of_the_authors_generator():
    record = recorded("cps_cutmix")
    for seed, wanted in record["masks_24x24_by_RandomState"].items():
        draws = np.random.RandomState(int(seed.removeprefix("seed")))
        area, height = draws.uniform(0.25, 0.5, (2, 3)), draws.uniform(0, 1, (2, 3))
        place = draws.uniform(0, 1, (2, 3, 2))
        numbers = [torch.from_numpy(x)[..., None, None] for x in (area, height, place[..., 0], place[..., 1])]
        assert torch.equal(toggled_boxes(*numbers, (24, 24)), wanted[:, 0] == 1)
    torch.manual_seed(0)
    mask = ~toggled_cut_mask(2000, (128, 128), DEVICE)
    assert mask.float().mean().item() == pytest.approx(record["mean_area_of_ones"], abs=0.005)
    share = (~toggled_cut_mask(2000, (16, 24), DEVICE, 0.5)).any((1, 2, 3)).float().mean()
    assert mask.shape == (2000, 1, 128, 128) and share.item() == pytest.approx(0.5, abs=0.05)


def test_hard_pixels_are_those_of_the_authors_criterion():
    record = recorded("ohem")
    logits, labels = record["inputs"]["logits"], record["inputs"]["labels"].long()
    for name, wanted in record["outputs"].items():
        threshold, min_kept = name.removeprefix("thresh").split("_min_kept")
        hard = hard_pixels(logits, labels, float(threshold), int(min_kept))
        loss = F.cross_entropy(logits, labels.masked_fill(~hard, 255), ignore_index=255)
        assert hard.sum() == wanted["pixels_kept"] and loss.item() == pytest.approx(wanted["loss"].item(), abs=1e-12)


BOX = torch.zeros(2, 8, 8, dtype=torch.bool)  # inside the box of each image
BOX[0, 1:6, 2:7] = BOX[1, :, :3] = True


class PlainCPS(Plain):
    """Σ_k CE_k + λ·(CE(g1, ŷ2) + CE(g2, ŷ1)) of mixed unlabeled images, without boxes of labeled ones as well."""

    boxes = True

    def loss(self, network, teacher, group):
        valid = sum((batch["labels"] < 255).sum() for batch in group)
        unlabeled = sum(batch["unlabeled_pixel_values"][:, 0].numel() for batch in group)
        pixels = unlabeled if self.boxes else unlabeled + sum(batch["labels"].numel() for batch in group)
        total = 0
        for batch in group:
            supervised = [self.resized(branch(batch["pixel_values"]).logits) for branch in network.branches]
            for logits in supervised:
                total = total + F.cross_entropy(logits, batch["labels"], ignore_index=255, reduction="sum") / valid
            seen = batch["unlabeled_pixel_values"]
            labels = self.label(teacher, seen)
            if self.boxes:
                inside, order = BOX[: len(seen)].to(DEVICE), (torch.arange(len(seen)) + 1) % len(seen)
                seen = torch.where(inside[:, None], seen[order], seen)
                labels = [torch.where(inside, own[order], own) for own in labels]
            cross = [([self.resized(branch(seen).logits) for branch in network.branches], labels)]
            if not self.boxes:
                cross.append((supervised, self.label(teacher, batch["pixel_values"])))
            for (first, second), (one, two) in cross:
                both = F.cross_entropy(first, two, reduction="sum") + F.cross_entropy(second, one, reduction="sum")
                total = total + self.weight * both / pixels
        return total

    @staticmethod
    def label(teacher, images):
        with torch.no_grad():
            return [PlainCPS.resized(branch(images).logits).argmax(1) for branch in teacher.branches]

    @staticmethod
    def resized(logits):
        return F.interpolate(logits, (8, 8), mode="bilinear")


class PlainCPSWithoutBoxes(PlainCPS):
    """Labeled images take part."""

    boxes = False


@pytest.mark.parametrize("case", METHOD_CASES)
@pytest.mark.parametrize("cuts", [True, False])
def test_training_is_a_plain_loop_under_every_rule(tmp_path, monkeypatch, cuts, case):
    monkeypatch.setattr(cps, "toggled_cut_mask", lambda count, *_: ~BOX[:count].unsqueeze(1).to(DEVICE))
    number = RULES.index(case)
    student, teacher = compare(
        tmp_path,
        case,
        kind=PlainCPS if cuts else PlainCPSWithoutBoxes,
        network=tiny.branches,
        more={"objective": "cps", "cut_probability": float(cuts)},
        batch_norm=True,
        buffers=["copy", "batch"][number % 2],
        accumulation=1 + number % 2,
        batch_size=2 - number % 2,
    )
    assert student < DIGITS and teacher < DIGITS


@pytest.mark.parametrize("cuts", [0.0, 1.0])
def test_padding_is_neither_pasted_nor_learned_from(monkeypatch, cuts):
    everywhere = torch.zeros(2, 1, 20, 20, dtype=torch.bool)
    monkeypatch.setattr(cps, "toggled_cut_mask", lambda *_: everywhere.clone())
    logits = torch.zeros(2, 3, 20, 20)
    logits[0, 1], logits[1, 2] = 9.0, 9.0
    valid = torch.ones(2, 20, 20, dtype=torch.bool)
    valid[0, 10:] = False
    batch = {
        **{"pixel_values": rows(0, 0), "labels": torch.zeros(2, 20, 20, dtype=torch.long), "valid": valid},
        **{"unlabeled_pixel_values": rows(0, 1), "unlabeled_valid": valid},
    }
    objective = CPSObjective(cut_probability=cuts)
    batch = objective.prepare(Playing(logits, logits.flip(1)), batch)
    assert batch["pseudo_labels"][0, 10:].eq(255).all() and batch["pseudo_labels"][1].eq(2).all()
    if cuts:
        assert batch["peer_labels"][1, 0].eq(2).all() and batch["peer_labels"][1, 1, :10].eq(1).all()
        assert batch["peer_labels"][1, 1, 10:].eq(2).all()
        assert objective.counts(batch)["cross"] == 800
    else:
        assert batch["labeled_peer_labels"][:, 0, 10:].eq(255).all()
        assert objective.counts(batch)["cross"] == 1200


def test_an_objective_and_a_network_that_do_not_fit_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError) as error:
        tiny.trainer(tmp_path, objective="cps", rule="mean_teacher")
    assert str(error.value) == (
        "objective 'cps' trains two branches that label each other, but TinySegmenter is no such network; name the "
        "objective in the recipe, which then makes one, or give hf_fst.models.TwoBranches.of(model)."
    )
    with pytest.raises(UserError) as error:
        tiny.trainer(tmp_path, tiny.branches(), objective="pseudo_label", rule="mean_teacher")
    assert str(error.value) == (
        "The TwoBranches has several branches, which PseudoLabelObjective does not train; use objective 'cps', or the "
        "network of one branch."
    )
