"""Says in plain sentences what the numbers of a report show, also when they disappoint."""

import statistics

from gradex.reporting.names import one_line
from gradex.reporting.quantities import (
    finite,
    is_finite,
    mean,
    number,
    percent,
    spread,
    telling_digits,
)

PLACES = {"base model": "for the base model", "all sources": "on all {sources} sources"}
RANKS = "uncalibrated estimates are ranks"
MOST_NAMES = 3
RIVALS = {"base model": "the base model as it is", "all sources": "training on all sources"}


def answer(report: dict) -> str:
    """What fine-tuning on the chosen sources gave, beside everything it was compared with."""
    measured = [row for row in report.get("outcomes") or [] if finite(row.get("loss"))]
    chosen = next((row for row in measured if row["name"] == "selection"), None)
    if chosen is None:
        return _unmeasured(report)
    rivals = sorted((row for row in measured if row is not chosen), key=_mean_loss)
    subject = f"Fine-tuning on {_the_chosen(report, chosen.get('sources'))}"
    sentences = [_losses(subject, chosen, rivals, target=report.get("target"))]
    if rivals:
        sentences += [_verdict(chosen, rivals), _seed_noise(chosen, rivals)]
        sentences += [_other_opinion(chosen, rivals)]
    sentences += [_runs_without_loss(report["outcomes"])]
    return " ".join(filter(None, sentences))


def _mean_loss(outcome: dict) -> float:
    return mean(outcome["loss"])


def _losses(subject: str, chosen: dict, rivals: list[dict], *, target: str | None) -> str:
    digits = telling_digits([_mean_loss(row) for row in (chosen, *rivals)])
    where = f" on {target}" if target else ""
    text = f"{subject} gives a test loss of {number(mean(chosen['loss']), digits)}{where}"
    if rivals:
        against = [f"{number(mean(row['loss']), digits)} {_place(row)}" for row in rivals]
        text += f", against {_join(against, 'and')}"
    return f"{text} ({_seeds(chosen, rivals)})."


def _verdict(chosen: dict, rivals: list[dict]) -> str:
    """Empty when the selection has the lowest loss: the losses themselves say it then."""
    loss = _mean_loss(chosen)
    unbeaten = [row for row in rivals if _mean_loss(row) <= loss]
    if not unbeaten:
        return ""
    names = [RIVALS.get(row["name"], row["name"]) for row in unbeaten]
    return f"The selection is not better than {_join(names, 'or')}."


def _seed_noise(chosen: dict, rivals: list[dict]) -> str:
    """A caution when the nearest rival is closer than the seeds are to each other."""
    own = _mean_loss(chosen)
    nearest = min(rivals, key=lambda row: abs(_mean_loss(row) - own))
    spreads = [spread(row["loss"]) for row in (chosen, nearest)]
    noise = max((value for value in spreads if value is not None), default=0.0)
    gap = abs(_mean_loss(nearest) - own)
    if gap >= noise:
        return ""
    digits = telling_digits([gap, noise])
    rival = RIVALS.get(nearest["name"], nearest["name"])
    return (
        f"The gap to {rival} ({number(gap, digits)}) is smaller than "
        f"the spread between seeds ({number(noise, digits)})."
    )


def _other_opinion(chosen: dict, rivals: list[dict]) -> str:
    """A sentence only when the metric puts the selection elsewhere than the loss does."""
    rated = [row for row in rivals if metric_rank(row) is not None]
    own = metric_rank(chosen)
    if own is None or not rated:
        return ""
    best = max(rated, key=metric_rank)
    wins_by_loss = _mean_loss(chosen) < min(_mean_loss(row) for row in rivals)
    if own == metric_rank(best) or wins_by_loss == (own > metric_rank(best)):
        return ""
    values = [mean(row["metric"]["values"]) for row in (chosen, best)]
    digits = telling_digits(values)
    rival = RIVALS.get(best["name"], best["name"])
    return (
        f"By {chosen['metric']['name']} it is the other way round: {number(values[0], digits)} "
        f"for the selection, {number(values[1], digits)} for {rival}."
    )


def metric_rank(outcome: dict) -> float | None:
    """The mean metric with a sign that makes higher better, None when it was not measured."""
    metric = outcome.get("metric") or {}
    value = mean(metric.get("values"))
    if value is None:
        return None
    return value if metric.get("higher_is_better", True) else -value


def _runs_without_loss(outcomes: list[dict]) -> str:
    losses = [value for row in outcomes for value in row.get("loss") or []]
    lost = len(losses) - len(finite(losses))
    if not lost:
        return ""
    return f"Left out of the means: {plural(lost, 'run')} that gave no finite loss."


def _unmeasured(report: dict) -> str:
    selection = report.get("selection") or {}
    if not selection.get("selected"):
        return ""
    chosen = _the_chosen(report, len(selection["selected"]))
    text = f"Nothing was fine-tuned on {chosen} yet, so there is no measured loss to report."
    value, start = selection.get("value"), selection.get("base_value")
    if _is_estimate(selection) and is_finite(value) and is_finite(start):
        digits = telling_digits([value, start])
        text += f" The estimate is {number(value, digits)}, from {number(start, digits)} before."
    return text


def _is_estimate(selection: dict) -> bool:
    """Weighing and ranking rows give a first-order change instead of an estimate of the loss."""
    return not selection.get("rows") and not selection.get("method", "").startswith("weigh_")


