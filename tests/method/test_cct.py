"""Cross-consistency training: recordings of the authors' functions, a plain loop, padding, networks that fit."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_fst.errors import UserError
from hf_fst.method.losses import ramp_up
from hf_fst.method.objectives import CCTObjective
from hf_fst.method.perturbations import Perturbations, adversarial, cut_out, object_boxes, without_most_active
from hf_fst.models import AuxiliaryDecoders
from hf_fst.models.pspnet import PixelShuffleUp
from tests import tiny
from tests.device import DEVICE
from tests.invariants.test_equations import DIGITS, METHOD_CASES, RULES, compare
from tests.plain import Plain
from tests.recorded import FOLDER, recorded


def extra(name: str) -> dict:
    recorded(name)  # skips where there is none
    return torch.load(FOLDER / f"{name}.pt", weights_only=True)


def test_perturbations_are_those_of_the_authors_with_their_draws():
    given, wanted = recorded("cct_perturbations")
    x, perturb = given["x"], Perturbations(given["pred_argmax"].long(), 0.1)
    torch.manual_seed(11)
    assert torch.equal(perturb("dropout", x, None), wanted["dropout2d_p0.5_seed11"])
    torch.manual_seed(13)
    torch.testing.assert_close(perturb("feature_noise", x, None), wanted["feature_noise_seed13"], atol=1e-12, rtol=0)
    assert torch.equal(perturb("context_masking", x, None), wanted["context_masking"])
    assert torch.equal(perturb("object_masking", x, None), wanted["object_masking"])
    dropped = without_most_active(x, wanted["feature_drop_factor"])
    assert torch.equal(dropped, wanted["feature_drop_npseed12"])


def test_the_adversarial_direction_is_that_of_the_authors():
    recording = extra("cct_perturbations")
    x, wanted = recording["inputs"]["x"], recording["vat"]
    decoder = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), PixelShuffleUp(4)).double()
    decoder.load_state_dict(wanted["state"])
    found = adversarial(x, decoder, wanted["d0"], wanted["xi"], wanted["eps"])
    # with ξ = 1e-6 the gradient, ξ times a difference of probabilities, is lost in the 1e-8 that its norm is kept from:
    # the rounding of float64 probabilities (2e-16) becomes ε·ξ·2e-16 / 1e-8 = 4e-14, of numbers up to 5e-5
    torch.testing.assert_close(found, wanted["r_adv"], atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(decoder(x + found), wanted["output"], atol=1e-9, rtol=0)
    found = adversarial(x, decoder, wanted["d0"], 0.1, wanted["eps"])
    torch.testing.assert_close(found, wanted["r_adv_with_xi_0_1"], atol=1e-9, rtol=0)
    assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([2.0, 2.0], abs=1e-3)
    assert all(weight.grad is None for weight in decoder.parameters())


def test_sub_pixels_start_as_in_the_authors_code():
    wanted = extra("cct_perturbations")["icnr"]["weight"].view(3, 4, 3)
    assert torch.equal(wanted, wanted[:, :1].expand(-1, 4, -1))
    network = AuxiliaryDecoders.of(tiny.model(), {"dropout": 1})
    network.config.pixel_shuffle_steps = 1
    weight = type(network)(network.config).auxiliary_heads[0][1].conv.weight.view(3, 4, 3)
    assert torch.equal(weight, weight[:, :1].expand(-1, 4, -1)) and weight.std() > 0.1


def test_objects_and_what_is_cut_out_of_them_are_those_of_the_authors():
    given, wanted = recorded("cct_guided_cutout")
    outlines = extra("cct_guided_cutout")["contour_boxes_x0_y0_x1_y1_points"]
    for image, contours in zip(given["foreground"].bool().numpy(), outlines, strict=True):
        for least in (0, 80, 150):
            expected = sorted(box[:4] for box in contours if box[4] > max(least, 50))
            assert sorted(object_boxes(image, max(least, 50)).tolist()) == expected
    for seed in (21, 22, 23):
        random.seed(seed)
        masks = []
        for contours in outlines:
            boxes, chance = torch.tensor(contours)[:, :4], []
            for x0, y0, x1, y1 in boxes.tolist():
                places = [int(side * (1 - given["erase"])) for side in (x1 - x0, y1 - y0)]
                chance.append([(random.randint(0, last) + 0.5) / (last + 1) for last in places])
            masks.append(~cut_out(boxes, torch.tensor(chance), (144, 144), given["erase"]))
        small = F.interpolate(torch.stack(masks).unsqueeze(1).float(), size=tuple(given["resize"]), mode="nearest")
        assert torch.equal(small.byte(), wanted[f"random_seed{seed}"])


def test_an_object_is_whole_with_its_holes_and_the_background_has_none():
    image = np.zeros((40, 60), dtype=bool)
    image[5:35, 10:50] = np.indices((30, 40)).sum(0) % 2 == 0  # a chessboard: diagonal neighbors belong together
    image[12:30, 20:40] = False
    assert object_boxes(image).tolist() == [[10, 5, 49, 34]]
    image[15:27, 25:35] = True  # inside the hole, and smooth: four points
    assert object_boxes(image).tolist() == [[10, 5, 49, 34]] and object_boxes(image & False).shape == (0, 4)
    assert object_boxes(image[12:30, 20:40], least_points=3).tolist() == [[5, 3, 14, 14]]
    assert len(object_boxes(image[12:30, 20:40], least_points=4)) == 0


def test_the_weight_rises_as_in_the_authors_schedule():
    wanted = recorded("schedules")[1]
    for step, value in wanted["sigmoid_rampup_length100"].items():
        assert ramp_up(int(step) / 1000, 0.1) == pytest.approx(value, abs=1e-12)
    for step, value in wanted["cct_consistency_weight_final30_ipe100_ends8"].items():
        epoch, iteration = map(int, step.split(","))
        assert 30 * ramp_up((100 * epoch + iteration) / 8000, 0.1) == pytest.approx(value, abs=1e-12)
    assert ramp_up(0.0, 0.0) == 1


START = torch.linspace(-1, 1, 2 * 4 * 4 * 4, dtype=torch.float64).sin().view(2, 4, 4, 4)
DECODERS = {"vat": 1, "context_masking": 1, "feature_drop": 2, "object_masking": 1}


class PlainCCT(Plain):
    """Annealed CE + λ·r(t)·mean over decoders of the squared difference of their softmax from the teacher's."""

    def loss(self, network, teacher, group):
        done = self.t / self.steps
        threshold = 1 / 3 + (0.9 - 1 / 3) * (1 - math.exp(-5 * min(done / 0.4, 1)))
        ramp = math.exp(-5 * (1 - min(done / 0.5, 1)) ** 2)
        pixels = sum(batch["unlabeled_pixel_values"][:, 0].numel() for batch in group)
        total = 0
        for batch in group:
            logits, labels = self.resized(network.network(batch["pixel_values"]).logits), batch["labels"]
            errors = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")[labels < 255]
            right = (-errors).exp()
            kept = right <= max(threshold, right.sort().values[len(labels) - 1].item())
            total = total + errors[kept].mean() / len(group)
            images = batch["unlabeled_pixel_values"]
            with torch.no_grad():
                target = self.resized(teacher.network(images).logits).softmax(1)
            z = torch.tanh(network.network.norm(network.network.stem(images)))
            for seen, head in zip(
                self.perturbed(z, target.argmax(1), network.auxiliary_heads), network.auxiliary_heads, strict=True
            ):
                apart = (self.resized(head(seen)).softmax(1) - target) ** 2
                total = total + self.weight * ramp * apart.sum() / (3 * pixels * 5)
        return total

    def perturbed(self, z, labels, decoders):
        small = F.interpolate((labels > 0).double()[:, None], size=(4, 4))
        active = z.mean(1, keepdim=True)
        calm = z * (active < 0.8 * active.amax((1, 2, 3), keepdim=True))
        return [z + self.direction(z.detach(), decoders[0]), z * small, calm, calm, z * (1 - small)]

    @staticmethod
    def direction(z, decoder):
        d = START.to(z)[: len(z)]
        d = (d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).requires_grad_()
        p, q = decoder(z).softmax(1).detach(), decoder(z + 0.1 * d).softmax(1)
        [g] = torch.autograd.grad((p * (p / q).log()).sum() / len(z), d)
        return 2 * g / (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-8)

    @staticmethod
    def resized(logits):
        return F.interpolate(logits, (8, 8), mode="bilinear")


