"""Planted damage of every kind is found and named with what to do; a sound store is sound."""

import json

import numpy as np
import pytest

from gradex.checks.inspection import FORGET, REDO, inspect_shard
from gradex.checks.integrity import ANEW, REMOVE, examine, examine_point
from gradex.gradients.shards import Faults, why_incomplete, write_shard
from gradex.gradients.store import GradientStore
from gradex.records import SEAL, write_json, write_sealed


@pytest.fixture
def sound(tmp_path, make_store, gradients):
    """A store of 10 rows in 3 shards, and of a target."""
    store = make_store(tmp_path / "s", {"a": gradients(10), "b/c": gradients(3, seed=1)})
    store.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    return store


def shard_of(store, index=0):
    return store.shards("train", "a")[index]


def edit_json(path, change):
    """As a faulty writer would leave it: where there is a checksum, it is that of the content."""
    content = json.loads(path.read_text())
    write = write_json if content.pop(SEAL, None) is None else write_sealed
    change(content)
    write(path, content)


def plant(store, gradients, rows):
    """A shard as a faulty writer would leave it: its receipt agrees with its bytes."""
    write_shard(shard_of(store), {"": (gradients, rows)}, faults=Faults({}, {}), versions={})


def test_a_sound_store_has_no_fault(sound):
    found = examine(sound)
    assert found.damage == found.left_over == []
    assert [(part.side, part.name, len(part.table)) for part in found.parts] == [
        ("train", "a", 10), ("train", "b/c", 3), ("target", "t", 2),
    ]  # fmt: skip
    assert found.size == sum(f.stat().st_size for f in sound.path.rglob("*") if f.is_file())


def test_the_files_of_points_are_theirs_and_others_beside_them_are_left_over(
    sound, make_store, gradients
):
    alone = examine(sound)
    point = make_store(sound.path / "points/3", {"a": gradients(10), "b/c": gradients(3)})
    point.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    assert (examine(sound).left_over, examine(sound).size) == ([], alone.size)
    found = examine_point(point, sound)
    assert found.damage == found.left_over == [] and len(found.parts) == 3
    (sound.path / "points/4.part").mkdir()
    for name in ("notes.txt", "4.part/plan.json", "3/notes.txt"):
        (sound.path / "points" / name).touch()
    said = [fault.what.removeprefix(f"{sound.path}/points/") for fault in examine(sound).left_over]
    assert said == ["4.part/plan.json: no file of a store", "notes.txt: no file of a store"]
    (fault,) = examine_point(point, sound).left_over
    assert "points/3/notes.txt" in fault.what


def test_a_point_of_other_rows_is_damaged(sound, make_store, gradients):
    point = make_store(sound.path / "points/3", {"a": gradients(9), "b/c": gradients(3)})
    point.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    assert examine(sound).damage == examine(point).damage == []
    (fault,) = examine_point(point, sound).damage
    assert "points/3/plan.json: not of the sources and rows of" in fault.what
    assert fault.mend == REDO


def flip(store):
    file = shard_of(store, 1).file(".npy")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def truncate(store):
    file = shard_of(store, 1).file(".rows.npy")
    file.write_bytes(file.read_bytes()[:-8])


def plan_says(**values):
    return lambda store: edit_json(
        store.path / "plan.json", lambda plan: plan["train"]["a"].update(values)
    )


def rename_the_model(store):
    edit_json(store.path / "manifest.json", lambda manifest: manifest["space"].update(model="x"))


