"""The logistic estimate: reference optima, closed forms, invariances, planted truth, the recipe."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from gradex.adapters.folder import fingerprint
from gradex.arguments import EstimatorArguments
from gradex.errors import GradexError
from gradex.estimators import make_estimator
from gradex.estimators.linear import Linear
from gradex.estimators.logistic import Logistic, ridge_logistic
from gradex.estimators.margins import Rows
from gradex.estimators.published import Published, direction
from gradex.gradients.projectors import SparseProjector
from gradex.gradients.shards import ROW_TYPE, Faults, write_shard
from gradex.gradients.store import GradientStore

DIM = 6
PARAMS = 60_000
ALL = [frozenset("a"), frozenset("bd"), frozenset("abcd")]


def store_of(path, sources: dict, targets: dict, **space) -> GradientStore:
    """A store of margin gradients; each source and target is a pair (margins, gradients)."""
    space = {
        "project_dim": DIM,
        "differentiate": "margin",
        "dtype": "float32",
        "precondition": "none",
    } | space
    store = GradientStore.create(path, space, origin={}, shard_rows=8)
    for side, named in (("train", sources), ("target", targets)):
        for name, (margins, gradients) in named.items():
            rows = np.zeros(len(gradients), ROW_TYPE)
            rows["id"] = [f"{name}{i}" for i in range(len(rows))]
            rows["split"] = "train" if side == "train" else "select"
            rows["margin"], rows["ok"], rows["scale"] = margins, True, 1
            rows["loss"] = np.logaddexp(0, -margins)
            for i, shard in enumerate(store.enter(side, name, rows=len(rows), data_hash="h")):
                part = slice(8 * i, 8 * i + 8)
                pair = (gradients[part].astype(np.float32), rows[part])
                parts = {"": pair}
                if space["differentiate"] == "both":
                    parts = {"": (0 * pair[0], pair[1]), ".margin": pair}
                write_shard(shard, parts, faults=Faults({}, {}), versions={})
    store.save_plan()
    return GradientStore.open(path)


def random_rows(rng, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Margins and gradients that float32 holds exactly, so that tests may compare in double."""
    margins, gradients = 2 * rng.normal(size=count), rng.normal(size=(count, DIM))
    return margins.astype(np.float32), gradients.astype(np.float32)


@pytest.fixture
def world(tmp_path):
    rng = np.random.default_rng(0)
    sources = {n: random_rows(rng, k) for n, k in zip("abcd", (9, 20, 5, 12), strict=True)}
    targets = {name: random_rows(rng, 7) for name in ("s", "t")}
    return sources, targets, store_of(tmp_path / "store", sources, targets)


def joined(sources, names) -> tuple[np.ndarray, np.ndarray]:
    margins, gradients = zip(*(sources[name] for name in names), strict=True)
    return np.concatenate(margins).astype(float), np.concatenate(gradients).astype(float)


def mean_square(sources) -> float:
    return float((joined(sources, sources)[1] ** 2).sum(1).mean())


def loss(rows, z) -> float:
    """Mean of -log of the probability that the margin stands for, a row at a time."""
    return float(np.mean([-np.log(expit(m + g @ z)) for m, g in zip(*rows, strict=True)]))


def reference_fit(rows, ridge: float) -> np.ndarray:
    """The optimum as a general minimiser finds it."""
    margins, gradients = rows

    def value(z):
        return -np.log(expit(margins + gradients @ z)).mean() + ridge / 2 * z @ z

    def slope(z):
        return ridge * z - (expit(-(margins + gradients @ z))[:, None] * gradients).mean(0)

    def curvature(z):
        p = expit(margins + gradients @ z)
        outer = gradients[:, :, None] * gradients[:, None, :]
        return ridge * np.eye(DIM) + (outer * (p * (1 - p))[:, None, None]).mean(0)

    start = np.zeros(DIM)
    found = minimize(
        value, start, jac=slope, hess=curvature, method="trust-exact", options={"gtol": 1e-8}
    ).x
    return found - np.linalg.solve(curvature(found), slope(found))


@pytest.mark.parametrize("lam", [1e-4, 1e-2, 1.0])
def test_equals_a_general_minimiser(world, lam):
    sources, targets, store = world
    found = Logistic(lam=lam).fit(store).predict(ALL)
    ridge = lam * mean_square(sources)
    fits = [reference_fit(joined(sources, sorted(subset)), ridge) for subset in ALL]
    wanted = [[loss(targets[t], z) for t in "st"] for z in fits]
    np.testing.assert_allclose(found.value, wanted, rtol=1e-6)
    assert not found.calibrated and np.isnan(found.low).all()