@pytest.mark.parametrize("case", METHOD_CASES)
def test_training_is_a_plain_loop_under_every_rule(tmp_path, monkeypatch, case):
    vat = "vat", lambda self, z, decoder: z + adversarial(z, decoder, START.to(z)[: len(z)], self.vat_step)
    drop = "feature_drop", lambda self, z: without_most_active(z, 0.8)
    for name, method in (vat, drop):
        monkeypatch.setattr(Perturbations, name, method)
    number = RULES.index(case)
    student, teacher = compare(
        tmp_path,
        case,
        kind=PlainCCT,
        network=lambda **options: AuxiliaryDecoders.of(tiny.model(**options), DECODERS),
        more={"objective": "cct", "ramp_share": 0.5},
        batch_norm=True,
        buffers=["copy", "batch"][number % 2],
        accumulation=1 + number % 2,
        batch_size=2 - number % 2,
    )
    assert student < DIGITS and teacher < DIGITS


class Fixed(nn.Module):
    """A teacher that is sure of class 1, and a student with two decoders that are sure of class 0."""

    def forward(self, pixel_values, perturb=None, all_branches=False):
        logits = torch.zeros(len(pixel_values), 2, *pixel_values.shape[-2:])
        logits[:, int(perturb is None)] = 50.0
        output = SemanticSegmenterOutput(logits=logits)
        if all_branches:
            output["branches"] = (output, output, output)
        return output


