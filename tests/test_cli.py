"""The console script: quick help, every stage by name, replays, exit codes."""

import importlib
import subprocess
import sys
import time
from dataclasses import fields

import pytest

from gradex.cli import STAGES, main


def gradex(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gradex", *words], capture_output=True, text=True, check=False
    )


def test_help_is_quick_and_names_every_stage():
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        done = gradex("--help")
        seconds.append(time.monotonic() - began)
    assert done.returncode == 0 and all(stage in done.stdout for stage in STAGES)
    assert min(seconds) < 1


def test_help_imports_nothing_heavy():
    code = "import sys, gradex.cli as c; c.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


@pytest.mark.parametrize("stage", STAGES)
def test_every_flag_has_a_help_line_with_its_default(stage, capsys):
    with pytest.raises(SystemExit) as done:
        main([stage, "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert "--config" in text and "None)" not in text


def test_help_shows_a_flag_once_under_what_it_is_about(capsys):
    with pytest.raises(SystemExit):
        main(["select_sources", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: gradex select_sources [flags]\n")
    assert "--max-sources" not in text and "MAX_SOURCES" not in text and "[ROBUST]" not in text
    places = ["options:", "-h, --help", "  --level {", "how to search:", "  --method {"]
    places += ["what sources are chosen for:", "  --target VALUE ...", "  --store VALUE"]
    assert sorted(map(text.index, places)) == list(map(text.index, places))


@pytest.mark.parametrize("stage", STAGES)
def test_a_flag_without_a_default_says_what_happens(stage):
    for field in fields(importlib.import_module(f"gradex.{stage}").Config):
        text = field.metadata["help"]
        assert text
        if field.default is None:
            assert "default:" in text, f"--{field.name}: {text}"


def test_an_unknown_stage_prints_the_known(capsys):
    assert main(["train"]) == 2
    assert "unknown stage 'train'; known are: init, meta_train" in capsys.readouterr().err


def test_a_config_of_no_stage_is_refused(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("stage: nothing\n")
    assert main([str(tmp_path / "x.yaml")]) == 2
    assert "unknown stage 'nothing'" in capsys.readouterr().err
