"""What true fine-tuning gives on the sources that each method chooses, and what choosing costs.

    python benchmarks/selection_quality.py
    python benchmarks/selection_quality.py --demo_seed 1 --seeds 0
    python benchmarks/selection_quality.py --world DIR --model MODEL --target A B C D --seeds 0

Every method chooses for one target, from its select rows. Its choice is fine-tuned on from the
base, once for every seed, and measured on the target's test rows; no true run is seen but by what
says "anchors". Regret is counted from the best of 60 random subsets of a quarter, a half and three
quarters of the sources, as their test losses tell it. The second round leaves out the target's own
source, as where a target has rows to be measured by and none to train on: in the demo, one seed.

True results are read from benchmarks/truth/; what is not there is fine-tuned.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
from estimate_quality import Row, number, say
from quality_worlds import (
    Truth,
    World,
    add_world_flags,
    entered,
    held_out_sets,
    said_world,
    store_of,
)

from gradex.arguments import AnchorArguments, EstimatorArguments
from gradex.data.subsets import Subset, sample_subsets
from gradex.data.tokens import encode_all
from gradex.data.true_runs import scores_of
from gradex.estimators import make_calibrated, make_estimator
from gradex.estimators.gains import GainInterval, gain_interval
from gradex.estimators.protocol import Estimator
from gradex.gradients.store import GradientStore
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.selection.choice import Choice
from gradex.selection.selectors import (
    backward_select,
    forward_select,
    random_ensemble,
    surrogate_select,
    swap_select,
    top_select,
)
from gradex.training.anchors import pick_anchors
from gradex.training.prepare import load_base_and_encoder, training_examples

SUBSETS = 1000  # random ones, of the ensemble and in the comparison of costs
DRAWN = 10  # random choices, of which the mean is told
ANCHORS = 8
TIMED = 5  # fine-tunes
CALIBRATED = "linear, 8 anchors"
TOP = ("cosine", "ngram", "representation")
FORWARD = "**forward**"


@dataclass(frozen=True)
class Case:
    """One choice to make: for a target, among these sources, by these fitted estimators."""

    store: GradientStore
    target: str
    names: list[str]
    fitted: Mapping[str, Estimator]

    def score(self, subsets: Sequence[Subset], *, by: str = "linear") -> np.ndarray:
        return self.fitted[by].predict(subsets).value[:, 0]

    @property
    def gains(self) -> GainInterval | None:
        return gain_interval(self.fitted["linear"], self.store, [self.target])

    @property
    def halves(self) -> list[Subset]:
        return sample_subsets(self.names, SUBSETS, sizes=[0.5], seed=0)


def _forward(case: Case) -> Choice:
    return forward_select(case.score, case.names)


METHODS: dict[str, Callable[[Case], Choice]] = {
    FORWARD: _forward,
    "**random ensemble**": lambda c: random_ensemble(c.score, c.names, subsets=c.halves),
    "forward, only sure": lambda c: forward_select(c.score, c.names, gain_interval=c.gains),
    "backward": lambda c: backward_select(c.score, c.names),
    "swap": lambda c: swap_select(c.score, c.names, start=_forward(c).selected),
    "surrogate": lambda c: surrogate_select(c.score, c.names, subsets=c.halves),
    f"forward, {ANCHORS} anchors": lambda c: forward_select(
        partial(c.score, by=CALIBRATED), c.names
    ),
}
Choices = Mapping[str, list[Subset]]  # method -> its choice, or random ones


def main() -> None:
    said = _arguments()
    logging.disable(logging.WARNING)
    world = said_world(said)
    with entered(world, Path(said.work).resolve() / world.name):
        store = store_of(world, project_dim=100, features=True)
        truth = Truth(world, store, "base", refresh=said.refresh)
        sets = held_out_sets(world, store.sources)
        pool = [s for label in ("half", "quarter, three quarters") for s in sets.get(label, [])]
        rounds = [(True, "Every source", said.seeds)]
        if world.demo_seed is not None:
            rounds.append((False, "Every source but the target's own", said.seeds[:1]))
        for own, which, seeds in rounds:
            cases = [_case(store, truth, target, own=own) for target in store.targets]
            choices = {case.target: _choices(case, sets["half"]) for case in cases}
            losses = {
                case.target: _losses(choices[case.target], case, truth, seeds, pool)
                for case in cases
            }
            say(f"{which} can be chosen", _means(losses, choices))
            say("The same by target: test losses", _by_target(losses))
            say("The choices", _chosen(choices))
        say(f"Choosing among {SUBSETS:,} subsets", _costs(world, store, truth))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_world_flags(parser)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of fine-tuning")
    parser.add_argument("--work", default="runs/selection_quality", help="where gradients are kept")
    return parser.parse_args()


def _case(store: GradientStore, truth: Truth, target: str, *, own: bool) -> Case:
    """The estimators are those of all sources in both rounds; what differs is what is asked."""
    estimating = EstimatorArguments()
    picked = pick_anchors(estimating, AnchorArguments(), store, store.targets, count=ANCHORS)
    made: dict[str, Estimator] = {
        name: make_estimator(EstimatorArguments(estimator=name)) for name in ("linear", *TOP)
    }
    made[CALIBRATED] = make_calibrated(estimating, truth.of(picked))
    fitted = {name: one.fit(store, targets=[target]) for name, one in made.items()}
    names = [name for name in store.sources if own or name != target]
    return Case(store, target, names, fitted)


def _choices(case: Case, halves: Sequence[Subset]) -> Choices:
    """By method; the random ones are halves that are known. The cheap rankings are cut where
    forward selection stops, and at a quarter."""
    found = {name: [frozenset(choose(case).selected)] for name, choose in METHODS.items()}
    few = len(found[FORWARD][0])
    for name in TOP:
        single = case.score([frozenset([source]) for source in case.names], by=name)
        ranking = dict(zip(case.names, single.tolist(), strict=True))
        for label, count in (("forward's size", few), ("a quarter", round(len(case.names) / 4))):
            choice = top_select(case.score, case.names, ranking=ranking, top_k=count)
            found[f"{name} top-k, {label}"] = [frozenset(choice.selected)]
    found["all"] = [frozenset(case.names)]
    found[f"random half (mean of {DRAWN})"] = [s for s in halves if s.issubset(case.names)][:DRAWN]
    return found


Losses = Mapping[str, np.ndarray]  # method -> test loss by seed, random ones averaged
BEST = "best of 60 random subsets"


def _losses(
    choices: Choices, case: Case, truth: Truth, seeds: Sequence[int], pool: Sequence[Subset]
) -> Losses:
    """The true test losses of a target's choices, and of the best subset of the pool."""

    def tested(subsets: Sequence[Subset], seed: int) -> np.ndarray:
        runs = truth.of(subsets, seed=seed)
        return scores_of(runs, [case.target], split="test")[:, 0]

    losses = {
        # Of several, which are random, each is fine-tuned with one of the seeds.
        method: np.array([tested(_part(found, i, seeds), s).mean() for i, s in enumerate(seeds)])
        for method, found in choices.items()
    }
    possible = [subset for subset in pool if subset.issubset(case.names)]
    return losses | {BEST: np.array([tested(possible, seed).min() for seed in seeds])}


