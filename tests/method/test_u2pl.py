"""U2PL: the authors' negatives, banks and loss, the paper's ones worked by hand, and a run as a plain loop."""

from __future__ import annotations

import itertools
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_fst.data.pairing import Pairs, collate
from hf_fst.method.contrast import class_contrast, enqueued, members_of, negatives
from hf_fst.method.losses import percentile
from hf_fst.method.mixing import cut_mask
from hf_fst.method.objectives import U2PLObjective
from hf_fst.method.objectives.cut_mix import cut_mixed
from hf_fst.method.teacher import EMATeacher
from hf_fst.models.features import return_features
from tests import tiny
from tests.device import DEVICE, on_device
from tests.recorded import recorded

CASES = ("all_proper", "missing_proper", "all_as_coded")


def case_of(name):
    inputs, outputs = recorded("u2pl_contrast")
    given = inputs[name]
    members = torch.cat([given["label_l"], given["label_u"]]).bool()
    chosen = negatives(members, given["prob"], given["high_mask"][:, 0].bool(), 2, (2, 5), coded=True)
    rows = given["rep_teacher"].permute(0, 2, 3, 1)
    banks = [enqueued(bank, rows[chosen[:, c]], 30) for c, bank in enumerate(given["bank"])]
    return given, outputs[name], members, chosen, banks


@pytest.mark.parametrize("name", CASES)
def test_negatives_and_banks_are_the_authors(name):
    _, expected, _, chosen, banks = case_of(name)
    assert [int(chosen[:, c].sum()) for c in range(5)] == expected["new_keys"]
    assert [len(bank) for bank in banks] == expected["bank_sizes"]
    assert torch.equal(banks[0][-4:], expected["bank_after_class0_tail"])


@pytest.mark.parametrize("name", CASES)
def test_the_loss_and_its_gradient_are_the_authors_with_their_draws(name, monkeypatch):
    given, expected, members, _, banks = case_of(name)
    draws = iter(expected["randint_draws"])
    monkeypatch.setattr("hf_fst.method.contrast.drawn", lambda high, count: next(draws))
    student = given["rep"].double().requires_grad_()
    low, options = given["low_mask"][:, 0].bool(), {"threshold": 0.3, "queries": 8, "keys": 6, "temperature": 0.5}
    teacher, probabilities = given["rep_teacher"].double(), given["prob"].double()
    loss = class_contrast(student, teacher, members, probabilities, low, banks, **options, coded=True)
    assert next(draws, None) is None
    assert loss.item() == pytest.approx(expected["loss"].item(), abs=1e-6)
    [gradient] = torch.autograd.grad(loss, student)
    assert torch.allclose(gradient.float(), expected["grad_rep"], rtol=0, atol=1e-6)


def test_recorded_labels_are_those_of_the_one_hot_of_the_authors():
    given = recorded("u2pl_contrast")[0]
    for name, coded in (("all_proper", False), ("all_as_coded", True)):
        for which in ("l", "u"):
            members = members_of(given[name][f"full_label_{which}"].long(), 5, coded)
            small = F.interpolate(members.float(), size=(8, 8), mode="nearest")
            assert torch.equal(small.byte(), given[name][f"label_{which}"]), (name, which)


@pytest.mark.parametrize("name", CASES[:2])
def test_masks_of_low_and_high_entropy_are_the_authors(name):
    inputs, outputs = recorded("u2pl_contrast")
    given, expected = inputs[name], outputs[name]
    p = given["teacher_logits_u_large"].double().softmax(1)
    uncertainty = -(p * (p + 1e-10).log()).sum(1)
    known = given["full_label_u"] != 255
    alpha = 20 * (1 - given["epoch"] / given["epochs"])
    for percent, key in ((alpha, "low_thresh"), (100 - alpha, "high_thresh")):
        assert percentile(uncertainty[known], percent).item() == pytest.approx(expected[key], abs=1e-6)


