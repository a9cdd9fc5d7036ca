"""The baselines: closed forms, a planted helper, what must not matter, and what is refused."""

from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from conftest import write_jsonl

from gradex.arguments import DEFAULTS, DataArguments, EstimatorArguments, ModelArguments, record_of
from gradex.data.sources import load_sources
from gradex.data.subsets import sample_subsets
from gradex.errors import GradexError
from gradex.estimators import BASELINES, make_estimator
from gradex.estimators.baselines import Random
from gradex.estimators.ngrams import SEEN
from gradex.gradients.plan import PARTS
from gradex.gradients.shards import FEATURES, ROW_TYPE, Faults, write_shard
from gradex.gradients.store import GradientStore
from gradex.train_arguments import TrainArguments

DIM = 6
SAYS = {
    "helper": "the cat sat on the mat",
    "enemy": "profits fell in june",
    "other": "the dog sat in the rain",
    "last": "rain fell on the cat",
}
COMPARISONS = ["influence", "cosine", "representation", "ngram"]
EVERY = pytest.mark.parametrize("name", BASELINES)


def write_tasks(folder, *, rows: int = 9) -> None:
    """Sources of one sentence each, and a target that says what the helper says."""
    for at, (name, says) in enumerate(SAYS.items()):
        records = [{"prompt": f"{at} {i}", "completion": says} for i in range(rows + at)]
        write_jsonl(folder / f"{name}.jsonl", records)
    held_out = [{"prompt": f"t {i}", "completion": SAYS["helper"]} for i in range(12)]
    write_jsonl(folder / "t.jsonl", held_out)
    (folder / "t.yaml").write_text("path: t.jsonl\nrole: target\n")
    for name in SAYS:
        (folder / f"{name}.yaml").write_text(f"path: {name}.jsonl\nrole: source\n")


def origin_of(tasks) -> dict:
    groups = (TrainArguments(), ModelArguments(), DataArguments(tasks=[str(tasks)]))
    settings = {key: value for group in groups for key, value in asdict(group).items()}
    return record_of(settings | DEFAULTS | {"max_steps": 1})


def gradients_of(name: str, count: int) -> np.ndarray:
    """The helper pulls where the target does, the enemy the other way; rows are long and short."""
    rng = np.random.default_rng(len(name))
    pull = {"helper": 2.0, "t": 2.0, "enemy": -2.0}.get(name, 0.0)
    rows = rng.normal(size=(count, DIM)) + pull * np.eye(DIM)[0]
    return rows * rng.uniform(0.5, 2, size=(count, 1))


def features_of(name: str, count: int) -> np.ndarray:
    """Of another width than the gradients, and as far apart."""
    return gradients_of(name, count)[:, : DIM - 2].astype(np.float16)


@pytest.fixture
def make(tmp_path):
    """make(name): a store of the tasks' rows with made up gradients and features."""
    write_tasks(tmp_path / "tasks")

    def build(name: str, *, shuffled: bool = False, features: bool = True) -> GradientStore:
        sources = load_sources([str(tmp_path / "tasks")])
        space = {
            "project_dim": DIM,
            "differentiate": "loss",
            "dtype": "float32",
            "precondition": "none",
        } | ({"features": True} if features else {})
        origin = origin_of(tmp_path / "tasks")
        store = GradientStore.create(tmp_path / name, space, origin=origin, shard_rows=8)
        for side, names in (("train", sources.trainable), ("target", sources.targets)):
            for source in map(sources.__getitem__, names):
                splits = [part for part in PARTS[side] for _ in source.rows[part]]
                ids = [row.id for part in PARTS[side] for row in source.rows[part]]
                gradients = gradients_of(source.name, len(ids))
                table = np.zeros(len(ids), ROW_TYPE)
                table["id"], table["split"], table["ok"], table["scale"] = ids, splits, True, 1
                table["loss"] = np.linspace(1, 2, len(ids))
                table["grad_norm"] = np.linalg.norm(gradients, axis=1)
                order = np.random.default_rng(0).permutation(len(ids))
                order = order if shuffled else np.arange(len(ids))
                paths = store.enter(side, source.name, rows=len(ids), data_hash=source.data_hash)
                for i, path in enumerate(paths):
                    at = order[8 * i : 8 * i + 8]
                    parts = {"": (gradients[at].astype(np.float32), table[at])}
                    if features:
                        parts[FEATURES] = (features_of(source.name, len(ids))[at],)
                    write_shard(path, parts, faults=Faults({}, {}), versions={})
        store.save_plan()
        return GradientStore.open(store.path)

    return build


