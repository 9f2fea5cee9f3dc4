"""Guided collaborative training: recordings of the authors' functions, a plain loop, padding, networks that fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from hf_fst.errors import UserError
from hf_fst.method.flaws import blur_row, dynamic_consistency, flaw_truth, handled
from hf_fst.method.objectives import GCTObjective
from hf_fst.method.teacher import EMATeacher
from hf_fst.models.flaw_detector import FlawDetector
from tests import tiny
from tests.device import DEVICE, on_device
from tests.invariants.test_equations import DIGITS, METHOD_CASES, RULES, compare
from tests.plain import Plain
from tests.recorded import FOLDER, recorded


def extra(name: str) -> dict:
    recorded(name)  # skips where there is none
    return torch.load(FOLDER / f"{name}.pt", weights_only=True)


def test_the_truth_and_its_blurs_are_those_of_the_authors():
    recording = extra("gct_flaw_gt")
    for key, width in (("kernel_blur", 5), ("kernel_reblur", 11)):
        row = blur_row(width)
        torch.testing.assert_close(row[:, None] * row, recording[key], atol=1e-12, rtol=0)
    given, wanted = recording["inputs"], recording["outputs"]
    for spread in (1, 2):
        found = flaw_truth(given["pred_softmax"], given["labels"].long(), ignored_are_half=True, spread=spread)
        torch.testing.assert_close(found, wanted[f"flawmap_gt_nu{spread}"], atol=1e-10, rtol=0)


def test_ignored_pixels_have_no_flaw():
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[:, :, 20:] = 255
    right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 40, 40)
    assert flaw_truth(right, labels).eq(0).all()
    assert flaw_truth(right, labels, ignored_are_half=True)[..., 35:].gt(0.9).all()


def test_who_learns_from_whom_is_as_in_the_authors_code():
    given, wanted = recorded("gct_consistency")
    both_maps = tuple(handled(given[f"{side}_flawmap"]) for side in ("left", "right"))
    for maps, side in zip(both_maps, ("left", "right"), strict=True):
        torch.testing.assert_close(maps, wanted[f"{side}_handled"], atol=1e-10, rtol=0)
    left, right = given["left_pred"], given["right_pred"]
    targets, both = dynamic_consistency(left, right, both_maps, given["dc_threshold"])
    takes = wanted["left_takes_right"].bool().unsqueeze(1)
    assert torch.equal(targets[0], torch.where(takes, right, left)) and takes.any()
    # the other way round, but where the flaws are equal
    assert torch.equal(targets[1][takes.expand_as(left)], right[takes.expand_as(left)])
    assert torch.equal(both, wanted["both_bad"].bool())


def test_the_detector_is_that_of_the_authors():
    recording = extra("gct_flaw_detector")
    given, state, weights = recording["inputs"], recording["state"], {}
    detector = FlawDetector(2, given["ndf"]).double()
    for place, name in enumerate(("1", "2", "2_1", "3", "3_1", "4", "4_1")):
        for kind in ("weight", "bias"):
            weights[f"convs.{place}.{kind}"] = state[f"conv{name}.{kind}"]
            weights[f"norms.{place}.batch_norm.{kind}"] = state[f"ibn{name}.bnorm.{kind}"]
            weights[f"classifier.{kind}"] = state[f"classifier.{kind}"]
    assert all("running" in key or "batches" in key for key in detector.load_state_dict(weights, strict=False)[0])
    p = given["prob_of_class1_uint8"].double() / 255
    found = detector(given["image_uint8"].double() / 255, torch.cat([1 - p, p], dim=1))
    torch.testing.assert_close(found[..., ::2, ::2], recording["outputs"]["flawmap_train_mode"], atol=1e-10, rtol=0)
    assert found.mean().item() == pytest.approx(recording["outputs"]["mean"].item(), abs=1e-10)
    assert sum(weight.numel() for weight in FlawDetector(21, 64).parameters()) == pytest.approx(8.29e6, rel=1e-3)


class Given(torch.nn.Module):
    """A teacher whose branches and detector say what is recorded, a student whose logits are those."""

    def __init__(self, record: dict):
        super().__init__()
        self.logits = tuple(record[f"{side}_pred"].double().log() for side in ("left", "right"))
        self.maps = tuple(record[f"{side}_flawmap"] for side in ("left", "right"))

    def forward(self, pixel_values, all_branches):
        from hf_fst.models.two_branches import TwoBranchesOutput

        branches = tuple(TwoBranchesOutput(logits=logits) for logits in self.logits)
        maps = {"flaw_maps": self.maps, "detected": self.maps}
        return TwoBranchesOutput(logits=self.logits[0], branches=branches, **maps)


def test_losses_are_those_of_the_authors_with_their_maps(monkeypatch):
    given, wanted = recorded("gct_consistency")
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    truths = iter([given["fd_gt"][:2], given["left_flawmap"][:2] * 0 + given["right_flawmap"][:2]])
    monkeypatch.setattr("hf_fst.method.objectives.gct.flaw_truth", lambda *_: next(truths))
    images = {"pixel_values": torch.zeros(2, 3, 32, 32), "unlabeled_pixel_values": torch.zeros(1, 3, 32, 32)}
    network, objective = Given(given), GCTObjective(loss_reduction="all")
    batch = objective.prepare(network, images | {"labels": labels, "progress": 1.0})
    [terms] = objective.terms(network, None, batch, objective.counts(batch))
    # the right branch's map is its truth; the authors' number is of the left one, before the halving
    assert terms["detector_loss"].item() == pytest.approx(wanted["fd_loss_scale10_first2"].item() / 2, abs=1e-6)
    right = (wanted["both_bad"] * given["right_flawmap"].square()).mean().item()
    assert terms["flaw_correction_loss"].item() == pytest.approx(wanted["fc_loss_left"].item() + right, abs=1e-6)
    takes = wanted["left_takes_right"].bool()
    apart = (given["left_pred"] - given["right_pred"]).double().square().mean(1)
    gives = ((batch["targets"][1] - given["right_pred"]).abs().sum(1)) > 1e-5
    expected = 100 * (apart * takes + apart * gives).mean().item()
    assert terms["consistency_loss"].item() == pytest.approx(expected, rel=1e-6)


class PlainGCT(Plain):
    """Both branches and the detector, whose losses reach them through frozen copies of each other's weights."""

    def loss(self, network, teacher, group):
        valid = sum((batch["labels"] < 255).sum() for batch in group)
        pixels = sum(2 * batch["unlabeled_pixel_values"][:, 0].numel() for batch in group)
        ramp = 100 * math.exp(-5 * (1 - min(self.t / self.steps / 0.5, 1)) ** 2)
        total = 0
        for batch in group:
            labels, images = batch["labels"], torch.cat([batch["pixel_values"], batch["unlabeled_pixel_values"]])
            with torch.no_grad():
                says = [self.resized(branch(images).logits).softmax(1) for branch in teacher.branches]
                one, two = (self.handled(teacher.flaw_detector(images, p)) for p in says)
            flawed = (one > 0.6) & (two > 0.6)
            one, two = one.masked_fill(one > 0.6, 1), two.masked_fill(two > 0.6, 1)
            logits = [self.resized(branch(images).logits) for branch in network.branches]
            p, count = [own.softmax(1) for own in logits], len(labels)
            targets = torch.where(one <= two, *says), torch.where(two <= one, *says[::-1])
            for weight in network.flaw_detector.parameters():
                weight.requires_grad_(False)
            flaws = [network.flaw_detector(images, own) for own in p]
            for weight in network.flaw_detector.parameters():
                weight.requires_grad_(True)
            for own, target, maps, from_logits in zip(p, targets, flaws, logits, strict=True):
                total = total + F.cross_entropy(from_logits[:count], labels, ignore_index=255, reduction="sum") / valid
                total = total + ramp * (own - target).pow(2).sum() / 3 / pixels + (maps[flawed] ** 2).sum() / pixels
                error = network.flaw_detector(images, own.detach())[:count] - self.truth(own[:count].detach(), labels)
                total = total + 5 * (error[labels[:, None] < 255] ** 2).sum() / valid
        return total

    def truth(self, p, labels):
        right = torch.stack([labels == c for c in range(3)], 1).double()
        error = 0.5 * (right - p).abs().sum(1, keepdim=True) * (labels < 255)[:, None]
        error = F.pad(error, (1, 1, 1, 1), mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))
        kernel = np.zeros((3, 3))
        kernel[1, 1] = 1
        kernel = torch.from_numpy(gaussian_filter(kernel, 0.8)).to(DEVICE)
        return self.stretched(F.conv2d(F.pad(error, (1, 1, 1, 1), mode="reflect"), kernel[None, None]))

    def handled(self, maps):
        maps = maps.clamp(min=0)
        low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        return torch.where(high > 0.1, maps - low, -low) / (high - low + 1e-9)

    @staticmethod
    def stretched(maps):
        low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        return (maps - low) / (high - low + 1e-9)

    @staticmethod
    def resized(logits):
        return F.interpolate(logits, (8, 8), mode="bilinear")