def _part(subsets: Sequence[Subset], index: int, seeds: Sequence[int]) -> Sequence[Subset]:
    return subsets if len(subsets) == 1 else subsets[index :: len(seeds)]


def _means(losses: Mapping[str, Losses], choices: Mapping[str, Choices]) -> list[Row]:
    """Over targets and seeds; the spread is that of the seeds."""
    rows = [("method", ["test loss", "regret", "sources", "with wrong answers"])]
    for method in next(iter(losses.values())):
        by_target = np.stack([found[method] for found in losses.values()])
        regret = by_target - np.stack([found[BEST] for found in losses.values()])
        by_seed = by_target.mean(0)
        chosen = [subset for found in choices.values() for subset in found.get(method, ())]
        loss = f"{number(by_seed.mean())} ± {number(by_seed.std())}"
        rows.append((method, [loss, number(regret.mean()), *_counted(chosen)]))
    return rows


def _counted(chosen: Sequence[Subset]) -> list[str]:
    """Sources in a choice, and those of them with wrong answers, on average."""
    if not chosen:
        return ["", ""]
    wrong = [sum(name.startswith("wrong_") for name in subset) for subset in chosen]
    return [f"{np.mean([len(subset) for subset in chosen]):.1f}", f"{np.mean(wrong):.1f}"]


