"""Run folders: `runs/<stage>/<UTC time>`, built as `.part` and renamed last.

A run folder without `.part` is complete. Starting a stage again with the same settings takes up
the `.part` folder that an interrupted run left behind.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash
import yaml

from gradex import __version__
from gradex.config import read_yaml
from gradex.errors import GradexError
from gradex.records import write_text

RUNS = Path("runs")
# Where the first process of a training tells those it starts which run they belong to.
LEADER_PART = "GRADEX_RUN_PART"
# A process that only looks whether a folder is held has it for a moment.
TRIES, TRY_SECONDS = 3, 0.02
log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run in the making: a context in which files are written into `part`.

    Leaving it renames `part` to `path`. Leaving it by an error keeps `part`, to be taken up by the
    same command, unless nothing was written yet.
    """

    stage: str
    path: Path
    part: Path
    settings: dict[str, Any]
    lock: int | None
    resumed: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def command(self) -> str:
        """What repeats the finished run."""
        return f"gradex {self.path / 'config.yaml'}"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.lock is None:
            return
        try:
            if kind is None:
                self._finish()
            elif [file.name for file in self.part.iterdir()] == ["config.yaml"]:
                shutil.rmtree(self.part)
        finally:
            os.close(self.lock)

    @contextmanager
    def whole_or_nothing(self) -> Iterator[None]:
        """For what cannot be gone on with: whatever is written in this block goes if it fails."""
        try:
            yield
        except BaseException:
            self._clear()
            raise

    def _clear(self) -> None:
        for path in self.part.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "config.yaml":
                path.unlink()

    def _finish(self) -> None:
        """Write the final config.yaml, take away what only served resuming, and rename."""
        record = {
            "stage": self.stage,
            "created": datetime.now(UTC).isoformat(),
            "seconds": round(time.monotonic() - self.began, 1),
            "versions": versions(),
        }
        write_text(self.part / "config.yaml", _dump(record | self.settings))
        shutil.rmtree(self.part / "checkpoints", ignore_errors=True)
        self.part.rename(self.path)


def start(
    stage: str, config: object, *, output_dir: str | None = None, inputs: object = None
) -> Run:
    """Begin (or take up again) a run of `stage` with the resolved settings of `config`.

    A given `output_dir` is the run's folder, and is left out of the settings: a run is repeated
    into a folder of its own. A run is only taken up again on equal `inputs` (rows, selection):
    files may have changed under the same settings.
    """
    settings = asdict(config) | {"inputs": _digest(inputs)}
    if is_follower():
        return _follow(stage, settings, output_dir)
    if output_dir:
        path = Path(output_dir)
        if path.exists():
            raise GradexError(f"--output_dir {path}: exists already; name another or remove it")
        return _open(stage, path, _part_of(path), settings | {"output_dir": None})
    folder = RUNS / stage
    for part in sorted(folder.glob("*.part"), reverse=True):
        if _settings_of(part) == settings and not _is_locked(part):
            return _open(stage, part.with_name(part.name.removesuffix(".part")), part, settings)
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    return _open(stage, folder / name, folder / f"{name}.part", settings)


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _digest(inputs: object) -> str:
    return xxhash.xxh3_64_hexdigest(repr(inputs).encode("utf-8", "surrogatepass"))


def is_follower() -> bool:
    """Whether this process is one of several of a training, and not the first."""
    names = ["RANK", "LOCAL_RANK", "NODE_RANK"]
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        names.append("SLURM_PROCID")
    return any(os.environ.get(name, "0") not in ("", "0") for name in names)


def _follow(stage: str, settings: dict[str, Any], output_dir: str | None) -> Run:
    """The first process's run, in which this one reads checkpoints and writes nothing."""
    if LEADER_PART not in os.environ and not output_dir:
        raise GradexError("processes that are started apart need one --output_dir for their run")
    part = Path(os.environ.get(LEADER_PART) or _part_of(Path(str(output_dir))))
    return Run(stage, part.with_suffix(""), part, settings, lock=None)


def _open(stage: str, path: Path, part: Path, settings: dict[str, Any]) -> Run:
    resumed = part.exists()
    if resumed:
        _require_same(part, settings)
    try:
        part.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(part)
    except OSError as error:
        raise GradexError(
            f"cannot write to {part.parent}: {error.strerror}; name another --output_dir"
        ) from None
    if resumed:
        log.info("%s: taking up the interrupted run in %s", stage, part)
    write_text(part / "config.yaml", _dump({"stage": stage} | settings))
    os.environ[LEADER_PART] = str(part)
    return Run(stage, path, part, settings, lock, resumed)


class HeldElsewhere(GradexError):
    """A folder that another process holds."""


def lock_folder(folder: Path) -> int:
    """Hold a folder for this process until the returned handle is closed or the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            time.sleep(TRY_SECONDS)
    os.close(handle)
    raise HeldElsewhere(f"{folder}: another process is writing here; wait for it")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder within the block."""
    handle = lock_folder(folder)
    try:
        yield
    finally:
        os.close(handle)


def _is_locked(part: Path) -> bool:
    try:
        with locked(part):
            return False
    except GradexError:
        return True


def _settings_of(folder: Path) -> dict[str, Any]:
    """What a run was begun with; nothing where its config is not there or damaged."""
    try:
        content = read_yaml(folder / "config.yaml")
    except GradexError:
        return {}
    written_last = ("stage", "created", "seconds", "versions")
    return {key: value for key, value in content.items() if key not in written_last}


def _require_same(part: Path, settings: dict[str, Any]) -> None:
    before = _settings_of(part)
    for key, value in settings.items():
        if before and before.get(key) != value:
            raise GradexError(
                f"{part}: an interrupted run with {key}={before.get(key)} lies here, this one has "
                f"{key}={value}; repeat it as it was, remove it, or name another --output_dir"
            )


def newest(stage: str) -> Path:
    """The newest finished run of a stage, by the `created` field of its config.yaml."""
    found = finished(stage)
    if not found:
        raise GradexError(
            f"no finished run of {stage} in {RUNS / stage}; run `python -m gradex.{stage}` first, "
            "or name its folder"
        )
    return found[-1]


def finished(*stages: str) -> list[Path]:
    """All finished runs of these stages, oldest first."""
    configs = {
        file.parent: read_yaml(file)
        for stage in stages
        for file in (RUNS / stage).glob("*/config.yaml")
        if not file.parent.name.endswith(".part")
    }
    return sorted(configs, key=lambda path: str(configs[path].get("created", "")))


def read_config(folder: Path, stage: str) -> dict[str, Any]:
    """The settings of a finished run, checked to be of the stage that the caller expects."""
    folder = Path(folder)
    if not (folder / "config.yaml").exists():
        raise GradexError(f"{folder}: not a finished run of {stage} (it has no config.yaml)")
    content = read_yaml(folder / "config.yaml")
    if content.get("stage") != stage:
        raise GradexError(f"{folder}: a run of {content.get('stage')}, expected one of {stage}")
    return content


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "lightning", "numpy", "scikit-learn")
    return {"gradex": __version__} | {name: metadata.version(name) for name in names}


def _dump(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
