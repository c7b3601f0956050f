"""Imports run one way, and the heavy ones only where they are used."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from commands import ROOT

PACKAGE = ROOT / "mame_lab"
# The rooms, each above those that it may import. Entry points may import everything.
ROOMS = ["merging", "data", "models", "measure", "solver", "benchmarks", "tasks", "training", "runs", "synthesis"]
ARROWS = {room: ROOMS[:floor] for floor, room in enumerate(ROOMS)} | {
    "errors": [],
    "data": [],
    "tasks": [],
    "report": ["data", "measure"],
    "export": ["merging", "models"],
    "runs": [*ROOMS[: ROOMS.index("runs")], "report"],
    "__init__": ["merging", "measure", "models", "solver"],
}
FILES = sorted(PACKAGE.rglob("*.py"))
ENTRIES = [ROOT / "train.py", ROOT / "eval.py"]


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mame_lab"):
            names = [node.module] if node.module != "mame_lab" else [f"mame_lab.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("mame_lab.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows(path):
    assert imported(path) <= {*ARROWS[part(path)], part(path), "errors"}


def modules(path: Path) -> set[str]:
    """The files of the package that a file imports, at the top or inside a function."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {str(names[name]) for name in found if name in names}


def test_no_file_imports_what_imports_it():
    TopologicalSorter({str(path): modules(path) for path in FILES}).prepare()


@pytest.mark.parametrize("path", [*FILES, *ENTRIES], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short_and_whole(path):
    code = path.read_text()
    functions = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)]
    lengths = {function.name: function.end_lineno - function.lineno + 1 for function in functions}
    assert len(code.splitlines()) <= 350
    assert {name: lines for name, lines in lengths.items() if lines > 50} == {}
    assert "NotImplementedError" not in code


def test_wandb_is_imported_in_one_file():
    users = [path.name for path in FILES if "import wandb" in path.read_text()]
    assert users == ["loggers.py"]


def test_importing_the_library_is_light():
    """No torch, timm, transformers, Hydra, Lightning or W&B: what `import mame_lab` adds is its own few files."""
    heavy = "torch", "timm", "transformers", "hydra", "lightning", "wandb"
    code = f"import sys, mame_lab; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_needs_no_hydra():
    """apply, summary and remove run where only torch and timm are installed."""
    code = """
import sys
for name in ("hydra", "omegaconf", "lightning", "torchmetrics", "wandb", "sklearn"):
    sys.modules[name] = None
import timm, torch, mame_lab
model = mame_lab.apply(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64), r=2)
print(mame_lab.summary(model, torch.randn(1, 3, 64, 64)))
mame_lab.remove(model)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.name)
def test_entry_points_are_thin(path):
    assert len(path.read_text().splitlines()) <= 100
