"""True fine-tunes of held-out subsets beside their estimates, on the targets' test rows.

    python -m gradex.verify --num_subsets 8
    python -m gradex.verify --subsets sampled_tasks/mine.txt

Every subset is trained from the base for the same number of optimizer steps. Finished ones are
kept, so that an interrupted verification goes on with the next.
"""

import csv
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradex import runs
from gradex.arguments import (
    EstimatorArguments,
    TrainArguments,
    TrustArguments,
    combined,
    keep,
    require_one_device,
)
from gradex.config import (
    main,
    option,
    require_fraction,
    require_not_negative,
    require_positive,
    with_defaults,
)
from gradex.data.metrics import relative_error, spearman
from gradex.data.sources import Sources
from gradex.data.subsets import Subset, format_subset, read_subsets, sample_subsets
from gradex.errors import GradexError
from gradex.estimators import make_estimator
from gradex.estimators.protocol import Estimates
from gradex.gradients.store import GradientStore, open_store
from gradex.models.encoding import on_best_device
from gradex.progress import progress
from gradex.records import read_json, write_json
from gradex.training.fit import fit
from gradex.training.prepare import (
    load_base_and_encoder,
    load_data,
    require_same_data,
    test_scores,
    training_examples,
)
from gradex.training.recipe import Recipe, make_recipe

MIXED_SIZES = (0.5, 0.25, 0.75)
SUMMARY = ("target", "spearman", "n", "select_spearman")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrainArguments, TrustArguments, EstimatorArguments):
    num_subsets: int = option(8, "random subsets to fine-tune on")
    subset_size: float | None = option(
        None, "their size as a share of the sources; default: a half, a quarter, three quarters"
    )
    subsets: str | None = option(None, "a file of subsets, one a line; default: random ones")
    target: list[str] | None = option(None, "targets to measure; default: all of the store")
    subset_seed: int = option(1, "seed of the random subsets")
    output_dir: str | None = option(None, "the run's folder; default: runs/verify/UTC-TIME")

    def __post_init__(self):
        EstimatorArguments.__post_init__(self)
        TrainArguments.__post_init__(self)
        require_positive(self, "num_subsets")
        require_not_negative(self, "subset_seed")
        require_fraction(self, "subset_size")
        require_one_device(self, "each of these fine-tunes runs on one device")


def verify(config: Config) -> Path:
    """Returns the run folder: verify.json, verify.csv, config.yaml."""
    if config.num_train_epochs is not None:
        raise GradexError(
            "--num_train_epochs: every subset is trained for the same number of steps; say "
            "--max_steps"
        )
    store = open_store(config.store)
    recorded = store.recorded_settings()
    config = replace(config, store=str(store.path))
    config = with_defaults(config, keep(recorded, TrainArguments))
    subsets = _held_out(config, store.sources)
    estimates = _estimates(config, store, subsets, split="test")
    chosen_by = _estimates(config, store, subsets, split="select")
    inputs = (store.fingerprint, store.data_hashes(), [sorted(subset) for subset in subsets])
    with runs.start("verify", config, output_dir=config.output_dir, inputs=inputs) as run:
        trials = _make_trials(combined(recorded, config), store, estimates.targets)
        truth = trials.run(subsets, run.part / "trials", order=store.sources)
        table = [
            _target_table(column, estimates, chosen_by, truth, subsets=subsets, store=store)
            for column in range(truth.shape[1])
        ]
        content = {
            "store": str(store.path),
            "estimator": config.estimator,
            "calibrated": estimates.calibrated,
            "steps": trials.recipe.max_steps,
            "targets": table,
        }
        write_json(run.part / "verify.json", content)
        _write_csv(run.part / "verify.csv", table)
    for entry in table:
        log.info(
            "%s: Spearman %.2f over %d fine-tunes (of estimates from select rows: %.2f)",
            *(entry[key] for key in SUMMARY),
        )
    return run.path


def _estimates(
    config: Config, store: GradientStore, subsets: Sequence[Subset], *, split: str
) -> Estimates:
    """Estimates from one split: the test rows' are held against the truth on the same rows, the
    select rows' are those that a selection goes by."""
    fitted = make_estimator(config)
    return fitted.fit(store, targets=config.target, split=split).predict(subsets)