def test_equals_scikit_learn_where_all_margins_are_zero():
    """There the two classes are mirror images: a row counts as itself and as its negative."""
    gradients = np.random.default_rng(1).normal(size=(30, DIM)) + 0.3
    lam, labels = 0.01, np.repeat([1, 0], 30)
    model = LogisticRegression(
        C=1 / (2 * 30 * lam), fit_intercept=False, solver="newton-cholesky", tol=1e-12
    ).fit(np.concatenate([gradients, -gradients]), labels)
    z = ridge_logistic(Rows(np.zeros(30), gradients), lam=lam)
    np.testing.assert_allclose(z, model.coef_[0], rtol=1e-6)


@pytest.mark.parametrize("lam", [1e-3, 0.1])
def test_one_row_has_a_closed_form(lam):
    """Stationary where lam z = g sigmoid(-(m + g z)); m is such that the sigmoid is a half."""
    g = np.random.default_rng(2).normal(size=(1, DIM))
    margins = -np.square(g).sum(1) / (2 * lam)
    z = ridge_logistic(Rows(margins, g), lam=lam)
    np.testing.assert_allclose(z, g[0] / (2 * lam), rtol=1e-9)


@pytest.mark.parametrize("margin", [-50.0, 0.0, 50.0])
def test_separable_rows_have_a_finite_optimum_through_the_ridge(margin):
    g = np.abs(np.random.default_rng(3).normal(size=(40, DIM)))
    for lam in (1.0, 1e-4, 1e-8):
        z = ridge_logistic(Rows(np.full(40, margin), g), lam=lam)
        slope = lam * z - (expit(-(margin + g @ z))[:, None] * g).mean(0)
        assert np.linalg.norm(slope) < 1e-9 and np.linalg.norm(z) > 0


def test_a_ridge_that_is_lost_to_rounding_is_refused():
    rows = Rows(np.zeros(3), np.ones((3, DIM)))
    with pytest.raises(GradexError, match=r"--lam: found 1e-300, too weak"):
        ridge_logistic(rows, lam=1e-300)


def test_order_of_sources_and_rows_does_not_matter(world, tmp_path):
    sources, targets, store = world
    order = {name: np.random.default_rng(4).permutation(len(r[0])) for name, r in sources.items()}
    shuffled = {n: tuple(part[order[n]] for part in sources[n]) for n in reversed(sources)}
    other = store_of(tmp_path / "other", shuffled, targets)
    np.testing.assert_allclose(
        Logistic().fit(other).predict(ALL).value,
        Logistic().fit(store).predict(ALL).value,
        rtol=1e-8,
    )


def test_a_common_factor_of_all_gradients_does_not_matter(world, tmp_path):
    sources, targets, store = world
    scaled = [{n: (m, 1024 * g) for n, (m, g) in part.items()} for part in (sources, targets)]
    other = store_of(tmp_path / "other", *scaled)
    np.testing.assert_allclose(
        Logistic(lam=0.01).fit(other).predict(ALL).value,
        Logistic(lam=0.01).fit(store).predict(ALL).value,
        rtol=1e-8,
    )


def test_aligned_rows_lower_the_targets_loss_and_opposed_ones_raise_it(tmp_path):
    rng = np.random.default_rng(5)
    toward = np.eye(DIM)[0] + 0.1 * rng.normal(size=(20, DIM))
    sources = {"helper": (np.zeros(20), toward), "enemy": (np.zeros(20), -toward)}
    targets = {"t": (np.zeros(20), toward)}
    fitted = Logistic(lam=0.1).fit(store_of(tmp_path / "s", sources, targets))
    helper, enemy = fitted.predict([frozenset([name]) for name in sources]).value[:, 0]
    assert helper < np.log(2) - 0.1 < np.log(2) + 0.1 < enemy


def test_what_is_mastered_already_moves_nothing(tmp_path):
    """Two sources with the same gradients: only the offsets tell which is still to be learned."""
    toward = np.eye(DIM)[0] + 0.1 * np.random.default_rng(6).normal(size=(20, DIM))
    sources = {"new": (np.full(20, -2.0), toward), "mastered": (np.full(20, 12.0), toward)}
    targets = {"t": (np.zeros(20), toward)}
    fitted = Logistic(lam=0.01).fit(store_of(tmp_path / "s", sources, targets))
    new, mastered = fitted.predict([frozenset([name]) for name in sources]).value[:, 0]
    assert new < 0.1 and mastered == pytest.approx(np.log(2), abs=0.01)