def test_the_papers_negatives_need_no_label_and_leave_the_own_class_of_labeled_pixels_out():
    # one labeled and one unlabeled place, four classes from the most probable to the least
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1]).view(1, 4, 1, 1).expand(2, 4, 1, 1)
    members = members_of(torch.tensor([[[1]], [[0]]]), 4)
    high = torch.ones(2, 1, 1, dtype=torch.bool)
    found = negatives(members, probabilities, high, 1, (2, 3)).squeeze()
    assert found.tolist() == [[True, False, False, False], [False, False, True, False]]
    assert not negatives(members, probabilities, ~high, 1, (2, 3)).any()
    assert not negatives(members, probabilities, high, 1, (2, 3), coded=True).any()


def test_the_papers_banks_are_of_the_class_itself(monkeypatch):
    """Classes 1 and 2 of three are there: one anchor each, with cosine 1 to the positive and 0 or -1 to its negative."""
    monkeypatch.setattr("hf_fst.method.contrast.drawn", lambda high, count: torch.zeros(count, dtype=torch.long))
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).t().reshape(1, 2, 1, 2).double()
    members = members_of(torch.tensor([[[1, 2]]]), 3)
    low, probabilities = torch.ones(1, 1, 2, dtype=torch.bool), torch.ones(1, 3, 1, 2)
    banks = [torch.ones(0, 2), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -1.0]])]
    found = class_contrast(features, features, members, probabilities, low, banks, 0.3, 1, 1, 0.5).item()
    assert found == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-4))) / 2)
    only = members & torch.tensor([True, False])
    assert class_contrast(features, features, only, probabilities, low, banks, 0.3, 1, 1, 0.5) == 0


def test_the_shares_fall_with_the_run():
    objective = U2PLObjective(num_labels=3, drop_percent=80.0)
    expected = recorded("schedules")[1]
    for step in (1, 20, 40, 79):
        progress = {"progress": step / 80}
        assert objective.percent(progress) == pytest.approx(expected["u2pl_drop_percent_80"][f"{step}/80"])


def prepared(progress=0.0, valid=None, **options):
    network = tiny.model(batch_norm=True)
    return_features(network)
    objective = U2PLObjective(num_labels=3, cut_probability=0.0, **options)
    items = [tiny.images(2, seed) for seed in (1, 2)]
    batch = {f"{side}pixel_values": torch.stack([i["pixel_values"] for i in part]) for side, part in
             zip(("", "unlabeled_"), items, strict=True)}  # fmt: skip
    batch |= {"labels": torch.stack([item["labels"] for item in items[0]]), "progress": progress}
    if valid is not None:
        batch["unlabeled_valid"] = valid
    return objective, network, objective.prepare(EMATeacher(network), on_device(batch))


def test_reliable_and_unreliable_places_are_of_labeled_pixels_and_the_ends_of_the_entropy():
    _, _, batch = prepared(low_entropy_percent=50.0, ranks=(1, 3))
    known = batch["labels"][:, ::2, ::2] != 255
    assert torch.equal(batch["reliable"][:2], known)
    unlabeled = batch["reliable"][2:]
    assert 0.3 < unlabeled.double().mean() < 0.7
    # unreliable ones are negatives of two of three classes, reliable ones of none
    counts = batch["negatives"][2:].sum(dim=1)
    assert torch.equal(counts == 2, ~unlabeled) and torch.equal(counts == 0, unlabeled)
    _, _, late = prepared(progress=0.9, low_entropy_percent=50.0)
    assert late["reliable"][2:].sum() < unlabeled.sum() / 4


