"""Look for what is wrong with a gradient store, or with a model whose gradients are to be taken.

    python -m gradex.doctor --store gradients/NAME
    python -m gradex.doctor --model MODEL --tasks my_tasks/
    python -m gradex.doctor --meta_dir runs/meta_train/...

A store is read whole, file by file, for damage and for rows that are far too long, zero, or there
twice. A model is asked whether a row has the same loss and gradient alone and in a batch. Damage,
and a row that its batch moves in the settings that gradex uses, end with exit code 2.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.adapters.points import points_in
from gradex.arguments import (
    DEFAULTS,
    DEMO_DEFAULTS,
    DataArguments,
    TrustArguments,
    keep,
    record_of,
    recorded_settings,
)
from gradex.checks.integrity import Examination, Fault, examine, examine_point
from gradex.checks.invariance import Measured
from gradex.checks.oddities import RULE, duplicates, outliers, summarise
from gradex.checks.subject import Subject, examine_model
from gradex.config import main, option, require_positive
from gradex.data.recorded import load_data
from gradex.data.tokens import class_names
from gradex.errors import GradexError
from gradex.gradients.precondition import some_rows
from gradex.gradients.store import GradientStore, open_store
from gradex.models.load import DEMO
from gradex.records import write_json
from gradex.reporting.checkup import explanations, model_lines, point_lines, store_lines
from gradex.training.recipe import base_spec

ROWS_READ = 64  # among which rows of mixed lengths are looked for
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrustArguments):
    store: str | None = option(
        None, "a gradient store; default: the newest run of project's, where no model is named"
    )
    model: str | None = option(
        None, "a model to examine: a folder, a hub id, or demo; default: none, or that of meta_dir"
    )
    adapter: str | None = option(
        None, "a folder with the model's adapter; default: a new LoRA, drawn at random"
    )
    meta_dir: str | None = option(
        None, "a run of meta_train whose model, adapter and tasks to examine; default: none"
    )
    tasks: list[str] | None = option(
        None, "where the rows come from that a model is examined on; default: those of meta_dir, "
        "or tasks/demo"
    )  # fmt: skip
    max_length: int | None = option(
        None, "tokens a row is cut to; default: that of meta_dir, or 512, 64 for the demo model"
    )
    bf16: bool = option(False, "the model will be used in bfloat16")
    num_rows: int = option(6, "rows to examine a model on")
    output_dir: str | None = option(None, "the run's folder; default: runs/doctor/UTC-TIME")

    def __post_init__(self):
        require_positive(self, "max_length", "num_rows")
        if self.meta_dir and (self.model or self.adapter):
            raise GradexError("--meta_dir: has a model and an adapter; leave out the other flags")
        if not (self.meta_dir or self.model):
            for name in ("adapter", "tasks", "max_length", "bf16"):
                if getattr(self, name):
                    raise GradexError(f"--{name}: is for a model; name one with --model")


def doctor(config: Config) -> Path:
    """Returns doctor.json, after saying what is in it; damage is an error."""
    wants_model = bool(config.model or config.meta_dir)
    store = None if wants_model and not config.store else open_store(config.store)
    if store is not None:
        config = replace(config, store=str(store.path))
    with runs.start("doctor", config, output_dir=config.output_dir) as run:
        findings = _Findings({}, [])
        if store is not None:
            _look_at_store(store, findings)
        if wants_model:
            _look_at_model(config, findings)
        write_json(run.part / "doctor.json", findings.content)
    if findings.wrong:
        raise GradexError(f"{'; '.join(findings.wrong)} (in full in {run.path / 'doctor.json'})")
    return run.path / "doctor.json"


@dataclass(frozen=True)
class _Findings:
    """What doctor.json will hold, and a clause for everything that is wrong."""

    content: dict[str, Any]
    wrong: list[str]


def _look_at_store(store: GradientStore, findings: _Findings) -> None:
    with runs.locked(store.path):  # not while project writes
        found = examine(store)
    summaries, worst = [summarise(part) for part in found.parts], outliers(found.parts)
    twice = duplicates(found.parts)
    for line in store_lines(store, found, summaries, worst, twice):
        log.info("%s", line)
    findings.wrong.extend(_damage(store.path, found))
    findings.content["store"] = _record(store, found) | {
        "sources": [asdict(summary) for summary in summaries],
        "outliers": {"rule": RULE, "worst": [asdict(one) for one in worst]},
        "duplicates": asdict(twice),
        "points": [_look_at_point(p, store, findings) for p in points_in(store.path).values()],
    }


def _look_at_point(folder: Path, store: GradientStore, findings: _Findings) -> dict[str, Any]:
    """The files of the store at an earlier point; its rows are those of the store."""
    with runs.locked(folder):
        try:
            point = GradientStore.open(folder)
            found = examine_point(point, store)
            record = _record(point, found)
        except GradexError as error:
            fault = Fault(str(error), f"remove {folder}, then run project again")
            found = Examination(damage=[fault])
            record = {"path": str(folder), "damage": [asdict(fault)]}
    for line in point_lines(folder, found):
        log.info("%s", line)
    findings.wrong.extend(_damage(folder, found))
    return record


def _record(store: GradientStore, found: Examination) -> dict[str, Any]:
    return {
        "path": str(store.path),
        "space": store.space,
        "slow_layers": found.slow_layers,
        "bytes": found.size,
        "damage": [asdict(fault) for fault in found.damage],
        "left_over": [asdict(fault) for fault in found.left_over],
    }


def _damage(path: Path, found: Examination) -> Iterator[str]:
    if found.damage:
        mends = "; ".join(dict.fromkeys(fault.mend for fault in found.damage))
        faults = f"{len(found.damage)} fault{'s' * (len(found.damage) > 1)}"
        yield f"{path}: {faults}, first {found.damage[0].what}; {mends}"


def _look_at_model(config: Config, findings: _Findings) -> None:
    settings = _settings(config)
    sources = load_data(settings)
    adapter = Path(config.meta_dir) / "adapter" if config.meta_dir else config.adapter
    subject = Subject(
        base_spec(settings),
        tuple(class_names(sources)),
        settings["max_length"],
        Path(adapter) if adapter else None,
    )
    found = examine_model(subject, some_rows(sources, count=ROWS_READ), count=config.num_rows)
    for line in model_lines(found):
        log.info("%s", line)
    findings.content["model"] = _plain(asdict(found)) | {"said": explanations(found)}
    own = [one for one in found.outcomes if one.setting == found.own]
    if not all(isinstance(one, Measured) and one.is_within for one in own):
        findings.wrong.append(f"{settings['model_name_or_path']}: {explanations(found)[0]}")


def _settings(config: Config) -> dict[str, Any]:
    """Model and data: as in the meta-training, or as the flags say."""
    if config.meta_dir:
        record = record_of(runs.read_config(Path(config.meta_dir), "meta_train"))
        settings = recorded_settings(record, where=f"{config.meta_dir}/config.yaml")
        if config.tasks:
            settings |= {"tasks": config.tasks, "target": None}
    else:
        defaults = DEMO_DEFAULTS if config.model == DEMO else DEFAULTS
        data = DataArguments(**({"tasks": config.tasks} if config.tasks else {}))
        settings = asdict(data) | {"max_length": defaults["max_length"], "qlora": False}
        settings |= {"model_name_or_path": config.model, "bf16": False}
    settings["max_length"] = config.max_length or settings["max_length"]
    settings["bf16"] = config.bf16 or settings["bf16"]
    return settings | keep(asdict(config), TrustArguments)


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    raise SystemExit(main(doctor, Config))
