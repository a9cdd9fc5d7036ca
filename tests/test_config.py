"""Flags and YAML: flags win, unknown keys print the known ones, values are checked once."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from gradex.config import (
    main,
    option,
    parse,
    require_left_out,
    require_owner,
    with_defaults,
)
from gradex.errors import GradexError


@dataclass(frozen=True)
class Config:
    """A stage of the test."""

    size: int = option(3, "how many")
    rate: float | None = option(None, "how fast")
    names: list[str] = option(["a"], "which")
    kind: Literal["x", "y"] = option("x", "what kind")
    deep: bool = option(False, "whether")


def read(*words: str) -> Config:
    return parse(Config, words, stage="stage")


def test_defaults_flags_and_both_spellings():
    assert read() == Config()
    assert read("--size", "5", "--names", "b", "c", "--deep").names == ["b", "c"]


def test_flags_win_over_yaml(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("size: 7\nrate: 0.5\nnames: [p, q]\ndeep: true\n")
    config = read("--config", str(file), "--size", "9", "--names", "z")
    assert config == Config(size=9, rate=0.5, names=["z"], deep=True)


def test_a_written_config_reads_back(tmp_path):
    config = Config(size=4, rate=1e-7, names=["a b", "c"], kind="y")
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(asdict(config) | {"stage": "stage", "created": "now"}))
    assert read("--config", str(file)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise: 3", "unknown key 'sise'; known are: size, rate, names, kind, deep"),
        ("size: big", "c.yaml: argument --size"),
        ("kind: z", "c.yaml: argument --kind"),
        ("stage: other", "this is the config of `other`, expected that of `stage`"),
        ("- a", "found list, expected `key: value` lines"),
        ("a: [", r"c\.yaml:2: not valid YAML"),
    ],
)
def test_yaml_mistakes_name_file_and_key(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text + "\n")
    with pytest.raises(GradexError, match=message):
        read("--config", str(tmp_path / "c.yaml"))


def test_unknown_flags_print_the_known():
    with pytest.raises(GradexError, match="unknown argument '--sizes'; known are: --size"):
        read("--sizes", "3")


def test_only_unset_fields_take_defaults():
    filled = with_defaults(Config(size=1), {"size": 9, "rate": 2.0})
    assert (filled.size, filled.rate) == (1, 2.0)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (GradexError("wrong thing"), 2, "gradex: error: wrong thing"),
        (OSError(28, "No space left on device", "file.npy"), 2, "file.npy: No space left"),
        (KeyboardInterrupt(), 130, "the same command goes on from here"),
    ],
)
def test_errors_become_exit_codes(capsys, error, code, text):
    def stage(config) -> Path:
        raise error

    assert main(stage, Config, []) == code
    assert text in capsys.readouterr().err


def test_flags_that_nothing_reads_are_refused():
    @dataclass(frozen=True)
    class Config:
        kind: str = option("a", "")
        size: int | None = option(None, "")
        far: bool = option(False, "")

    require_left_out(Config(kind="b"), ["size", "far"], "leave it out")
    with pytest.raises(GradexError, match=r"^--far: leave it out$"):
        require_left_out(Config(far=True), ["size", "far"], "leave it out")
    owners = {"size": ("a", "b"), "far": ("c",)}
    require_owner(Config(size=0), "kind", owners)
    require_owner(Config(kind="c", far=True), "kind", owners)
    with pytest.raises(GradexError, match=r"--size: found with --kind c, .*say --kind a or b$"):
        require_owner(Config(kind="c", size=0), "kind", owners)
