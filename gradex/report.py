"""One HTML page and the same numbers as JSON: the choice, and prediction beside truth.

    python -m gradex.report
    python -m gradex.report --selection runs/select_sources/... --verify runs/verify/...

The newest runs that belong to the selection are shown, of verify, transfer and trust those of its
store and target; what was not run is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gradex import runs
from gradex.adapters.folder import fingerprint as adapter_fingerprint
from gradex.config import main, option, read_yaml
from gradex.gradients.store import GradientStore
from gradex.records import read_json
from gradex.reporting.ensembles import METHOD, newest_ensemble
from gradex.reporting.html import write_report
from gradex.reporting.measured import calibration_of, newest_of, read_measured
from gradex.reporting.outcomes import outcome
from gradex.reporting.reduced import reduced_of
from gradex.selection.choice import Selection, selection_file

FORMAT = "gradex-report/1"
EVERYTHING, CHOSEN, MIXED = "all sources", "selection", "the selection, mixed while training"
REDUCED = "the selection, its adapter reduced"
MEASURING = ("verify", "transfer", "trust")  # stages whose newest run of the store is shown


@dataclass(frozen=True)
class Config:
    selection: str | None = option(
        None, "a run of select_sources; default: the newest one that left sources out"
    )
    verify: str | None = option(
        None, "a run of verify; default: the newest one of the same store and target"
    )
    transfer: str | None = option(None, "a run of transfer; default: like that of verify")
    trust: str | None = option(None, "a run of trust; default: like that of verify")
    output_dir: str | None = option(None, "the run's folder; default: runs/report/UTC-TIME")


def report(config: Config) -> Path:
    """Returns the page."""
    place = selection_file(config.selection or _newest_choice())
    selection = Selection.read(place)
    store = GradientStore.open(Path(selection.store))
    places = {stage: _measured(config, stage, selection) for stage in MEASURING}
    shown = {stage: str(folder) for stage, folder in places.items() if folder}
    resolved = replace(config, selection=str(place), **shown)
    with runs.start("report", resolved, output_dir=config.output_dir) as run:
        write_report(_content(selection, place, store, places), run.part)
    return run.path / "report.html"


def _measured(config: Config, stage: str, selection: Selection) -> Path | None:
    named = getattr(config, stage)
    return Path(named) if named else newest_of(stage, selection.store, target=selection.target)


def _newest_choice() -> str | None:
    """The newest selection that chose: `all` is there to be compared with."""
    for run in reversed(runs.finished("select_sources")):
        if Selection.read(run / "selection.json").method != "all":
            return str(run)
    return None


def _content(
    selection: Selection, place: Path, store: GradientStore, places: dict[str, Path | None]
) -> dict[str, Any]:
    meta = _meta_run(store)
    tunes = _fine_tunes(selection)
    chosen = [results for _, results in tunes if _kind(selection, results) == CHOSEN]
    reduced = reduced_of([path for path, t in tunes if _kind(selection, t) == CHOSEN])
    record = read_json(meta / "sources.json", "a meta run's sources") if meta else {}
    calibrations = _calibrations(place, places["verify"])
    ensemble = newest_ensemble(selection.store, target=selection.target)
    stages = [
        meta, *_store_runs(store.path), *calibrations, place, *(path for path, _ in tunes),
        *(path for path, _ in reduced), ensemble and ensemble[0], *places.values(),
    ]  # fmt: skip
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": f"Sources for {selection.target}",
        "target": selection.target,
        "base": selection.base["model_name_or_path"],
        "adapter": _adapters(store, chosen),
        "n_sources": selection.n_sources,
        "selection": {
            "method": selection.method,
            "selected": selection.selected,
            "value": selection.value,
            "base_value": selection.base_value,
            "trace": selection.trace,
            # Of single rows they count what was chosen, which is no score that wants to be low.
            "scores": {} if selection.rows else selection.scores,
            "weights": selection.weights,
            "rows": {name: len(ids) for name, ids in selection.rows.items()},
        },
        "test_rows": int((store.table("target", selection.target)["split"] == b"test").sum()),
        "outcomes": [
            *_outcomes(selection, [results for _, results in tunes]),
            *_reduced_outcome([results for _, results in reduced]),
        ],
        **{
            stage: read_measured(stage, folder, store=selection.store) if folder else None
            for stage, folder in places.items()
        },
        "ensemble": ensemble and ensemble[1],
        "sources": [_source_row(store, name, selection, record) for name in store.sources],
        "ranks": _ranks(chosen),
        "curves": _curves(meta, [p for p, t in tunes if _kind(selection, t) == CHOSEN]),
        "warnings": record.get("notes", []),
        "stages": [_stage(path) for path in stages if path],
        "versions": runs.versions(),
        "fingerprint": store.fingerprint,
    }


def _meta_run(store: GradientStore) -> Path | None:
    """The meta run whose adapter the store's gradients were taken at."""
    for path in reversed(runs.finished("meta_train")):
        if adapter_fingerprint(path / "adapter") == store.space["adapter"]:
            return path
    return None


