"""Pairs of labeled and unlabeled images: what an epoch holds, who draws what, and how seeds decide it."""

import random

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, Dataset

from hf_fst.data import DrawSampler, Pairs, collate
from hf_fst.data.pairing import AheadSampler, seeded


class Numbered(Dataset):
    """Items that tell their index, and random numbers of all three kinds drawn while they were made."""

    def __init__(self, size, first=0, labels=True):
        self.size, self.first, self.labels = size, first, labels

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        noise = torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()])
        item = {"pixel_values": torch.cat([torch.tensor([float(self.first + index)]), noise]).reshape(1, 2, 2)}
        if self.labels:
            item["labels"] = torch.tensor([[self.first + index]])
        return item


def index_of(pixel_values):
    return int(pixel_values.reshape(-1)[0])


def test_every_labeled_and_unlabeled_image_comes_at_least_once_an_epoch():
    for labeled, unlabeled, per, length in ((3, 10, 1, 10), (10, 3, 1, 10), (3, 10, 2, 5), (2, 7, 3, 3), (4, 4, 1, 4)):
        pairs = Pairs(Numbered(labeled), Numbered(unlabeled, 100), unlabeled_per_labeled=per)
        assert len(pairs) == length
        for epoch in range(2):
            items = [pairs[epoch * length + i] for i in range(length)]
            assert {index_of(item["pixel_values"]) for item in items} == set(range(labeled))
            others = [int(v) for item in items for v in item["unlabeled_pixel_values"].reshape(per, -1)[:, 0]]
            assert set(others) == set(range(100, 100 + unlabeled))


def test_the_longer_set_comes_exactly_once_and_the_shorter_one_evenly():
    pairs = Pairs(Numbered(3), Numbered(9, 100))
    items = [pairs[i] for i in range(9)]
    assert sorted(index_of(item["unlabeled_pixel_values"]) for item in items) == list(range(100, 109))
    assert sorted(index_of(item["pixel_values"]) for item in items) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_epochs_and_seeds_have_their_own_orders_and_pairs():
    def order(seed, epoch):
        pairs = Pairs(Numbered(20), Numbered(20, 100), seed=seed)
        items = [pairs[epoch * 20 + i] for i in range(20)]
        return [(index_of(item["pixel_values"]), index_of(item["unlabeled_pixel_values"]) - 100) for item in items]

    first = order(0, 0)
    assert first == order(0, 0)
    assert first != order(0, 1) != order(1, 1)
    assert [a for a, _ in first] != [b for _, b in first]