def test_padding_is_in_no_contrast():
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[0, :4] = True
    _, _, batch = prepared(valid=valid, low_entropy_percent=50.0, ranks=(1, 3))
    places = valid[:, ::2, ::2].to(batch["reliable"].device)
    assert not (batch["reliable"][2:] & ~places).any() and not (batch["negatives"][2:].any(dim=1) & ~places).any()
    assert not (batch["members"][2:].any(dim=1) & ~places).any()
    objective, network, nothing = prepared(valid=valid & False)
    assert not nothing["reliable"][2:].any()
    totals = {**objective.counts(nothing)}
    [losses] = objective.terms(network, None, nothing, totals)
    assert all(torch.isfinite(loss) for loss in losses.values())


# a run as a plain loop


def drawn(high, count):
    """In the place of random draws."""
    return torch.arange(count) * 7 % high


class Loop:
    """U2PL with a mean teacher, knowing nothing of the package but the order of the images."""

    mu, lr, steps, queries, keys, size = 0.8, 0.1, 4, 8, 3, 20

    def __init__(self, labeled, unlabeled, start):
        self.pairs = Pairs(labeled, unlabeled, seed=7, multiple_of=4)
        self.student, self.teacher = start, deepcopy(start)
        self.banks = [torch.zeros(0, 4, dtype=torch.float64, device=DEVICE) for _ in range(3)]

    def look(self, network, images):
        features = torch.tanh(network.stem(images))
        return features, network.head(features)

    def contrast(self, student, teacher, logits, labels, low, high):
        p = logits.softmax(1)
        rows = {c: [[], [], []] for c in range(3)}  # anchors, reliable of the teacher, negatives
        for b, y, x in itertools.product(range(4), range(4), range(4)):
            order = p[b, :, y, x].argsort(descending=True).tolist()
            for c in range(3):
                if labels[b, y, x] == c and low[b, y, x]:
                    rows[c][1].append(teacher[b, :, y, x])
                    if p[b, c, y, x] > 0.3:
                        rows[c][0].append(student[b, :, y, x])
                first = order.index(c) < 1
                negative = first and labels[b, y, x] != c if b < 2 else not first
                if negative and high[b, y, x]:
                    rows[c][2].append(teacher[b, :, y, x])
        total, valid = 0.0, sum(bool(rows[c][1]) for c in range(3))
        for c in range(3):
            self.banks[c] = torch.cat([self.banks[c], *[row[None] for row in rows[c][2]]])[-self.size :]
            anchors, bank = rows[c][0], self.banks[c]
            if not anchors or not len(bank) or valid < 2:
                continue
            positive, loss = torch.stack(rows[c][1]).mean(0), 0.0
            for q in range(self.queries):
                anchor = anchors[q * 7 % len(anchors)]
                others = [bank[(q * self.keys + k) * 7 % len(bank)] for k in range(self.keys)]
                cosines = torch.stack([F.cosine_similarity(anchor, v, dim=0) for v in (positive, *others)])
                loss = loss - (cosines / 0.5).log_softmax(0)[0]
            total = total + loss / self.queries / valid
        return total

    def run(self):
        optimizer = torch.optim.SGD(self.student.parameters(), lr=self.lr)
        for t in range(self.steps):
            batch = on_device(collate([self.pairs[t * 2 + i] for i in range(2)]))
            images, labels = batch["unlabeled_pixel_values"], batch["labels"]
            joint = torch.cat([batch["pixel_values"], images])
            with torch.no_grad():
                for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    mine.copy_(self.mu * mine + (1 - self.mu) * theirs)
                features, logits = self.look(self.teacher, joint)
                p = F.interpolate(logits[2:], (8, 8), mode="bilinear").softmax(1)
                pseudo, h = p.argmax(1), -(p * (p + 1e-10).log()).sum(1)
                left = 1 - t / self.steps
                low, high = (torch.quantile(h, q) for q in (0.5 * left, 1 - 0.5 * left))
                masks = [torch.cat([labels != 255, m])[:, ::2, ::2] for m in (h <= low, h >= high)]
                kept = h < torch.quantile(h, 1 - 0.2 * left)
            student, out = self.look(self.student, joint)
            up = F.interpolate(out, (8, 8), mode="bilinear")
            loss = F.cross_entropy(up[:2], labels, ignore_index=255)
            share = kept.double().mean()
            loss = loss + 0.7 / share * F.cross_entropy(up[2:], pseudo.masked_fill(~kept, 255), ignore_index=255)
            small = torch.cat([labels, pseudo])[:, ::2, ::2]
            loss = loss + 0.6 * self.contrast(student, features, logits, small, *masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self


def test_a_run_is_the_plain_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_fst.method.contrast.drawn", drawn)
    options = {
        **{"objective": "u2pl", "rule": "mean_teacher", "teacher_momentum": 0.8, "momentum_warmup": False},
        **{"unlabeled_weight": 0.7, "contrast_weight": 0.6, "bank_size": 20, "cut_probability": 0.0},
        **{"max_steps": 4, "max_grad_norm": 0, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"},
    }
    trainer = tiny.trainer(tmp_path, **options)
    fields = {"first_bank_size": 20, "low_entropy_percent": 50.0, "ranks": (1, 3), "queries": 8, "keys": 3}
    for field, value in fields.items():
        object.__setattr__(trainer.learning_objective, field, value)
    trainer.train()
    loop = Loop(tiny.images(6, 1), tiny.images(8, 2, labels=False), tiny.model().to(DEVICE)).run()
    for mine, theirs in ((trainer.model, loop.student), (trainer.teacher.model, loop.teacher)):
        assert tiny.distance(tiny.weights(mine), tiny.weights(theirs)) < 1e-7  # P / n is in single precision
    memory = trainer.learning_objective.memory
    assert tiny.distance([memory[f"bank_{c}"] for c in range(3)], loop.banks) < 1e-7
    assert all(len(bank) == 20 for bank in loop.banks)


def drawing(monkeypatch, boxes: int, size: tuple[int, int]) -> None:
    """Draws of `cut_mask` are those of the authors' generator, from numpy's seed that is set."""
    height, width = size
    rows = []
    for _ in range(boxes):
        w = np.random.randint(width / 2 + 1, width)
        h = int(np.round(height * width / 2 / w))
        x, y = np.random.randint(0, width - w + 1), np.random.randint(0, height - h + 1)
        first = width // 2 + 1
        rows.append(
            [(w - first + 0.5) / (width - first), (x + 0.5) / (width - w + 1), (y + 0.5) / (height - h + 1), 0]
        )
    draws = torch.tensor(rows, dtype=torch.float64).T[:, :, None, None]
    monkeypatch.setattr(torch, "rand", lambda *shape, device: draws)


def test_boxes_and_who_is_pasted_into_whom_are_the_authors(monkeypatch):
    wanted = recorded("u2pl_cutmix")[1]
    for seed, box in wanted["cut_boxes_32x48_by_np_seed"].items():
        np.random.seed(int(seed))
        drawing(monkeypatch, 1, (32, 48))
        inside = (~cut_mask(1, (32, 48), torch.device("cpu")))[0, 0].nonzero()
        assert [*inside.amin(0).tolist(), *(inside.amax(0) + 1).tolist()] == list(box)
    np.random.seed(5)
    drawing(monkeypatch, 3, (16, 16))
    labels = torch.arange(3).view(3, 1, 1).expand(3, 16, 16)
    images = labels.unsqueeze(1).expand(3, 3, 16, 16).double()
    mixed = cut_mixed(images, labels, labels.double(), 1.0, "image")
    assert torch.equal(mixed["mixed_labels"].byte(), wanted["new_target"])
    assert torch.equal(mixed["mixed_pixel_values"][:, 0].byte(), wanted["new_target"])
    monkeypatch.undo()
    torch.manual_seed(0)
    area = (~cut_mask(2000, (64, 64), torch.device("cpu"))).double().mean().item()
    assert area == pytest.approx(wanted["mean_cut_area"], abs=0.005)
