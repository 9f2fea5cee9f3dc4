"""The tree is what the design says: imports run one way, files stay short, names are plain."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_fst"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

# rooms from the ground floor up: a file imports from its own room and from rooms of lower floors, never upward
FLOORS = [
    {"errors"},
    {"method", "models", "data", "drawing"},
    {"evaluation"},
    {"publishing"},
    {"training", "prediction"},
    {"recipes"},
    {"commands"},
    {"cli", "rules", "objectives"},  # the last two are public names of rooms below
    {"__init__", "__main__"},
]


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short_and_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < (450 if path.name == "trainer.py" else 400)
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
