"""Worlds to measure estimates in: sources, a base model, and true fine-tunes that are kept.

The demo world of seed 0 is the one that is reported; that of seed 1 was looked at while methods
were chosen. True results lie in benchmarks/truth/ with a hash of what made them: rows, recipe and
start. They are made anew where that hash differs, or with --refresh.
"""

import json
import os
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from gradex.arguments import ADDED, DEFAULTS, combined, keep
from gradex.arguments import TrustArguments as Trust
from gradex.config import with_defaults
from gradex.data.demo import write_world
from gradex.data.subsets import Subset, sample_subsets
from gradex.data.true_runs import TrueRun, read_runs
from gradex.gradients.store import GradientStore
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.records import write_text
from gradex.train_arguments import TrialArguments as Trial
from gradex.training.trials import make_trials

TRUTH = Path(__file__).parent.resolve() / "truth"
DIGITS = 6  # of a kept result


@dataclass(frozen=True)
class World:
    """A name, what the meta-training is told, and which sets of held-out subsets there are:
    label -> how many of which share of the sources."""

    name: str
    meta: dict[str, Any]
    held_out: dict[str, tuple[int, tuple[float, ...]]]
    demo_seed: int | None = None
    store: dict[str, Any] = field(default_factory=dict)
    anchor_seeds: int = 5
    most_anchors: int = 16
    twice: int = 16  # subsets that are fine-tuned with a second seed: how sure the truth is


def demo_world(seed: int) -> World:
    """Half-size subsets, smaller and larger ones, single sources, pairs, and all but one."""
    sizes = {
        "half": (40, (0.5,)),
        "quarter, three quarters": (20, (0.25, 0.75)),
        "single": (18, (1 / 18,)),
        "pairs": (14, (2 / 18,)),
        "all but one": (18, (17 / 18,)),
    }
    return World(f"demo-{seed}", {}, sizes, demo_seed=seed, store={"differentiate": "both"})


def text_world(folder: Path, model: str, targets: Sequence[str], *, steps: int) -> World:
    meta = {
        "tasks": [str(folder.resolve())],
        "model_name_or_path": str(Path(model).resolve()),
        "target": list(targets),
        "max_steps": steps,
        "learning_rate": 2e-3,
        "held_out": 0.5,
    }
    sizes = {"half": (30, (0.5,))}
    return World(folder.name, meta, sizes, anchor_seeds=3, most_anchors=8, twice=8)


def add_world_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--demo_seed", type=int, default=0)
    parser.add_argument("--world", help="a folder of sources, instead of the demo's")
    parser.add_argument("--model", help="with --world: the base model")
    parser.add_argument("--target", nargs="+", help="with --world: the targets")
    parser.add_argument("--max_steps", type=int, default=200, help="with --world")
    parser.add_argument("--refresh", action="store_true", help="make the true results anew")


def said_world(said: Namespace) -> World:
    if said.world is None:
        return demo_world(said.demo_seed)
    return text_world(Path(said.world), said.model, said.target, steps=said.max_steps)


@contextmanager
def entered(world: World, folder: Path) -> Iterator[None]:
    """In the world's folder, which keeps its runs and stores; made and meta-trained once."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        if world.demo_seed is not None and not Path("tasks").exists():
            write_world(Path(), seed=world.demo_seed)
        if not Path("runs/meta_train").exists():
            meta_train(MetaConfig(**world.meta))
        yield
    finally:
        os.chdir(before)


def store_of(world: World, **settings: Any) -> GradientStore:
    """The world's gradients, sketched as asked for."""
    return GradientStore.open(project(ProjectConfig(**world.store | settings)))


def held_out_sets(world: World, sources: Sequence[str]) -> dict[str, list[Subset]]:
    """Distinct subsets by label; every set is drawn with a seed of its own."""
    found: dict[str, list[Subset]] = {}
    for seed, (label, (count, sizes)) in enumerate(world.held_out.items(), start=1):
        seen = [subset for subsets in found.values() for subset in subsets]
        found[label] = sample_subsets(sources, count, sizes=sizes, seed=seed, exclude=seen)
    return found


class Truth:
    """True fine-tunes of one world and start. Those that are not kept yet are run."""

    def __init__(self, world: World, store: GradientStore, start: str, *, refresh: bool):
        self.file = TRUTH / f"{world.name}-{start}.json"
        self.store, self.work = store, Path(f"truth-{start}")
        recorded = store.recorded_settings()
        trial = with_defaults(Trial(start=start), keep(recorded, Trial))
        settings = combined(recorded, trial) | keep({}, Trust)
        settings |= {"trust_remote_code": False, "allow_pickle": False}
        self.trials = make_trials(settings, store, list(store.targets), start=start)
        self.recipe = _recipe(settings, store, start)
        self.known = {} if refresh else self._read()
        if refresh:
            shutil.rmtree(self.work, ignore_errors=True)

    def _read(self) -> dict[tuple[Subset, int], TrueRun]:
        if not self.file.exists():
            return {}
        runs, recipe = read_runs(self.file)
        return {(run.subset, run.seed): run for run in runs} if recipe == self.recipe else {}

    def of(self, subsets: Sequence[Subset], *, seed: int = 0) -> list[TrueRun]:
        missing = [subset for subset in subsets if (subset, seed) not in self.known]
        if missing:
            made = self.trials.run(missing, self.work, order=self.store.sources, seeds=[seed])
            self.known |= {(run.subset, run.seed): _rounded(run) for run in made}
            self._keep()
        return [self.known[subset, seed] for subset in subsets]

    def _keep(self) -> None:
        """As `true_runs` reads it, but a line a run: small, and a change shows where it is."""
        lines = ",\n".join(json.dumps(run.record()) for run in self.known.values())
        TRUTH.mkdir(exist_ok=True)
        write_text(self.file, f'{{"recipe": "{self.recipe}", "runs": [\n{lines}\n]}}\n')


def _recipe(settings: dict[str, Any], store: GradientStore, start: str) -> str:
    """Of what decides a result on any machine: weights that differ in a last bit, or a folder
    that lies elsewhere, do not, nor flags that are not given or were added since and say nothing
    new."""
    places = ("tasks", "model_name_or_path", "seed")
    silent = {name: DEFAULTS[name] for name in ADDED}
    fixed = {
        key: value
        for key, value in settings.items()
        if key not in places and value not in (None, silent.get(key))
    }
    model = store.space["model"]
    text = repr((sorted(fixed.items(), key=str), sorted(store.data_hashes().items()), model, start))
    return xxhash.xxh3_128_hexdigest(text.encode())


def _rounded(run: TrueRun) -> TrueRun:
    scores = {
        target: {
            split: {metric: round(value, DIGITS) for metric, value in by_metric.items()}
            for split, by_metric in by_split.items()
        }
        for target, by_split in run.scores.items()
    }
    return TrueRun(run.subset, run.seed, scores)
