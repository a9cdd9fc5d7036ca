"""The notebooks as they are kept: valid, run from top to bottom, with figures and without a trace
of the machine that ran them. `make notebooks` runs them again."""

import ast
import base64
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
NAMES = ["01_forward_selection", "02_random_ensemble", "03_noisy_addition"]
PNG = b"\x89PNG\r\n\x1a\n"
# A path from the root or a drive; a word before the slash makes it a relative one.
ABSOLUTE = re.compile(r"(?<![\w.<*)/-])/[\w.-]{2,}|\b[A-Z]:\\|file:")
SECONDS = re.compile(r"\b\d+(?:\.\d+)? ?(?:s|ms|sec|seconds|it/s|s/it)\b")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="not a checkout")
each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def read(file: Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=nbformat.NO_CONVERT)


def code_cells(file: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(file).cells if cell.cell_type == "code"]


def outputs(file: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(file) for output in cell.outputs]


def texts(file: Path) -> list[str]:
    """All that a reader sees, and all that is kept beside it; no pictures."""
    shown = [
        text
        for output in outputs(file)
        for kind, text in output.get("data", {"text": output.get("text", "")}).items()
        if kind != "image/png"
    ]
    return [*(cell.source for cell in read(file).cells), *shown, str(read(file).metadata)]


def test_there_are_three():
    assert [file.stem for file in FILES] == NAMES


@each
def test_a_notebook_is_valid_and_says_why_before_how(file):
    notebook = read(file)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")


@each
def test_it_was_run_from_top_to_bottom_without_errors(file):
    counts = [cell.execution_count for cell in code_cells(file)]
    assert counts == list(range(1, len(counts) + 1))
    assert {output.output_type for output in outputs(file)} == {"stream", "execute_result"}
    assert {o.name for o in outputs(file) if o.output_type == "stream"} == {"stdout"}


@each
def test_it_keeps_a_table_and_a_figure(file):
    pictures = [o.data["image/png"] for o in outputs(file) if "data" in o]
    assert pictures and all(base64.b64decode(p).startswith(PNG) for p in pictures)
    assert sum(output.get("text", "").count("\n") > 3 for output in outputs(file)) >= 2


@each
def test_it_tells_nothing_of_a_machine(file):
    for text in texts(file):
        assert not ABSOLUTE.findall(text), text
        assert not SECONDS.findall(text) and not DATE.findall(text), text
    assert all(not cell.metadata for cell in read(file).cells)


@pytest.mark.parametrize("text", ["/tmp/x", "in /root/.cache", "'/home/me/a.py'", r"C:\Users\me"])
def test_a_path_would_be_seen(text):
    assert ABSOLUTE.search(text)


@each
def test_it_only_calls_the_library(file):
    for cell in code_cells(file):
        nodes = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not nodes & {ast.FunctionDef, ast.ClassDef, ast.While, ast.Try}


@each
def test_the_claims_it_makes_are_checked_where_it_runs(file):
    assert any("\nassert" in f"\n{cell.source}" for cell in code_cells(file))


@pytest.mark.slow
@each
def test_it_runs_and_leaves_nothing_behind(file):
    before = sorted(FOLDER.iterdir())
    command = [sys.executable, FOLDER / "execute.py", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(FOLDER.iterdir()) == before and not list(Path().iterdir())
