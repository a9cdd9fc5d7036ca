"""Every command and every YAML of the README is run, with fewer steps than a person would take."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gradex.data.demo import write_world
from gradex.data.tasks import YAML_KEYS, find_tasks, read_task

README = Path(__file__).parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="not a checkout")

# What keeps a command short; the last of two equal flags wins.
SHORT = {
    "meta_train": "--max_steps 3",
    "calibrate": "--anchors 4",
    "estimate": "--num_subsets 20",
    "finetune": "--max_steps 3",
    "verify": "--max_steps 3 --num_subsets 3 --target sort",
    "decompose": "--discard 8 --calib_rows 8 --target sort",
    "pipeline": "--max_steps 3 --num_subsets 20 --verify_subsets 2",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def commands(block: str) -> list[list[str]]:
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    return [shlex.split(line.removeprefix("python -m gradex.").removeprefix("gradex "))
            for line in lines if line]  # fmt: skip


def run(words: list[str]) -> str:
    short = shlex.split(SHORT.get(words[0], ""))
    done = subprocess.run(
        [sys.executable, "-m", "gradex", *words, *short], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_path_as_commands():
    write_world(Path())
    stages = [words[0] for words in commands(blocks("bash")[0])]
    assert stages[:4] == ["meta_train", "project", "calibrate", "estimate"]
    assert stages[-1] == "report"
    printed = [run(words) for words in commands(blocks("bash")[0])]
    assert all(Path(path).exists() for path in printed)
    assert printed[-1].endswith("report.html")


def test_the_adapters_as_commands():
    write_world(Path())
    Path("loha.json").write_text('{"peft_type": "LOHA", "r": 2}')
    for words in (["meta_train"], ["project", "--points", "1"], ["select_sources"]):
        run(words)
    (block,) = [block for block in blocks("bash") if "--adapter milora" in block]
    assert all(Path(run(words)).exists() for words in commands(block))


def test_your_own_data_and_model(model_folder):
    write_world(Path("world"))
    Path("my_data").mkdir()
    for name in ("sort", "copy", "wrong_sort"):
        Path(f"world/data/demo/{name}.jsonl").rename(f"my_data/{name}.jsonl")
    (words,) = commands(blocks("bash")[1])
    words[words.index("MODEL")] = str(model_folder("llama"))
    assert run(words).endswith("report.html")


def test_the_yaml_shows_real_keys(tmp_path):
    (block,) = blocks("yaml")
    (tmp_path / "task.yaml").write_text(block)
    task = read_task(tmp_path / "task.yaml", named=True)
    assert task.columns == {"prompt": "inputs", "completion": "targets"}
    assert set(re.findall(r"^(\w+):", block, re.MULTILINE)) <= set(YAML_KEYS)


def test_the_tables_flags_exist():
    from importlib import import_module

    for stage, flags in re.findall(r"\| `(\w+) (--[^`]*)` \|", README.read_text()):
        names = vars(import_module(f"gradex.{stage}").Config)["__dataclass_fields__"]
        for flag in re.findall(r"--(\w+)", flags):
            assert flag in names, f"{stage} has no --{flag}"


def test_the_file_tree_names_real_files():
    (tree,) = re.findall(r"```\n(gradex/\n.*?)```", README.read_text(), re.DOTALL)
    root = README.parent
    known = {p.name for p in (root / "gradex").rglob("*")} | {p.name for p in root.iterdir()}
    made_by_running = {"runs"}
    for name in set(re.findall(r"[\w]+\.py|\w+(?=/)", tree)) - made_by_running:
        assert name in known, name


def test_the_shipped_tasks_are_what_the_recipe_writes(tmp_path):
    write_world(tmp_path / "fresh")
    root = README.parent
    for folder in ("tasks/demo", "data/demo"):
        wanted = {p.name: p.read_bytes() for p in (tmp_path / "fresh" / folder).iterdir()}
        assert {p.name: p.read_bytes() for p in (root / folder).iterdir()} == wanted
    assert len(find_tasks([str(root / "tasks/demo")])) == 18
