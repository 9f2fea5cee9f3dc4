"""Images that cannot be read while training: the run ends with a sentence, or another draw takes their place."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset

from hf_fst.data.pairing import MOST_AGAIN, Pairs
from hf_fst.errors import DataError
from tests import tiny


class Holed(Dataset):
    """Items of which some cannot be read."""

    def __init__(self, items, *bad, error=DataError):
        self.items, self.bad, self.error = items, bad, error

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if index in self.bad:
            raise self.error(f"file {index} is broken.")
        return self.items[index]


def number_of(item, items, key="pixel_values"):
    return next(i for i, other in enumerate(items) if torch.equal(other["pixel_values"], item[key]))


def pairs(*bad, unlabeled_bad=(), **options):
    labeled, unlabeled = tiny.images(5, 1), tiny.images(7, 2, labels=False)
    return Pairs(Holed(labeled, *bad), Holed(unlabeled, *unlabeled_bad), **{"on_bad_image": "skip", **options})


def test_only_draws_of_a_bad_image_change_and_they_say_so():
    whole, holed = pairs(), pairs(2, unlabeled_bad=(0,))
    labeled, unlabeled = whole.labeled.items, whole.unlabeled.items
    draws = [*range(3 * len(whole)), *(("ahead", step, k, 0) for step in range(10) for k in range(2))]
    others = set()
    for draw in draws:
        expected, item = whole[draw], holed[draw]
        skipped = item.pop("skipped", [])
        first, second = number_of(expected, labeled), number_of(expected, unlabeled, "unlabeled_pixel_values")
        assert set(skipped) == {f"file {n} is broken." for n in [2] * (first == 2) + [0] * (second == 0)}
        if first == 2:
            others.add(number_of(item, labeled))
        else:
            assert torch.equal(item["pixel_values"], expected["pixel_values"])
        if second:
            assert torch.equal(item["unlabeled_pixel_values"], expected["unlabeled_pixel_values"])
        again = holed[draw]
        assert torch.equal(again["pixel_values"], item["pixel_values"])
    assert 2 not in others and len(others) > 1  # not the same one each time


def test_two_bad_images_of_one_draw_have_places_of_their_own():
    holed = Pairs(tiny.images(3, 1), Holed(tiny.images(9, 2, labels=False), 0, 1, 2), 0, 4, on_bad_image="skip")
    for draw in range(6):
        taken = [
            number_of({"pixel_values": view}, holed.unlabeled.items) for view in holed[draw]["unlabeled_pixel_values"]
        ]
        assert not {0, 1, 2} & set(taken)


def test_the_partner_of_an_image_that_took_a_place_is_its_own():
    holed = pairs(unlabeled_bad=(0, 1, 2), partner=True)
    for draw in range(len(holed)):
        assert torch.equal(holed[draw]["unlabeled_pixel_values"], holed[draw]["unlabeled_partner_pixel_values"])


def test_where_nothing_can_be_read_it_ends():
    with pytest.raises(
        DataError, match=f"^{MOST_AGAIN} images of the labeled set in a row could not be read, the last: file"
    ):
        pairs(*range(5))[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_ends_the_run_with_one_sentence_that_names_the_file(tmp_path, workers):
    sets = Holed(tiny.images(4, 1), *range(4)), tiny.images(4, 2, labels=False)
    with pytest.raises(DataError) as error:
        tiny.trainer(tmp_path, sets=sets, rule="mean_teacher", dataloader_num_workers=workers).train()
    assert str(error.value).startswith("file ") and str(error.value).endswith(" is broken.")


def test_an_item_of_an_own_dataset_that_cannot_be_opened_is_named(tmp_path):
    sets = Holed(tiny.images(4, 1), *range(4), error=OSError), tiny.images(4, 2, labels=False)
    with pytest.raises(
        DataError, match=r"^Item \d of the labeled set cannot be read \(file \d is broken\.\); replace it"
    ):
        tiny.trainer(tmp_path, sets=sets, rule="mean_teacher").train()


@pytest.fixture
def trained(caplog):
    """Makes runs whose epochs meet two bad labeled and one bad unlabeled image; the trainer and what it said."""

    def run(directory, workers=0, resume=False, **options):
        sets = Holed(tiny.images(6, 1), 1, 3), ConcatDataset([Holed(tiny.images(6, 2, labels=False), 4)])
        trainer = tiny.trainer(
            directory,
            sets=sets,
            rule="fst_d",
            lookahead_steps=2,
            lookahead_batches="different",
            on_bad_image="skip",
            dataloader_num_workers=workers,
            lr_scheduler_type="constant",
            **{"max_steps": 6, "save_strategy": "steps", "save_steps": 2, **options},
        )
        caplog.clear()
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer, [record.message for record in caplog.records if "could not be read" in record.message]

    return run


def test_skipped_images_are_counted_and_named_at_the_end(tmp_path, trained):
    trainer, (told,) = trained(tmp_path / "a")
    counts = trainer.journal.skipped_images
    # 6 steps of 2 pairs go through both sets twice; virtual steps draw more
    assert set(counts) == {"file 1 is broken.", "file 3 is broken.", "file 4 is broken."}
    assert all(count >= 2 for count in counts.values())
    first, *lines = told.splitlines()
    assert first == f"Images that could not be read were replaced, {sum(counts.values())} in all:"
    assert sorted(line.strip() for line in lines) == sorted(f"{count} x {text}" for text, count in counts.items())


def test_workers_and_interruptions_change_neither_weights_nor_counts(tmp_path, trained):
    whole, _ = trained(tmp_path / "a")
    parallel, _ = trained(tmp_path / "b", workers=2)
    trained(tmp_path / "c", max_steps=4)
    resumed, (told,) = trained(tmp_path / "c", resume=True)
    for other in (parallel, resumed):
        assert tiny.same(tiny.weights(other.model), tiny.weights(whole.model))
        assert tiny.same(tiny.weights(other.teacher.model), tiny.weights(whole.teacher.model))
        assert other.journal.skipped_images == whole.journal.skipped_images


def test_other_collators_work_too(tmp_path, trained):
    options = {"data_collator": torch.utils.data.default_collate}
    trainer, told = trained(tmp_path, trainer_options=options, max_steps=3, save_strategy="no")
    assert len(told) == 1 and trainer.journal.skipped_images