@pytest.mark.parametrize("case", METHOD_CASES)
def test_training_is_a_plain_loop_under_every_rule(tmp_path, case):
    number = RULES.index(case)
    student, teacher = compare(
        tmp_path,
        case,
        kind=PlainGCT,
        network=lambda **options: tiny.network_of("gct", **options),
        more={"objective": "gct", "ramp_share": 0.5, "unlabeled_weight": None},
        batch_norm=True,
        buffers=["copy", "batch"][number % 2],
        accumulation=1 + number % 2,
        batch_size=2 - number % 2,
    )
    assert student < DIGITS and teacher < DIGITS


def test_the_detector_learns_from_its_own_loss_alone_and_the_branches_from_all_others():
    network, objective = tiny.network_of("gct"), GCTObjective()
    batch = on_device(
        {
            **{"pixel_values": torch.randn(2, 3, 8, 8, dtype=torch.float64), "progress": 1.0},
            **{"labels": torch.randint(3, (2, 8, 8)), "unlabeled_pixel_values": torch.randn(2, 3, 8, 8).double()},
        }
    )
    batch = objective.prepare(EMATeacher(network), batch)
    batch["both_flawed"] = torch.ones_like(batch["both_flawed"])
    batch["targets"] = batch["targets"].flip(2)
    [terms] = objective.terms(network, None, batch, objective.counts(batch))
    parts = {"branches": [*network.branches.parameters()], "detector": [*network.flaw_detector.parameters()]}
    for name, loss in terms.items():
        for part, weights in parts.items():
            found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            reached = any(gradient is not None and gradient.abs().sum() > 0 for gradient in found)
            assert reached == ((name == "detector_loss") == (part == "detector")), (name, part)