def _store_runs(store: Path) -> list[Path]:
    """The run of project that made a store; before a run of group, those of what it cut up."""
    for path in reversed(runs.finished("project", "group")):
        made = path / "store.json"
        if not made.exists() or Path(read_json(made, "a run's store")["store"]) != store:
            continue
        if path.parent.name == "project":
            return [path]
        return [*_store_runs(Path(read_yaml(path / "config.yaml")["store"])), path]
    return []


def _calibrations(place: Path, verified: Path | None) -> list[Path]:
    """The runs that the choice and its verification are calibrated by, each once."""
    found = [calibration_of(folder) for folder in (place.parent, verified) if folder]
    return list(dict.fromkeys(path for path in found if path))


def _fine_tunes(selection: Selection) -> list[tuple[Path, dict[str, Any]]]:
    """The fine-tunes of this choice and of all sources that can be compared: the newest a seed."""
    newest: dict[tuple[str, int], tuple[Path, dict[str, Any]]] = {}
    recipe = None
    for path in reversed(runs.finished("finetune")):
        results = read_json(path / "results.json", "the results of a fine-tune")
        if results["method"] == METHOD:
            continue
        same = (results["store"], results["target"]) == (selection.store, selection.target)
        kind = _kind(selection, results)
        if not same or kind is None:
            continue
        recipe = recipe or results["recipe"]
        if results["recipe"] == recipe:
            newest.setdefault((kind, results["seed"]), (path, results))
    return sorted(newest.values(), key=lambda found: found[0])


def _kind(selection: Selection, results: dict[str, Any]) -> str | None:
    """What a fine-tune was trained on, beside the selection; None where that is another matter."""
    mixed = results.get("mixer", "none") != "none"
    if results.get("choice") == selection.identity:
        return MIXED if mixed else CHOSEN
    return EVERYTHING if results["method"] == "all" and not mixed else None


def _outcomes(selection: Selection, tunes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [outcome("base model", [tunes[0]["base"]], sources=0)] if tunes else []
    for kind in (EVERYTHING, CHOSEN, MIXED):
        found = [results for results in tunes if _kind(selection, results) == kind]
        if found:
            scores = [results["tuned"] for results in found]
            rows.append(outcome(kind, scores, sources=len(found[0]["selected"])))
    return rows


def _reduced_outcome(reduced: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if not reduced:
        return []
    scores = [results["reduced"] for results in reduced]
    return [outcome(REDUCED, scores, sources=len(reduced[0]["selected"]))]


def _source_row(
    store: GradientStore, name: str, selection: Selection, record: dict[str, Any]
) -> dict[str, Any]:
    table = store.table("train", name)
    # Sources that came later, or were made of others' rows, are not in the meta run's record.
    bad = dict(record.get("sources", {}).get(name, {}).get("bad", {}))
    for receipt in store.receipts("train", name):
        for reason in receipt["bad"].values():
            bad[reason] = bad.get(reason, 0) + 1
    return {
        "name": name,
        "rows": len(table),
        "bad": bad,
        "tokens": int(table["n_tokens"].sum()),
        "loss": _mean(table["loss"]),
        "margin": _mean(table["margin"]),
        "grad_norm": float(np.median(table["grad_norm"])) if len(table) else None,
        "selected": name in selection.selected,
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _curves(meta: Path | None, tunes: Sequence[Path]) -> list[dict[str, Any]]:
    folders = ([("meta-training", meta)] if meta else []) + [("fine-tuning", p) for p in tunes[:1]]
    curves = []
    for name, folder in folders:
        losses = read_json(folder / "curve.json", "a loss curve")["loss"]
        curves.append({"name": name, "steps": list(range(1, len(losses) + 1)), "loss": losses})
    return curves


def _adapters(store: GradientStore, tunes: Sequence[dict[str, Any]]) -> dict[str, str | None]:
    """The kind that was meta-trained, and that of the fine-tunes on the choice."""
    tuned = tunes[0]["recipe"].get("adapter") if tunes else None
    return {"meta": store.recorded_settings()["adapter"], "tuned": tuned}


def _ranks(tunes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What AdaLoRA left to each layer in the first of the fine-tunes on this choice."""
    return tunes[0].get("ranks", {}) if tunes else {}


def _stage(folder: Path) -> dict[str, Any]:
    folder = folder.parent if folder.is_file() else folder
    config = read_yaml(folder / "config.yaml")
    return {
        "stage": config["stage"],
        "seconds": config["seconds"],
        "path": str(folder),
        "command": f"gradex {folder}/config.yaml",
    }


if __name__ == "__main__":
    raise SystemExit(main(report, Config))
