"""The tree is what the design says: imports run one way, files stay short, names are plain."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "hf_fst"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

# rooms from the ground floor up: a file imports from its own room and from rooms of lower floors, never upward
FLOORS = [
    {"errors", "kinds"},
    {"hub"},
    {"method", "models", "data", "drawing"},
    {"evaluation"},
    {"publishing"},
    {"training", "prediction"},
    {"recipes"},
    {"commands"},
    {"cli", "rules", "objectives"},  # the last two are public names of rooms below
    {"__init__", "__main__"},
]
MOST_ROOMS, MOST_MODULES = 6, 18  # that a file may know: rooms besides its own, modules of ours
MOST_BYTES = 1_000_000  # of a tracked file


def room(path: Path) -> str:
    """First part of the path below the package: a module's name or a folder's."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def ours(path: Path) -> set[str]:
    """Full names of the modules of ours that a file imports, wherever in it."""
    package = ("hf_fst", *path.relative_to(PACKAGE).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} if module.count(".") > 1 else {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "hf_fst"}


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = room(path)
    assert any(own in rooms for rooms in FLOORS), f"{own} has no floor; give it one in FLOORS"
    for name in ours(path):
        other = name.split(".")[1]
        if other != own:
            assert any(other in rooms for rooms in FLOORS), f"{name} is imported from the package itself"
            assert floor(other) < floor(own), f"{own} imports {name}, which is not below it"


def test_no_module_imports_what_imports_it():
    module_of = {".".join(["hf_fst", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in FILES}
    # a name taken from a module is an import of the module
    needs = {
        name: {m for full in ours(path) for m in (full, full.rpartition(".")[0]) if m in module_of and m != name}
        for name, path in module_of.items()
    }
    done: set[str] = set()
    while ready := {name for name in needs if name not in done and needs[name] <= done}:
        done |= ready
    assert not set(needs) - done


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_knows_few_others(path):
    modules = {name for full in ours(path) for name in (full, full.rpartition(".")[0]) if is_module(name)}
    rooms = {name.split(".")[1] for name in modules} - {room(path)}
    assert len(rooms) <= MOST_ROOMS, f"{path.name} imports from {len(rooms)} rooms: {sorted(rooms)}"
    assert len(modules) <= MOST_MODULES, f"{path.name} imports {len(modules)} modules: {sorted(modules)}"


def is_module(name: str) -> bool:
    return "." in name and ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_training_takes_a_whole_trainer(path):
    """Elsewhere a function takes what it needs of one."""
    if room(path) == "training":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            taken = [a.arg for a in arguments if a.arg == "trainer" or "Trainer" in ast.unparse(a.annotation or a)]
            assert not taken, f"line {node.lineno} takes {taken[0]}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda p: p.name)
def test_modelling_files_import_only_siblings_relatively(path):
    """They travel to the Hub beside a checkpoint, where there is no hf_fst."""
    source = ast.parse(path.read_text(encoding="utf-8"))
    is_modelling = any(
        isinstance(node, ast.ClassDef)
        and any("Config" in ast.unparse(b) or "PreTrained" in ast.unparse(b) for b in node.bases)
        for node in ast.walk(source)
    )
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{path.name} reaches above its folder"
        elif is_modelling and isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "hf_fst" for name in names), f"{path.name} imports hf_fst by its name"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_of_tests_are_short_and_say_what_they_test(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    assert not text.strip() or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short_and_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    assert not text.strip() or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_guessing_no_registries_no_broad_except(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "hasattr", f"line {node.lineno} guesses with hasattr"
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            assert not broad, f"line {node.lineno} catches everything"


def test_tracked_files_are_small_but_for_released_weights():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout: no file is tracked")
    tracked = [Path(name) for name in listing.stdout.split("\0") if name and not name.startswith("model_cards/")]
    assert tracked
    large = [str(name) for name in tracked if (ROOT / name).is_file() and (ROOT / name).stat().st_size > MOST_BYTES]
    assert not large


def table(title: str) -> list[list[str]]:
    """The cells of the table in CONTRIBUTING.md whose first column has this title."""
    lines = GUIDE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |"))
    rows = lines[start + 2 :]
    end = next((i for i, line in enumerate(rows) if not line.startswith("|")), len(rows))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[:end]]


def test_the_table_of_rooms_is_the_tree():
    told = [name for row in table("room") for name in re.findall("`([^`]+)`", row[0])]
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    modules = {path.name for path in PACKAGE.glob("*.py")}
    assert sorted(told) == sorted(folders | modules)
    for row in table("room"):
        folder = re.findall("`([^`]+)`", row[0])[0]
        for name in re.findall("`([^`]+/)`", row[1]):
            assert (PACKAGE / folder / name).is_dir(), f"there is no {folder}{name}"


def defined(path: Path) -> set[str]:
    """Names of functions, classes and their methods and fields, and of constants in a file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names |= names_of(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for member in node.body for name in names_of(member)}
    return names


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    )
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


@pytest.mark.parametrize("question, place, names", table("where is"), ids=lambda cell: cell if "`" not in cell else "")
def test_what_a_newcomer_looks_for_is_where_the_table_says(question, place, names):
    known = defined(PACKAGE / place.strip("`"))
    wanted = re.findall("`([^`]+)`", names)
    assert wanted
    assert not set(wanted) - known, f"{place} has no {set(wanted) - known}"


def test_the_trainer_says_what_it_overrides():
    from transformers import Trainer

    from hf_fst.training.trainer import FSTTrainer

    overridden = {name for name in vars(FSTTrainer) if name in vars(Trainer) and callable(getattr(Trainer, name))}
    heads = re.findall(r"^ *- (`.+?):", FSTTrainer.__doc__, re.DOTALL | re.MULTILINE)
    said = {name for head in heads for name in re.findall("`([a-z_]+)`", head)}
    assert said == overridden - {"__init__"}