def test_reads_the_margin_files_of_a_store_that_keeps_both(world, tmp_path):
    sources, targets, store = world
    both = store_of(tmp_path / "both", sources, targets, differentiate="both")
    np.testing.assert_array_equal(
        Logistic().fit(both).predict(ALL).value, Logistic().fit(store).predict(ALL).value
    )


def test_of_one_token_losses_and_margins_say_the_same(world, tmp_path):
    """There a row's loss is softplus(-m), whose gradient is -sigmoid(-m) times that of m."""
    sources, targets, store = world
    slopes = [
        {n: (m, -expit(-m)[:, None] * g) for n, (m, g) in part.items()}
        for part in (sources, targets)
    ]
    losses = store_of(tmp_path / "losses", *slopes, differentiate="loss")
    np.testing.assert_allclose(
        Logistic(lam=0.01, objective="loss").fit(losses).predict(ALL).value,
        Logistic(lam=0.01).fit(store).predict(ALL).value,
        rtol=1e-4,
    )


def test_where_nothing_moves_the_estimate_is_the_targets_own_loss(tmp_path):
    """Also for rows without any loss, and with one beyond what exp can hold."""
    margins = np.array([200.0, 0.0, -200.0])
    gradients = np.eye(DIM)[:3]
    sources = {"a": (margins, np.where(margins[:, None] < 100, gradients, 0))}
    targets = {"t": (margins, 0 * gradients)}
    store = store_of(tmp_path / "s", sources, targets, differentiate="loss")
    value = Logistic(objective="loss").fit(store).predict([frozenset("a")]).value[0, 0]
    assert value == pytest.approx((0 + np.log(2) + 200) / 3, rel=1e-6)


def test_a_store_of_loss_gradients_alone_is_refused_for_margins(world, tmp_path):
    sources, targets, _ = world
    losses = store_of(tmp_path / "losses", sources, targets, differentiate="loss")
    assert np.isfinite(Logistic(objective="loss").fit(losses).predict(ALL).value).all()
    with pytest.raises(GradexError, match=r"make a store with `--differentiate margin` or both"):
        Logistic().fit(losses)


