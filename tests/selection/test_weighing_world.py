"""The small linear world of the benchmark: what each way to weigh is good for."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "weighing_world.py"
SEEDS, STEPS = 3, 100
SHOWN = ["uniform", "shortest mixture", "cosine", "balance", "match"]


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(FILE)))


@pytest.fixture(scope="module")
def losses(world) -> dict[str, float]:
    """Mean test losses of weights that are solved anew at every step."""
    worlds = [world.make_world(seed) for seed in range(SEEDS)]

    def mean(train) -> float:
        return float(np.mean([train(one) for one in worlds]))

    found = {"alone": mean(lambda one: world.train_on_target(one, steps=STEPS))}
    for name in SHOWN:
        solve = world.SOLVERS[name]
        found[name] = mean(
            lambda one, solve=solve: world.train(one, world.at_every_step(one, solve), steps=STEPS)
        )
    return found


@pytest.mark.parametrize("name", ["balance", "match"])
def test_weights_that_follow_the_training_find_the_good_sources(losses, name):
    assert losses[name] < 0.3
    assert losses[name] < losses["alone"] / 5 and losses[name] < losses["uniform"] / 5


def test_the_shortest_mixture_of_sources_is_worse_than_none(losses):
    assert losses["shortest mixture"] > losses["uniform"] > losses["cosine"]


@pytest.mark.parametrize("name", ["match", "cosine"])
def test_once_at_the_start_averaged_weights_beat_a_mixture_of_all(world, losses, name):
    worlds = [world.make_world(seed) for seed in range(SEEDS)]
    solve = world.SOLVERS[name]
    weighed = [
        world.train(one, world.once(one, solve, seed=i), steps=STEPS)
        for i, one in enumerate(worlds)
    ]
    assert np.mean(weighed) < losses["uniform"] / 2
