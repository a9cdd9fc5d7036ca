"""What one adapter a group of sources gives beside one adapter on all of them: table and words."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradex import runs
from gradex.records import read_json
from gradex.reporting.csv_table import Cell, write_csv
from gradex.reporting.names import one_line
from gradex.reporting.quantities import is_finite, number, percent, telling_digits

METHOD = "ensemble"
MOST_NAMES = 12  # sources of a group that the report names
HEADER = ("target", "model", "training_steps", "forward_passes", "loss", "metric", "score")
SAME = 0.005  # of a loss: less is no gain that a sentence should tell of


def write_ensemble_csv(file: Path, results: Mapping[str, Any]) -> None:
    """A line a target and model."""
    write_csv(
        file,
        HEADER,
        (
            (target["target"], *_cells(row))
            for target in results["targets"]
            for row in _rows(target, members=len(results["groups"]), steps=results["steps"])
        ),
    )


def _cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    counts = str(row["steps"]), str(row["passes"])  # in full, however many
    return row["name"], *counts, row["loss"], row["metric"], row["score"]


def newest_ensemble(store: str, *, target: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest run of finetune --ensemble on this store for this target, and what it found."""
    for folder in reversed(runs.finished("finetune")):
        results = read_json(folder / "results.json", "the results of a fine-tune")
        if results["method"] != METHOD or results["store"] != store:
            continue
        for row in results["targets"]:
            if row["target"] == target:
                found = {"members": len(results["groups"]), "steps": results["steps"]}
                return folder, row | found | {"groups": results["groups"]}
    return None


def ensemble_table(found: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of the report's table, with the least loss marked, and what the groups are."""
    if not found:
        return {}
    rows = list(_rows(found, members=found["members"], steps=found["steps"]))
    losses = [row["loss"] for row in rows if is_finite(row["loss"])]
    digits = telling_digits(losses, 3)
    return {
        "metric": rows[0]["metric"].replace("_", " "),
        "rows": [
            row | {"loss": number(row["loss"], digits), "best": row["loss"] == min(losses)}
            for row in rows
        ],
        "groups": [
            {"name": name, "weight": weight, "sources": _named(sources)}
            for (name, weight), sources in zip(
                found["weights"].items(), found["groups"], strict=True
            )
        ],
    }


def _named(sources: Sequence[str]) -> str:
    more = len(sources) - MOST_NAMES
    return ", ".join([*sources[:MOST_NAMES], *([f"and {more:,} more"] if more > 0 else [])])


def _rows(target: Mapping[str, Any], *, members: int, steps: int) -> Iterator[dict[str, Any]]:
    used = sum(weight > 0 for weight in target["weights"].values())
    models = {
        "base": ("base model", 0, 1),
        "one": ("one adapter", steps, 1),
        "one_longer": (f"one adapter, {members} times the steps", members * steps, 1),
        "best_member": (f"best member ({target['best']})", members * steps, 1),
        "ensemble": (f"ensemble of {members}", members * steps, used),
    }
    for key, (name, trained, passes) in models.items():
        scores = target[key]
        metric = next((name for name in scores if name != "loss"), "")
        yield {
            "name": name,
            "steps": trained,
            "passes": passes,
            "loss": scores["loss"],
            "metric": metric,
            "score": scores.get(metric),
        }


def ensemble_sentence(found: Mapping[str, Any]) -> str:
    """What the ensemble gains over one adapter; also when that is nothing, or a single member's."""
    keys = ("ensemble", "one", "one_longer", "best_member")
    if not found or not all(is_finite(found[key]["loss"]) for key in keys):
        return ""
    own, one, longer, member = losses = [found[key]["loss"] for key in keys]
    digits = telling_digits(losses, 3)
    told = [number(loss, digits) for loss in losses]
    return (
        f"{found['members']} adapters, one a group of sources, give together a test loss of "
        f"{told[0]} on {one_line(found['target'])}. One adapter on all their sources gives "
        f"{told[1]}, and {told[2]} with as many steps as they have together: the ensemble "
        f"{_verdict(own, min(one, longer))}. {_best_member(found, told[3], own < member)}"
    )


def _verdict(own: float, one: float) -> str:
    gain = (one - own) / one if one > 0 else 0.0
    if gain > SAME:
        return f"gains {percent(gain)} over the better of the two"
    if gain < -SAME:
        return f"gains nothing, its loss is {percent(-gain)} above the better of the two"
    return "gains nothing over the better of the two"


def _best_member(found: Mapping[str, Any], told: str, beaten: bool) -> str:
    name = one_line(found["best"])
    if found["weights"][found["best"]] == 1:
        return f"All its weight is on {name}: this adapter alone does the same."
    if beaten:
        return f"Its best member alone, {name}, gives {told}."
    return f"Its best member alone, {name}, is no worse: {told}."