def test_padding_is_not_learned_from():
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[:, 1:] = False
    batch = {
        **{"pixel_values": torch.zeros(1, 3, 4, 4), "labels": torch.ones(1, 4, 4, dtype=torch.long)},
        **{"unlabeled_pixel_values": torch.zeros(1, 3, 4, 4), "unlabeled_valid": valid, "progress": 1.0},
    }
    objective = CCTObjective(unlabeled_weight=30.0)
    batch = objective.prepare(Fixed(), batch)
    counts = objective.counts(batch)
    assert counts["unlabeled"] == 4 and batch["pseudo_labels"][0, 1:].eq(255).all()
    active = torch.tensor([[[[4.0, 1.0], [9.0, 9.0]]]])  # most of all on padding, which is no measure
    assert Perturbations(batch["pseudo_labels"], 0.1)("feature_drop", active, None)[0, 0, 0].tolist() == [0.0, 1.0]
    _, terms = objective.terms(Fixed(), None, batch, counts)
    assert terms["unlabeled_loss"].item() == pytest.approx(30.0)  # both classes differ by 1 at every pixel


def test_an_objective_and_a_network_that_do_not_fit_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError) as error:
        tiny.trainer(tmp_path, objective="cct", rule="mean_teacher")
    assert str(error.value) == (
        "objective 'cct' trains a network with auxiliary decoders, but TinySegmenter is no such network; name the "
        "objective in the recipe, which then makes one, or give hf_fst.models.AuxiliaryDecoders.of(model)."
    )
    with pytest.raises(UserError) as error:
        network = AuxiliaryDecoders.of(tiny.model(), {"noise": 2})
        tiny.trainer(tmp_path, network, objective="cct", rule="mean_teacher")
    assert str(error.value).startswith("There is no perturbation 'noise'; use vat, dropout,")
    with pytest.raises(UserError, match="AuxiliaryDecoders has several branches.* use objective 'cct'"):
        tiny.trainer(tmp_path, tiny.network_of("cct"), objective="cut_mix", rule="mean_teacher")


def test_the_answer_is_the_networks_and_the_decoders_start_apart():
    network = tiny.model()
    whole = AuxiliaryDecoders.of(network, {"dropout": 2})
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(DEVICE)
    output = whole(images, all_branches=True)
    assert torch.equal(output.logits, network(images).logits) and torch.equal(whole(images).logits, output.logits)
    first, second = (branch.logits for branch in output.branches[1:])
    assert first.shape == output.logits.shape and not torch.allclose(first, second)


def test_padding_has_no_part_in_the_adversarial_direction():
    torch.manual_seed(0)
    z, start = torch.randn(2, 2, 5, 4, 4, dtype=torch.float64)
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[:, :, 4:] = 255
    decoder = nn.Sequential(nn.Conv2d(5, 3, 1, bias=False), nn.Upsample(scale_factor=2)).double()
    found = adversarial(z, decoder, start, 0.1, inside=labels != 255)
    expected = adversarial(z[..., :2], decoder, start[..., :2], 0.1)  # of the images without their padding
    torch.testing.assert_close(found[..., :2], expected, atol=1e-12, rtol=0)
    assert (found[..., 2:] == 0).all()
    torch.manual_seed(1)
    assert (Perturbations(labels, 0.1)("vat", z, decoder)[..., 2:] == z[..., 2:]).all()
