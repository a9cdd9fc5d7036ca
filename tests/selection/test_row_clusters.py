"""Clusters of rows: planted ones are found, in any order, and those of the published clustering."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import store_of
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from gradex.errors import GradexError
from gradex.gradients.across_points import all_points, directions
from gradex.selection import row_clusters
from gradex.selection.row_clusters import agglomerate, by_size, cluster_rows, k_means, share_out

METHODS = {
    "agglomerative": agglomerate,
    "kmeans": lambda rows, count: k_means(partial(blocks, rows), count, seed=0),
}


def blocks(rows, size=64):
    return (rows[i : i + size] for i in range(0, len(rows), size))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(*, sizes=(90, 60, 40, 20, 10), dim=30, noise=0.1, seed=0):
    """Unit rows around random directions, and whose each is."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centres = unit(rng.normal(size=(len(sizes), dim)))
    return unit(centres[truth] + noise * rng.normal(size=(len(truth), dim))), truth


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_found_in_any_order(method, seed):
    rows, truth = planted(seed=seed)
    order = np.random.default_rng(seed).permutation(len(rows))
    labels = METHODS[method](rows, 5)
    assert adjusted_rand_score(truth, labels) == 1
    assert adjusted_rand_score(labels[order], METHODS[method](rows[order], 5)) == 1


def test_rows_without_clusters_are_cut_alike_in_any_order():
    """Also where distances are equal: some rows are there twice."""
    rows = unit(np.random.default_rng(0).normal(size=(80, 6)).round(1))
    rows = np.concatenate([rows, rows[:30]])
    order = np.random.default_rng(1).permutation(len(rows))
    assert adjusted_rand_score(agglomerate(rows, 9)[order], agglomerate(rows[order], 9)) == 1


def test_it_is_the_published_clustering():
    rows = np.random.default_rng(0).normal(size=(120, 8))
    published = AgglomerativeClustering(7, metric="cosine", linkage="average").fit_predict(rows)
    assert adjusted_rand_score(published, agglomerate(unit(rows), 7)) == 1


def test_k_means_learns_what_its_sample_has_not_seen(monkeypatch):
    """The mini-batches move a centre to the mean of its rows, up to those it has seen before."""
    monkeypatch.setattr(row_clusters, "SAMPLE", 20)
    monkeypatch.setattr(row_clusters, "SAMPLE_A_CLUSTER", 1)
    rows, truth = planted(sizes=(300, 200), noise=0.2)
    centres, seen = row_clusters._begin(partial(blocks, rows), 2, 0)
    assert seen.sum() == 20
    for _ in range(50):
        for block in blocks(rows):
            row_clusters._learn(centres, seen, block)
    means = np.stack([rows[truth == label].mean(0) for label in (0, 1)])
    far = np.linalg.norm(centres[:, None] - means[None], axis=2).min(1)
    assert (far < 0.01).all()


def test_equal_rows_make_fewer_clusters_and_no_noise():
    rows = unit(np.repeat(np.eye(4)[:2], 10, axis=0))
    assert len(set(METHODS["kmeans"](rows, 5).tolist())) == 2
    assert len(set(agglomerate(rows, 5).tolist())) == 5


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.randoms())
def test_numbers_go_by_size_and_do_not_depend_on_the_order(labels, random):
    ids = [f"row{i:02d}" for i in range(len(labels))]
    found = by_size(np.array(labels), ids)
    assert adjusted_rand_score(labels, found) == 1
    sizes = np.bincount(found)
    assert (sizes > 0).all() and (np.diff(sizes) <= 0).all()
    order = list(range(len(labels)))
    random.shuffle(order)
    again = by_size(np.array(labels)[order], [ids[i] for i in order])
    assert (again == found[order]).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.data())
def test_clusters_are_shared_out_by_rows(rows, data):
    count = data.draw(st.integers(len(rows), sum(rows)))
    shares = share_out(count, rows)
    assert sum(shares) == count
    assert all(1 <= share <= n for share, n in zip(shares, rows, strict=True))
    by_rows = [share for _, share in sorted(zip(rows, shares, strict=True))]
    assert by_rows == sorted(by_rows), "more rows, no fewer clusters"


def test_rows_of_a_store_are_compared_by_direction_alone(tmp_path):
    """Ten times as long a gradient is the same direction; one of zeros has none."""
    rows, truth = planted()
    lengths = np.random.default_rng(0).uniform(0.1, 10, len(rows))
    stored = (rows * lengths[:, None]).astype(np.float32)
    stored[3] = 0
    store = store_of(tmp_path / "s", {"a": stored}, {"t": stored[:2]})
    points = all_points(store)
    found = np.concatenate([block.vectors for block in directions(points, "a")])
    np.testing.assert_allclose(found, np.delete(rows, 3, axis=0), atol=1e-6)
    for method in ("agglomerative", "kmeans"):
        clusters = cluster_rows(points, "a", 5, method=method, seed=0)
        assert "a3" not in clusters.ids and len(clusters.ids) == len(rows) - 1
        assert adjusted_rand_score(np.delete(truth, 3), clusters.label) == 1
        assert [len(ids) for ids in clusters.rows] == [89, 60, 40, 20, 10]
        assert clusters.mean_loss == pytest.approx([1.5] * 5)


def test_more_clusters_than_rows_and_too_many_pairs_are_refused(tmp_path, monkeypatch):
    rows = np.eye(6, dtype=np.float32)
    rows[0] = 0
    store = store_of(tmp_path / "s", {"a": rows}, {"t": rows[1:]})
    with pytest.raises(GradexError, match="found 6 for the 5 rows of 'a' that have a gradient"):
        cluster_rows([store], "a", 6, method="agglomerative", seed=0)
    monkeypatch.setattr(row_clusters, "MOST_COMPARED", 4)
    with pytest.raises(GradexError, match=r"all pairs of 5 rows.*say --method kmeans"):
        cluster_rows([store], "a", 2, method="agglomerative", seed=0)
