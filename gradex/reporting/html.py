"""Writes the report of a run: one HTML page that needs nothing else, and its data as JSON."""

import json
import math
from datetime import datetime
from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from gradex.reporting import ensembles, figures, paths, quantities, ranks, sentences, tables

TEMPLATE = "report.html.jinja"
MOST_PANELS = 12
MOST_CHIPS = 16
MOST_WARNINGS = 40


def write_report(data: dict, folder: Path) -> Path:
    """Write report.html and report.json into the folder and give the path of the page."""
    report = _without_nan(data)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(
        json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    page = folder / "report.html"
    # A name may hold half a surrogate pair (from a file name), which UTF-8 cannot.
    page.write_bytes(render(report).encode("utf-8", errors="replace"))
    return page


def render(report: dict) -> str:
    """The page as text; a section whose data is missing or empty is left out."""
    # The template asks for parts that may not be there, at any depth.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": quantities.number,
        "count": quantities.count,
        "duration": quantities.duration,
    }
    template = environment.get_template(TEMPLATE)
    return template.render(report=report, **_answer(report), **_evidence(report))


def _answer(report: dict) -> dict:
    """What the first screen shows."""
    outcomes = report.get("outcomes") or []
    selection = report.get("selection") or {}
    selected = selection.get("selected") or []
    return {
        "facts": _facts(report),
        "sentence": sentences.answer(report),
        "chips": [_chip(name, selection) for name in selected[:MOST_CHIPS]],
        "chips_left_out": len(selected[MOST_CHIPS:]),
        "not_chosen": (report.get("n_sources") or 0) - len(selected),
        "outcomes": tables.outcome_rows(outcomes),
        "metric": tables.metric_name(outcomes),
    }


def _chip(name: str, selection: dict) -> str:
    """A chosen source, with its share of the training or its chosen rows where these were said."""
    shares, rows = selection.get("weights") or {}, selection.get("rows") or {}
    if name in shares:
        return f"{name} {quantities.percent(shares[name])}"
    return f"{name} {sentences.plural(rows[name], 'row')}" if name in rows else name


def _facts(report: dict) -> dict[str, str | None]:
    method = (report.get("selection") or {}).get("method") or ""
    return {
        "Target": report.get("target"),
        "Base model": report.get("base"),
        "Adapter": sentences.adapter(report.get("adapter") or {}),
        "Selection": method.replace("_", " "),
        "Made": _moment(report.get("created") or ""),
    }


def _evidence(report: dict) -> dict:
    """What the sections after the answer show."""
    stages = report.get("stages") or []
    warnings = report.get("warnings") or []
    return {
        **_verification(report),
        **_transfer(report),
        "ensemble": ensembles.ensemble_table(report.get("ensemble") or {}),
        "ensemble_sentence": ensembles.ensemble_sentence(report.get("ensemble") or {}),
        **_selection(report.get("selection") or {}),
        **_sources(report),
        "curves": Markup(figures.training_curves(report.get("curves") or [])),
        "ranks": ranks.rank_table(report.get("ranks") or {}),
        "commands": "\n".join(stage["command"] for stage in stages if stage.get("command")),
        "warnings": warnings[:MOST_WARNINGS],
        "warnings_left_out": len(warnings[MOST_WARNINGS:]),
    }


def _verification(report: dict) -> dict:
    verify = report.get("verify") or {}
    found = verify.get("targets") or []
    targets = tables.targets(found, report.get("target"))
    drawn = targets["rows"][:MOST_PANELS]
    calibrated = bool(verify.get("calibrated"))
    return {
        "verified": targets,
        "panels": Markup(figures.estimate_against_truth(drawn, calibrated=calibrated)),
        "panels_left_out": len(found) - len(drawn),
        "estimates_sentence": sentences.estimates(verify),
        "calibration_sentence": sentences.calibration(verify),
        "evidence": tables.evidence(found, report.get("target")),
        "trust_sentence": sentences.trust(report.get("trust") or {}, report.get("target")),
    }


def _transfer(report: dict) -> dict:
    found, target = report.get("transfer") or {}, report.get("target")
    targets = found.get("targets") or []
    return {
        "transfer_map": Markup(figures.source_transfer(found, target) if targets else ""),
        "transfer_sentence": sentences.transfer(found, target),
        "transfer_cut": len(targets) > figures.MOST_TARGETS
        or len(found.get("sources") or []) > figures.MOST_BARS,
    }


def _selection(selection: dict) -> dict:
    path, scores = paths.path_of(selection), selection.get("scores") or {}
    # Of other methods the scores are not means over random sets.
    means = scores if selection.get("method") == "random_ensemble" else {}
    effects = figures.source_effects(means, selection.get("selected") or [])
    return {
        "path": path[: figures.MOST_STEPS],
        "path_how": paths.HOW.get(selection.get("method", ""), ""),
        "steps_left_out": len(path[figures.MOST_STEPS :]),
        "path_figure": Markup(figures.selection_path(path)),
        "ending": paths.ending(selection),
        "effects": Markup(effects),
        "effects_left_out": len(scores) - figures.MOST_BARS,
    }


def _sources(report: dict) -> dict:
    every = report.get("sources") or []
    scores = (report.get("selection") or {}).get("scores") or {}
    rows = tables.source_rows(every, scores)
    return {
        "sources": rows,
        "scored": bool(scores),
        "sources_left_out": len(every) - len(rows),
        "most_other_sources": tables.MOST_OTHER_SOURCES,
    }


def _without_nan(value: object) -> object:
    """The same data with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _moment(text: str) -> str:
    """An ISO date as a person writes it; any other text stays as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()
