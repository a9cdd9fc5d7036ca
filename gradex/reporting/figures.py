"""Draws the figures of the report: each function takes data and gives inline SVG."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradex.reporting.heatmaps import effects_map
from gradex.reporting.inline_svg import ACCENT, FAINT, INK, MOST_SHAPES, drawing, inline_svg
from gradex.reporting.measured import EFFECTS
from gradex.reporting.names import short
from gradex.reporting.quantities import finite, is_finite, number
from gradex.selection.transfer import Effects

MOST_STEPS = 40
MOST_TARGETS = 12
MOST_BARS = 30
ROW = 24  # pixels for a step or a source


def estimate_against_truth(targets: list[dict], *, calibrated: bool = False) -> str:
    """One panel per target: the estimate of each held-out fine-tune against its true loss."""
    panels = [
        _estimate_panel(target, f"estimate-{place}", calibrated=calibrated)
        for place, target in enumerate(targets, start=1)
        if _finite_points(target)
    ]
    return "\n".join(panels)


def _finite_points(target: dict) -> list[dict]:
    points = target.get("points") or []
    return [p for p in points if is_finite(p.get("estimate")) and is_finite(p.get("truth"))]


def _estimate_panel(target: dict, name: str, *, calibrated: bool) -> str:
    points = _finite_points(target)
    spearman = f"Spearman {number(target.get('spearman'), 2)}"
    many = len(points) > MOST_SHAPES
    with drawing(300, 270) as (figure, axes):
        _scatter(axes, points, calibrated=calibrated, many=many)
        axes.set_title(short(target["target"]), parse_math=False, fontweight="bold", pad=24)
        axes.text(0, 1.03, f"{spearman}, n = {len(points)}", transform=axes.transAxes, fontsize=11)
        return inline_svg(
            figure,
            name,
            title=f"{target['target']}: estimate against true test loss",
            description=f"Scatter of {len(points)} held-out fine-tunes. {spearman}.",
            tooltips=None if many else {"points": [_point_text(point) for point in points]},
        )


def _scatter(axes: Axes, points: list[dict], *, calibrated: bool, many: bool) -> None:
    estimates = [point["estimate"] for point in points]
    truths = [point["truth"] for point in points]
    if calibrated:
        axes.axline((estimates[0],) * 2, slope=1, color=INK, linewidth=1, dashes=(4, 3))
        ends = _intervals(axes, points, rasterized=many)
        _same_range(axes, estimates + truths, ends)
    size = 14 if many else 34
    look = {"s": size, "color": ACCENT, "alpha": 0.75, "linewidths": 0}
    axes.scatter(estimates, truths, rasterized=many, gid="points", **look)
    axes.set_xlabel("estimated loss" if calibrated else "estimate (rank only)")
    axes.set_ylabel("true test loss")
    _quiet_grid(axes, "both")


def _same_range(axes: Axes, values: list[float], ends: list[float]) -> None:
    """Room for all values, and for ends of intervals that do not press them into a corner."""
    low, high = min(values), max(values)
    span = high - low
    low, high = max(low - span, min([low, *ends])), min(high + span, max([high, *ends]))
    margin = 0.06 * (high - low) or 0.1
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)


def _intervals(axes: Axes, points: list[dict], *, rasterized: bool) -> list[float]:
    """A thin line for each point that has an interval; returns where the lines end."""
    known = [point for point in points if _has_interval(point)]
    lows, highs = ([point[end] for point in known] for end in ("low", "high"))
    look = {"color": ACCENT, "linewidth": 0.8, "alpha": 0.75, "rasterized": rasterized}
    axes.hlines([point["truth"] for point in known], lows, highs, **look)
    return lows + highs


def _has_interval(point: dict) -> bool:
    return is_finite(point.get("low")) and is_finite(point.get("high"))


def _point_text(point: dict) -> str:
    subset = point.get("subset") or []
    names = " + ".join(map(short, subset[:8])) + (" + …" if len(subset) > 8 else "")
    estimate = number(point["estimate"])
    if _has_interval(point):
        estimate += f" ({number(point['low'])} to {number(point['high'])})"
    values = f"estimate {estimate}, true loss {number(point['truth'])}"
    return f"{names}: {values}" if names else values


def source_transfer(transfer: dict, first: str) -> str:
    """Heat map of what each source does to each target; `first` is the target that leads.

    The sources are those with the strongest effect on it, and the other targets follow.
    """
    names = [row["target"] for row in transfer["targets"]]
    if first not in names:
        return ""
    columns = sorted(range(len(names)), key=lambda i: names[i] != first)[:MOST_TARGETS]
    table = {key: np.array(rows, dtype=float) for key, rows in transfer["effects"].items()}
    rows = np.argsort(-np.abs(table["effect"][:, columns[0]]), kind="stable")[:MOST_BARS]
    mean, low, high, hurts = (table[key][np.ix_(rows, columns)] for key in EFFECTS)
    shown = Effects([transfer["sources"][i] for i in rows], mean, low, high, hurts)
    return inline_svg(
        effects_map(shown, [names[i] for i in columns], unit=transfer["unit"]),
        "source-transfer",
        title="Effect of each source on each target",
        description=f"Heat map of the mean effects of {len(rows)} sources on {len(columns)} "
        "targets; below zero helps.",
    )


def selection_path(path: list[dict]) -> str:
    """The value after each step of a search, with what the step did."""
    steps = path[:MOST_STEPS]
    if not finite(step.get("value") for step in steps):
        return ""
    values, rows = np.array([step.get("value") for step in steps], dtype=float), range(len(steps))
    with drawing(440, 70 + ROW * len(steps)) as (figure, axes):
        axes.plot(values, rows, color=FAINT, linewidth=1.5)
        axes.scatter(values, rows, s=38, color=ACCENT, zorder=3)
        axes.set_xlabel("estimated value (lower is better)")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _named_rows(axes, [f"{step['step']}  {short(step['did'])}" for step in steps])
        return inline_svg(
            figure,
            "selection-path",
            title="Selection path",
            description=f"Estimated value after each of the first {len(steps)} steps, with what "
            "the step did.",
        )


def source_effects(scores: dict[str, float], selected: list[str]) -> str:
    """One bar per source: how the mean value changes with it; the chosen ones are filled."""
    ranked = sorted((score, name) for name, score in scores.items() if is_finite(score))
    if not ranked:
        return ""
    values, names = zip(*ranked[:MOST_BARS], strict=True)
    chosen = set(selected)
    fills = [ACCENT if name in chosen else "none" for name in names]
    edges = [ACCENT if name in chosen else FAINT for name in names]
    with drawing(440, 70 + ROW * len(names)) as (figure, axes):
        axes.barh(range(len(names)), values, height=0.6, color=fills, edgecolor=edges)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("mean effect on the estimate (lower is better)")
        _named_rows(axes, [short(name) for name in names])
        return inline_svg(
            figure,
            "source-effects",
            title="Effect of each source",
            description=f"Bars of the mean effect of the {len(names)} best sources; "
            "the bars of chosen sources are filled.",
        )


def _named_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _quiet_grid(axes, "x")


def training_curves(curves: list[dict]) -> str:
    """One small panel per run: the training loss at each step and its running mean."""
    panels = [
        _curve_panel(curve, f"curve-{place}")
        for place, curve in enumerate(curves, start=1)
        if finite(curve.get("loss"))
    ]
    return "\n".join(panels)


def _curve_panel(curve: dict, name: str) -> str:
    losses = finite(curve["loss"])
    with drawing(400, 210) as (figure, axes):
        _plot_losses(axes, curve)
        axes.set_title(short(curve["name"], 40), parse_math=False, fontweight="bold")
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _quiet_grid(axes, "y")
        return inline_svg(
            figure,
            name,
            title=f"{curve['name']}: training loss",
            description=f"From {number(losses[0])} to {number(losses[-1])} "
            f"in {len(curve['loss'])} steps.",
        )


def _plot_losses(axes: Axes, curve: dict) -> None:
    loss = np.array(curve["loss"], dtype=float)
    loss[~np.isfinite(loss)] = np.nan
    steps = curve.get("steps") or range(1, len(loss) + 1)
    many = len(loss) > MOST_SHAPES
    window = len(loss) // 20 | 1  # odd, so that it has a middle
    if window > 1:
        axes.plot(steps, loss, color=FAINT, linewidth=0.8, rasterized=many)
    marker = "o" if len(loss) == 1 else ""
    axes.plot(steps, _running_mean(loss, window), color=ACCENT, linewidth=1.8, marker=marker)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each step; steps without a loss do not count."""
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0.0), np.ones(window), mode="same")
    counts = np.convolve(known, np.ones(window), mode="same")
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)


def _quiet_grid(axes: Axes, direction: str) -> None:
    axes.grid(axis=direction)
    if direction in ("x", "both"):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    if direction in ("y", "both"):
        axes.yaxis.set_major_locator(MaxNLocator(5))
