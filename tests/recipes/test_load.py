"""Recipes are read, merged, swept, overridden and checked."""

from __future__ import annotations

import pytest
import yaml

from hf_fst import cli
from hf_fst.commands import common
from hf_fst.errors import MissingError, UsageError
from hf_fst.recipes import load_recipe, sweep_points
from hf_fst.recipes.keys import key_table
from hf_fst.recipes.load import Loader, as_dict, as_text, make_recipe, to_config
from hf_fst.recipes.names import LIBRARY, recipe_names


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_later_defaults_win_and_the_recipe_wins_over_them(tmp_path):
    write(tmp_path / "base/a.yaml", "seed: 1\nlearning_rate: 1\nmodel_config: {depth: 1, width: 2}\n")
    write(tmp_path / "base/b.yaml", "defaults: [c.yaml]\nlearning_rate: 2\nmodel_config: {width: 3}\n")
    write(tmp_path / "base/c.yaml", "data_seed: 5\nlearning_rate: 9\n")
    recipe = load_recipe(write(tmp_path / "r.yaml", "defaults: [base/a.yaml, base/b.yaml]\nseed: 7\n"))
    assert recipe.options == {
        **{"seed": 7, "learning_rate": 2.0, "data_seed": 5},
        "output_dir": "runs/r",
    }
    assert recipe.model_config == {"depth": 1, "width": 3}


def test_a_recipe_of_the_library_goes_by_name_with_dashes_or_underscores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from any folder
    recipe = load_recipe("street-da", {"seed": "3"})
    assert recipe == load_recipe("street_da", {"seed": "3"}) == load_recipe(LIBRARY / "street_da.yaml", {"seed": "3"})
    assert (recipe.command_name, recipe.options["output_dir"]) == ("street-da", "runs/street_da")
    assert "mean_teacher" in sweep_points("camvid-semi")
    own = load_recipe(write(tmp_path / "mine.yaml", "defaults: [street-da]\nlearning_rate: 1\n"))
    assert own.options == {**load_recipe("street-da").options, "learning_rate": 1, "output_dir": "runs/mine"}
    assert own.command_name == "mine.yaml"


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ("street-ad", "did you mean 'street-da'?"),
        ("examples/recipes/folder.yaml", "did you mean 'folders'?"),
        ("none.yaml", "give the path of a YAML file, or a name that `hf-fst train --list` shows."),
    ],
)
def test_an_unknown_recipe_is_refused_with_what_to_give(given, end):
    with pytest.raises(MissingError) as caught:
        load_recipe(given)
    assert str(caught.value) == f"There is no recipe {given!r}; {end}"


def test_the_help_lists_the_recipes_that_go_by_name():
    shown = key_table().split("Recipes that go by name:")[1].replace(",", " ").split()
    assert shown == recipe_names() and "camvid-semi-fst-d" in shown


def test_a_number_may_have_an_exponent_and_no_point_wherever_it_stands(tmp_path):
    path = write(tmp_path / "r.yaml", "model_config: {eps: 1e-6, sizes: [2e3, -1E+2], name: 1e-6x, hash: '1e-6'}\n")
    recipe = load_recipe(path, {"model_config.drop": "1e-1", "learning_rate": "6e-5"})
    assert recipe.model_config == {"eps": 1e-6, "sizes": [2000, -100], "name": "1e-6x", "hash": "1e-6", "drop": 0.1}
    assert recipe.options["learning_rate"] == 6e-5


def test_values_become_the_types_of_their_fields():
    values = {"max_steps": 1e3, "seed": "7", "weight_decay": "1e-2", "learning_rate": 1, "labeled": "12"}
    recipe = make_recipe({**values, "crop_size": [32, "64"], "random_resize": ["0.5", 2]})
    kept = {key: recipe.options[key] for key in values.keys() & recipe.options.keys()}
    assert kept == {"max_steps": 1000, "seed": 7, "weight_decay": 0.01, "learning_rate": 1}
    assert type(kept["max_steps"]) is type(kept["seed"]) is int
    assert (recipe.labeled, recipe.crop_size, recipe.random_resize) == (12, [32, 64], [0.5, 2])
    assert make_recipe({"labeled": "1/8"}).labeled == "1/8"