DAMAGE = {
    "flipped": (flip, "shard-00001.npy: its bytes are not those of its receipt", REDO),
    "truncated": (truncate, "shard-00001.rows.npy: its bytes are not those", REDO),
    "file gone": (
        lambda store: shard_of(store, 2).file(".npy").unlink(), "00002.npy: missing", REDO
    ),
    "receipt gone": (
        lambda store: shard_of(store).receipt.unlink(), "00000.json: missing, the shard", REDO
    ),
    "receipt torn": (
        lambda store: shard_of(store).receipt.write_text("{"), "00000.json: not valid JSON", REDO
    ),
    "receipt of other files": (
        lambda store: edit_json(shard_of(store).receipt, lambda r: r["files"].popitem()),
        "00000.json: does not name the files", FORGET,
    ),
    "another count": (plan_says(rows=11), "tells of 2 rows where the plan has 3", REDO),
    "shards missing in the plan": (
        plan_says(shards=2), "10 rows of 'a' (train) in 2 shards of 4 do not add up", REDO,
    ),
    "another space": (
        rename_the_model, "manifest.json: its fingerprint is not that of its space", ANEW,
    ),
    "no origin": (
        lambda store: (store.path / "origin.json").unlink(), "origin.json: no such file", ANEW
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_once_with_what_to_do(sound, kind):
    do, says, mend = DAMAGE[kind]
    do(sound)
    found = examine(GradientStore.open(sound.path))
    (fault,) = found.damage
    assert says in fault.what and fault.mend == mend
    assert found.left_over == []


def test_another_dtype_and_another_width_are_named(sound, table, gradients):
    for array in (gradients(4).astype(np.float16), gradients(4)[:, :3]):
        plant(sound, array, table(4))
        (fault,) = examine(sound).damage
        assert "expected float32 of shape (4, 5)" in fault.what and fault.mend == FORGET
        assert "run project again" not in fault.what


def test_numbers_that_are_not_finite_are_named(sound, table, gradients):
    array, rows = gradients(4), table(4)
    array[1, 2], rows["loss"][3] = np.nan, np.inf
    plant(sound, array, rows)
    (fault,) = examine(sound).damage
    assert "2 of 4 good rows hold numbers that are not finite" in fault.what
    rows["ok"][[1, 3]] = False
    plant(sound, array, rows)
    assert examine(sound).damage == []


def test_what_is_advised_makes_project_redo_the_shard(sound, table, gradients):
    """project goes by the receipt: with it gone, and not before, the shard is made again."""
    array = gradients(4)
    array[0, 0] = np.nan
    plant(sound, array, table(4))
    shard = shard_of(sound)
    key = json.loads(shard.receipt.read_text())["rows_hash"]
    assert examine(sound).damage[0].mend == FORGET
    assert why_incomplete(shard, key) is None
    shard.receipt.unlink()
    assert why_incomplete(shard, key) == "not there yet"


@pytest.mark.parametrize(("norm", "absurd"), [(0.2, True), (2.0, False), (40.0, True)])
def test_a_sketch_must_be_about_as_long_as_its_gradient(tmp_path, table, space, norm, absurd):
    space = space | {"project_dim": 64}
    store = GradientStore.create(tmp_path / "s", space, origin={}, shard_rows=4)
    (shard,) = store.enter("train", "a", rows=3, data_hash="h")
    array = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32) / 8 * 3
    rows = table(3)
    rows["grad_norm"] = [3, 3, norm]
    write_shard(shard, {"": (array, rows)}, faults=Faults({}, {}), versions={})
    found = inspect_shard(shard, space, rows=3).faults
    assert [("1 of 3 good rows" in f.what and "as row id2" in f.what) for f in found] == [
        True
    ] * absurd


def test_a_table_of_other_rows_is_named(sound, table, gradients):
    plant(sound, gradients(4), table(4))
    edit_json(shard_of(sound).receipt, lambda receipt: receipt.update(rows_hash="x"))
    (fault,) = examine(sound).damage
    assert "of other rows than its receipt tells of" in fault.what


def test_a_damaged_or_foreign_preconditioner_is_named(tmp_path, space):
    space, divisor = space | {"precondition": "adam 123"}, np.ones(7, np.float32)
    store = GradientStore.create(
        tmp_path / "s", space, origin={}, shard_rows=4, precondition=divisor
    )
    store.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    (fault,) = examine(store).damage
    assert "precondition.npy: not what the store was made with" in fault.what
    (tmp_path / "s/precondition.npy").write_bytes(b"x")
    assert "cannot be read" in examine(store).damage[0].what


def test_what_is_left_over_is_no_damage(sound):
    (sound.path / "stats").mkdir()
    for name in ("train/a/shard-00003.npy", "train/gone/shard-00000.json", "notes.txt",
                 "train/a/shard-00001.npy.tmp", "stats/0.npz"):  # fmt: skip
        (sound.path / name).parent.mkdir(exist_ok=True)
        (sound.path / name).write_bytes(b"x")
    found = examine(sound)
    assert found.damage == [] and {fault.mend for fault in found.left_over} == {REMOVE}
    said = [fault.what.removeprefix(f"{sound.path}/") for fault in found.left_over]
    assert said == [
        "notes.txt: no file of a store",
        "train/a/shard-00001.npy.tmp: half a file, left by a process that was killed",
        "train/a/shard-00003.npy: a shard beyond the plan",
        "train/gone/shard-00000.json: a shard beyond the plan",
    ]


def test_reasons_come_from_the_receipts(sound, table, gradients):
    rows = table(4)
    rows["ok"][:2] = False
    faults = Faults({"id0": "no label"}, {"id1": "its loss is not finite"})
    write_shard(shard_of(sound), {"": (gradients(4), rows)}, faults=faults, versions={})
    part = examine(sound).parts[0]
    assert part.left_out == {"no label": 1} and part.bad == {"its loss is not finite": 1}