def _make_trials(
    settings: dict[str, Any], store: GradientStore, targets: Sequence[str]
) -> "_Trials":
    sources = load_data(settings)
    require_same_data(sources, store.data_hashes(), where=str(store.path))
    return _Trials(make_recipe(settings), sources, settings["max_length"], list(targets))


def _held_out(config: Config, names: Sequence[str]) -> list[Subset]:
    if config.subsets:
        return read_subsets(Path(config.subsets), names)
    sizes = [config.subset_size] if config.subset_size else MIXED_SIZES
    return sample_subsets(names, config.num_subsets, sizes=sizes, seed=config.subset_seed)


@dataclass(frozen=True)
class _Trials:
    """True fine-tunes, a folder each; one whose result lies there is not run again."""

    recipe: Recipe
    sources: Sources
    max_length: int
    targets: list[str]

    def run(
        self, subsets: Sequence[Subset], folder: Path, *, order: Sequence[str]
    ) -> Float[np.ndarray, "subset target"]:
        """The test losses after training on each subset."""
        truth = []
        with progress("true fine-tunes", len(subsets), unit="run") as bar:
            for index, subset in enumerate(subsets):
                file = folder / f"{index:04d}" / "result.json"
                if not file.exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    scores = self._train(subset, file.parent)
                    words = format_subset(subset, order)
                    write_json(file, {"subset": words, "scores": scores})
                    shutil.rmtree(file.parent / "checkpoints")
                result = read_json(file, "the result of a true fine-tune", {"scores": dict})
                truth.append([result["scores"][target]["loss"] for target in self.targets])
                bar.update()
        return np.array(truth)

    def _train(self, subset: Subset, folder: Path) -> dict[str, dict[str, float]]:
        base, encoder = load_base_and_encoder(
            self.recipe.base, self.sources, max_length=self.max_length
        )
        names = [name for name in self.sources.trainable if name in subset]
        examples, _ = training_examples(encoder, self.sources, names)
        model, _ = fit(
            self.recipe, base, examples=examples, encoder=encoder, folder=folder, name=folder.name
        )
        model = on_best_device(replace(base, model=model)).model
        return test_scores(model, self.sources, encoder, self.targets)


def _target_table(
    column: int,
    estimates: Estimates,
    chosen_by: Estimates,
    truth: Float[np.ndarray, "subset target"],
    *,
    subsets: Sequence[Subset],
    store: GradientStore,
) -> dict[str, Any]:
    """One target: rank correlation and errors, beside the best constant of the other runs."""
    predicted, true = estimates.value[:, column], truth[:, column]
    points = [
        {"subset": [n for n in store.sources if n in s], "estimate": float(e), "truth": float(t)}
        for s, e, t in zip(subsets, predicted, true, strict=True)
    ]
    return {
        "target": estimates.targets[column],
        "n": len(points),
        "spearman": _spearman(predicted, true),
        "select_spearman": _spearman(chosen_by.value[:, column], true),
        "relative_error": relative_error(predicted.tolist(), true.tolist()),
        "constant_relative_error": relative_error(_mean_of_others(true).tolist(), true.tolist()),
        "points": points,
    }


def _spearman(estimate: np.ndarray, truth: np.ndarray) -> float:
    return spearman(estimate.tolist(), truth.tolist())


def _mean_of_others(values: np.ndarray) -> np.ndarray:
    """For each value the mean of all others: what one would say without any estimate."""
    if len(values) < 2:
        return np.full_like(values, np.nan)
    return (values.sum() - values) / (len(values) - 1)


def _write_csv(path: Path, targets: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["subset", "target", "estimate", "truth"])
        for entry in targets:
            for point in entry["points"]:
                words = format_subset(frozenset(point["subset"]), point["subset"])
                numbers = (point["estimate"], point["truth"])
                table.writerow([words, entry["target"], *(f"{x:.6g}" for x in numbers)])


if __name__ == "__main__":
    raise SystemExit(main(verify, Config))
