"""The recipes of other methods have the rows and numbers of their authors, and run without data."""

from __future__ import annotations

import pytest

from hf_fst.models.auxiliary_decoders import PUBLISHED
from hf_fst.recipes import load_recipe, sweep_points
from hf_fst.recipes.load import to_config
from hf_fst.recipes.names import LIBRARY
from hf_fst.training.settings import resolve

CLASSIC, CITY = ["92", "183", "366", "732", "1464"], ["16th", "8th", "4th", "2nd"]
NETS, MIXING = ("r50", "r101"), ("plain", "cutmix")
ROWS = {
    "voc_cct": ["authors-1464", *(f"r50-{labels}" for labels in CITY)],
    "voc_gct": [f"{net}-{labels}" for net in ("deeplabv2", "pspnet") for labels in CITY],
    "voc_cps": [f"{net}-{mixing}-{labels}" for net in NETS for mixing in MIXING for labels in CITY],
    "cityscapes_cps": [f"{net}-{mixing}-{labels}" for net in NETS for mixing in MIXING for labels in CITY],
    "cityscapes_cct": [f"{net}-{labels}" for net in NETS for labels in CITY],
    "cityscapes_gct": [f"{net}-{labels}" for net in NETS for labels in CITY],
    "voc_unimatch": [*CLASSIC, "16th", "8th", "4th"],
    "cityscapes_unimatch": CITY,
    "voc_unimatch_v2": [
        f"{size}-{labels}" for size in ("small", "base") for labels in [*CLASSIC, "16th", "8th", "4th"]
    ],
    "cityscapes_unimatch_v2": [f"{size}-{labels}" for size in ("small", "base") for labels in CITY],
}


@pytest.mark.parametrize("name", ROWS)
def test_each_published_row_is_there_once_as_published_and_once_with_a_look_ahead(name):
    points = sweep_points(LIBRARY / f"{name}.yaml")
    methods = ("labels", "published", "fst") if "unimatch_v2" in name else ("published", "fst")
    assert points == [f"{row}-{method}" for row in ROWS[name] for method in methods]


OHEM = (0.7, 200_000)


@pytest.mark.parametrize(
    ("row", "length", "images", "crop", "rates", "teacher", "confidence", "ohem"),
    [
        ("voc_cct-authors-1464", 80, 10, 320, (1e-3, 10), ("live", 0.0), None, None),
        ("voc_cct-r50-8th", 34, 2, 512, (2.5e-3, None), ("live", 0.0), None, None),
        ("voc_gct-deeplabv2-8th", 20, 2, 321, (1e-3, 10), ("live", 0.0), None, None),
        ("voc_gct-pspnet-2nd", 80, 2, 513, (1e-3, 10), ("live", 0.0), None, None),
        ("voc_cps-r50-plain-8th", 34, 2, 512, (2.5e-3, None), ("live", 0.0), None, None),
        ("cityscapes_cps-r101-cutmix-2nd", 240, 1, 800, (2.5e-3, None), ("live", 0.0), None, (0.7, 50_000)),
        ("cityscapes_cct-r50-16th", 128, 1, 800, (2.5e-3, None), ("live", 0.0), None, (0.7, 50_000)),
        ("cityscapes_gct-r101-4th", 160, 1, 800, (2.5e-3, None), ("live", 0.0), None, (0.7, 50_000)),
        ("voc_unimatch-732", 80, 2, 321, (1e-3, 10), ("live", 0.0), 0.95, None),
        ("voc_unimatch-8th", 80, 2, 513, (1e-3, 10), ("live", 0.0), 0.95, None),
        ("cityscapes_unimatch-16th", 240, 2, 801, (5e-3, None), ("live", 0.0), 0.0, OHEM),
        ("voc_unimatch_v2-base-92", 60, 4, 518, (5e-6, 40), ("after", 0.996), 0.95, None),
        ("voc_unimatch_v2-small-8th", 60, 4, 518, (5e-6, 40), ("after", 0.996), 0.95, None),
        ("cityscapes_unimatch_v2-base-2nd", 180, 2, 798, (5e-6, 40), ("after", 0.996), 0.95, OHEM),
    ],
)
def test_rows_have_the_numbers_of_their_authors(row, length, images, crop, rates, teacher, confidence, ohem):
    file, _, labels = row.partition("-")
    recipe = load_recipe(LIBRARY / f"{file}.yaml", sweep=f"{labels}-published")
    config = to_config(recipe)
    settings = resolve(config)
    assert (config.num_train_epochs, config.per_device_train_batch_size, recipe.crop_size) == (length, images, crop)
    assert (config.learning_rate, config.head_lr_multiplier) == rates
    assert (settings.teacher_follows, settings.teacher_momentum) == teacher
    assert settings.confidence_threshold == confidence
    assert (
        settings.ohem_threshold is None if ohem is None else (settings.ohem_threshold, settings.ohem_min_kept) == ohem
    )
    assert (settings.schedule, settings.poly_power, config.max_grad_norm) == ("poly", 0.9, 0)