def test_null_puts_a_key_back_to_its_default(tmp_path):
    write(tmp_path / "a.yaml", "crop_size: 32\nlearning_rate: 0.5\n")
    recipe = load_recipe(write(tmp_path / "r.yaml", "defaults: [a.yaml]\ncrop_size: null\nlearning_rate: null\n"))
    assert recipe.crop_size is None
    assert "learning_rate" not in recipe.options


def test_a_recipe_that_is_a_default_of_itself_is_refused(tmp_path):
    write(tmp_path / "a.yaml", "defaults: [b.yaml]\n")
    path = write(tmp_path / "b.yaml", "defaults: [a.yaml]\n")
    with pytest.raises(UsageError, match="is a default of itself; take it out of `defaults`."):
        load_recipe(path)


def test_overrides_are_yaml_reach_into_mappings_and_take_dashes(tmp_path):
    path = write(tmp_path / "r.yaml", "model_config: {depths: [1], hidden_size: 4}\n")
    overrides = {
        "crop-size": "[32, 48]",
        "model_config.depths": "[2, 3]",
        "learning_rate": "3e-4",
        "bf16": "false",
        "labeled": "1/8",
        "data_dir": "0815",
    }
    recipe = load_recipe(path, overrides)
    assert recipe.crop_size == [32, 48]
    assert recipe.model_config == {"depths": [2, 3], "hidden_size": 4}
    assert recipe.options["learning_rate"] == 3e-4 and recipe.options["bf16"] is False
    assert recipe.labeled == "1/8" and recipe.data_dir == "0815"


SWEEP = """
rule: fst_d
sweep:
  model: [deeplabv2-resnet50, pspnet-resnet101]
  method:
    st: {rule: mean_teacher}
    k2: {lookahead_steps: 2}
"""


@pytest.mark.parametrize("text", ["32,48", "[32, 48]"])
def test_a_list_on_the_command_line_has_commas_with_or_without_brackets(tmp_path, text):
    recipe = load_recipe(
        write(tmp_path / "r.yaml", "seed: 0\n"), {"crop_size": text, "resize": text, "license": "a,b"}
    )
    assert (recipe.crop_size, recipe.resize, recipe.license) == ([32, 48], [32, 48], "a,b")


def test_a_sweep_is_the_product_of_its_lines(tmp_path):
    path = write(tmp_path / "s.yaml", SWEEP)
    names = ["deeplabv2-resnet50-st", "deeplabv2-resnet50-k2", "pspnet-resnet101-st", "pspnet-resnet101-k2"]
    assert sweep_points(path) == names
    recipe = load_recipe(path, sweep="pspnet-resnet101-k2")
    assert (recipe.model, recipe.options["rule"], recipe.options["lookahead_steps"]) == (
        "pspnet-resnet101",
        "fst_d",
        2,
    )
    assert recipe.name == "s-pspnet-resnet101-k2" and recipe.options["output_dir"] == "runs/s-pspnet-resnet101-k2"
    assert load_recipe(path, sweep="2").point == "pspnet-resnet101-st"
    assert load_recipe(path, {"rule": "naive_fst"}, sweep="0").options["rule"] == "naive_fst"


