"""Rows ranked by influence: as a slow loop has it, planted helpers first, in any order."""

import numpy as np
import pytest
from planted import store_of

from gradex.adapters.points import point_folder
from gradex.errors import GradexError
from gradex.gradients.store import GradientStore
from gradex.selection.row_ranking import best_rows, rank_rows, score_rows

DIM = 12


def random_rows(count: int, seed: int):
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


@pytest.fixture
def store(tmp_path) -> GradientStore:
    sources = {name: random_rows(20, seed) for seed, name in enumerate(("a", "b/c"))}
    targets = {name: random_rows(5, seed + 9) for seed, name in enumerate(("t", "u"))}
    return store_of(tmp_path / "store", sources, targets)


def cosine(a, b) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def slow(store, targets: dict[str, float], source: str) -> list[float]:
    """The formula, a row and a target at a time."""
    scores = []
    for row in store.source(source).gradients:
        score = 0.0
        for name, weight in targets.items():
            rows = store.target(name, "select").gradients.astype(np.float64)
            norms = np.linalg.norm(rows, axis=1)
            soft = [g / (n + np.median(norms)) for g, n in zip(rows, norms, strict=True)]
            score += weight * cosine(row, np.mean(soft, axis=0))
        scores.append(score / sum(targets.values()))
    return scores


def test_scores_are_those_of_a_slow_loop(store):
    targets = {"t": 3.0, "u": 1.0}
    found = score_rows(store, targets)
    for number, name in enumerate(store.sources):
        mine = found.score[found.source == number]
        np.testing.assert_allclose(mine, slow(store, targets, name), atol=1e-6)


def test_points_weigh_the_same(store, tmp_path):
    """A second point with other gradients of the same rows: the mean of the two scores."""
    alone = score_rows(store, {"t": 1.0})
    sources = {name: random_rows(20, seed + 50) for seed, name in enumerate(store.sources)}
    targets = {name: 100 * random_rows(5, seed + 60) for seed, name in enumerate(store.targets)}
    point = store_of(point_folder(store.path, 5), sources, targets)
    other = score_rows(point, {"t": 1.0})
    both = score_rows(GradientStore.open(store.path), {"t": 1.0})
    np.testing.assert_allclose(both.score, (alone.score + other.score) / 2, atol=1e-12)


def test_planted_helpers_come_first_however_short(tmp_path):
    way = np.eye(DIM, dtype=np.float32)[0]
    rows = random_rows(40, 1)
    rows[:, 0] = -np.abs(rows[:, 0])
    rows[[3, 17, 30]] = 0.01 * way + 0.001 * random_rows(3, 2)
    store = store_of(tmp_path / "s", {"a": rows[:20], "b": rows[20:]}, {"t": np.stack([way, way])})
    choice = rank_rows(store, {"t": 1.0}, top=3.0)
    assert {name: sorted(ids) for name, ids in choice.rows.items()} == {
        "a": ["a17", "a3"], "b": ["b10"],
    }  # fmt: skip
    assert sorted(choice.selected) == ["a", "b"] and choice.scores == {"a": 2.0, "b": 1.0}
    assert choice.value < -0.9
    assert {step["added"]: (step["rows"], step["of"]) for step in choice.trace} == {
        "a": (2, 20), "b": (1, 20),
    }  # fmt: skip


def test_a_share_is_of_all_rows_and_a_source_without_chosen_rows_is_not_selected(store):
    scores = score_rows(store, {"t": 1.0})
    choice = best_rows(scores, top=0.1)
    assert sum(len(ids) for ids in choice.rows.values()) == 4
    ranked = scores.best(4)
    assert [score for *_, score in ranked] == sorted(scores.score, reverse=True)[:4]
    assert {(name, row) for name, row, _ in ranked} == {
        (name, row) for name, ids in choice.rows.items() for row in ids
    }
    only = rank_rows(store, {"t": 1.0}, top=1.0)
    (name,) = only.selected
    assert only.rows == {name: [ranked[0][1]]} and only.scores[name] == 1
    assert rank_rows(store, {"t": 1.0}, top=0.5, sources=["a"]).selected == ["a"]


@pytest.mark.parametrize("top", [0.0, -1.0, 41.0, 2.5, float("nan")])
def test_shares_that_are_none_are_refused(store, top):
    with pytest.raises(GradexError, match=r"--top: found .* of the 40 rows"):
        rank_rows(store, {"t": 1.0}, top=top)


def test_a_target_whose_rows_cancel_out_is_refused(tmp_path):
    row = random_rows(1, 0)
    store = store_of(tmp_path / "s", {"a": random_rows(4, 1)}, {"t": np.concatenate([row, -row])})
    with pytest.raises(GradexError, match="target 't' have no gradient in common"):
        rank_rows(store, {"t": 1.0}, top=1.0)
    with pytest.raises(GradexError, match="unknown target 'x'"):
        rank_rows(store, {"x": 1.0}, top=1.0)
