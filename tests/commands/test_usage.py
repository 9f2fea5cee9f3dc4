"""Help, version, completion, and what a mistyped word leads to: none of it loads torch."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_fst import cli
from hf_fst.commands.common import numbers
from hf_fst.errors import UsageError
from hf_fst.recipes.keys import all_keys, own_keys
from hf_fst.training.config import FSTConfig

ROOT = Path(__file__).parents[2]
NAMES = [name for commands in cli.COMMANDS.values() for name in commands]
OPTION = r"(?<![\w-])--?[a-zA-Z][\w-]*"
# what a user waits for when it is loaded; pydantic is typer's
HEAVY = {"torch", "transformers", "datasets", "numpy", "yaml", "pydantic", "rich"}


def help_of(capsys, *words):
    assert cli.main([*words, "--help"]) == 0
    return capsys.readouterr().out


def test_the_help_lists_the_commands_in_groups(capsys):
    text = help_of(capsys)
    for group, commands in cli.COMMANDS.items():
        section = text.partition(f"\n{group}:\n")[2].partition("\n\n")[0]
        assert re.findall(r"^  (\w+)  ", section, re.MULTILINE) == list(commands)


@pytest.mark.parametrize("command", NAMES)
def test_a_command_explains_itself_and_its_examples_have_only_its_options(capsys, command):
    text = help_of(capsys, command)
    known = set(re.findall(OPTION, text.partition("\nExamples:")[0]))
    assert {"--json", "--debug", "-h"} <= known
    examples = re.findall(rf"^  .*?(?:hf-fst|hf_fst\.cli) {command} (.*)$", text, re.MULTILINE)
    assert examples
    if command not in ("train", "check", "compare"):  # whose options are the keys of a recipe
        used = {word.partition("=")[0] for line in examples for word in line.split() if word.startswith("-")}
        assert used <= known


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["eval", "m", "street", "--window", "0"], "--window"),
        (["predict", "m", "i", "-o", "o", "-j", "two"], "--workers"),
        (["demo", "m", "--port", "99999"], "--port"),
        (["convert", "x.pth", "--model", "m", "-o", "o", "--which", "both"], "--which"),
        (["train"], "RECIPE"),
        (["predict", "m", "i", "-x"], "-x"),
        (["card", "here", "there"], "there"),
    ],
)
def test_what_is_wrong_or_missing_is_named(says, argv, named):
    sentence = says(argv, 2)
    assert named in sentence and sentence.endswith(f"; `hf-fst {argv[0]} --help` shows how to use it.")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["trian"], "There is no command 'trian'; did you mean 'train'?"),
        (["optimize"], f"There is no command 'optimize'; use one of {', '.join(NAMES)}."),
        (["--vesion"], "`hf-fst` has no option --vesion; did you mean '--version'?"),
        (["predict", "", "photos"], "An argument is empty; give a value, or leave it out."),
        (["train", "street-da", "--model", ""], "--model is empty; give a value, or leave it out."),
        (["train", "street-da", "--output_dir="], "--output_dir is empty; give a value, or leave it out."),
        (["eval", "m", "street", "--windw=3"], "`hf-fst eval` has no option --windw; did you mean '--window'?"),
        (
            ["eval", "m", "street", "--device", "cuda"],
            "`hf-fst eval` has no option --device; `hf-fst eval --help` lists the options.",
        ),
        (
            ["compare", "street-da", "--output_dir", "out"],
            "--output_dir differs from run to run of a comparison; leave it out, or give --output.",
        ),
    ],
)
def test_a_mistyped_word_is_one_sentence_and_code_2(says, argv, sentence):
    assert says(argv, 2) == sentence


def test_a_value_that_ends_like_an_empty_one_is_a_value(says, tmp_path):
    argv = ["predict", "photos", str(tmp_path), "-o", str(tmp_path / "out"), f"--revision={tmp_path}/day="]
    assert "is empty" not in says(argv, 2)
    assert "is empty" not in says(["eval", "no/model", f"--data_dir={tmp_path}/day="], 2)


def test_without_a_word_the_help_is_shown_and_the_code_is_2(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().out == help_of(capsys)


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hf_fst {importlib.metadata.version('hf_fst')}\n"


@pytest.mark.parametrize("dash", ["-", "_"])
def test_dashes_and_underscores_are_the_same_and_a_list_takes_several_values(monkeypatch, dash):
    given = {}
    monkeypatch.setattr(
        "hf_fst.recipes.evaluation.load", lambda name, data_dir, **options: given.update(options, data_dir=data_dir)
    )
    monkeypatch.setattr("hf_fst.evaluation.runner.evaluate_model", lambda *args, **options: {**given.update(options)})
    with pytest.raises(TypeError):  # nothing was scored
        cli.main(
            ["eval", "m", "d", f"--data{dash}dir", "x", "--options", "a=1", "b=[2, 3]", f"--batch{dash}size", "4"]
        )
    assert (given["data_dir"], given["a"], given["b"], given["batch_size"]) == ("x", 1, [2, 3], 4)


def test_lists_of_numbers_have_commas_between_them():
    assert numbers("512,1024", "size", int, 2) == [512, 1024]
    assert numbers("0.75,1", "scales", float) == [0.75, 1.0]
    for text in ("512", "512x1024", "512 1024", "1,2,3", ""):
        with pytest.raises(UsageError, match="--size is .*; give 2 numbers with commas between them"):
            numbers(text, "size", int, 2)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


def test_help_version_and_typos_load_nothing_heavy():
    lines = [
        ["--help"],
        ["--version"],
        ["train", "--list"],
        ["trian"],
        ["--hlp"],
        ["eval", "m", "street", "--windw", "3"],
        ["train", "folders", "--maxsteps", "3"],
        ["compare", "folders", "--model_confg.depths", "3"],
        ["check", "folders", "--cropsize=3"],
    ]
    lines += [[name, "--help"] for name in NAMES if name != "train"]  # which lists the keys of a recipe
    code = f"import sys\nfrom hf_fst.cli import main\nfor line in {lines}:\n    main(line)\n"
    code += f"print({HEAVY} & set(sys.modules), file=sys.stderr)\nmain(['train', 'foldrs'])\n"
    done = run(f"{code}print({HEAVY - {'pydantic'}} & set(sys.modules), file=sys.stderr)")  # typer's, for a value
    assert [line for line in done.stderr.splitlines() if not line.startswith("hf-fst: ")] == ["set()"] * 2


def test_the_module_and_the_package_are_the_command():
    for module in ("hf_fst", "hf_fst.cli"):
        command = [sys.executable, "-m", module, "--version"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert (done.returncode, done.stdout.split()[0]) == (0, "hf_fst")


def test_a_shell_completes_commands_and_options():
    code = "import sys; from hf_fst.cli import main; sys.exit(main())"
    assert "complete -o default -F" in run(code, _HF_FST_COMPLETE="source_bash").stdout
    loaded = (
        "import sys; from hf_fst.cli import main\n"
        f"try: main()\nfinally: print({HEAVY - {'pydantic'}} & set(sys.modules), file=sys.stderr)"
    )
    for words, completions in (
        ("hf-fst ev", ["eval"]),
        ("hf-fst eval --save_o", ["--save_overlays"]),
        ("hf-fst train street-s", ["street-semi", "street-source-only"]),
        ("hf-fst compare --seeds 2 fold", ["folders"]),
        ("hf-fst check street-da --seed 1 --lookahead_sta", ["--lookahead_state", "--lookahead_start"]),
        ("hf-fst train street-da --max_s", ["--max_steps"]),
    ):
        about = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = run(loaded, _HF_FST_COMPLETE="complete_bash", **about)
        assert done.stdout.split() == completions and done.stderr == "set()\n"


def test_the_keys_that_a_shell_completes_are_all_there_are():
    known = {field.name for field in dataclasses.fields(FSTConfig)} | own_keys().keys()
    assert set(all_keys()) == known