def test_a_sweep_needs_a_point_that_it_has(tmp_path):
    path = write(tmp_path / "s.yaml", SWEEP)
    with pytest.raises(UsageError, match="is a sweep of 4 points; choose one with --sweep: deeplabv2-resnet50-st, "):
        load_recipe(path)
    with pytest.raises(UsageError, match="has no point 'pspnet-resnet101-k3'; did you mean 'pspnet-resnet101-k2'?"):
        load_recipe(path, sweep="pspnet-resnet101-k3")
    plain = write(tmp_path / "p.yaml", "seed: 1\n")
    with pytest.raises(UsageError, match="has no sweep, but --sweep st asks for a point of one; leave it out."):
        load_recipe(plain, sweep="st")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"lerning_rate": 1}, "There is no key 'lerning_rate' in a recipe; did you mean 'learning_rate'?"),
        ({"cropsize": 1}, "There is no key 'cropsize' in a recipe; did you mean 'crop_size'?"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; give a number."),
        ({"max_steps": 1.5}, "max_steps is 1.5; give a whole number."),
        ({"bf16": 1}, "bf16 is 1; give true or false."),
        ({"learning_rate": True}, "learning_rate is True; give a number."),
        ({"output_dir": 7}, "output_dir is 7; give text."),
        ({"model": ""}, "model is empty; give a value, or leave it out."),
        ({"model_config": [1]}, "model_config is [1]; give a mapping."),
        ({"labeled": 1.5}, "labeled is 1.5; give a whole number or text."),
        ({"resize": [640, "wide"]}, "resize is 'wide'; give a whole number."),
        ({"save_strategy": True}, "save_strategy is True; use one of no, steps, epoch, best."),
        ({"resize": [1, 2, 3]}, "resize is [1, 2, 3]; give [height, width] in pixels, 32768 at most."),
        ({"resize": "big"}, "resize is 'big'; give a list."),
        ({"crop_size": [0, 3]}, "crop_size is [0, 3]; give a side or [height, width] in pixels, 32768 at most."),
        ({"random_resize": [1.5, 2]}, "random_resize is [1.5, 2]; give [low, high] with 0 < low <= 1 <= high <= 100."),
        ({"crop_size": 1e5}, "crop_size is 100000; give a side or [height, width] in pixels, 32768 at most."),
        (
            {"unlabeled_resize": [640, 40_000]},
            "unlabeled_resize is [640, 40000]; give [height, width] in pixels, 32768 at most.",
        ),
        ({"eval_crop": 0}, "eval_crop is 0; give a side in pixels, 32768 at most."),
        ({"dataset": "citiscapes"}, "dataset is 'citiscapes'; did you mean 'cityscapes'?"),
        ({"lr_scheduler_type": "lineer"}, "lr_scheduler_type is 'lineer'; did you mean 'linear'?"),
        ({"target_labeled": 9, "target_labeled_share": 1}, "target_labeled_share is 1; use a number between 0 and 1."),
        (
            {"target_labeled_share": 0.5},
            "target_labeled_share is set without target_labeled; say how much of the target has labels.",
        ),
        ({"test_split": True}, "test_split is true; give the name of a split, or false for none."),
    ],
)
def test_wrong_keys_and_values_are_refused_in_one_sentence(keys, sentence):
    with pytest.raises(UsageError) as caught:
        make_recipe(keys)
    assert str(caught.value) == sentence


def test_a_key_that_stands_twice_is_refused_wherever_it_does(tmp_path):
    for line, text in ((2, "seed: 1\nseed: 2\n"), (1, "model_config: {seed: 1, seed: 1}\n")):
        with pytest.raises(UsageError, match=f"is not YAML .seed is given twice in .*, line {line}, .* keep one"):
            load_recipe(write(tmp_path / "r.yaml", text))
    for one, other in (("'1'", "1"), ("1", "0x1"), ("yes", "true"), ("1", "1.0")):  # one id, or one value
        with pytest.raises(UsageError, match=f"is not YAML .{other} is given twice"):
            load_recipe(write(tmp_path / "r.yaml", f"dataset_options: {{id2label: {{{one}: a, {other}: b}}}}\n"))
    more = "model_config: &a {x: 1, y: 1}\nmodel_kwargs: &b {<<: *a, x: 2}\n<<: *b\n"
    assert yaml.load(more, Loader)["x"] == 2


