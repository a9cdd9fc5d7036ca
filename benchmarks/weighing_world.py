"""Weights for sources on a small linear world, solved anew at every step or once at the start.

    python benchmarks/weighing_world.py

Six linear regressions are the sources: two of the target's own function, one of its negative, two
of nothing but noise, and one that is right but noisy. Of the target itself 16 rows are known. A
linear model is trained from zero on the mixture; what is told is the target's mean test loss.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gradex.selection import pareto

DIM, ROWS, TARGET_ROWS, TEST_ROWS = 20, 1000, 16, 2000
NOISE, LOUD = 0.5, 4.0
STEPS, STEP_SIZE = 300, 0.05
RESAMPLES, SEEDS = 50, 10
Vector = Float[np.ndarray, " dim"]
Weights = Float[np.ndarray, " source"]
Solver = Callable[[Float[np.ndarray, "source source"], Weights], Weights]


@dataclass(frozen=True)
class Regression:
    """Rows x with their answers y; the loss of a model w is the mean of (x . w - y)^2 / 2."""

    x: Float[np.ndarray, "row dim"]
    y: Float[np.ndarray, " row"]

    def gradient(self, w: Vector) -> Vector:
        return self.x.T @ (self.x @ w - self.y) / len(self.y)

    def squared_error(self, w: Vector) -> float:
        return float(np.mean((self.x @ w - self.y) ** 2))

    def resampled(self, rng: np.random.Generator) -> "Regression":
        rows = rng.integers(len(self.y), size=len(self.y))
        return Regression(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class World:
    sources: list[Regression]  # two good, one negated, two of noise, one noisy copy
    target: Regression
    test: Regression


def make_world(seed: int) -> World:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=DIM)

    def regression(slope: Vector, noise: float, rows: int) -> Regression:
        x = rng.normal(size=(rows, DIM))
        return Regression(x, x @ slope + noise * rng.normal(size=rows))

    kinds = [(truth, NOISE)] * 2 + [(-truth, NOISE)] + [(0 * truth, LOUD)] * 2 + [(truth, LOUD)]
    sources = [regression(slope, noise, ROWS) for slope, noise in kinds]
    target, test = (regression(truth, NOISE, rows) for rows in (TARGET_ROWS, TEST_ROWS))
    return World(sources, target, test)


def products(sources: list[Regression], target: Regression, w: Vector):
    """The sources' inner products with one another and with the target."""
    rows = np.stack([source.gradient(w) for source in sources])
    return rows @ rows.T, rows @ target.gradient(w)


def train(world: World, weigh: Callable[[Vector], Weights], *, steps: int = STEPS) -> float:
    """The test loss after gradient descent on the mixture that `weigh(w)` tells at every step."""
    w = np.zeros(DIM)
    for _ in range(steps):
        shares = weigh(w)
        gradients = [source.gradient(w) for source in world.sources]
        w = w - STEP_SIZE * shares @ np.stack(gradients)
    return world.test.squared_error(w)


def train_on_target(world: World, *, steps: int = STEPS) -> float:
    alone = World([world.target], world.target, world.test)
    return train(alone, lambda w: np.ones(1), steps=steps)


def at_every_step(world: World, solve: Solver) -> Callable[[Vector], Weights]:
    return lambda w: solve(*products(world.sources, world.target, w))


def once(world: World, solve: Solver, *, seed: int) -> Callable[[Vector], Weights]:
    """The mean of the weights of resampled rows, at the start of the training."""
    rng, start = np.random.default_rng(seed), np.zeros(DIM)
    draws = (
        ([source.resampled(rng) for source in world.sources], world.target.resampled(rng))
        for _ in range(RESAMPLES)
    )
    mean = np.mean([solve(*products(*draw, start)) for draw in draws], axis=0)
    return lambda w: mean


SOLVERS: dict[str, Solver] = {
    "uniform": lambda gram, b: np.full(len(b), 1 / len(b)),
    "shortest mixture": lambda gram, b: pareto.min_norm(gram),
    "descent": pareto.descent_weights,
    "cosine": pareto.cosine_weights,
    "balance": pareto.balance_weights,
    "match": pareto.match_weights,
}


def table() -> Iterator[tuple[str, float, float]]:
    """For each way to weigh: its mean test loss, solved at every step and once."""
    worlds = [make_world(seed) for seed in range(SEEDS)]
    alone = float(np.mean([train_on_target(world) for world in worlds]))
    yield "the target's 16 rows alone", alone, float("nan")
    for name, solve in SOLVERS.items():
        anew = [train(world, at_every_step(world, solve)) for world in worlds]
        fixed = [train(world, once(world, solve, seed=i)) for i, world in enumerate(worlds)]
        yield name, float(np.mean(anew)), float(np.mean(fixed))


def main() -> None:
    began = time.monotonic()
    print("| weights | solved at every step | once, mean of 50 resamples |\n|---|---|---|")
    for name, anew, fixed in table():
        print(f"| {name} | {anew:.3f} | {'' if np.isnan(fixed) else f'{fixed:.3f}'} |")
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
