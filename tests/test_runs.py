"""Run folders: complete or not there, newest first by their record, resumed by equal settings."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from gradex import runs
from gradex.errors import GradexError


@dataclass(frozen=True)
class Config:
    size: int = 1
    output_dir: str | None = None


def make(size: int = 1, **more) -> Path:
    with runs.start("stage", Config(size), **more) as run:
        (run.part / "out.txt").write_text(str(size))
    return run.path


def test_a_run_appears_only_when_it_is_complete():
    with runs.start("stage", Config()) as run:
        (run.part / "out.txt").write_text("x")
        assert not run.path.exists() and not runs.finished("stage")
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "out.txt"]
    assert runs.newest("stage") == run.path


def test_newest_goes_by_the_record_not_by_the_name():
    late = make(output_dir="runs/stage/a")
    make_first = make(output_dir="runs/stage/z")
    text = (make_first / "config.yaml").read_text()
    (make_first / "config.yaml").write_text(text.replace("created: '2", "created: '1"))
    assert runs.newest("stage") == late


def test_an_error_keeps_the_part_for_the_same_settings():
    with pytest.raises(ValueError), runs.start("stage", Config(7)) as run:
        (run.part / "half.txt").write_text("half")
        raise ValueError
    with runs.start("stage", Config(8)) as other:
        assert not other.resumed
    with runs.start("stage", Config(7)) as again:
        assert again.resumed and (again.part / "half.txt").read_text() == "half"
    assert again.path == run.path


def test_an_error_before_anything_was_written_leaves_nothing():
    with pytest.raises(ValueError), runs.start("stage", Config()):
        raise ValueError
    assert not list(Path("runs/stage").iterdir())


def test_two_writers_of_one_run_are_refused():
    with runs.start("stage", Config(), output_dir="here"):
        with pytest.raises(GradexError, match="another process is writing here"):
            runs.start("stage", Config(), output_dir="here")


def test_a_run_that_goes_on_elsewhere_is_not_taken_up():
    with runs.start("stage", Config()) as first, runs.start("stage", Config()) as second:
        assert first.part != second.part


def test_an_existing_folder_is_not_overwritten():
    make(output_dir="here")
    with pytest.raises(GradexError, match="here: exists already"):
        make(output_dir="here")


def test_other_settings_in_an_interrupted_folder_are_refused():
    with pytest.raises(ValueError), runs.start("stage", Config(1), output_dir="here") as run:
        (run.part / "x").touch()
        raise ValueError
    with pytest.raises(GradexError, match="size=1 lies here, this one has size=2"):
        runs.start("stage", Config(2), output_dir="here")


def test_nothing_to_pick_up_says_what_to_run():
    with pytest.raises(GradexError, match=r"run `python -m gradex\.project` first"):
        runs.newest("project")


def test_a_place_that_cannot_be_written_is_named():
    Path("file").touch()
    with pytest.raises(GradexError, match="cannot write to file"):
        runs.start("stage", Config(), output_dir="file/run")


def test_a_run_of_another_stage_is_refused():
    with pytest.raises(GradexError, match="a run of stage, expected one of project"):
        runs.read_config(make(), "project")


def test_other_processes_of_a_training_write_nothing(monkeypatch):
    with runs.start("stage", Config()) as leader:
        monkeypatch.setenv("LOCAL_RANK", "1")
        with runs.start("stage", Config()) as follower:
            assert follower.part == leader.part
        assert leader.part.exists() and not leader.path.exists()
        monkeypatch.delenv("LOCAL_RANK")
    assert leader.path.exists()


def test_a_run_that_was_killed_before_it_was_renamed_is_taken_up(monkeypatch):
    """Its config.yaml is the final one already."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            make(7)
    with runs.start("stage", Config(7)) as again:
        assert again.resumed
    assert [folder.name for folder in Path("runs/stage").iterdir()] == [again.path.name]
