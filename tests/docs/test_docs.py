"""What README and docs/ say is there: links, code, commands, keys, options, names."""

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest
import yaml
from transformers import SegformerImageProcessor

from hf_fst.cli import main
from hf_fst.commands.check import Check
from hf_fst.commands.train import Train, split_overrides
from hf_fst.data import DATASETS
from hf_fst.data.cityscapes import COLORS
from hf_fst.method.rules import RULES
from hf_fst.models import BUILDS, build
from hf_fst.models.convert import FAMILIES
from hf_fst.recipes import load_recipe
from hf_fst.recipes.load import sweep_points
from hf_fst.recipes.names import LIBRARY, recipe_names
from hf_fst.training.config import FSTConfig
from tests.data import trees
from tests.evaluation.conftest import tiny_model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING")]
PAGES += [page for folder in ("docs", "examples") for page in sorted((ROOT / folder).rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
# other ways to say `hf-fst`
LAUNCHED = r"^(accelerate launch|torchrun|python)( --[\w-]+( [\w./]+)?)* "
WRITTEN = {
    LAUNCHED + r"examples/run_fst\.py": "hf-fst train",
    LAUNCHED + r"-m hf_fst\.cli": "hf-fst",
    r"^(\.venv/bin|\$\(BIN\))/hf-fst": "hf-fst",
}
# lines of a terminal that are not about this project
ELSEWHERE = ("source .venv/", "hf auth login", "tensorboard --logdir ", "trackio show", "accelerate config")
# one step of a small network on what there is
SMALL = {
    **{"max_steps": 1, "crop_size": 32, "pretrained_backbone": "null", "per_device_train_batch_size": 2},
    **{"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": "false", "eval_on_start": "false"},
    **{"test_split": "false", "disable_tqdm": "true", "report": "false", "logging_steps": 1},
}
# what a page asks for, and what is enough to see it run
QUICKER = {
    "max_steps=4000": "max_steps=1",
    "eval_steps=500": "eval_steps=1",
    "save_steps=500": "save_steps=1",
    "pretrained_backbone=True": "hidden_size=16",
    '"output_dir": "runs/first"}': f'"output_dir": "runs/first", "model_config.hidden_size": 16, **{SMALL}}}',
    "training(512)": "training(32)",
    "training(512, random": "training(32, random",
}


def without_comments(lines):
    return [re.split(r"\s{2,}# ", line)[0].strip() for line in lines]


def blocks(page, *languages):
    return [content for language, content in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def name_of(value):
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


def heading_ids(page):
    """The anchors of a page as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def typed(text):
    """The lines of a terminal, those joined that end in a backslash."""
    return [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]


def as_command(line):
    for written, meant in WRITTEN.items():
        line = re.sub(written, meant, line)
    return line


def commands():
    """Every `hf-fst` command of the pages, of the recipes' first lines and of the Makefile, as words after `hf-fst`."""
    recipes = sorted(LIBRARY.rglob("*.yaml"))
    found = []
    for file in [*PAGES, ROOT / "Makefile", *recipes]:
        text = file.read_text(encoding="utf-8")
        text = "\n".join(blocks(file, "bash")) if file.suffix == ".md" else text
        for line in typed(text):
            line = as_command(line.lstrip("# "))
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


def test_every_page_is_in_the_navigation_and_linked_from_the_readme_or_the_first_page():
    pages = {page for page in PAGES if page.parent == ROOT / "docs"}
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    entries = [entry for part in site["nav"] for entry in part.values()]
    names = [
        *(e for e in entries if isinstance(e, str)),
        *(n for e in entries if isinstance(e, list) for d in e for n in d.values()),
    ]
    assert {ROOT / "docs" / name for name in names} == pages
    for first in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        linked = {(first.parent / target).resolve() for target in LINK.findall(first.read_text(encoding="utf-8"))}
        assert pages - {ROOT / "docs" / "index.md", ROOT / "docs" / "api.md"} <= linked, first


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_line_for_a_terminal_is_about_something_that_is_there(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    extras = re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    for line in typed("\n".join(blocks(page, "bash"))):
        if line.startswith("#"):
            continue
        first, *rest = shlex.split(as_command(line), comments=True)
        first = Path(first).name
        if line.startswith(ELSEWHERE) or first == "hf-fst":  # its options are looked at below
            continue
        if first == "make":
            assert rest[0] in targets
        elif first == "pip":
            assert rest[:2] == ["install", "-e"] and set(re.findall(r"\w+", rest[2])) <= set(extras)
        else:
            assert first in ("python", "accelerate", "torchrun"), line
            (script,) = [word for word in rest if word.endswith(".py")]
            assert (ROOT / script).is_file(), line


def test_lines_beside_equations_are_those_of_the_code():
    shown = {}
    for content in blocks(ROOT / "docs" / "how-it-works.md", "python"):
        place, *lines = content.splitlines()
        file, name = re.fullmatch(r"# (hf_fst/[\w/]+)\.py: ([\w.]+)", place).groups()
        function = importlib.import_module(file.replace("/", "."))
        for part in name.split("."):
            function = getattr(function, part)
        code = without_comments(inspect.getsource(function).splitlines())
        lines = without_comments(lines)
        assert any(code[i : i + len(lines)] == lines for i in range(len(code))), f"{name} has other lines"
        shown[name] = lines, code
    for rule in set(RULES.values()) - {RULES["supervised"]}:  # whole, but for the docstring
        lines, code = shown[f"{rule.__name__}.look_ahead"]
        assert code[-len(lines) :] == lines and code[-len(lines) - 1].endswith('"""')


def test_sentences_in_the_table_of_troubles_are_those_of_the_code():
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "hf_fst").rglob("*.py")))
    code = re.sub(r"[\"']\n\s*f?[\"']", "", code)  # a sentence over several lines
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sentences = re.findall(r"^\| `([^`]+)` \|", section_of(text, "Sentences, and what they mean"), re.MULTILINE)
    assert len(sentences) > 5
    for sentence in sentences:
        for part in sentence.split("…"):  # stands for what differs
            part = part.strip(" .()'")
            assert part in code or repr(part) in code, f"{sentence}: {part}"


def section_of(text, heading):
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile(page):
    for content in blocks(page, "python"):
        compile(content, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_blocks_are_recipes(page, tmp_path):
    for content in blocks(page, "yaml"):
        (tmp_path / "recipe.yaml").write_text(content)
        points = sweep_points(tmp_path / "recipe.yaml")
        load_recipe(tmp_path / "recipe.yaml", sweep=points[0] if points else None)


@pytest.mark.parametrize("words", commands())
def test_commands_have_known_keys_and_options(words, tmp_path, capsys):
    command, *rest = words
    if command in ("train", "check"):
        rest, overrides = split_overrides(rest, Check.valued if command == "check" else Train.valued)
        recipe, *flags = rest
        if recipe.endswith(".yaml"):  # stands for a recipe of the reader's
            recipe = tmp_path / "recipe.yaml"
            recipe.write_text("seed: 0\n")
        sweep = flags[flags.index("--sweep") + 1] if "--sweep" in flags else None
        load_recipe(recipe, overrides, sweep_points(recipe)[0] if sweep == "all" else sweep)
        rest = [flag for flag in flags if flag != sweep]
    main([command, "--help"])
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known
    if command == "eval" and len(rest) > 1:  # not a run alone
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
    text = (ROOT / "docs" / "import.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        row = re.search(rf"^\| {re.escape(family.title)}(?: \(.*\))? \| (.*) \|$", text, re.MULTILINE)[1]
        named = re.findall(r"`([\w-]+)`", row)
        if " ... " in row:  # the first and the last of a series
            assert (named[0], named[-1]) == (family.builds[0], family.builds[-1])
        else:
            assert tuple(named) == family.builds


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A working directory with everything that the pages' code reads, tiny."""
    folder = tmp_path_factory.mktemp("pages")
    with contextlib.chdir(folder):
        trees.cityscapes(Path("data/cityscapes"))
        trees.gta5(Path("data/gta5"), colors=COLORS)
        trees.synthia(Path("data/synthia"))
        trees.camvid(Path("data/camvid"))
        trees.folder(Path("labeled"), count=10)
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
        shutil.copy("labeled/images/scene0.jpg", "street.jpg")
        model = tiny_model(0, num_labels=3)
        model.config.id2label = {0: "road", 1: "car", 2: "sky"}
        for place in ("runs/mine", "me/my-streets", "me/my-streets/student", "nvidia/mit-b0"):
            model.save_pretrained(place)
            SegformerImageProcessor(do_resize=False).save_pretrained(place)
        Path("model_cards").symlink_to(ROOT / "model_cards")
        mask2former().save_pretrained("facebook/mask2former-swin-tiny-cityscapes-semantic")
        build("daformer-mit-b0", hidden_size=16).save_pretrained("converted/daformer-b5")
    return folder


@pytest.fixture
def data(files, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(files)


def mask2former():
    from transformers import Mask2FormerForUniversalSegmentation

    from tests.models.test_universal import segmenter_config

    return Mask2FormerForUniversalSegmentation(segmenter_config("mask2former"))


def test_the_python_of_the_readme_is_the_recipe():
    block = next(content for content in blocks(ROOT / "README.md", "python") if "FSTConfig(" in content)
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.keyword)]
    written = {call.arg: ast.literal_eval(call.value) for call in calls if call.arg in FSTConfig.__dataclass_fields__}
    recipe = load_recipe("folders", {"output_dir": "runs/python"})
    assert written == recipe.options
    assert f"training({recipe.crop_size}, random_scale={tuple(recipe.random_resize)})" in block
    assert f'build("{recipe.model}", id2label=names, pretrained_backbone=True)' in block


LONG = {"predict.md": pytest.mark.slow, "models.md": pytest.mark.slow}  # exports, and a network of each kind
PAGES_WITH_CODE = [page for page in PAGES if blocks(page, "python") and page.name != "how-it-works.md"]


@pytest.mark.parametrize("page", [pytest.param(p, marks=LONG.get(p.name, ())) for p in PAGES_WITH_CODE], ids=name_of)
def test_python_blocks_run_and_print_what_the_comments_say(page, data, capsys):
    space = {}
    there = find_spec("albumentations")
    for content in [block for block in blocks(page, "python") if there or "import albumentations" not in block]:
        for written, meant in QUICKER.items():
            content = content.replace(written, meant)
        exec(compile(content, page, "exec"), space)
        printed = capsys.readouterr().out.splitlines()
        for said in re.findall(r"^print\(.*\)  # (.*)$", content, re.MULTILINE):
            assert said in printed


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert "<code>lookahead_steps</code>" in api and "EMATeacher" in api


FEW_SCENES = [
    f"--{side}_options.{count}=2"
    for side in ("dataset", "unlabeled")
    for count in ("num_train", "num_validation", "num_test")
]


def can_run(words):
    """Whether there is what a command of a page needs; `DATA` and the like stand for folders of the reader's."""
    if any(word.isupper() for word in words) or "--resume" in words:
        return False
    if words[0] == "compare":  # many runs
        return False
    if words[0] == "eval":
        return words[1:3] == ["runs/mine", "folder"]
    return (
        words[0] == "train"
        and words[1].replace("_", "-") in recipe_names()
        and "--data_dir" not in words
        or "labeled" in words
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{n}.md" for n in ("quick-start", "rules", "pictures", "own-data"))]
)
def test_commands_run(page, files, data, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "reader"))
    Path("examples").symlink_to(ROOT / "examples")
    ran = 0
    for line in typed("\n".join(blocks(ROOT / page, "bash"))):
        line = as_command(line)
        words = shlex.split(line, comments=True)[1:]
        if not line.startswith("hf-fst ") or not can_run(words):
            continue
        if words[0] == "train" and "--dry_run" not in words:
            words += [f"--{key}={value}" for key, value in SMALL.items()]
            words += FEW_SCENES if "street" in words[1] or "demo" in words[1] else ["--model_config.hidden_size=16"]
            words += [] if "--overwrite" in words else ["--overwrite"]
        assert main(words) <= (words[0] == "check"), line  # which says that these images are too small for the crop
        ran += 1
    assert ran
