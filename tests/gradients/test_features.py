"""Features: those of a slow forward of one row at a time, in every family, on either side."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import skill_rows, write_jsonl

from gradex.adapters.attach import attach
from gradex.adapters.spec import AdapterSpec
from gradex.checks.inspection import FORGET, REDO
from gradex.checks.integrity import examine
from gradex.checks.invariance import positions_from_mask
from gradex.data.formats import Row
from gradex.data.tokens import Encoder, Example
from gradex.errors import GradexError
from gradex.gradients.collect import Collector
from gradex.gradients.features import Watch
from gradex.gradients.per_sample import GradientPass, LoopPass
from gradex.gradients.projectors import make_projector
from gradex.gradients.shards import FEATURES, Faults, read_receipt, why_incomplete, write_shard
from gradex.gradients.store import GradientStore
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.models.load import BaseSpec, bare, load_base
from gradex.project import Config as ProjectConfig
from gradex.project import project

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq", "bert": "classifier"}


def make_passing(folder, kind=GradientPass):
    """A pass over a toy model with LoRA away from its start, and the base it came from."""
    base = load_base(BaseSpec(str(folder)))
    model = attach(base, AdapterSpec(rank=2, alpha=4.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return kind(model.eval(), base.family), base


@torch.no_grad()
def slow_feature(model, example: Example, family: str) -> np.ndarray:
    """One row without padding, its hidden states summed up token by token."""
    ids = torch.from_numpy(example.input_ids)[None]
    if family == "seq2seq":
        labels = torch.from_numpy(example.labels)[None]
        states = model(input_ids=ids, labels=labels, output_hidden_states=True)
        states = states.decoder_hidden_states[-1][0]
    else:
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    total, weight = torch.zeros(states.shape[1]), 0
    for place, state in enumerate(states, start=1):
        count = 1 if family == "classifier" else place
        total, weight = total + count * state, weight + count
    return (total / weight).numpy()


def run(gradients, batch) -> np.ndarray:
    """The features of a batch while its gradients are taken."""
    watch = Watch(gradients.model, gradients.family)
    with gradients.hooked(), watch.watching():
        gradients.run(batch, {"loss": lambda *_: None})
        return watch.features(batch)


PADDED = [(name, side) for name in FAMILIES for side in ("right", "left")]
PADDED.remove(("t5", "left"))  # a decoder begins with its first label, not with padding


@pytest.mark.parametrize("kind", [GradientPass, LoopPass])
@pytest.mark.parametrize(("name", "padding_side"), PADDED)
def test_features_are_those_of_each_row_alone(model_folder, toy_batch, name, padding_side, kind):
    gradients, base = make_passing(model_folder(name), kind)
    assert base.family == FAMILIES[name]
    examples, batch = toy_batch(base.family, padding_side=padding_side)
    told = positions_from_mask if name in ("gpt2", "bert") else nullcontext
    with told(gradients.model):
        found = run(gradients, batch)
    wanted = [slow_feature(gradients.model, e, base.family) for e in examples]
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
    assert found.shape == (len(examples), 32) and np.ptp(wanted, axis=0).max() > 0.1


def make_rows(count: int) -> list[Row]:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), rng.integers(2, 30))) for _ in range(count)]
    pairs = [(("user", f"{word}="), ("assistant", word[:4])) for word in words]
    return [Row(f"id{i:04d}", pair) for i, pair in enumerate(pairs)]


@pytest.fixture
def passing(model_folder):
    gradients, base = make_passing(model_folder("llama"))
    return gradients, Encoder(base.tokenizer, family="causal")


def collected(passing, rows, *, differentiate="loss", tokens=200, features=True):
    watch = Watch(passing[0].model, "causal") if features else None
    projector = make_projector("sjlt", 16)
    collector = Collector(*passing, projector, differentiate, "float32", tokens, None, watch)
    return collector.collect(rows, ["train"] * len(rows), lambda tokens: None)[0]


@pytest.mark.parametrize("differentiate", ["loss", "both"])
def test_a_shard_has_them_in_the_order_of_its_rows_and_gradients_as_without(passing, differentiate):
    rows = make_rows(12)
    passing[1].max_length = len(passing[1].encode(rows[1]).input_ids) - 5
    parts = collected(passing, rows, differentiate=differentiate)
    (found,) = parts.pop(FEATURES)
    assert not parts[""][1]["ok"][1] and not found[1].any()
    assert parts[""][1]["ok"].sum() > 2
    for at in np.flatnonzero(parts[""][1]["ok"]):
        example = passing[1].encode(rows[at])
        wanted = slow_feature(passing[0].model, example, "causal")
        np.testing.assert_allclose(found[at], wanted, rtol=2e-3, atol=2e-3)
    plain = collected(passing, rows, differentiate=differentiate, features=False)
    assert parts.keys() == plain.keys()
    for ending, arrays in plain.items():
        assert [a.tobytes() for a in parts[ending]] == [a.tobytes() for a in arrays]


def test_other_batches_move_no_more_than_the_last_bit(passing):
    one, other = (collected(passing, make_rows(12), tokens=t)[FEATURES][0] for t in (1, 4096))
    np.testing.assert_allclose(one, other, rtol=2**-9, atol=2**-13)


def test_a_shard_of_rows_without_a_label_has_none(passing, tmp_path, space, table):
    passing[1].max_length = 1
    parts = collected(passing, make_rows(3))
    assert parts[FEATURES][0].shape == (3, 0)
    store = GradientStore.create(
        tmp_path / "s", space | {"project_dim": 16, "features": True}, origin={}, shard_rows=3
    )
    (path,) = store.enter("train", "a", rows=3, data_hash="h")
    write_shard(path, parts, faults=Faults({}, {}), versions={})
    assert list(store.features("train", "a")) == []


def test_a_model_that_hides_its_body_is_refused(passing, monkeypatch):
    model = bare(passing[0].model)
    monkeypatch.setattr(type(model), "base_model_prefix", "nothing")
    with pytest.raises(GradexError, match="does not tell its body from its head"):
        Watch(passing[0].model, "causal")


@pytest.fixture
def store(tmp_path, space, table, gradients):
    """Ten rows in shards of four, the second of each bad, and features of three numbers."""
    space = space | {"features": True}
    store = GradientStore.create(
        tmp_path / "s", space, origin={"base": {}, "tasks": {}, "recipe": {}}, shard_rows=4
    )
    for path in store.enter("train", "a", rows=10, data_hash="h"):
        part = slice(4 * path.index, 4 * path.index + 4)
        rows = table(10)[part]
        rows["ok"][1] = False
        parts = {"": (gradients(10)[part], rows), FEATURES: (features(10)[part],)}
        write_shard(path, parts, faults=Faults({}, {}), versions={})
    store.save_plan()
    return GradientStore.open(store.path)


def features(count: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, 3)).astype(np.float16)


def test_a_store_gives_the_good_rows_features(store):
    found = np.concatenate(list(store.features("train", "a")))
    np.testing.assert_array_equal(found, features(10)[[0, 2, 3, 4, 6, 7, 8]])
    assert found.dtype == np.float32
    assert list(store.features("train", "a", split="test")) == []


def test_a_store_without_features_says_how_to_have_them(tmp_path, make_store, gradients):
    store = make_store(tmp_path / "without", {"a": gradients(3)})
    with pytest.raises(GradexError, match=r"holds no features .* `project --features`"):
        next(store.features("train", "a"))


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(("damage", "says"), [(flip, "bytes are not"), (Path.unlink, "missing")])
def test_damage_is_found_and_the_shard_is_made_again(store, damage, says):
    assert examine(store).damage == examine(store).left_over == []
    path = store.shards("train", "a")[1]
    damage(path.file(".features.npy"))
    (fault,) = examine(store).damage
    assert fault.what.startswith(f"{path.file('.features.npy')}: ") and says in fault.what
    assert fault.mend == REDO
    assert says in why_incomplete(path, read_receipt(path)["rows_hash"])
    with pytest.raises(GradexError, match=says):
        store.require_undamaged("train", "a")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (features(2), "found float16 of shape (2, 3), expected float16 of 4 rows"),
        (np.zeros((4, 3), np.float32), "found float32 of shape (4, 3)"),
        (np.full((4, 3), np.inf, np.float16), "3 of 3 good rows hold numbers that are not finite"),
    ],
)
def test_what_a_faulty_writer_left_is_named(store, table, gradients, wrong, says):
    rows = table(4)
    rows["ok"][1] = False
    path = store.shards("train", "a")[0]
    parts = {"": (gradients(4), rows), FEATURES: (wrong,)}
    write_shard(path, parts, faults=Faults({}, {}), versions={})
    (fault,) = examine(store).damage
    assert says in fault.what and fault.mend == FORGET
    with pytest.raises(GradexError, match=r"features\.npy: (found|holds numbers)"):
        list(store.features("train", "a"))


def test_features_that_a_store_is_not_to_have_are_named(store, table, gradients):
    path = store.shards("train", "a")[0]
    write_shard(path, {"": (gradients(4), table(4))}, faults=Faults({}, {}), versions={})
    (fault,) = examine(store).damage
    assert "does not name the files that a shard has" in fault.what and fault.mend == FORGET


@pytest.fixture
def meta(model_folder, toy_tasks):
    config = {"max_steps": 1, "per_device_train_batch_size": 8}
    return meta_train(
        MetaConfig(model_name_or_path=str(model_folder("llama")), tasks=[str(toy_tasks)], **config)
    )


def files_of(folder) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_project_keeps_features_resumes_and_grows(meta, toy_tasks, tmp_path):
    plain = files_of(project(ProjectConfig(project_dim=8)))
    whole = project(ProjectConfig(project_dim=8, features=True))
    wanted = files_of(whole)
    added = [name for name in wanted if name.endswith(".features.npy")]
    arrays = {name for name in plain if name.endswith(".npy")}
    assert len(added) == 8 and {n: wanted[n] for n in arrays} == {n: plain[n] for n in arrays}

    lost = whole / "train/copy/shard-00000.features.npy"
    lost.unlink()
    half = whole / "train/upper/shard-00000.features.npy"
    flip(half)
    (whole / "target/copy/shard-00000.json").unlink()
    assert project(ProjectConfig(project_dim=8, features=True)) == whole
    assert files_of(whole) == wanted

    write_jsonl(tmp_path / "more.jsonl", skill_rows("copy", 5, seed=9))
    more = [str(tmp_path / "more.jsonl")]
    project(ProjectConfig(append=True, more_tasks=more, output_dir=str(whole)))
    grown = GradientStore.open(whole)
    assert sum(map(len, grown.features("train", "more"))) > 0
    assert examine(grown).damage == []


def test_features_cannot_be_added_to_some_shards_alone(meta):
    project(ProjectConfig(project_dim=8, output_dir="without"))
    for flags in ({"append": True}, {"project_dim": 8}):
        with pytest.raises(GradexError, match="made with features=None, this run has features="):
            project(ProjectConfig(features=True, output_dir="without", **flags))
