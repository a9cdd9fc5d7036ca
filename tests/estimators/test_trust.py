"""The trust radius: closed forms on a quadratic loss, planted errors, which measurement counts."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gradex.errors import GradexError
from gradex.estimators.trust import (
    Changes,
    changes_along,
    errors,
    find_trust,
    mean_gradients,
    outside,
    pooled_errors,
    trust_radius,
)
from gradex.records import write_json

DISTANCES = [0.01, 0.1, 1.0]


def quadratic(curvature: float):
    """L(w) = 2 + g w + curvature |w|^2 / 2, and g."""
    g = torch.tensor([1.0, -2.0, 0.5])

    def losses(w: torch.Tensor) -> np.ndarray:
        w = w.double()
        return np.array([2 + float(g.double() @ w) + curvature * float(w @ w) / 2])

    return g, losses


def changes_of(curvature: float, direction: torch.Tensor) -> Changes:
    g, losses = quadratic(curvature)
    slope = np.array([float(g @ direction)])
    rest = losses(torch.zeros(3))
    return changes_along(direction, slope, losses, at_rest=rest, distances=DISTANCES)


def test_a_linear_loss_has_no_error_at_any_distance():
    found = errors([changes_of(0.0, 7 * torch.eye(3)[axis]) for axis in range(3)])
    assert (found < 1e-6).all()
    assert trust_radius(DISTANCES, found[:, 0], limit=1e-3) == 1.0


def test_the_error_of_a_quadratic_loss_grows_with_the_distance():
    """Along g the change is |g| d + c d^2/2, and first order lacks the second term."""
    g, _ = quadratic(0.0)
    found = errors([changes_of(0.4, 3 * g)])[:, 0]
    d, slope = np.array(DISTANCES), float(g.norm())
    np.testing.assert_allclose(found, 0.2 * d**2 / (slope * d + 0.2 * d**2), rtol=1e-4)


def test_the_length_of_a_direction_does_not_matter():
    w = torch.tensor([1.0, 2.0, 3.0])
    long, short = changes_of(0.4, 100 * w), changes_of(0.4, w)
    np.testing.assert_allclose(long.real, short.real, rtol=1e-5)
    np.testing.assert_allclose(long.predicted, short.predicted, rtol=1e-5)


def test_a_direction_that_leads_nowhere_is_refused():
    with pytest.raises(GradexError, match="leads nowhere"):
        changes_of(1.0, torch.zeros(3))


def planted() -> list[Changes]:
    """Two directions, one distance, two targets: errors of (1 + 1) / 4 and 0 / 20."""
    one = Changes(np.array([[2.0, 5.0]]), np.array([[1.0, 5.0]]))
    other = Changes(np.array([[-2.0, 15.0]]), np.array([[-3.0, 15.0]]))
    return [one, other]


def test_errors_are_pooled_over_directions_and_targets():
    np.testing.assert_allclose(errors(planted()), [[0.5, 0.0]])
    np.testing.assert_allclose(pooled_errors(planted()), [2 / 24])


def test_an_error_without_any_real_change_is_infinite():
    still = Changes(np.array([[1.0, 0.0]]), np.zeros((1, 2)))
    np.testing.assert_array_equal(errors([still]), [[np.inf, 0.0]])


@pytest.mark.parametrize(
    ("found", "radius"),
    [
        ([0.1, 0.2, 0.3], 1.0),
        ([0.1, 0.2, 0.6], 0.1),
        ([0.1, 0.5, 0.6], 0.1),  # the limit itself is within
        ([0.1, 0.6, 0.2], 0.01),  # what holds again farther out is luck
        ([0.1, np.nan, 0.2], 0.01),
        ([0.1, 0.2, np.inf], 0.1),
        ([0.7, 0.2, 0.2], 0.0),
    ],
)
def test_the_radius_of_planted_errors(found, radius):
    assert trust_radius(DISTANCES, np.array(found), limit=0.5) == radius
    order = [2, 0, 1]
    mixed = trust_radius([DISTANCES[i] for i in order], np.array(found)[order], limit=0.5)
    assert mixed == radius


def test_changes_are_read_as_they_were_written(tmp_path):
    made = planted()[0]
    made.write(tmp_path / "one.json")
    found = Changes.read(tmp_path / "one.json")
    assert np.array_equal(found.real, made.real)
    assert np.array_equal(found.predicted, made.predicted)


def test_slopes_are_means_of_gradients_as_they_are(make_store, gradients, tmp_path):
    store = make_store(tmp_path / "store", {"a": gradients(6)})
    np.testing.assert_allclose(mean_gradients(store, ["t"], split="select"), np.ones((1, 5)))


def measured(name: str, *, fingerprint: str, radius: float, created: str) -> None:
    """A finished run of trust, as far as estimates read it."""
    content = {"fingerprint": fingerprint, "radius": radius, "gain": 4.0, "norm": 2.0}
    path = Path("runs/trust") / name
    path.mkdir(parents=True)
    write_json(path / "trust.json", content)
    (path / "config.yaml").write_text(yaml.safe_dump({"stage": "trust", "created": created}))


def test_the_newest_measurement_in_the_stores_space_counts(make_store, gradients, tmp_path):
    store = make_store(tmp_path / "store", {"a": gradients(6)})
    assert find_trust(store) is None
    measured("z", fingerprint=store.fingerprint, radius=0.1, created="2001")
    measured("a", fingerprint=store.fingerprint, radius=0.2, created="2002")
    measured("b", fingerprint="another", radius=0.3, created="2003")
    trust = find_trust(store)
    assert trust is not None and trust.radius == 0.2


def test_what_lies_outside_is_told_in_shares_of_the_adapters_norm(make_store, gradients, tmp_path):
    store = make_store(tmp_path / "store", {"a": gradients(6)})
    measured("a", fingerprint=store.fingerprint, radius=10.0, created="2001")
    trust = find_trust(store)
    assert trust is not None
    distances = trust.distances(np.array([[3.0, 4.0, 0, 0, 0], [0, 0, 0, 0, 6.0]]))
    np.testing.assert_allclose(distances, [10.0, 12.0])  # |z| gain / norm
    assert outside(trust.radius, distances).tolist() == [False, True]
