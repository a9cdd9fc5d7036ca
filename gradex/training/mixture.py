"""Which rows a batch is made of: all rows in passes, so many or so many tokens at a time, or every
source by its share of the training.

Batch number i (counted over all ranks) is a function of the seed, i and the shares until then, so
that a training which goes on from a checkpoint, and every rank, draws what one that never stopped
would. By shares w a batch of B rows is a systematic sample (Madow, 1949) of the sources: it takes
the sources that the points (u_i + 0), (u_i + 1), ..., (u_i + B - 1) fall on, where a line of length
B is cut into pieces of length B w. A source then has floor(B w) or ceil(B w) rows in every batch;
the u_i are a Weyl sequence, which spreads the source's odd rows evenly over the batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from gradex.selection.shares import Shares, require_shares

Drawing = Callable[[int], list[int]]  # batch number -> positions of its rows
GOLDEN, WORD = 2_654_435_769, 2**32  # u_i is the fraction of u_0 + i GOLDEN / WORD


def batch_rows(count: int, batch_size: int, index: int, *, seed: int) -> list[int]:
    """The rows of batch `index`: passes over all rows, each in an order of its own."""
    places = range(index * batch_size, (index + 1) * batch_size)
    return [int(_epoch_order(count, place // count, seed)[place % count]) for place in places]


@lru_cache(maxsize=2)
def _epoch_order(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


class TokenBatches:
    """Batch number -> its rows: passes as in `batch_rows`, cut where one row more would pad the
    batch to more than `budget` tokens. A row that is longer than this is a batch of its own.

    Where a batch begins depends on the lengths before it: the ends are found along, once each.
    """

    def __init__(self, lengths: Sequence[int], budget: int, *, seed: int):
        self.lengths, self.budget, self.seed = lengths, budget, seed
        self.starts = [0]

    def __call__(self, index: int) -> list[int]:
        return [self._row(place) for place in self._places(index)]

    def size(self, index: int) -> int:
        return len(self._places(index))

    def _places(self, index: int) -> range:
        while len(self.starts) < index + 2:
            self.starts.append(self._end(self.starts[-1]))
        return range(self.starts[index], self.starts[index + 1])

    def _end(self, start: int) -> int:
        end, longest = start + 1, self._length(start)
        while (end + 1 - start) * (longest := max(longest, self._length(end))) <= self.budget:
            end += 1
        return end

    def _length(self, place: int) -> int:
        return self.lengths[self._row(place)]

    def _row(self, place: int) -> int:
        count = len(self.lengths)
        return int(_epoch_order(count, place // count, self.seed)[place % count])


@dataclass
class Mixture:
    """The rows of each source, and its shares from each step on.

    The examples of the sources lie one source after the other, in the order of `counts`.
    """

    counts: dict[str, int]
    history: list[tuple[int, Shares]] = field(default_factory=list)

    def set_shares(self, step: int, shares: Mapping[str, float]) -> None:
        """From this optimizer step on; no row of it may have been drawn."""
        require_shares(shares, self.counts, where=f"step {step}")
        self.history.append((step, {name: float(shares[name]) for name in self.counts}))

    def shares_at(self, step: int) -> Shares:
        return next(shares for start, shares in reversed(self.history) if start <= step)

    def mean_shares(self, steps: int) -> Shares:
        """What each source's share of so many steps comes to."""
        starts = [min(start, steps) for start, _ in self.history] + [steps]
        spans = np.diff(starts) / steps
        table = np.array([list(shares.values()) for _, shares in self.history])
        return dict(zip(self.counts, (spans @ table).tolist(), strict=True))


def batch_counts(
    weights: Float[np.ndarray, " source"], batch_size: int, index: int, *, seed: int
) -> Int[np.ndarray, " source"]:
    """How many rows of batch `index` each source gives."""
    ends = np.cumsum(weights)
    points = (_offset(seed, index) + np.arange(batch_size)) / batch_size
    # The last end is 1 however the shares were rounded, and every point lies below it.
    owners = np.searchsorted(ends / ends[-1], points, side="right")
    return np.bincount(owners, minlength=len(weights))


def _offset(seed: int, index: int) -> float:
    first = int(np.random.default_rng(seed).integers(WORD))
    return (first + index * GOLDEN) % WORD / WORD


class DrawByShares:
    """Batch number -> its rows. Every source runs through its own rows, pass after pass.

    Where a source stands depends on how many of its rows the batches before took: these are
    counted along, from the first batch on where a training takes up again or looks back.
    """

    def __init__(self, mixture: Mixture, *, batch_size: int, batches_per_step: int, seed: int):
        self.mixture, self.batch_size, self.seed = mixture, batch_size, seed
        self.batches_per_step = batches_per_step
        self.counts = list(mixture.counts.values())
        self.starts = np.cumsum([0, *self.counts])
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # of the pass that a source is in
        self._restart()

    def __call__(self, index: int) -> list[int]:
        if index < self.index:
            self._restart()
        while self.index < index:
            self._pass_over()
        before = self.drawn.tolist()
        self._pass_over()
        spans = map(range, before, self.drawn.tolist())
        return [self._row(source, number) for source, span in enumerate(spans) for number in span]

    def _restart(self) -> None:
        self.index = 0
        self.drawn: Int[np.ndarray, " source"] = np.zeros(len(self.counts), np.int64)

    def _pass_over(self) -> None:
        shares = self.mixture.shares_at(self.index // self.batches_per_step)
        weights = np.array([shares[name] for name in self.mixture.counts])
        self.drawn += batch_counts(weights, self.batch_size, self.index, seed=self.seed)
        self.index += 1

    def _row(self, source: int, number: int) -> int:
        """The position of the row that the source gives as its `number`-th."""
        passes, place = divmod(number, self.counts[source])
        return int(self.starts[source] + self._order(source, passes)[place])

    def _order(self, source: int, passes: int) -> np.ndarray:
        if source not in self._orders or self._orders[source][0] != passes:
            generator = np.random.default_rng([self.seed, passes, source])
            self._orders[source] = passes, generator.permutation(self.counts[source])
        return self._orders[source][1]