def test_damaged_and_idle_gradients_are_refused(world, tmp_path):
    sources, targets, store = world
    idle = {name: (m, 0 * g) for name, (m, g) in sources.items()}
    with pytest.raises(GradexError, match="all gradients are zero"):
        Logistic().fit(store_of(tmp_path / "idle", idle, targets))
    file = store.shards("train", "b")[1].file(".npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(GradexError, match="its bytes are not those of its receipt"):
        Logistic().fit(store)


def test_unknown_and_empty_subsets_are_refused(world):
    *_, store = world
    fitted = Logistic().fit(store)
    with pytest.raises(GradexError, match="unknown source 'z'"):
        fitted.predict([frozenset("az")])
    with pytest.raises(GradexError, match="empty subset"):
        fitted.predict([frozenset()])


@pytest.fixture
def adapter(tmp_path):
    """Weights of a meta adapter, where a run of meta_train leaves them."""
    folder = tmp_path / "runs" / "meta_train" / "one" / "adapter"
    folder.mkdir(parents=True)
    (folder.parent / "config.yaml").write_text("stage: meta_train\n")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    weights = 0.1 * np.random.default_rng(7).normal(size=PARAMS).astype(np.float32)
    tensors = {"q.lora_A.weight": weights[:20_000], "q.lora_B.weight": weights[20_000:]}
    tensors["head.weight"] = np.full(9, 100, np.float32)  # not of the adapter's norm
    save_file(tensors, folder / "adapter_model.safetensors")
    return weights, fingerprint(folder)


def literal_recipe(full, margins, full_target, target_margins, projector, theta, *, labels):
    """The recipe of 2024 in the space of all parameters, row by row, with P as a matrix."""
    p = torch.stack([projector.lift(unit, size=PARAMS) for unit in torch.eye(DIM)], dim=1)
    p = p.double().numpy()
    features = []
    for gradient, label in zip(full, labels, strict=True):
        sketch = gradient @ p
        features.append(sketch if label else -sketch)
    model = LogisticRegression(random_state=0, C=1e-4, solver="liblinear")
    model.fit(np.array(features), labels.astype(int))
    change = p @ model.coef_.flatten()
    change *= 0.4 * np.linalg.norm(theta) / np.linalg.norm(change)
    moved = [m + g @ change for m, g in zip(target_margins, full_target, strict=True)]
    return np.mean([np.log1p(np.exp(-m)) for m in moved])


def test_as_published_is_the_recipe_in_the_space_of_all_parameters(tmp_path, adapter):
    theta, known_as = adapter
    rng = np.random.default_rng(8)
    # The rows lie in the span of what the projection sees, so that the sketch loses nothing.
    projector = SparseProjector(DIM, seed=3)
    hidden = {name: rng.normal(size=(15, DIM)) for name in ("a", "b", "c", "t")}
    full = {}
    for name, rows in hidden.items():
        lifted = [projector.lift(torch.from_numpy(row), size=PARAMS).numpy() for row in rows]
        full[name] = 1e-3 * np.array(lifted)
    sketched = {n: projector.project(torch.from_numpy(g)).numpy() for n, g in full.items()}
    margins = {name: 1 + rng.normal(size=15) for name in full}
    pairs = {name: (margins[name], sketched[name]) for name in full}
    target = {"t": pairs.pop("t")}
    store = store_of(tmp_path / "s", pairs, target, adapter=known_as)
    subsets = [frozenset("a"), frozenset("bc"), frozenset("abc")]
    found = Published(seed=5).fit(store).predict(subsets).value[:, 0]
    for value, subset in zip(found, subsets, strict=True):
        names = sorted(subset)
        places = ["abc".index(name) for name in names]
        labels = np.random.default_rng([5, *places]).random(15 * len(names)) < 0.7
        wanted = literal_recipe(
            np.concatenate([full[name] for name in names]),
            np.concatenate([margins[name] for name in names]),
            full["t"],
            margins["t"],
            projector,
            theta,
            labels=labels,
        )
        # The lifted direction's norm is taken at its mean over projections.
        assert value == pytest.approx(wanted, rel=5e-3)
    assert np.ptp(found) > 0.1 * found.mean()


def test_published_labels_do_not_depend_on_the_other_subsets(tmp_path, adapter, world):
    sources, targets, _ = world
    store = store_of(tmp_path / "s", sources, targets, adapter=adapter[1])
    fitted = Published().fit(store)
    both = fitted.predict([frozenset("ab"), frozenset("bcd")]).value
    np.testing.assert_array_equal(fitted.predict([frozenset("bcd")]).value[0], both[1])
    rng = np.random.default_rng([0, 1, 2, 3])  # the seed, and the places of the sources
    wanted = direction(joined(sources, "bcd")[1], rng=rng)
    z = fitted.displacement(np.array([0.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(z / np.linalg.norm(z), wanted, rtol=1e-9)
    other = Published(seed=1).fit(store).predict([frozenset("bcd")]).value
    assert (other[0] != both[1]).all()


def test_as_published_refuses_what_its_recipe_has_no_answer_for(tmp_path, adapter, world):
    sources, targets, store = world
    with pytest.raises(GradexError, match=r"not the adapter .* leave --as_published out"):
        Published().fit(store)
    preconditioned = store_of(tmp_path / "p", sources, targets, precondition="adam x")
    with pytest.raises(GradexError, match="its gradients are preconditioned"):
        Published().fit(preconditioned)
    with pytest.raises(GradexError, match="all 1 rows of a subset drew the same label"):
        direction(np.ones((1, DIM)), rng=np.random.default_rng(0))


def test_as_published_is_a_flag_of_logistic_alone():
    made = make_estimator(EstimatorArguments(estimator="logistic", as_published=True))
    assert isinstance(made, Published)
    with pytest.raises(GradexError, match=r"--as_published: found with --estimator linear"):
        EstimatorArguments(as_published=True)


def test_every_estimator_has_a_ridge_of_its_own_where_none_is_said():
    def linear(**flags):
        return make_estimator(EstimatorArguments(**flags)).make()

    def logistic(**flags):
        return make_estimator(EstimatorArguments(estimator="logistic", **flags))

    assert linear().lam == Linear().lam != logistic().lam == Logistic().lam
    assert linear(lam=0.5).lam == logistic(lam=0.5).lam == 0.5
