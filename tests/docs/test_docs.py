"""What README and docs/ say is there: links, code, commands, keys, options, names."""

import inspect
import io
import json
import re
import shlex
import tarfile
from pathlib import Path

import datasets
import pytest
import yaml

from hf_fst.cli import main
from hf_fst.commands.train import split_overrides
from hf_fst.data import DATASETS
from hf_fst.data.cityscapes import COLORS
from hf_fst.models import BUILDS
from hf_fst.models.convert import FAMILIES
from hf_fst.recipes import load_recipe
from tests.data import trees
from tests.evaluation.conftest import tiny_model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
RUN = {
    "accelerate launch examples/run_fst.py": "hf-fst train",
    ".venv/bin/hf-fst": "hf-fst",
    "$(BIN)/hf-fst": "hf-fst",
}


def blocks(page, *languages):
    return [content for language, content in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def name_of(value):
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


def heading_ids(page):
    """The anchors of a page as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands():
    """Every `hf-fst` command of the pages, of the recipes' first lines and of the Makefile, as words after `hf-fst`."""
    recipes = sorted((ROOT / "examples").rglob("*.yaml"))
    found = []
    for file in [*PAGES, ROOT / "Makefile", *recipes]:
        text = file.read_text(encoding="utf-8")
        text = "\n".join(blocks(file, "bash")) if file.suffix == ".md" else text
        for line in re.sub(r"\\\n", " ", text).splitlines():
            line = line.strip().lstrip("#").strip()
            for written, meant in RUN.items():
                line = line.replace(written, meant)
            if line.startswith("hf-fst "):
                words = [word for word in shlex.split(line, comments=True)[1:] if word != "..."]
                found.append(pytest.param(words, id=f"{file.name}: {line[:60]}"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in heading_ids(there), f"{page.name} links to {target}"


def test_every_page_is_linked_from_the_readme():
    linked = {(ROOT / target).resolve() for target in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {page for page in PAGES if page.parent == ROOT / "docs"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile(page):
    for content in blocks(page, "python"):
        compile(content, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_blocks_are_recipes(page, tmp_path):
    for content in blocks(page, "yaml"):
        (tmp_path / "recipe.yaml").write_text(content)
        assert set(yaml.safe_load(content)) - {"sweep", "defaults"}
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("words", commands())
def test_commands_have_known_keys_and_options(words, tmp_path, capsys):
    command, *rest = words
    if command == "train":
        rest, overrides = split_overrides(rest)
        recipe, *flags = rest
        path = ROOT / recipe
        if not recipe.startswith("examples/"):  # stands for a recipe of the reader's
            path = tmp_path / "recipe.yaml"
            path.write_text("seed: 0\n")
        sweep = flags[flags.index("--sweep") + 1] if "--sweep" in flags else None
        load_recipe(path, overrides, sweep)
        rest = [flag for flag in flags if flag != sweep]
    main([command, "--help"])
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known
    if command == "eval":
        check_options(rest[1], rest)
    if command == "convert":
        assert rest[rest.index("--model") + 1] in BUILDS


def check_options(dataset, words):
    """`--options a=b c=d` are options of that dataset."""
    accepted = inspect.signature(DATASETS[dataset]).parameters
    if "--options" in words:
        for word in words[words.index("--options") + 1 :]:
            if word.startswith("-"):
                break
            assert word.partition("=")[0] in accepted


def section(page, heading):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.search(rf"^### `{heading}`\n(.*?)(?=^##)", text, re.DOTALL | re.MULTILINE)[1]


@pytest.mark.parametrize("name", DATASETS)
def test_every_option_of_every_loader_is_explained_and_no_other(name):
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section("data.md", name), re.MULTILINE)
    explained = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert explained == set(inspect.signature(DATASETS[name]).parameters) - {"data_dir", "streaming"}


def test_the_table_of_networks_has_every_build():
    results = json.loads((ROOT / "docs" / "results" / "models.json").read_text(encoding="utf-8"))
    names = [row["name"] for row in results["rows"]]
    assert names == [f"`{name}` ({build.pretrained_backbone})" for name, build in BUILDS.items()]


def test_every_family_of_checkpoints_is_listed_with_its_networks():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        row = re.search(rf"^\| {re.escape(family.title)}(?: \(.*\))? \| (.*) \|$", text, re.MULTILINE)[1]
        named = re.findall(r"`([\w-]+)`", row)
        if " ... " in row:  # the first and the last of a series
            assert (named[0], named[-1]) == (family.builds[0], family.builds[-1])
        else:
            assert tuple(named) == family.builds


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A working directory with everything that the pages' code reads, tiny."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    trees.cityscapes(Path("data/cityscapes"))
    trees.gta5(Path("data/gta5"), colors=COLORS)
    trees.synthia(Path("data/synthia"))
    trees.camvid(Path("data/camvid"))
    trees.folder(Path("labeled"))
    trees.folder(Path("others"), labeled=False)
    Path("others/images").rename("unlabeled")
    Path("shards").mkdir()
    with tarfile.open("shards/train-0000.tar", "w") as shard:
        for stem in ("scene0", "scene1"):
            for file in (f"images/{stem}.jpg", f"masks/{stem}.png"):
                content = Path("labeled", file).read_bytes()
                info = tarfile.TarInfo(stem + Path(file).suffix)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    model = tiny_model(0, num_labels=3)
    model.config.id2label = {0: "road", 1: "car", 2: "sky"}
    model.save_pretrained("runs/mine")
    mask2former().save_pretrained("facebook/mask2former-swin-tiny-cityscapes-semantic")


def mask2former():
    from transformers import Mask2FormerForUniversalSegmentation

    from tests.models.test_universal import segmenter_config

    return Mask2FormerForUniversalSegmentation(segmenter_config("mask2former"))


@pytest.mark.parametrize("page", ["data.md", "evaluation.md", "models.md"])
def test_python_blocks_run_and_print_what_the_comments_say(page, data, capsys):
    path, space = ROOT / "docs" / page, {}
    for content in blocks(path, "python"):
        exec(compile(content, page, "exec"), space)
        printed = capsys.readouterr().out.splitlines()
        for said in re.findall(r"^print\(.*\)  # (.*)$", content, re.MULTILINE):
            assert said in printed