def test_a_file_that_an_editor_of_windows_wrote_and_one_beyond_all_bounds(tmp_path, capsys):
    (tmp_path / "r.yaml").write_bytes("# Mine.\nseed: 4\n".encode("utf-16"))
    assert load_recipe(tmp_path / "r.yaml").options["seed"] == 4
    assert cli.main(["train", str(tmp_path / "r.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out.startswith("# Mine.\n")
    for text in ("seed: " + "9" * 5000, "model_config: " + "[" * 9999):
        with pytest.raises(UsageError, match="is not YAML"):
            load_recipe(write(tmp_path / "r.yaml", text))


def test_what_the_config_refuses_is_wrong_usage():
    with pytest.raises(UsageError, match="^teacher_momentum is 2; use a number from 0 to 1.$"):
        to_config(make_recipe({"teacher_momentum": 2}))
    with pytest.raises(UsageError, match="^schedule is 'cosine'"):
        to_config(make_recipe({"schedule": "cosine"}))


def test_yaml_no_counts_as_the_word():
    recipe = make_recipe(yaml.safe_load("eval_strategy: no\nsave_strategy: 'no'\n"))
    assert recipe.options["eval_strategy"] == recipe.options["save_strategy"] == "no"


def test_the_written_recipe_gives_the_same_recipe(tmp_path):
    recipe = make_recipe(
        {
            "dataset_options": {"x": ["08", "1e3", "1:30", "no", "2024-11-28"]},
            "crop_size": [3, 4],
            "dataset": "camvid",
            "labeled": "1/8",
            "rule": "fst_w",
            "learning_rate": "1e-4",
        }
    )
    again = load_recipe(write(tmp_path / "run.yaml", as_text(as_dict(recipe))))
    assert again == recipe


def test_a_layer_that_names_a_rule_takes_out_what_only_other_rules_have(tmp_path):
    write(tmp_path / "base.yaml", "rule: fst_d\nlookahead_steps: 2\nlookahead_every: 12\nmax_steps: 7\n")
    write(tmp_path / "top.yaml", "defaults: [base.yaml]\nrule: mean_teacher\n")
    for recipe in (load_recipe(tmp_path / "top.yaml"), load_recipe(tmp_path / "base.yaml", {"rule": "mean_teacher"})):
        assert recipe.options.keys() & {"lookahead_steps", "lookahead_every"} == set()
        assert recipe.options["max_steps"] == 7
        to_config(recipe)
    for objective in ("supervised", "distill"):
        layer = {"rule": "supervised", "objective": objective}
        options = load_recipe(tmp_path / "base.yaml", layer).options
        assert "lookahead_every" not in options and options["objective"] == objective
    to_config(load_recipe(tmp_path / "base.yaml", {"rule": "supervised", "objective": "supervised"}))
    refused = load_recipe(tmp_path / "top.yaml", {"lookahead_every": "3"})
    with pytest.raises(UsageError, match="lookahead_every is set but the rule is mean_teacher"):
        to_config(refused)


def test_a_rule_above_labels_alone_keeps_the_objective_of_the_recipe(tmp_path):
    write(tmp_path / "base.yaml", "objective: cut_mix\nconfidence_threshold: 0.9\nmax_steps: 7\n")
    write(tmp_path / "alone.yaml", "defaults: [base.yaml]\nrule: supervised\n")
    recipe = load_recipe(tmp_path / "alone.yaml", {"rule": "fst_d"})
    assert (recipe.options["objective"], recipe.options["confidence_threshold"]) == ("cut_mix", 0.9)
    assert load_recipe(tmp_path / "base.yaml", {"rule": "supervised"}).options["objective"] == "supervised"
    write(tmp_path / "several.yaml", "rule: [fst_d]\n")
    with pytest.raises(UsageError, match="rule is "):
        load_recipe(tmp_path / "several.yaml")


@pytest.mark.parametrize(
    "text, value",
    [("010", 10), ("-08", -8), ("0512", 512), ("0x1F", 31), ("0b11", 3), ("1_000", 1000), ("1:30", "1:30")]
    + [
        ("2024-11-28", "2024-11-28"),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("1.2.3", "1.2.3"),
        ("0o17", "0o17"),
    ],
)
def test_numbers_are_what_they_look_like(text, value):
    [read] = yaml.load(f"[{text}]", Loader)
    assert (read, type(read)) == (value, type(value))


def test_text_of_digits_stays_text_where_an_option_of_the_dataset_takes_text(tmp_path):
    file = write(tmp_path / "r.yaml", "dataset: folder\n")
    given = {"dataset_options.images": "010", "dataset_options.masks": "null", "dataset_options.seed": "010"}
    assert load_recipe(file, given).dataset_options == {"images": "010", "masks": None, "seed": 10}
    assert common.options(["look=2024", "size=[3, 4]", "splits=1e3"]) == {
        "look": "2024",
        "size": [3, 4],
        "splits": "1e3",
    }