def test_padding_is_not_learned_from():
    given, _ = (torch.rand(2, 3, 32, 32).softmax(1) for _ in range(2))
    maps = torch.rand(2, 1, 32, 32)
    network = Given({"left_pred": given, "right_pred": given, "left_flawmap": maps, "right_flawmap": maps})
    valid = torch.ones(1, 32, 32, dtype=torch.bool)
    valid[:, 8:] = False
    batch = {
        **{"pixel_values": torch.zeros(1, 3, 32, 32), "labels": torch.zeros(1, 32, 32, dtype=torch.long)},
        **{"unlabeled_pixel_values": torch.zeros(1, 3, 32, 32), "unlabeled_valid": valid, "progress": 1.0},
    }
    objective = GCTObjective()
    both = objective.prepare(network, batch)["both_flawed"]
    maps[1, :, 20:] = 9.0  # flaws of padding, which the others are not measured by
    batch = objective.prepare(network, batch)
    assert both.any() and torch.equal(batch["both_flawed"][:, :7], both[:, :7])
    assert objective.counts(batch)["seen"] == 32 * 32 + 8 * 32
    assert batch["pseudo_labels"][0, 8:].eq(255).all() and batch["pseudo_confidence"][0, 8:].eq(0).all()
    batch["targets"][:, 1, :, 8:] += 100.0
    batch["both_flawed"][1, 8:], batch["both_flawed"][:, :8] = True, False
    batch["both_flawed"][0] = False
    [terms] = objective.terms(network, None, batch, objective.counts(batch))
    assert terms["consistency_loss"].item() == pytest.approx(0, abs=1e-9) and terms["flaw_correction_loss"] == 0


def test_an_objective_and_a_network_that_do_not_fit_are_refused_in_a_sentence(tmp_path):
    for network in (tiny.model(), tiny.branches()):
        with pytest.raises(UserError) as error:
            tiny.trainer(tmp_path, network, objective="gct", rule="mean_teacher")
        assert str(error.value) == (
            f"objective 'gct' trains two branches and a flaw detector, but {type(network).__name__} is no such network; "
            "name the objective in the recipe, which then makes one, or give "
            "hf_fst.models.TwoBranches.of(model, flaw_detector=64)."
        )
    with pytest.raises(UserError, match="use objective 'gct'"):
        tiny.trainer(tmp_path, tiny.network_of("gct"), objective="pseudo_label", rule="mean_teacher")
