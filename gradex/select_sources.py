"""Search the subsets for the sources worth training on: selection.json, which finetune reads.

    python -m gradex.select_sources --target sort
    python -m gradex.select_sources --target sort max --method swap --max_sources 6
    python -m gradex.select_sources --method random_ensemble --num_subsets 2000
    python -m gradex.select_sources --level rows --top 0.05

The estimates are made on the targets' select rows; their test rows are not looked at. They are of
the rows of a subset taken together: shares (--min_share, --max_share) bound how many sources there
may be and say how the chosen ones are mixed in training, but move no estimate. With --level rows,
single rows are ranked by their influence on the targets, whatever their source.
"""

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np

from gradex import runs
from gradex.config import main, option, require_left_out, require_positive
from gradex.estimators import estimator_of, with_calibration
from gradex.estimators.calibration import Calibration
from gradex.estimators.gains import GainInterval, gain_interval
from gradex.estimators.protocol import Estimator
from gradex.gradients.store import GradientStore, open_store
from gradex.reporting.csv_table import write_csv
from gradex.selection.choice import Choice, Selection, make_selection
from gradex.selection.flags import SearchArguments
from gradex.selection.from_flags import rules_of, sizes_of, targets_of
from gradex.selection.methods import Search, choose
from gradex.selection.row_ranking import best_rows, score_rows
from gradex.selection.rules import Rules
from gradex.selection.shares import clipped_shares
from gradex.selection.targets import Together, score_of, together

OF_ROWS = ("level", "top", "store", "target", "target_weights", "never", "output_dir")
TOP = 0.05  # of the rows, as LESS takes them
SHOWN = 10  # chosen sources that are named on the screen; selection.json has all
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(SearchArguments):
    level: Literal["sources", "rows"] = option(
        "sources", "rows: choose single rows by their influence on the targets, of any source"
    )
    top: float | None = option(
        None, "with --level rows: the share of all rows to choose, or how many if 1 or more; "
        "default: 0.05"
    )  # fmt: skip
    output_dir: str | None = option(None, "the run's folder; default: runs/select_sources/UTC-TIME")

    def __post_init__(self):
        SearchArguments.__post_init__(self)
        require_positive(self, "top")
        if self.level == "sources":
            require_left_out(self, ["top"], "is for single rows; leave it out, or say --level rows")
        else:
            of_sources = [field.name for field in fields(self) if field.name not in OF_ROWS]
            why = "is for whole sources; leave it out, or leave out --level rows"
            require_left_out(self, of_sources, why)


def select_sources(config: Config) -> Path:
    """Returns the selection's file."""
    store = open_store(config.store)
    targets, rules = targets_of(config, store), rules_of(config, store)
    resolved = replace(config, store=str(store.path), target=list(targets))
    if config.level == "rows":
        return _select_rows(resolved, store, targets, rules)
    resolved, calibration = with_calibration(resolved, store)
    with runs.start("select_sources", resolved, output_dir=config.output_dir) as run:
        search, combined = _search(resolved, store, targets, rules, calibration)
        choice = _mixed(choose(search, resolved), rules, store)
        selection = make_selection(
            choice, store, method=config.method, targets=targets,
            calibrated=calibration is not None,
        )  # fmt: skip
        if combined.scale is not None:
            selection = _standardised(selection, combined, store)
        selection.write(run.part / "selection.json")
    _tell_gain(search, choice)
    _tell(selection, run.path)
    return run.path / "selection.json"


def _search(
    config: Config,
    store: GradientStore,
    targets: dict[str, float],
    rules: Rules,
    calibration: Calibration | None,
) -> tuple[Search, Together]:
    """Estimates of what may be chosen, and how those of several targets make one number.

    Sources that are ruled out are not looked at, unless estimates are fitted to fine-tunes, which
    may hold them.
    """
    names = rules.allowed(store.sources)
    to_runs = calibration is not None or config.estimator == "surrogate"
    fitted = estimator_of(config, calibration).fit(
        store, sources=store.sources if to_runs else names, targets=list(targets)
    )
    combined = together(fitted, names, list(targets.values()), robust=config.robust)
    gains = _gain_interval(fitted, combined, store, targets)
    return Search(score_of(fitted, combined), rules, store, targets, gains), combined


def _gain_interval(
    fitted: Estimator, combined: Together, store: GradientStore, targets: dict[str, float]
) -> GainInterval | None:
    """The worst of several targets is no mean, whose error could be told."""
    if combined.robust:
        return None
    spreads = None if combined.scale is None else combined.scale.spread.tolist()
    weights = list(targets.values())
    return gain_interval(fitted, store, list(targets), weights=weights, spreads=spreads)


def _select_rows(
    config: Config, store: GradientStore, targets: dict[str, float], rules: Rules
) -> Path:
    config = replace(config, top=config.top or TOP)
    with runs.start("select_sources", config, output_dir=config.output_dir) as run:
        scores = score_rows(store, targets, sources=rules.allowed(store.sources))
        choice = best_rows(scores, top=config.top)
        best = scores.best(sum(map(len, choice.rows.values())))
        write_csv(run.part / "rows.csv", ["source", "id", "score"], best)
        selection = make_selection(choice, store, method="rows", targets=targets)
        selection.write(run.part / "selection.json")
    log.info("%d of %d rows chosen", len(best), len(scores.ids))
    _tell(selection, run.path)
    return run.path / "selection.json"


def _mixed(choice: Choice, rules: Rules, store: GradientStore) -> Choice:
    """The choice with shares of the training mix, where the rules bound them."""
    if rules.min_share is None and rules.max_share is None:
        return choice
    rows = sizes_of(store)
    shares = clipped_shares(
        {name: rows[name] for name in choice.selected}, low=rules.min_share, high=rules.max_share
    )
    return replace(choice, weights=shares)


def _standardised(selection: Selection, combined: Together, store: GradientStore) -> Selection:
    """The values are no losses, and what they started from is told in the same unit."""
    losses = [store.target(name, "select").table["loss"].mean() for name in selection.targets]
    base = combined.of(np.array([losses], dtype=np.float64))[0]
    return replace(selection, base_value=float(base), calibrated=False)


def _tell_gain(search: Search, choice: Choice) -> None:
    """How sure it is that the choice beats training on everything."""
    if search.gain_interval is not None and len(choice.selected) < len(search.allowed):
        ends = search.gain_interval(frozenset(search.allowed), frozenset(choice.selected))
        log.info("estimated to gain over all of them: %.3g to %.3g (90%% interval)", *ends)


def _tell(selection: Selection, place: Path) -> None:
    first, more = selection.selected[:SHOWN], len(selection.selected) - SHOWN
    log.info(
        "%d of %d sources chosen for %s: %s%s", len(selection.selected), selection.n_sources,
        ", ".join(selection.targets), ", ".join(first), f" and {more} more" if more > 0 else "",
    )  # fmt: skip
    if selection.trace and "stop" in selection.trace[-1]:
        log.info("the search ended: %s", selection.trace[-1]["stop"]["reason"])
    log.info("next: gradex finetune --selection %s", place)


if __name__ == "__main__":
    raise SystemExit(main(select_sources, Config))