def _by_target(losses: Mapping[str, Losses]) -> list[Row]:
    rows = [("method", list(losses))]
    for method in next(iter(losses.values())):
        rows.append((method, [number(found[method].mean()) for found in losses.values()]))
    return rows


def _chosen(choices: Mapping[str, Choices]) -> list[Row]:
    """What was chosen by those that choose one subset."""
    rows = [("method", list(choices))]
    for method in METHODS:
        rows.append((method, [", ".join(sorted(found[method][0])) for found in choices.values()]))
    return rows


def _costs(world: World, store: GradientStore, truth: Truth) -> list[Row]:
    """Tokens that go forward and backward, and seconds on this machine: training on every subset,
    against one meta-training, the gradients at every point, and the estimates."""
    recipe, sources = truth.trials.recipe, truth.trials.sources
    _, encoder = load_base_and_encoder(recipe.base, sources, max_length=truth.trials.max_length)
    lengths = [e.length for e in training_examples(encoder, sources, store.sources)[0]]
    held_out = [
        row for t in store.targets for s in ("select", "test") for row in sources[t].rows[s]
    ]
    measured = sum(example.length for example in encode_all(encoder, held_out)[0])
    tune = recipe.max_steps * recipe.batch_size * recipe.accumulate * float(np.mean(lengths))
    gradients = (1 + len(store.points())) * (sum(lengths) + measured)
    tokens = {"train": SUBSETS * tune, "select": tune + gradients, "anchors": ANCHORS * tune}
    seconds = _seconds(world, truth, store)
    rows = [("", ["million tokens", "ratio", "processor seconds", "ratio"])]
    parts = {
        f"fine-tuning on each of {SUBSETS:,}": ("train",),
        "meta-training, gradients, estimates": ("select",),
        f"the same and {ANCHORS} anchors": ("select", "anchors"),
    }
    for label, names in parts.items():
        cells = []
        for costs, form in ((tokens, lambda x: f"{x / 1e6:.2f}"), (seconds, lambda x: f"{x:,.0f}")):
            cost = sum(costs[name] for name in names)
            cells += [form(cost), f"{costs['train'] / cost:.0f}"]
        rows.append((label, cells))
    return rows


def _seconds(world: World, truth: Truth, store: GradientStore) -> dict[str, float]:
    """Of the processor, one thread, all timed now: a meta-training, the gradients at its points,
    the estimates; and a few fine-tunes."""
    subsets = sample_subsets(store.sources, SUBSETS, sizes=[0.5], seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = process_time()
        meta = meta_train(MetaConfig(**world.meta, output_dir=str(folder / "meta")))
        made = ProjectConfig(meta_dir=str(meta), project_dim=100, output_dir=str(folder / "store"))
        own = GradientStore.open(project(made))
        make_estimator(EstimatorArguments()).fit(own).predict(subsets)
        selected = process_time() - begun
        begun = process_time()
        truth.trials.run(subsets[:TIMED], folder / "trials", order=store.sources)
        tune = (process_time() - begun) / TIMED
    return {"train": SUBSETS * tune, "select": selected, "anchors": ANCHORS * tune}


if __name__ == "__main__":
    main()
