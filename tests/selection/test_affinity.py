"""Groups of sources: planted ones are found, whatever the scales; pairs as a slow loop has them."""

from itertools import chain

import numpy as np
import pytest

from gradex.data.subsets import membership, sample_subsets
from gradex.errors import GradexError
from gradex.selection.affinity import affinity, group_sources

GROUPS = [["a", "d", "g"], ["b", "e", "h", "i"], ["c", "f"]]
NAMES = sorted(name for group in GROUPS for name in group)


def random_member(count: int = 400, size: float = 0.5, names=NAMES):
    return membership(sample_subsets(names, count, sizes=[size], seed=0), names)


def planted_effects(*, own: float = 10.0) -> np.ndarray:
    """Every source is a target: it helps itself most, then its group, and hurts all others."""
    group_of = {name: number for number, group in enumerate(GROUPS) for name in group}
    alike = np.array([[group_of[s] == group_of[t] for t in NAMES] for s in NAMES])
    return np.where(np.eye(len(NAMES)), -own, np.where(alike, -1.0, 0.5))


def test_pairs_are_means_over_the_subsets_that_hold_both():
    member = random_member(30)
    value = np.random.default_rng(0).normal(size=(30, 1))
    found = affinity(member, value, NAMES)
    pairs = {}
    for i in range(len(NAMES)):
        for j in range(i, len(NAMES)):
            holding = [row for row in range(30) if member[row, i] and member[row, j]]
            pairs[i, j] = np.mean(value[holding, 0])
    ranked = sorted(pairs, key=pairs.get)
    for rank, (i, j) in enumerate(ranked):
        expected = 2 * rank / (len(ranked) - 1) - 1
        assert found.together[i, j] == found.together[j, i] == pytest.approx(expected)
    rows = found.together
    for i in range(len(NAMES)):
        for j in range(len(NAMES)):
            far = np.sqrt(np.mean((rows[i] - rows[j]) ** 2))
            assert found.distance[i, j] == pytest.approx(far, abs=1e-7)


@pytest.mark.parametrize("own", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("count", [None, 3])
def test_planted_groups_are_found(own, count):
    """Though each source moves its own target most, and targets differ in scale."""
    member = random_member()
    value = member @ planted_effects(own=own)
    value += np.random.default_rng(0).normal(size=value.shape) * 0.2
    value = value * np.logspace(-3, 3, len(NAMES)) + 7
    assert group_sources(affinity(member, value, NAMES), count) == GROUPS


def test_planted_groups_are_found_where_sources_are_no_targets():
    """Two targets, of which each is helped by one group and hurt by another."""
    effects = np.array([[-1.0, 1.0] if n in GROUPS[0] else [1.0, -1.0] for n in NAMES])
    effects[[NAMES.index(name) for name in GROUPS[2]]] = 0.0
    member = random_member()
    found = affinity(member, member @ effects, NAMES)
    assert group_sources(found, 3) == GROUPS


def test_groups_do_not_depend_on_the_order_of_the_sources():
    member = random_member()
    value = member @ planted_effects()
    order = np.random.default_rng(0).permutation(len(NAMES))
    names = [NAMES[i] for i in order]
    found = group_sources(affinity(member[:, order], value, names), 3)
    assert sorted(map(sorted, found)) == GROUPS


def test_every_number_of_groups_can_be_had():
    member = random_member()
    found = affinity(member, member @ planted_effects(), NAMES)
    for count in range(1, len(NAMES) + 1):
        groups = group_sources(found, count)
        assert len(groups) == count and sorted(chain(*groups)) == NAMES
    for count in (0, len(NAMES) + 1):
        with pytest.raises(GradexError, match=f"--num_groups: found {count}, expected.* 1 to .* 9"):
            group_sources(found, count)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_few_sources(total):
    names = NAMES[:total]
    member = np.concatenate([np.ones((1, total)), np.eye(total)])
    groups = group_sources(affinity(member, member @ np.eye(total), names))
    assert sorted(chain(*groups)) == names and len(groups) == max(1, min(total, 2))


def test_pairs_that_no_subset_holds_are_named():
    member = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0.0]])
    with pytest.raises(GradexError, match="a and c are together in none of the 3 subsets"):
        affinity(member, np.ones((3, 1)), ["a", "b", "c"])
