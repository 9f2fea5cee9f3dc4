"""Every recipe that is shipped is read, checked and dry-run; those of the paper train on tiny official layouts."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from hf_fst import cli
from hf_fst.errors import UserError
from hf_fst.recipes import load_recipe, sweep_points
from hf_fst.recipes.dry_run import dry_run
from hf_fst.recipes.load import to_config
from hf_fst.recipes.names import LIBRARY
from hf_fst.recipes.run import run
from tests.data import trees
from tests.recipes.noise import one_step

FILES = sorted(path.name for path in LIBRARY.glob("*.yaml"))
POINTS = [(name, point) for name in FILES for point in sweep_points(LIBRARY / name) or [None]]


def points_of(name: str) -> list[str]:
    return [point for file, point in POINTS if file == name]


def test_there_is_a_recipe_for_each_row_of_the_tables():
    assert points_of("synthia_rules.yaml") == [
        *("source_only", "st", "st_4x", "naive", "improved", "w_same", "w_different", "d_same", "d_different")
    ]
    networks = ["deeplabv2-resnet50", "deeplabv2-resnet101", "pspnet-resnet101"]
    networks += ["upernet-swin-base", "upernet-beit-base", "daformer-mit-b5"]
    assert points_of("gta5_networks.yaml") == [f"{n}-{m}" for n in networks for m in ("st", "k2", "k3", "k4")]
    assert points_of("synthia_different.yaml") == ["d_k2", "d_k3", "d_k4", "w_n2", "w_n3", "w_n4"]
    assert len(points_of("voc_semi.yaml")) == 4 * 3 * 2 and len(points_of("cityscapes_semi.yaml")) == 2 * 3 * 2
    labels = ["92", "183", "366", "732", "1464", "16th", "8th", "4th", "2nd"]
    assert points_of("voc_u2pl.yaml") == [f"{n}-{m}" for n in labels for m in ("published", "fst")]
    assert len(points_of("cityscapes_u2pl.yaml")) == 4 * 2
    networks = ["deeplabv3plus", "pspnet", "deeplabv2"]
    assert points_of("voc_supervised.yaml") == [f"{network}-{n}" for network in networks for n in labels]
    assert points_of("cityscapes_supervised.yaml") == ["16th", "8th", "4th", "2nd"]
    assert points_of("gta5_proda.yaml") == ["warm_up", "stage1", "stage1_fst", "stage2", "stage3"]
    assert points_of("gta5_cpsl.yaml") == points_of("synthia_cpsl.yaml") == points_of("gta5_proda.yaml")
    assert points_of("synthia_proda.yaml") == ["warm_up", "stage1", "stage2", "stage3"]
    assert {"gta5_daformer.yaml", "synthia_daformer.yaml", "street_da.yaml", "folders.yaml"} <= set(FILES)


@pytest.mark.parametrize(("name", "point"), POINTS)
def test_every_point_is_valid(name, point):
    recipe = load_recipe(LIBRARY / name, {"dataloader_num_workers": "0"}, point)
    config = to_config(recipe)
    assert recipe.dataset is not None and (config.max_steps > 0 or config.num_train_epochs > 3)


@pytest.mark.parametrize(
    ("name", "point", "expected"),
    [
        ("gta5_networks.yaml", "daformer-mit-b5-k3", ("fst_d", 3, 6e-5, 40000, 0.0)),
        ("synthia_different.yaml", "d_k4", ("fst_d", 4, 6e-5, 40000, 0.0)),
        ("voc_semi.yaml", "pspnet-8th-st", ("mean_teacher", None, 1e-3, -1, 0.0)),
        ("cityscapes_semi.yaml", "cutmix-4th-fst", ("fst_d", 3, 1e-2, -1, 0.0)),
        ("voc_u2pl.yaml", "92-published", ("mean_teacher", None, 1e-3, -1, 0.0)),
        ("cityscapes_u2pl.yaml", "8th-fst", ("fst_d", 3, 1e-2, -1, 0.0)),
        ("voc_supervised.yaml", "pspnet-16th", ("supervised", None, 1e-3, -1, 0.0)),
        ("cityscapes_supervised.yaml", "8th", ("supervised", None, 1e-2, -1, 0.0)),
        ("gta5_cpsl.yaml", "stage1", ("mean_teacher", None, 1e-4, 90000, 0.0)),
        ("synthia_cpsl.yaml", "stage1_fst", ("fst_d", None, 1e-4, 90000, 0.0)),
        ("gta5_proda.yaml", "stage1", ("mean_teacher", None, 1e-4, 62475, 0.0)),
        ("gta5_proda.yaml", "stage2", ("supervised", None, 6e-4, 62475, 0.0)),
    ],
)
def test_the_numbers_of_the_published_runs_arrive(name, point, expected):
    config = to_config(load_recipe(LIBRARY / name, sweep=point))
    found = (config.rule, config.lookahead_steps, config.learning_rate, config.max_steps, config.max_grad_norm)
    assert found == expected


def test_a_stage_before_the_one_it_needs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.gta5(tmp_path / "gta5")
    trees.cityscapes(tmp_path / "city")
    for point, key, before in (("stage1", "start_from", "warm_up"), ("stage2", "reference_model", "stage1")):
        recipe = load_recipe(LIBRARY / "gta5_proda.yaml", {"data_dir": "gta5", "unlabeled_data_dir": "city"}, point)
        recipe.pretrained_backbone = None
        recipe.model_config = TINY_RESNET
        with pytest.raises(UserError) as error:
            run(recipe)
        assert str(error.value) == (
            f"{key} is runs/gta5_proda-{before}/student, which holds no network; train the stage that writes it first, "
            "or give its directory."
        )


def test_every_header_says_how_to_start_the_recipe():
    for path in LIBRARY.glob("*.yaml"):
        header = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any(f" {path.stem.replace('_', '-')}" in line for line in header), path.name


@pytest.mark.parametrize(
    "name",
    [
        *("gta5_daformer.yaml", "synthia_rules.yaml", "cityscapes_semi.yaml", "camvid_semi.yaml"),
        *("street_da_lite.yaml", "drawn_to_camvid.yaml", "drawn_to_camvid_few.yaml", "camvid_lite.yaml"),
    ],
)
def test_a_dry_run_needs_no_data(name, capsys):
    point = points_of(name)[-1]
    result = dry_run(load_recipe(LIBRARY / name, sweep=point))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{result['parameters']:,} parameters" in printed and "memory of the training state" in printed
    assert " unlabeled crops" in printed


def test_a_dry_run_of_labels_alone_speaks_of_no_unlabeled_crops(capsys):
    dry_run(load_recipe(LIBRARY / "voc_supervised.yaml", sweep="pspnet-92"))
    assert "labeled crops" in (printed := capsys.readouterr().out) and "unlabeled crops" not in printed


def test_a_dry_run_counts_the_network_at_full_size():
    result = dry_run(load_recipe(LIBRARY / "gta5_daformer.yaml", sweep="fst"))
    assert result["parameters"] == 85_155_283
    # float32: student, gradients, teacher, Adam's two moments, the look-ahead's copy of the student (state: carry), and
    # the network of the feature distance
    assert result["training_state_bytes"] == pytest.approx(7 * 4 * 85_155_283, rel=1e-3)
    assert result["steps"] == 40000


def test_heads_of_a_step_on_noise_learn_ten_times_as_fast():
    loss, rates = one_step(load_recipe(LIBRARY / "gta5_daformer.yaml", sweep="fst"))
    assert loss > 0 and rates == [6e-5, 6e-4]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_all_points_that_differ_in_more_than_images_and_length_take_a_step(name):
    stepped = set()
    for point in points_of(name):
        recipe = load_recipe(LIBRARY / name, sweep=point)
        if str(recipe.model).startswith("./runs/"):  # what another point leaves
            recipe.model = "fpn-efficientnet-lite0"
        keys = dataclasses.asdict(recipe)
        for key in ("labeled", "point"):
            keys.pop(key)
        for key in ("max_steps", "num_train_epochs", "ramp_share", "output_dir"):
            keys["options"].pop(key, None)
        step = json.dumps(keys, sort_keys=True, default=str)
        if step not in stepped:
            assert dry_run(recipe)["parameters"] > 0 and one_step(recipe)[0] > 0, point
        stepped.add(step)


TINY_RESNET = {"backbone_kwargs": {"layers": [1, 1, 1, 3], "channels": [4, 8, 16, 32], "stem_width": 4}}
QUICK = {
    "max_steps": 2,
    "pretrained_backbone": "false",
    "crop_size": 64,
    "dataloader_num_workers": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": "false",
    "report": "false",
    "disable_tqdm": "true",
    "use_cpu": "true",
    "model_config": json.dumps(TINY_RESNET),
}
DAFORMER = {
    "hidden_size": 16,
    "backbone_config": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]},
}


def train(tmp_path, name: str, point: str | None, **options) -> dict:
    """Two steps of a recipe with a narrow network; its results."""
    argv = ["train", str(LIBRARY / name), "-o", str(tmp_path / "out")] + (["--sweep", point] if point else [])
    for key, value in {**QUICK, **options}.items():
        argv += [f"--{key}", str(value)]
    assert cli.main(argv) == 0
    return json.loads((tmp_path / "out/results.json").read_text())


@pytest.mark.parametrize(("source", "point"), [("gta5", "fst"), ("synthia", "st")])
def test_domain_adaptation_trains_on_the_official_layouts(tmp_path, source, point):
    {"gta5": trees.gta5, "synthia": trees.synthia}[source](tmp_path / source)
    trees.cityscapes(tmp_path / "city")
    options = {
        **{"data_dir": tmp_path / source, "unlabeled_data_dir": tmp_path / "city"},
        **{"resize": "[128, 72]", "unlabeled_resize": "[128, 64]", "model_config": json.dumps(DAFORMER)},
        **{"rare_class_sampling.min_pixels": 10, "eval_strategy": "steps", "eval_steps": 2},
    }
    results = train(tmp_path, f"{source}_daformer.yaml", point, **options)
    assert results["steps"] == 2 and results["images"] == {"labeled": 4, "unlabeled": 4, "validation": 2}
    means = results["metrics"][-1]["student"]
    if source == "synthia":  # terrain, truck and train do not count
        counted = [v for k, v in means["iou"].items() if k not in ("terrain", "truck", "train") and v is not None]
        assert means["mean_iou"] == pytest.approx(sum(counted) / len(counted))


@pytest.mark.parametrize(("name", "point"), [("drawn_to_camvid.yaml", None), ("drawn_to_camvid_few.yaml", "5")])
def test_drawings_and_photographs_are_read_with_the_classes_that_both_have(tmp_path, name, point):
    trees.camvid(tmp_path / "camvid", counts=(6, 2, 2))
    drawn = {"look": "synthetic", "size": [64, 96], "num_train": 4, "num_validation": 1, "num_test": 1}
    options = {
        **{"unlabeled_data_dir": tmp_path / "camvid", "dataset_options": json.dumps(drawn)},
        **{"model_config": json.dumps({"hidden_size": 16}), "rule": "mean_teacher"},
    }
    results = train(tmp_path, name, point, **options)
    few = 0 if point is None else int(point)
    assert results["images"] == {"labeled": 4 + few, "unlabeled": 6 - few, "validation": 2, "test": 2}
    assert len(results["classes"]) == 10 and "bicyclist" not in results["classes"]
    assert results["metrics"][-1]["teacher"]["iou"].keys() == set(results["classes"])


@pytest.mark.parametrize("point", ["pspnet-16th-fst", "deeplabv3plus_cutmix-16th-st"])
def test_semi_supervised_voc_trains_on_the_official_layout(tmp_path, point):
    trees.voc(tmp_path / "voc")
    model = {**TINY_RESNET, "hidden_size": 8} | ({"low_level_size": 8} if "v3" in point else {})
    options = {"data_dir": tmp_path / "voc", "labeled": 2, "model_config": json.dumps(model)}
    results = train(tmp_path, "voc_semi.yaml", point, **options, per_device_train_batch_size=2)
    assert results["steps"] == 2 and results["images"]["labeled"] == 2 and len(results["classes"]) == 21


def test_semi_supervised_cityscapes_trains_on_the_official_layout(tmp_path):
    trees.cityscapes(tmp_path / "city")
    model = {**TINY_RESNET, "hidden_size": 8, "low_level_size": 8}
    options = {"data_dir": tmp_path / "city", "labeled": 2, "model_config": json.dumps(model)}
    results = train(tmp_path, "cityscapes_semi.yaml", "plain-8th-fst", **options)
    assert results["steps"] == 2 and results["images"]["unlabeled"] == 2


def test_bases_are_no_recipes_of_their_own():
    for path in (LIBRARY / "base").glob("*.yaml"):
        assert "sweep" not in yaml.safe_load(path.read_text())
