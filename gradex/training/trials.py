"""True fine-tunes of subsets: what estimates are calibrated on and held against.

Each is kept in a folder named after all that decides its result. Whatever list of subsets is asked
for, in whatever order and by whichever stage, a finished one is not trained again, and one that
broke off goes on from its checkpoint.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import xxhash

from gradex import runs
from gradex.adapters import folder as adapters
from gradex.data.recorded import load_data, require_same_data
from gradex.data.sources import Sources
from gradex.data.subsets import Subset
from gradex.data.tokens import Encoder, Example
from gradex.data.true_runs import Scores, TrueRun, require_sound
from gradex.errors import GradexError, unknown
from gradex.gradients.meta_training import meta_training_of
from gradex.gradients.store import GradientStore
from gradex.models.encoding import on_best_device
from gradex.progress import progress
from gradex.records import read_json, write_json
from gradex.training.begin import Start, start_examples
from gradex.training.fit import fit
from gradex.training.prepare import load_base_and_encoder, split_scores, training_examples
from gradex.training.recipe import Recipe, make_recipe

RESULT = "the result of a true fine-tune"
# What does not change a result: where it is trained, and what its base may do when it is loaded.
WITHOUT_EFFECT = ("devices", "num_nodes", "strategy", "trust_remote_code", "allow_pickle")
ADAPTER_FLAGS = (
    "adapter", "adapter_args", "peft_config", "lora_r", "lora_alpha", "lora_dropout",
    "lora_target_modules",
)  # fmt: skip
ExamplesOf = Callable[[Encoder, Sequence[str]], list[Example]]
log = logging.getLogger(__name__)


def recipe_hash(
    recipe: Recipe,
    sources: Sources,
    *,
    max_length: int,
    start: Path | None = None,
) -> str:
    """Of all that decides a true fine-tune's result beside its subset and seed."""
    trained = asdict(recipe)
    base = trained.pop("base")
    fixed = {key: value for key, value in (base | trained).items() if key not in WITHOUT_EFFECT}
    del fixed["seed"]
    if start is not None:
        fixed["adapter"] = adapters.fingerprint(start)
    fixed |= {
        "max_length": max_length,
        "data": sources.data_hashes(),
        "targets": {name: sources[name].metric for name in sorted(sources.targets)},
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(fixed, sort_keys=True).encode())