def fitted(name: str, store: GradientStore, **kwargs):
    return make_estimator(EstimatorArguments(estimator=name)).fit(store, **kwargs)


SUBSETS = sample_subsets(list(SAYS), 9, sizes=[0.25, 0.5, 0.75], seed=0)


def rows_of(store, subset) -> np.ndarray:
    return np.concatenate([store.source(name).gradients for name in sorted(subset)])


def test_influence_is_the_first_order_effect_of_a_step(make):
    store = make("s")
    wanted = [
        -rows_of(store, s).mean(0) @ store.target("t", "select").gradients.mean(0) for s in SUBSETS
    ]
    found = fitted("influence", store).predict(SUBSETS)
    np.testing.assert_allclose(found.value[:, 0], wanted, rtol=1e-5)
    assert not found.calibrated and np.isnan(found.low).all()


def test_cosine_is_the_mean_over_all_pairs_of_rows(make):
    store = make("s")

    def mean_cosine(subset) -> float:
        pairs = [
            a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            for a in rows_of(store, subset)
            for b in store.target("t", "test").gradients
        ]
        return float(np.mean(pairs))

    found = fitted("cosine", store, split="test").predict(SUBSETS).value[:, 0]
    np.testing.assert_allclose(found, [-mean_cosine(s) for s in SUBSETS], rtol=1e-5)


def test_representation_is_the_cosine_of_mean_features(make):
    store = make("s")

    def mean(side: str, names, split: str) -> np.ndarray:
        blocks = [block for n in names for block in store.features(side, n, split=split)]
        return np.concatenate(blocks).mean(0)

    target = mean("target", ["t"], "select")
    for subset in SUBSETS:
        own = mean("train", subset, "train")
        wanted = -own @ target / np.linalg.norm(own) / np.linalg.norm(target)
        (found,) = fitted("representation", store).predict([subset]).value[0]
        assert found == pytest.approx(wanted, rel=1e-5)


def test_a_store_without_features_says_how_to_have_them(make):
    with pytest.raises(GradexError, match=r"holds no features .* `project --features`"):
        fitted("representation", make("without", features=False))


def grams(lines: list[str]) -> dict[str, int]:
    """The counts of words and neighbours, one at a time."""
    counts: dict[str, int] = {}
    for line in lines:
        words = line.split(" ")
        for gram in [*words, *(f"{a} {b}" for a, b in pairwise(words))]:
            counts[gram] = counts.get(gram, 0) + 1
    return counts


def test_ngram_is_the_divergence_of_smoothed_counts(make, tmp_path, monkeypatch):
    buckets = 10**6  # of which no two n-grams share one
    monkeypatch.setattr("gradex.estimators.ngrams.BUCKETS", buckets)
    store = make("s")
    sources = load_sources([str(tmp_path / "tasks")])

    def lines(name: str, split: str) -> list[str]:
        return [f"{r.messages[0][1]} {r.messages[1][1]}" for r in sources[name].rows[split]]

    def smoothed(counts: dict[str, int], gram: str) -> float:
        return SEEN * counts.get(gram, 0) / sum(counts.values()) + (1 - SEEN) / buckets

    target = grams(lines("t", "select"))
    for subset in SUBSETS:
        mixed = grams([line for name in sorted(subset) for line in lines(name, "train")])
        wanted = sum(
            smoothed(target, g) * np.log(smoothed(target, g) / smoothed(mixed, g))
            for g in {*target, *mixed}
        )
        (found,) = fitted("ngram", store).predict([subset]).value[0]
        assert found == pytest.approx(wanted, rel=1e-6)


def test_the_texts_of_sources_of_any_size_are_compared_and_not_their_lengths(make, tmp_path):
    """A subset that says the target's sentence as often as the target does has no divergence."""
    store = make("s")
    estimator = fitted("ngram", store)
    same = estimator.compare(7 * estimator.wanted_, estimator.wanted_)
    np.testing.assert_allclose(same, 0, atol=1e-12)
    assert (estimator.predict(SUBSETS).value > 0).all()


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_planted_helper_is_ranked_first_and_its_enemy_last(make, name):
    store = make("s")
    values = fitted(name, store).predict([frozenset([n]) for n in store.sources]).value[:, 0]
    order = [store.sources[i] for i in np.argsort(values)]
    assert order[0] == "helper" and order[-1] == "enemy"