def test_an_item_depends_on_seed_and_draw_alone_and_leaves_the_random_states_alone():
    pairs = Pairs(Numbered(3), Numbered(5, 100), seed=7)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(()).item(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first = pairs[11]
    assert (torch.rand(()).item(), np.random.rand(), random.random()) == expected
    second = Pairs(Numbered(3), Numbered(5, 100), seed=7)[11]
    for key, value in first.items():
        assert torch.equal(value, second[key])
    assert not torch.equal(first["pixel_values"], Pairs(Numbered(3), Numbered(5, 100), seed=8)[11]["pixel_values"])


def test_an_image_that_comes_twice_in_an_epoch_gets_two_crops():
    pairs = Pairs(Numbered(1), Numbered(4, 100))
    noises = {tuple(pairs[i]["pixel_values"].reshape(-1)[1:].tolist()) for i in range(8)}
    assert len(noises) == 8


def test_the_random_state_is_put_back_after_an_error_too():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1, 2):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_see_the_same_crops_as_the_main_process(workers):
    pairs = Pairs(Numbered(3), Numbered(7, 100), seed=3)
    sampler = DrawSampler(pairs)
    sampler.set_epoch(2)

    def batches(number):
        torch.manual_seed(number)  # the state of the main process must not matter
        return list(DataLoader(pairs, batch_size=2, sampler=sampler, num_workers=number, collate_fn=collate))

    for ours, theirs in zip(batches(0), batches(workers), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_sampler_gives_the_draw_numbers_of_its_epoch():
    sampler = DrawSampler(Pairs(Numbered(3), Numbered(4)))
    assert list(sampler) == [0, 1, 2, 3]
    sampler.set_epoch(3)
    assert list(sampler) == [12, 13, 14, 15]
    assert len(sampler) == 4


@pytest.mark.parametrize("length", [8, 9, 11, 13])
@pytest.mark.parametrize("processes", [2, 3])
def test_shards_of_the_processes_are_disjoint_and_together_the_epoch(length, processes):
    batches = BatchSampler(DrawSampler(Pairs(Numbered(length))), 2, drop_last=False)
    shards = [
        [draw for batch in BatchSamplerShard(batches, processes, rank, even_batches=False) for draw in batch]
        for rank in range(processes)
    ]
    assert sorted(draw for shard in shards for draw in shard) == list(range(length))


@pytest.mark.parametrize("length", [8, 9, 11, 13])
def test_a_rounded_length_gives_equal_full_batches_without_a_duplicate_draw(length):
    processes, batch_size = 3, 2
    pairs = Pairs(Numbered(length), multiple_of=processes * batch_size)
    batches = BatchSampler(DrawSampler(pairs), batch_size, drop_last=False)
    shards = [list(BatchSamplerShard(batches, processes, rank)) for rank in range(processes)]
    assert len({len(shard) for shard in shards}) == 1
    draws = [draw for shard in shards for batch in shard for draw in batch]
    assert sorted(draws) == list(range(len(pairs)))
    assert {index_of(pairs[draw]["pixel_values"]) for draw in draws} == set(range(length))


def test_look_ahead_items_depend_on_step_number_and_position_and_not_on_the_epoch():
    pairs = Pairs(Numbered(50), Numbered(50, 100), seed=1)
    first = pairs["ahead", 5, 0, 0]
    assert all(torch.equal(first[key], pairs["ahead", 5, 0, 0][key]) for key in first)
    others = [pairs["ahead", 6, 0, 0], pairs["ahead", 5, 1, 0], pairs["ahead", 5, 0, 1]]
    others.append(Pairs(Numbered(50), Numbered(50, 100), seed=2)["ahead", 5, 0, 0])
    for other in others:
        assert not torch.equal(other["pixel_values"], first["pixel_values"])


def test_look_ahead_images_are_drawn_uniformly():
    pairs = Pairs(Numbered(4), Numbered(5, 100))
    items = [pairs["ahead", step, k, 0] for step in range(200) for k in range(2)]
    labeled = np.bincount([index_of(item["pixel_values"]) for item in items], minlength=4)
    unlabeled = np.bincount([index_of(item["unlabeled_pixel_values"]) - 100 for item in items], minlength=5)
    # 400 draws: 100 and 80 are expected, with deviations of 8.7 and 8.0; five of them are allowed.
    assert abs(labeled - 100).max() < 44
    assert abs(unlabeled - 80).max() < 40


def test_items_have_flat_keys_and_unlabeled_labels_only_where_the_set_has_them():
    with_labels = Pairs(Numbered(2), Numbered(2, 100))[0]
    assert set(with_labels) == {"pixel_values", "labels", "unlabeled_pixel_values", "unlabeled_labels"}
    without = Pairs(Numbered(2), Numbered(2, 100, labels=False))[0]
    assert set(without) == {"pixel_values", "labels", "unlabeled_pixel_values"}
    assert set(Pairs(Numbered(2))[0]) == {"pixel_values", "labels"}
    assert set(Pairs(Numbered(2))["ahead", 0, 0, 0]) == {"pixel_values", "labels"}


def test_several_unlabeled_images_for_each_labeled_one_are_concatenated_in_the_batch():
    pairs = Pairs(Numbered(2), Numbered(6, 100), unlabeled_per_labeled=3)
    items = [pairs[0], pairs[1]]
    assert items[0]["unlabeled_pixel_values"].shape == (3, 1, 2, 2)
    assert items[0]["unlabeled_labels"].shape == (3, 1, 1)
    batch = collate(items)
    assert batch["pixel_values"].shape == (2, 1, 2, 2)
    assert batch["unlabeled_pixel_values"].shape == (6, 1, 2, 2)
    assert batch["unlabeled_labels"].shape == (6, 1, 1)
    assert sorted(batch["unlabeled_labels"].flatten().tolist()) == list(range(100, 106))


def test_collate_gives_lists_where_sizes_differ():
    items = [{"pixel_values": torch.zeros(3, 4, 4), "labels": torch.zeros(size, 4)} for size in (4, 5)]
    batch = collate(items)
    assert batch["pixel_values"].shape == (2, 3, 4, 4)
    assert [label.shape[0] for label in batch["labels"]] == [4, 5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pairs(Numbered(0)), "The labeled set is empty; give at least one labeled image."),
        (
            lambda: Pairs(Numbered(1), Numbered(0)),
            "The unlabeled set is empty; give at least one unlabeled image, or None to train without.",
        ),
        (lambda: Pairs(Numbered(1), seed=-1), "seed is -1, but at least 0 is needed."),
        (
            lambda: Pairs(Numbered(1), unlabeled_per_labeled=0),
            "unlabeled_per_labeled is 0, but at least 1 is needed.",
        ),
        (
            lambda: Pairs(Numbered(1, labels=False))[0],
            "Item 0 of the labeled set yields no labels; give a dataset with `labels` (H,W), without rows that have "
            "none.",
        ),
    ],
)
def test_wrong_sets_and_numbers_are_one_sentence(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_look_ahead_draws_of_the_processes_are_a_group_cut_in_pieces(processes):
    size, micro_batches, count, every = 2, 3, 2, 4
    shares = []
    for rank in range(processes):
        sampler = iter(AheadSampler(5, count, micro_batches, size, rank, processes, every))
        shares.append([[next(sampler) for _ in range(micro_batches)] for _ in range(2 * count)])
    for number in range(2 * count):
        draws = [draw for share in shares for batch in share[number] for draw in batch]
        step, k = 5 + number // count * every, number % count
        # every position of the group once, whichever process has it
        assert sorted(draws) == [("ahead", step, k, position) for position in range(processes * micro_batches * size)]
    # micro-batch for micro-batch the processes take the next piece, as one process with a larger batch does
    first = [draw for m in range(micro_batches) for share in shares for draw in share[0][m]]
    assert first == sorted(first)


class Own(Dataset):
    """The user's own items, made by a function of an ordinary one."""

    def __init__(self, change):
        self.change = change

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.change({"pixel_values": torch.zeros(3, 4, 4), "labels": torch.tensor([[0, 1, 2, 255]] * 4)})


def labels(function):
    return lambda item: {**item, "labels": function(item["labels"])}


@pytest.mark.parametrize(
    "change",
    [
        labels(lambda ids: ids.to(torch.uint8)),
        labels(lambda ids: ids.float()),
        labels(lambda ids: ids.numpy()),
        labels(lambda ids: ids[None]),
        labels(lambda ids: ids.int().numpy()[None]),
        labels(lambda ids: torch.where(ids == 255, -100, ids)),
        lambda item: {**item, "name": "a.png"},
        lambda item: {**item, "pixel_values": item["pixel_values"].numpy()},
    ],
)
def test_items_of_own_datasets_are_read_where_they_are_unmistakable(change):
    pairs = Pairs(Own(change), Own(change), num_labels=3)
    batch = collate([pairs[0], pairs[1]])
    assert batch["labels"].dtype == torch.int64 and batch["labels"].shape == (2, 4, 4)
    kept = batch["labels"][batch["labels"] != -100]
    assert set(kept.tolist()) <= {0, 1, 2, 255} and isinstance(batch["pixel_values"], torch.Tensor)
    assert "name" not in batch
    held = collate([Own(change)[0], Own(change)[1]])  # as an evaluation batches them
    assert torch.equal(held["labels"], batch["labels"]) and "name" not in held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (labels(lambda ids: ids - 1), r"ids from -1 to 254, but the model has the classes 0 to 2"),
        (labels(lambda ids: ids.clamp(max=2) + 5), r"ids from 5 to 7, but the model has the classes 0 to 2"),
        (labels(lambda ids: ids[::2]), r"labels are \(2, 4\), but its pixel_values \(3, 4, 4\)"),
        (labels(lambda ids: ids + 0.5), "labels are float32 numbers with fractions"),
        (labels(lambda ids: ids.repeat(3, 1, 1)), r"labels have the shape \(3, 4, 4\)"),
        (lambda item: {**item, "pixel_values": item["pixel_values"].byte()}, "pixel_values are uint8"),
        (lambda item: {**item, "pixel_values": item["pixel_values"][0]}, r"pixel_values have the shape \(4, 4\)"),
        (lambda item: {"pixel_values": item["pixel_values"]}, "yields no labels"),
        (lambda item: {"image": 0, "label": 0}, "wrap a datasets.Dataset in hf_fst.data.View"),
        (lambda item: (item["pixel_values"], item["labels"]), "is a tuple"),
    ],
)
def test_items_of_own_datasets_that_are_wrong_are_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        Pairs(Own(change), num_labels=3)[0]


def test_a_shorter_set_comes_in_a_new_order_each_time_in_an_epoch():
    few, many = (
        [
            {"pixel_values": torch.full((3, 1, 1), float(i)), "labels": torch.zeros(1, 1, dtype=torch.long)}
            for i in range(n)
        ]
        for n in (6, 24)
    )
    pairs = Pairs(few, many, seed=0)
    orders = [[pairs[6 * time + i]["pixel_values"][0, 0, 0].item() for i in range(6)] for time in range(4)]
    assert all(sorted(order) == [*range(6)] for order in orders) and len(set(map(tuple, orders))) == 4