@dataclass(frozen=True)
class Trials:
    """How subsets are trained on and measured. Training starts from the adapter in the folder
    `start`, with a fresh optimizer; from a fresh adapter on the base where that is None."""

    recipe: Recipe
    sources: Sources
    max_length: int
    targets: list[str]
    start: Path | None = None

    @property
    def recipe_hash(self) -> str:
        return recipe_hash(self.recipe, self.sources, max_length=self.max_length, start=self.start)

    def require_metric(self, metric: str) -> None:
        """Refuse one that no fine-tune will have; whether rows have classes shows in training."""
        for target in self.targets:
            known = {"loss", "accuracy", self.sources[target].metric}
            if metric not in known:
                raise GradexError(
                    f"--metric {metric}: '{target}' is not measured by it; expected one of "
                    f"{', '.join(sorted(known))}"
                )

    def run(
        self,
        subsets: Sequence[Subset],
        folder: Path,
        *,
        order: Sequence[str],
        seeds: Sequence[int] | None = None,
    ) -> list[TrueRun]:
        """Every subset with each of the seeds (the recipe's own where none are given), subset by
        subset. `order` is that of the names in a kept result."""
        for name in sorted(frozenset().union(*subsets) - set(self.sources.trainable)):
            raise unknown("source", name, self.sources.trainable)
        recipe, examples_of = self.recipe_hash, _remembering(self.sources)
        wanted = [(s, seed) for s in subsets for seed in seeds or [self.recipe.seed]]
        done = []
        with progress("true fine-tunes", len(wanted), unit="run") as bar:
            for subset, seed in wanted:
                place = folder / _name(recipe, subset, seed)
                run = self._finished(place / "result.json", subset, seed)
                if run is None:
                    place.mkdir(parents=True, exist_ok=True)
                    with runs.locked(place):
                        run = TrueRun(subset, seed, self._train(subset, seed, place, examples_of))
                        _keep(place / "result.json", run, order, recipe=recipe)
                shutil.rmtree(place / "checkpoints", ignore_errors=True)
                done.append(run)
                bar.update()
        return done

    def _finished(self, file: Path, subset: Subset, seed: int) -> TrueRun | None:
        """The result that is kept in a file; one that is damaged, of another run or without a
        target that is asked for does not count."""
        if not file.exists():
            return None
        try:
            record = read_json(file, RESULT, {"recipe": str})
            run = TrueRun.of(record, where=str(file), what=RESULT)
        except GradexError as error:
            log.warning("%s; this fine-tune is done again", error)
            return None
        if (record["recipe"], run.subset, run.seed) != (self.recipe_hash, subset, seed):
            log.warning("%s: of another fine-tune than its folder; this one is done again", file)
            return None
        return run if set(self.targets) <= set(run.scores) else None

    def _train(self, subset: Subset, seed: int, place: Path, examples_of: ExamplesOf) -> Scores:
        base, encoder = load_base_and_encoder(
            self.recipe.base, self.sources, max_length=self.max_length
        )
        model, _ = fit(
            replace(self.recipe, seed=seed),
            base,
            examples=examples_of(encoder, [n for n in self.sources.trainable if n in subset]),
            encoder=encoder,
            folder=place,
            name="fine-tune",
            start=Start(
                self.start, rows=start_examples(self.recipe.start_source, encoder, self.sources)
            ),
        )
        model = on_best_device(replace(base, model=model)).model
        scores = split_scores(model, self.sources, encoder, self.targets)
        require_sound(scores, where=str(place), what=RESULT)
        return scores


def make_trials(
    settings: dict[str, Any],
    store: GradientStore,
    targets: Sequence[str],
    *,
    start: Literal["base", "meta"],
) -> Trials:
    """Fine-tunes as the settings say, on the very rows of the store, from the base or from the
    adapter that the store's gradients were taken at."""
    sources = load_data(settings)
    require_same_data(sources, store.data_hashes(), where=str(store.path))
    folder = None
    if start == "meta":
        _require_same_adapter(settings, store)
        folder = meta_training_of(store, otherwise="say --start base").adapter
    recipe = make_recipe(settings, is_new=folder is None)
    return Trials(recipe, sources, settings["max_length"], list(targets), folder)


def _require_same_adapter(settings: dict[str, Any], store: GradientStore) -> None:
    """An adapter that is gone on from has its shape already."""
    recorded = store.recorded_settings()
    for name in ADAPTER_FLAGS:
        if settings[name] != recorded[name]:
            raise GradexError(
                f"--{name}: found {settings[name]}, but --start meta goes on from an adapter with "
                f"{recorded[name]}; leave the flag out, or say --start base"
            )


def _remembering(sources: Sources) -> ExamplesOf:
    """Training examples of sources by name, each source encoded once however many runs ask."""
    known: dict[str, list[Example]] = {}

    def examples_of(encoder: Encoder, names: Sequence[str]) -> list[Example]:
        for name in names:
            if name not in known:
                known[name], _ = training_examples(encoder, sources, [name])
        return [example for name in names for example in known[name]]

    return examples_of


def _name(recipe: str, subset: Subset, seed: int) -> str:
    key = json.dumps([recipe, sorted(subset), seed])
    return xxhash.xxh3_128_hexdigest(key.encode())


def _keep(file: Path, run: TrueRun, order: Sequence[str], *, recipe: str) -> None:
    names = [name for name in order if name in run.subset]
    write_json(file, {"recipe": recipe} | run.record() | {"subset": names})
