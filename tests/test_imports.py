"""The house: imports point down only, and stages do not lean on one another."""

import ast
from pathlib import Path

import pytest

import gradex
from gradex.cli import STAGES

ROOT = Path(gradex.__file__).parent
GROUND = [
    "errors",
    "records",
    "config",
    "train_arguments",
    "arguments",
    "progress",
    "runs",
    "engines",
]
FLOORS = [
    "data",
    "models",
    "adapters",
    "gradients",
    "checks",
    "estimators",
    "selection",
    "training",
]
FLOORS += ["reporting"]
HEIGHT = {name: level for level, name in enumerate([*GROUND, *FLOORS])}
FILES = sorted(ROOT.rglob("*.py"))


def place(module: str) -> str:
    """`gradex.data.sources` lies on `data`, `gradex.runs` on itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules = [a.name for a in node.names if (ROOT / f"{a.name}.py").exists()]
            from_root = {f"gradex.{name}" for name in modules}
            found |= {node.module} if node.module != "gradex" else from_root
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "gradex"}


def module_of(file: Path) -> str:
    return ".".join(["gradex", *file.relative_to(ROOT).with_suffix("").parts])


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_point_down(file):
    here = place(module_of(file))
    for module in imported(file):
        there = place(module)
        if here in HEIGHT and there:
            assert there in HEIGHT, f"{here} imports the stage {there}"
            assert HEIGHT[there] <= HEIGHT[here], f"{here} imports {there}, which lies above it"


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "pipeline"])
def test_stages_do_not_import_stages(stage):
    assert not {place(m) for m in imported(ROOT / f"{stage}.py")} & set(STAGES)


def test_every_module_says_what_it_is_for():
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())), file


def test_every_public_function_of_a_stage_has_a_docstring():
    for stage in STAGES:
        tree = ast.parse((ROOT / f"{stage}.py").read_text())
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        entry = next(node for node in functions if node.name == stage)
        assert ast.get_docstring(entry), stage
        assert f"python -m gradex.{stage}" in ast.get_docstring(tree) or stage == "init"


def test_no_package_lies_deeper_than_one_level():
    assert all(len(file.relative_to(ROOT).parts) <= 2 for file in FILES)