@EVERY
def test_neither_order_nor_company_changes_a_value(make, name):
    store = make("s")
    estimator = fitted(name, store)
    whole = estimator.predict(SUBSETS).value
    alone = np.concatenate([estimator.predict([subset]).value for subset in SUBSETS])
    backwards = fitted(name, store, sources=store.sources[::-1]).predict(SUBSETS[::-1]).value
    np.testing.assert_allclose(alone, whole, rtol=1e-12)
    np.testing.assert_allclose(backwards[::-1], whole, rtol=1e-12)
    shuffled = fitted(name, make("shuffled", shuffled=True)).predict(SUBSETS).value
    np.testing.assert_allclose(shuffled, whole, rtol=1e-5)


@pytest.mark.parametrize("name", COMPARISONS)
def test_blocks_do_not_change_the_values(make, monkeypatch, name):
    estimator = fitted(name, make("s"))
    whole = estimator.predict(SUBSETS).value
    monkeypatch.setattr("gradex.estimators.baselines.BLOCK_NUMBERS", 1)
    np.testing.assert_allclose(estimator.predict(SUBSETS).value, whole, rtol=1e-12)


def test_cosine_does_not_see_the_length_of_rows_and_influence_does(make, monkeypatch):
    plain = make("s")
    short = gradients_of
    monkeypatch.setitem(
        globals(), "gradients_of", lambda name, n: short(name, n) * (9 if name == "other" else 1)
    )
    scaled = make("scaled")
    for name, is_same in (("cosine", True), ("influence", False)):
        values = [fitted(name, store).predict(SUBSETS).value for store in (plain, scaled)]
        assert np.allclose(*values, rtol=1e-5) == is_same


def test_draws_differ_by_subset_target_and_seed_alone(make):
    store = make("s")
    values = Random(seed=0).fit(store).predict(SUBSETS).value
    assert len(np.unique(values)) == len(SUBSETS) and ((0 <= values) & (values < 1)).all()
    assert not np.isin(values, Random(seed=1).fit(store).predict(SUBSETS).value).any()


def test_constant_is_the_loss_before_fine_tuning(make):
    store = make("s")
    for split in ("select", "test"):
        found = fitted("constant", store, split=split).predict(SUBSETS).value
        np.testing.assert_allclose(found, store.target("t", split).table["loss"].mean(), rtol=1e-6)


@EVERY
def test_unknown_names_and_empty_subsets_are_refused(make, name):
    store = make("s")
    with pytest.raises(GradexError, match="unknown source 'z'"):
        fitted(name, store).predict([frozenset("z")])
    with pytest.raises(GradexError, match="empty subset"):
        fitted(name, store).predict([frozenset()])
    with pytest.raises(GradexError, match="unknown source 'z'; known are: "):
        fitted(name, store, sources=["z"])
    with pytest.raises(GradexError, match="unknown target 'z'; known are: t"):
        fitted(name, store, targets=["z"])


@pytest.mark.parametrize("how", ["changed", "gone", "all gone"])
def test_ngrams_of_rows_that_are_not_those_of_the_store_are_refused(make, tmp_path, how):
    store, tasks = make("s"), tmp_path / "tasks"
    if how == "changed":
        write_jsonl(tasks / "other.jsonl", [{"prompt": "new", "completion": "row"}])
        told = "other.jsonl: the rows of 'other' are not those that"
    elif how == "gone":
        (tasks / "other.yaml").unlink()
        (tasks / "other.jsonl").unlink()
        told = "knows the source 'other', which --tasks no longer has"
    else:
        tasks.rename(tmp_path / "elsewhere")
        told = "tasks"
    with pytest.raises(GradexError, match=f"ngram reads the rows that .*s was made of: .*{told}"):
        fitted("ngram", store)
    fitted("cosine", store)


def test_damaged_gradients_are_not_summed(make):
    store = make("s")
    file = store.shards("train", "other")[0].file(".npy")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(GradexError, match="bytes are not those of its receipt"):
        fitted("influence", store)
    fitted("influence", store, sources=["helper", "enemy"])


def test_a_source_without_a_good_row_is_named(make, monkeypatch):
    store = make("s")
    for path in store.shards("train", "other"):
        table = np.array(np.load(path.file(".rows.npy")))
        table["ok"] = False
        pair = (np.array(np.load(path.file(".npy"))), table)
        write_shard(path, {"": pair}, faults=Faults({}, {}), versions={})
    with pytest.raises(GradexError, match="'other' has no good row; leave it out"):
        fitted("cosine", store)
