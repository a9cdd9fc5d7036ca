"""Search the subsets for the sources worth training on: selection.json, which finetune reads.

    python -m gradex.select_sources --target sort
    python -m gradex.select_sources --target sort max --method swap --max_sources 6
    python -m gradex.select_sources --method random_ensemble --num_subsets 2000

The estimates are made on the targets' select rows; their test rows are not looked at. They are of
the rows of a subset taken together: shares (--min_share, --max_share) bound how many sources there
may be and say how the chosen ones are mixed in training, but move no estimate.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gradex import runs
from gradex.config import main, option
from gradex.estimators import estimator_of, with_calibration
from gradex.estimators.calibration import Calibration
from gradex.gradients.store import GradientStore, open_store
from gradex.selection.choice import Choice, Selection, make_selection
from gradex.selection.from_flags import rules_of, sizes_of, targets_of
from gradex.selection.methods import Search, SearchArguments, choose
from gradex.selection.rules import Rules
from gradex.selection.shares import clipped_shares
from gradex.selection.targets import Together, score_of, together

SHOWN = 10  # chosen sources that are named on the screen; selection.json has all
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(SearchArguments):
    output_dir: str | None = option(None, "the run's folder; default: runs/select_sources/UTC-TIME")


def select_sources(config: Config) -> Path:
    """Returns the selection's file."""
    store = open_store(config.store)
    targets, rules = targets_of(config, store), rules_of(config, store)
    resolved = replace(config, store=str(store.path), target=list(targets))
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
    _tell(selection)
    return run.path / "selection.json"


def _search(
    config: Config,
    store: GradientStore,
    targets: dict[str, float],
    rules: Rules,
    calibration: Calibration | None,
) -> tuple[Search, Together]:
    """Estimates of what may be chosen, and how those of several targets make one number.

    Sources that are ruled out are not looked at, unless a calibration's fine-tunes hold them.
    """
    names = rules.allowed(store.sources)
    fitted = estimator_of(config, calibration).fit(
        store, sources=store.sources if calibration else names, targets=list(targets)
    )
    combined = together(fitted, names, list(targets.values()), robust=config.robust)
    return Search(score_of(fitted, combined), rules, store, targets), combined


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


def _tell(selection: Selection) -> None:
    first, more = selection.selected[:SHOWN], len(selection.selected) - SHOWN
    log.info(
        "%d of %d sources chosen for %s: %s%s", len(selection.selected), selection.n_sources,
        ", ".join(selection.targets), ", ".join(first), f" and {more} more" if more > 0 else "",
    )  # fmt: skip
    if selection.trace:
        log.info("why no others: %s", selection.trace[-1]["stop"]["reason"])


if __name__ == "__main__":
    raise SystemExit(main(select_sources, Config))
