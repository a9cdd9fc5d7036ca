"""The rows of a batch: of passes over all, or by shares that hold in each and from any start."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from gradex.training.mixture import (
    DrawByShares,
    Mixture,
    TokenBatches,
    batch_counts,
    batch_rows,
)

COUNTS = {"a": 7, "b": 30, "c": 4}
SHARES = {"a": 0.5, "b": 0.37, "c": 0.13}


def test_each_pass_sees_every_row_once():
    for epoch in range(3):
        rows = [r for i in range(4) for r in batch_rows(12, 3, 4 * epoch + i, seed=1)]
        assert sorted(rows) == list(range(12))


def test_batches_cross_the_end_of_a_pass():
    rows = [r for i in range(5) for r in batch_rows(5, 3, i, seed=0)]
    assert [sorted(rows[5 * i : 5 * i + 5]) for i in range(3)] == [list(range(5))] * 3


def test_the_order_depends_on_seed_and_pass():
    first = [batch_rows(50, 50, i, seed=s) for i, s in ((0, 0), (1, 0), (0, 1))]
    assert first[0] != first[1] and first[0] != first[2]
    assert batch_rows(50, 50, 0, seed=0) == first[0]


def test_a_batch_may_be_larger_than_the_data():
    assert len(batch_rows(3, 8, 0, seed=0)) == 8


def test_the_order_without_shares_stays_what_it_is():
    """Kept results and stores rely on these very rows."""
    assert batch_rows(10, 4, 0, seed=0) == [4, 6, 2, 7]
    assert batch_rows(10, 4, 2, seed=3) == [3, 8, 4, 1]


LENGTHS = np.random.default_rng(0).integers(1, 40, 57).tolist()


def padded(rows):
    return len(rows) * max(LENGTHS[row] for row in rows)


@pytest.mark.parametrize("budget", [1, 25, 100, 10_000])
def test_batches_of_tokens_have_every_row_once_a_pass(budget):
    draw, rows = TokenBatches(LENGTHS, budget, seed=1), []
    while len(rows) < 3 * len(LENGTHS):
        rows += draw(len(draw.starts) - 1)
    passes = [rows[i : i + len(LENGTHS)] for i in range(0, 3 * len(LENGTHS), len(LENGTHS))]
    assert all(sorted(one) == list(range(len(LENGTHS))) for one in passes)
    assert passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize("budget", [25, 64, 100])
def test_batches_of_tokens_are_as_full_as_they_can_be(budget):
    draw = TokenBatches(LENGTHS, budget, seed=2)
    batches = [draw(i) for i in range(60)]
    for batch, following in pairwise(batches):
        assert padded(batch) <= budget or len(batch) == 1
        assert padded([*batch, following[0]]) > budget
    assert any(len(batch) > 1 for batch in batches)


def test_rows_of_one_length_are_drawn_as_by_number():
    draw = TokenBatches([7] * 10, 7 * 4 + 6, seed=3)
    assert [draw(i) for i in range(9)] == [batch_rows(10, 4, i, seed=3) for i in range(9)]


def test_batches_of_tokens_are_the_same_from_any_start_and_across_ranks():
    whole, *two = (TokenBatches(LENGTHS, 80, seed=0) for _ in range(3))
    batches = [whole(index) for index in range(40)]
    for start in (0, 7, 39):
        late = TokenBatches(LENGTHS, 80, seed=0)
        assert late(start) == batches[start] and late(0) == batches[0]
    assert [two[index % 2](index) for index in range(40)] == batches
    assert [whole.size(index) for index in range(40)] == [len(batch) for batch in batches]
    assert batches != [TokenBatches(LENGTHS, 80, seed=1)(index) for index in range(40)]


def draws(*history, counts=COUNTS, batch_size=8, batches_per_step=1, seed=0):
    mixture = Mixture(dict(counts))
    for step, shares in history:
        mixture.set_shares(step, shares)
    return DrawByShares(
        mixture, batch_size=batch_size, batches_per_step=batches_per_step, seed=seed
    )


def owners(rows, counts=COUNTS):
    """Source -> how many of the rows are its."""
    names = np.repeat(list(counts), list(counts.values()))
    return Counter(names[rows])


@pytest.mark.parametrize("batch_size", [1, 3, 8, 32])
@pytest.mark.parametrize("seed", range(3))
def test_every_batch_has_each_source_by_its_share(batch_size, seed):
    weights = np.random.default_rng(seed).dirichlet(np.full(9, 0.4))
    total = np.zeros(9)
    for index in range(200):
        found = batch_counts(weights, batch_size, index, seed=seed)
        assert found.sum() == batch_size
        assert (np.abs(found - batch_size * weights) < 1).all()
        total += found
    # Not only batch by batch: independent draws would be off by about 40 here with 32 rows each.
    assert np.abs(total - 200 * batch_size * weights).max() < 5


def test_a_source_without_a_share_is_never_drawn():
    for weights in ([0.0, 1.0, 0.0], [0.3, 0.0, 0.7], [1 / 3, 2 / 3, 0.0]):
        found = sum(batch_counts(np.array(weights), 8, i, seed=i % 5) for i in range(500))
        assert [n == 0 for n in found] == [w == 0 for w in weights]


def test_a_source_gives_all_its_rows_once_a_pass_in_new_orders():
    draw = draws((0, SHARES))
    drawn = [row for index in range(60) for row in draw(index)]
    start = 0
    for count in COUNTS.values():
        own = [row - start for row in drawn if start <= row < start + count]
        passes = [own[i : i + count] for i in range(0, len(own) - count + 1, count)]
        assert len(passes) > 2 and all(sorted(one) == list(range(count)) for one in passes)
        assert passes[0] != passes[1] or passes[1] != passes[2]
        start += count


def test_batches_are_the_same_from_any_start():
    history = (0, SHARES), (5, {"a": 0.0, "b": 0.2, "c": 0.8}), (9, SHARES)
    whole = draws(*history, batches_per_step=2)
    batches = [whole(index) for index in range(30)]
    for start in (0, 9, 10, 29):
        assert draws(*history, batches_per_step=2)(start) == batches[start]
    assert whole(3) == batches[3] and whole(29) == batches[29]
    assert batches != [draws(*history, batches_per_step=2, seed=1)(i) for i in range(30)]


def test_ranks_draw_the_batches_between_them():
    """Two processes of batches 0, 2, ... and 1, 3, ...: together those of one that draws all."""
    one, *two = (draws((0, SHARES), batches_per_step=2) for _ in range(3))
    for index in range(40):
        assert two[index % 2](index) == one(index)


def test_shares_hold_from_the_first_batch_of_their_step():
    history = (0, {"a": 1.0, "b": 0.0, "c": 0.0}), (3, {"a": 0.0, "b": 0.0, "c": 1.0})
    draw = draws(*history, batches_per_step=2)
    assert [set(owners(draw(i))) for i in range(8)] == [{"a"}] * 6 + [{"c"}] * 2


def test_later_shares_change_no_earlier_batch():
    draw, plain = draws((0, SHARES)), draws((0, SHARES))
    before = [draw(i) for i in range(5)]
    draw.mixture.set_shares(5, {"a": 0.0, "b": 0.0, "c": 1.0})
    assert [draw(i) for i in range(5)] == before == [plain(i) for i in range(5)]
    assert set(owners(draw(5))) == {"c"}


def test_mean_shares_are_those_of_the_steps():
    mixture = Mixture({"a": 1, "b": 1}, [(0, {"a": 1.0, "b": 0.0}), (30, {"a": 0.5, "b": 0.5})])
    assert mixture.mean_shares(40) == pytest.approx({"a": 0.875, "b": 0.125})
    assert mixture.mean_shares(20) == pytest.approx({"a": 1, "b": 0})
