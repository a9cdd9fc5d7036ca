"""Search the subsets for the sources worth training on: selection.json, which finetune reads.

    python -m gradex.select_sources --target sort
    python -m gradex.select_sources --method random_ensemble --num_subsets 2000

The estimates are made on the target's select rows; its test rows are not looked at.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gradex import runs
from gradex.arguments import EstimatorArguments, SubsetArguments
from gradex.config import main, option, require_not_negative, require_positive
from gradex.data.subsets import Subset, find_subsets
from gradex.estimators import estimator_of, with_calibration
from gradex.gradients.store import GradientStore, open_store
from gradex.selection.choice import Choice, make_selection
from gradex.selection.selectors import Score, forward_select, random_ensemble, select_all

SHOWN = 10  # chosen sources that are named on the screen; selection.json has all
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(SubsetArguments, EstimatorArguments):
    method: Literal["forward", "random_ensemble", "all"] = option(
        "forward", "forward: add the best source, step by step; random_ensemble: rank sources by "
        "the subsets that hold them; all: every source, to compare with"
    )  # fmt: skip
    target: str | None = option(None, "the target to choose for; default: the store's first")
    max_sources: int | None = option(None, "at most this many sources (forward); default: no limit")
    min_gain: float = option(
        0.01, "stop at a step that gains less than this share of all gained since the worst source"
    )
    output_dir: str | None = option(None, "the run's folder; default: runs/select_sources/UTC-TIME")

    def __post_init__(self):
        EstimatorArguments.__post_init__(self)
        SubsetArguments.__post_init__(self)
        require_positive(self, "max_sources")
        require_not_negative(self, "min_gain")


def select_sources(config: Config) -> Path:
    """Returns the selection's file."""
    store = open_store(config.store)
    target = store.require_target(config.target)
    resolved = replace(config, store=str(store.path), target=target)
    resolved, calibration = with_calibration(resolved, store)
    with runs.start("select_sources", resolved, output_dir=config.output_dir) as run:
        fitted = estimator_of(resolved, calibration).fit(store, targets=[target])

        def score(subsets: Sequence[Subset]):
            return fitted.predict(subsets).value[:, 0]

        choice = _search(config, score, store)
        selection = make_selection(
            choice, store, method=config.method, targets={target: 1.0},
            calibrated=calibration is not None,
        )  # fmt: skip
        selection.write(run.part / "selection.json")
    first, more = choice.selected[:SHOWN], len(choice.selected) - SHOWN
    log.info(
        "%d of %d sources chosen for %s: %s%s", len(choice.selected), len(store.sources), target,
        ", ".join(first), f" and {more} more" if more > 0 else "",
    )  # fmt: skip
    return run.path / "selection.json"


def _search(config: Config, score: Score, store: GradientStore) -> Choice:
    if config.method == "all":
        return select_all(score, store.sources)
    if config.method == "random_ensemble":
        return random_ensemble(score, store.sources, subsets=_subsets(config, store))
    return forward_select(
        score, store.sources, max_sources=config.max_sources, min_gain=config.min_gain
    )


def _subsets(config: Config, store: GradientStore) -> list[Subset]:
    return find_subsets(
        config.subsets, store.sources, count=config.num_subsets, size=config.subset_size,
        seed=config.seed, store=store.path.name,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(select_sources, Config))