@pytest.mark.parametrize(("dataset", "batch", "rounds"), [("voc", 8, 60), ("cityscapes", 4, 180)])
def test_labels_alone_are_learned_as_by_the_authors_of_unimatch_v2(dataset, batch, rounds):
    config = to_config(load_recipe(LIBRARY / f"{dataset}_unimatch_v2.yaml", sweep="base-8th-labels"))
    assert (config.rule, config.objective, config.per_device_train_batch_size) == ("supervised", "supervised", batch)
    # in each round the labeled images are repeated up to 3000, a fourth of them on each GPU, and whole batches count
    assert config.max_steps == 3000 // 4 // batch * rounds


@pytest.mark.parametrize(("file", "epochs"), [("voc_supervised", 80), ("cityscapes_supervised", 200)])
def test_labels_alone_are_learned_as_by_the_authors_of_u2pl(file, epochs):
    for point in sweep_points(LIBRARY / f"{file}.yaml"):
        config = to_config(load_recipe(LIBRARY / f"{file}.yaml", sweep=point))
        gpus = {"voc_supervised": 4, "cityscapes_supervised": 8}[file]
        assert (config.num_train_epochs, config.per_device_train_batch_size * gpus) == (epochs, 16)
        assert config.rule == config.objective == "supervised"


def test_on_cityscapes_cct_and_gct_have_the_protocol_of_cps_and_say_that_it_is_ours():
    points = {name: sweep_points(LIBRARY / f"cityscapes_{name}.yaml") for name in ("cct", "gct")}
    for name, rows in points.items():
        assert "so these are hf_fst's" in (LIBRARY / f"cityscapes_{name}.yaml").read_text().replace("\n# ", " ")
        for row in rows:
            net, labels, method = row.split("-")
            cps = load_recipe(LIBRARY / "cityscapes_cps.yaml", sweep=f"{net}-plain-{labels}-{method}")
            own = load_recipe(LIBRARY / f"cityscapes_{name}.yaml", sweep=row)
            for key in ("model", "model_config", "pretrained_backbone", "labeled", "crop_size", "random_resize"):
                assert getattr(own, key) == getattr(cps, key), (row, key)
            ours, theirs = to_config(own), to_config(cps)
            for key in (
                "num_train_epochs",
                "per_device_train_batch_size",
                "learning_rate",
                "weight_decay",
                "no_decay",
            ):
                assert getattr(ours, key) == getattr(theirs, key), (row, key)
            if name == "gct":  # 3 epochs
                assert ours.ramp_share * ours.num_train_epochs == pytest.approx(3, abs=0.01)
    assert load_recipe(LIBRARY / "cityscapes_cct.yaml", sweep=points["cct"][0]).auxiliary_decoders == (
        load_recipe(LIBRARY / "voc_cct.yaml", sweep="r50-8th-published").auxiliary_decoders
    )


def test_ramps_decoders_and_forms_of_the_losses_are_those_of_their_authors():
    def found(row):
        return resolve(to_config(load_recipe(LIBRARY / f"{row.partition('-')[0]}.yaml", sweep=row.partition("-")[2])))

    authors, compared = found("voc_cct-authors-1464-published"), found("voc_cct-r50-8th-published")
    assert (authors.unlabeled_weight, authors.ramp_share, authors.annealed_threshold, authors.vat_step) == (
        30,
        0.1,
        0,
        1e-6,
    )
    assert (compared.unlabeled_weight, compared.ramp_share, compared.annealed_threshold) == (30, 0, 0.99)
    recipe = load_recipe(LIBRARY / "voc_cct.yaml", sweep="r50-8th-published")
    assert sum(recipe.auxiliary_decoders.values()) == 12 and sum(PUBLISHED.values()) == 30
    for name, epochs in {"deeplabv2": (20, 20, 30, 40), "pspnet": (45, 45, 55, 80)}.items():
        for labels, length in zip(CITY, epochs, strict=True):
            row = f"{name}-{labels}-published"
            settings = found(f"voc_gct-{row}")
            assert settings.ramp_share == pytest.approx({"deeplabv2": 3, "pspnet": 5}[name] / length, abs=1e-3)
            assert (settings.consistency_weight, settings.flaw_threshold, settings.loss_reduction) == (100, 0.6, "all")
            assert to_config(load_recipe(LIBRARY / "voc_gct.yaml", sweep=row)).num_train_epochs == length


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("method, rule", [("published", "mean_teacher"), ("fst", "fst_d")])
def test_published_rows_follow_with_a_mean_teacher_and_the_others_look_ahead(name, method, rule):
    for row in ROWS[name]:
        recipe = load_recipe(LIBRARY / f"{name}.yaml", sweep=f"{row}-{method}")
        assert resolve(to_config(recipe)).rule == rule