def estimates(verify: dict | None) -> str:
    """How well the estimates did on fine-tunes they had not seen, over all targets."""
    targets = (verify or {}).get("targets") or []
    ranks = finite(row.get("spearman") for row in targets)
    if not ranks:
        return ""
    if len(ranks) == 1:
        text = f"The Spearman correlation of estimate and true test loss is {number(ranks[0], 2)}."
    else:
        text = (
            f"Over {len(ranks)} targets the median Spearman correlation of estimate and true "
            f"test loss is {number(statistics.median(ranks), 2)}."
        )
    # Ranks have no unit, so an error relative to the loss would say nothing of them.
    if verify.get("calibrated"):
        text = " ".join(filter(None, [text, _beside_the_constant(targets), _covered(targets)]))
    return text


def _beside_the_constant(targets: list[dict]) -> str:
    pairs = [(row.get("relative_error"), row.get("constant_relative_error")) for row in targets]
    pairs = [pair for pair in pairs if all(map(is_finite, pair))]
    if not pairs:
        return ""
    wins = sum(own < constant for own, constant in pairs)
    if len(pairs) == 1:
        verdict = "smaller" if wins else "not smaller"
        return f"The relative error of the estimate is {verdict} than that of the others' mean."
    return (
        "The relative error of the estimate is smaller than that of the others' mean "
        f"on {wins} of {len(pairs)} targets."
    )


def _covered(targets: list[dict]) -> str:
    """How many of the true losses lie in their intervals, of those that have one."""
    points = [point for row in targets for point in row.get("points") or []]
    known = [p for p in points if all(is_finite(p.get(key)) for key in ("low", "high", "truth"))]
    inside = sum(p["low"] <= p["truth"] <= p["high"] for p in known)
    if not known:
        return ""
    return f"{inside} of {len(known)} true losses lie in their 90% intervals."


def calibration(verify: dict) -> str:
    """Whether the estimates are losses, and how to read the panels then."""
    if not verify.get("calibrated"):
        return (
            "The estimates are not calibrated: they are ranks of sets of sources, not losses, so "
            "look at the correlation and not at the relative error."
        )
    anchors = verify.get("anchors")
    on = f" on {plural(anchors, 'other true fine-tune')}, the anchors" if anchors else ""
    return (
        f"The estimates are calibrated{on}: the thin lines are 90% intervals, and the dashed line "
        "is where estimate and truth agree."
    )


def transfer(found: dict, target: str | None) -> str:
    """Which sources clearly help the target and which hurt it, the strongest first."""
    row = next((row for row in found.get("targets") or [] if row["target"] == target), None)
    if row is None:
        return ""
    helps, hurts = (_first_names(row[side]) for side in ("helps", "hurts"))
    return f"{one_line(target)} is helped by {helps}, and hurt by {hurts}."


def _first_names(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    shown = [one_line(name) for name in names[:MOST_NAMES]]
    shown += [plural(more, "more source")] if more > 0 else []
    return _join(shown, "and") if shown else "no source clearly"


def trust(found: dict, target: str | None) -> str:
    """How far from the meta-trained adapter the gradients tell what happens to the target."""
    row = next((row for row in found.get("targets") or [] if row["target"] == target), None)
    if row is None or not is_finite(row.get("radius")):
        return ""
    where, within = one_line(target), percent(found.get("limit"))
    if row["radius"] == 0:
        return (
            f"Moved by only {percent(min(found['distances']))} of its norm, the meta-trained "
            f"adapter's loss on {where} already changes otherwise than its gradients say, by more "
            f"than {within}; {RANKS}."
        )
    return (
        f"Moved by up to {percent(row['radius'])} of its norm, the meta-trained adapter's loss on "
        f"{where} changes as its gradients say, to within {within}; beyond that, {RANKS}."
    )


def _the_chosen(report: dict, sources: int | None) -> str:
    rows = (report.get("selection") or {}).get("rows") or {}
    if rows:
        return f"{plural(sum(rows.values()), 'chosen row')} of {plural(len(rows), 'source')}"
    if sources is None:
        return "the chosen sources"
    return "the one chosen source" if sources == 1 else f"the {sources:,} chosen sources"


def _place(outcome: dict) -> str:
    place = PLACES.get(outcome["name"])
    if place is None or outcome.get("sources") is None:
        return f"for {outcome['name']}"
    return place.format(sources=f"{outcome['sources']:,}")


def _seeds(chosen: dict, rivals: list[dict]) -> str:
    # The base model is not trained, so it has one loss however many seeds the others ran.
    trained = [row for row in (chosen, *rivals) if row["name"] != "base model"]
    counts = {len(finite(row["loss"])) for row in trained}
    if counts == {1}:
        return "one seed"
    return f"mean of {counts.pop()} seeds" if len(counts) == 1 else "means over seeds"


def adapter(kinds: dict) -> str | None:
    """The kind of the fine-tune, and of the meta-training where that is another."""
    meta, tuned = kinds.get("meta"), kinds.get("tuned")
    if not tuned or tuned == meta:
        return tuned or meta
    return f"{tuned}; meta-training: {meta}"


def plural(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def _join(parts: list[str], word: str) -> str:
    *first, last = parts
    return f"{', '.join(first)} {word} {last}" if first else last
