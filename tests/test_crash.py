"""Killed, out of disk space, damaged, written by two: a store ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import skill_rows, write_jsonl
from forking import Child, Forking, wait_until

from gradex.data.formats import Row
from gradex.data.sources import Source, Sources, load_sources
from gradex.errors import GradexError
from gradex.gradients.plan import plan_shards, require_only_added
from gradex.gradients.shards import (
    ROW_TYPE,
    Faults,
    ShardPath,
    damages,
    read_receipt,
    write_shard,
)
from gradex.gradients.store import GradientStore
from gradex.records import replacing

NAMES = ("copy", "noise_one", "noise_two", "upper")
KILLS, PER_STORE = 50, 8
ORIGIN = {"base": {}, "tasks": {}, "recipe": {}}
MOVES = {"max_steps": 1, "per_device_train_batch_size": 8}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stamps_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each is and when it was written: a file that was made again has others."""
    found = ((p, p.stat()) for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (s.st_ino, s.st_mtime_ns) for p, s in found}


def receipts_of(store: Path) -> list[ShardPath]:
    found = store.glob("*/*/shard-?????.json")
    return [ShardPath(file.parent, int(file.stem.split("-")[1])) for file in sorted(found)]


def complete_files(store: Path) -> dict[str, tuple[int, int]]:
    """The files of the shards that have a receipt, with their stamps."""
    stamps = stamps_of(store)
    return {
        str(place.relative_to(store)): stamps[str(place.relative_to(store))]
        for shard in receipts_of(store)
        for place in [
            shard.receipt,
            *(shard.folder / name for name in read_receipt(shard)["files"]),
        ]
        if not list(damages(shard, read_receipt(shard)))
    }


def assert_whole(store: Path, whole: Path) -> None:
    """Byte for byte as the undisturbed one, in every file and with no other."""
    assert files_of(store) == files_of(whole)
    assert not store.with_name(store.name + ".part").exists()


def error_of(said: str) -> str:
    """The one sentence that a person is told."""
    assert "Traceback" not in said, said
    found = [line for line in said.splitlines() if line.startswith("gradex: error:")]
    assert len(found) == 1, said
    return found[0]


@pytest.fixture(scope="module")
def forking(tmp_path_factory) -> Iterator[Forking]:
    made = Forking(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


def _train(forking: Forking, model: Path, tasks: Path, output_dir: Path, **more: object) -> Path:
    flags = [word for name, value in (MOVES | more).items() for word in (f"--{name}", value)]
    base = ["--model_name_or_path", model, "--tasks", tasks, "--output_dir", output_dir]
    code, said = forking.run("meta_train", *base, *flags)
    assert code == 0, said
    return output_dir


@pytest.fixture(scope="module")
def world(forking, model_folder, tmp_path_factory) -> SimpleNamespace:
    """Four sources, a meta-training, and a store that nothing has disturbed."""
    root = tmp_path_factory.mktemp("world")
    for number, name in enumerate(NAMES):
        rows = skill_rows(name.split("_")[0], 40, seed=number)
        write_jsonl(root / f"tasks/{name}.jsonl", rows)
    model = model_folder("llama")
    with chdir(root):
        meta = _train(forking, model, root / "tasks", root / "meta")
        forking.warm(model, meta / "adapter")
        flags = ["--meta_dir", meta, "--project_dim", 16]
        code, said = forking.run("project", *flags, "--output_dir", "whole")
    assert code == 0, said
    return SimpleNamespace(tasks=root / "tasks", meta=meta, flags=flags, whole=root / "whole")


@pytest.fixture
def start(forking, world) -> Callable[..., Child]:
    """start("--output_dir", "s"): project on the small world, in a process of its own."""
    return lambda *words, **more: forking.start("project", *world.flags, *words, **more)


@pytest.fixture
def project(forking, world) -> Callable[..., tuple[int, str]]:
    """The same from beginning to end: exit code, and what was said."""
    return lambda *words, **more: forking.run("project", *world.flags, *words, **more)


# Killed.


def test_fifty_kills_leave_the_store_of_an_undisturbed_run(start, project, world):
    """What was complete at a kill is never written again, and the next run says what is there."""
    drawn = random.Random(0)
    shards = len(receipts_of(world.whole))
    seconds = _seconds_of_writing(start)
    kills, stores, spread = 0, 0, []
    while kills < KILLS:
        stores += 1
        store, known, killed = Path(f"store{stores}"), {}, True
        while killed:
            before = len(receipts_of(store))
            child = start("--output_dir", store)
            wait_until(_has_begun(child, store))
            if before < shards:
                time.sleep(drawn.uniform(0, 2 * seconds / PER_STORE))
            else:
                child.wait()
            killed = child.signal(signal.SIGKILL) == -signal.SIGKILL
            assert killed or child.code == 0, child.said()
            if 0 < before < shards and before < len(receipts_of(store)):
                assert f"{before} of {shards} shards are there" in child.said()
            stamps = stamps_of(store) if store.exists() else {}
            assert {file: stamps[file] for file in known} == known
            known = complete_files(store)
            if killed:
                kills += 1
                spread.append(len(receipts_of(store)) / shards)
        assert_whole(store, world.whole)
    assert len(set(spread)) > 10, spread  # or the kills were no test of different moments


def _seconds_of_writing(start) -> float:
    """How long an undisturbed run writes."""
    child = start("--output_dir", "timed")
    wait_until(_has_begun(child, Path("timed")))
    began = time.monotonic()
    assert child.wait() == 0
    return time.monotonic() - began


def _has_begun(child: Child, store: Path) -> Callable[[], bool]:
    """Whether a run has come to where it writes into its store, or has ended."""
    plan, part = store / "plan.json", store.with_name(store.name + ".part")
    before = plan.stat().st_mtime_ns if plan.exists() else None

    def begun() -> bool:
        if not child.is_running():
            return True
        return part.exists() if not plan.exists() else plan.stat().st_mtime_ns != before

    return begun


def test_kills_while_points_are_made_leave_the_store_of_an_undisturbed_run(
    forking, world, tmp_path, model_folder
):
    """Of the meta-training's two early points, both of them."""
    more = {"max_steps": 7}
    meta = _train(forking, model_folder("llama"), world.tasks, tmp_path / "meta", **more)
    words = ["--meta_dir", meta, "--project_dim", 16, "--output_dir"]
    code, said = forking.run("project", *words, "whole")
    assert code == 0, said
    for step, shards in ((2, 1), (2, 8), (1, 1), (1, 8)):
        child = forking.start("project", *words, "s")
        point = Path("s/points", str(step))
        wait_until(lambda at=point, least=shards: len(receipts_of(at)) >= least)
        assert child.signal(signal.SIGKILL) == -signal.SIGKILL, "it was too quick to be killed"
        assert len(receipts_of(point)) < len(receipts_of(world.whole))
        with pytest.raises(GradexError, match=f"points/{step}/.*run project again to finish"):
            GradientStore.open(Path("s")).points()
    assert forking.run("project", *words, "s")[0] == 0
    assert_whole(Path("s"), Path("whole"))
    assert [point.path.name for point in GradientStore.open(Path("s")).points()] == ["1", "2"]


def test_a_kill_at_each_write_of_a_store_leaves_nothing_behind(tmp_path, space):
    """Without a model: every rename, flush and folder of a creation and a shard in turn."""
    make(tmp_path / "whole", space)
    steps = 0
    while _dies_at(steps, tmp_path / "s", space):
        make(tmp_path / "s", space)
        assert_whole(tmp_path / "s", tmp_path / "whole")
        shutil.rmtree(tmp_path / "s")
        steps += 1
    assert steps > 20


@pytest.fixture
def space() -> dict:
    return {
        "project_dim": 5, "differentiate": "loss", "dtype": "float32", "precondition": "adam 1",
    }  # fmt: skip


def make(path: Path, space: dict) -> None:
    """A store of one source in two shards, or what is missing of it."""
    if not GradientStore.exists(path):
        ones = np.ones(7, np.float32)
        GradientStore.create(path, space, origin=ORIGIN, shard_rows=2, precondition=ones)
    store = GradientStore.open(path)
    rows = tuple(Row(f"id{i}", (("user", "a"),), "b") for i in range(3))
    splits = {"train": rows, "select": (), "test": ()}
    source = Source("a", "a.jsonl", "text", "loss", splits)
    for spec in plan_shards(store, Sources({"a": source})):
        table = np.zeros(len(spec.rows), ROW_TYPE)
        table["id"], table["split"] = [row.id for row in spec.rows], "train"
        table["ok"], table["scale"] = True, 1
        parts = {"": (np.ones((len(table), 5), np.float32), table)}
        write_shard(spec.path, parts, faults=Faults({}, {}), versions={})
    store.save_origin(ORIGIN)


def _dies_at(step: int, path: Path, space: dict) -> bool:
    """Make the store in a child that kills itself at its `step`-th call of the file system."""
    child = os.fork()
    if child == 0:
        left = iter(range(step, -1, -1))

        def counted(call: Callable) -> Callable:
            def instead(*given, **more):
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*given, **more)

            return instead

        for name in ("mkdir", "rename", "replace", "fsync", "open", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        with suppress(StopIteration):
            make(path, space)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_kill_while_a_damaged_shard_is_made_again_leaves_nothing_behind(tmp_path, space):
    """Its gradients may be mended already when it dies; the rest must still be gone over."""
    make(tmp_path / "whole", space)
    for step in range(20):
        shutil.copytree(tmp_path / "whole", tmp_path / "s")
        damage(tmp_path / "s/train/a/shard-00000.npy", "flip")
        _dies_at(step, tmp_path / "s", space)
        make(tmp_path / "s", space)
        assert_whole(tmp_path / "s", tmp_path / "whole")
        shutil.rmtree(tmp_path / "s")


# With workers: they take seconds to start, the runs after them have one process.

WORKERS = ["--num_workers", 2, "--output_dir", "s"]


@pytest.mark.slow
def test_three_workers_leave_the_same_bytes(project, world):
    code, said = project("--num_workers", 3, "--output_dir", "s")
    assert code == 0, said
    assert_whole(Path("s"), world.whole)


def test_a_killed_worker_is_told_and_what_was_finished_is_kept(start, project, world):
    child = start(*WORKERS)
    wait_until(lambda: len(receipts_of(Path("s"))) > 3)
    known = complete_files(Path("s"))
    os.kill(child.workers[0], signal.SIGKILL)
    assert child.wait() == 2
    assert "a worker process died" in error_of(child.said())
    wait_until(lambda: not child.others, seconds=5)
    code, said = project("--output_dir", "s")
    assert code == 0 and "of 44 shards are there" in said
    assert {name: stamps_of(Path("s"))[name] for name in known} == known
    assert_whole(Path("s"), world.whole)


def test_workers_end_with_a_parent_that_is_killed(start, project, world):
    """An orphan that went on would write beside the next run."""
    child = start(*WORKERS)
    wait_until(lambda: len(receipts_of(Path("s"))) > 3)
    assert len(child.workers) == 2
    assert child.signal(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not child.others, seconds=2)
    assert len(receipts_of(Path("s"))) < len(receipts_of(world.whole)), "they were too quick"
    assert project("--output_dir", "s")[0] == 0
    assert_whole(Path("s"), world.whole)


@pytest.mark.parametrize("moment", ["starting", pytest.param("working", marks=pytest.mark.slow)])
def test_an_interrupt_ends_workers_and_parent_at_once(start, project, world, moment):
    """Ctrl-C reaches all processes of a terminal; one line is said, by the parent."""
    child = start(*WORKERS)
    if moment == "starting":
        wait_until(lambda: len(child.workers) == 2)
    else:
        wait_until(lambda: len(receipts_of(Path("s"))) > 3)
    os.killpg(child.pid, signal.SIGINT)
    began = time.monotonic()
    assert child.wait() == 130, child.said()
    assert time.monotonic() - began < 5
    wait_until(lambda: not child.others, seconds=5)
    assert "interrupted; the same" in child.said()
    assert "Traceback" not in child.said(), child.said()
    assert project("--output_dir", "s")[0] == 0
    assert_whole(Path("s"), world.whole)


def test_an_interrupt_of_one_process_goes_on_from_there(start, project, world):
    child = start("--output_dir", "s")
    wait_until(lambda: len(receipts_of(Path("s"))) > 3)
    known = complete_files(Path("s"))
    assert child.signal(signal.SIGINT) == 130
    assert "Traceback" not in child.said() and not list(Path("s").rglob("*.tmp"))
    assert project("--output_dir", "s")[0] == 0
    assert {name: stamps_of(Path("s"))[name] for name in known} == known
    assert_whole(Path("s"), world.whole)


# No space.


@pytest.mark.parametrize("most", [900, 2500, 4000])
def test_a_full_disk_is_one_sentence_and_a_run_with_room_goes_on(project, world, most):
    """What did not fit is named; wide rows make the gradients the largest files."""
    flags = ["--project_dim", 512, "--output_dir"]
    code, said = project(*flags, "s", most_bytes=most)
    assert code == 2
    assert "cannot be written (File too large)" in error_of(said)
    assert project(*flags, "s")[0] == 0
    assert project(*flags, "whole")[0] == 0
    assert_whole(Path("s"), Path("whole"))


def test_a_device_without_room_is_told_as_such(tmp_path):
    """/dev/full takes the place of the file that is written before it is renamed."""
    (tmp_path / "x.npy.tmp").symlink_to("/dev/full")
    with pytest.raises(GradexError, match=r"x\.npy: cannot be written \(No space left on device\)"):
        with replacing(tmp_path / "x.npy") as stream:
            np.save(stream, np.ones(10_000))
    assert list(tmp_path.glob("x*")) == []


# Damaged.


def damage(file: Path, how: str, *, at: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(content[: int(at * len(content))])
    else:
        content[int(at * len(content))] ^= 1
        file.write_bytes(content)


def values_of(store: Path) -> dict[str, bytes]:
    """Everything that a reader can get from a store."""
    opened = GradientStore.open(store)
    out = {"origin": repr(opened.origin).encode()}
    for name in opened.sources:
        block = opened.source(name)
        out[f"train {name}"] = block.gradients.tobytes() + block.table.tobytes()
    for name in opened.targets:
        for split in ("select", "test"):
            block = opened.target(name, split)
            out[f"{split} {name}"] = block.gradients.tobytes() + block.table.tobytes()
    return out


DAMAGED = [
    "manifest.json", "plan.json", "origin.json", "train/copy/shard-00001.json",
    "train/copy/shard-00001.npy", "train/copy/shard-00001.rows.npy",
    "target/upper/shard-00000.json", "target/upper/shard-00000.npy",
]  # fmt: skip


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("file", DAMAGED)
def test_the_next_run_mends_a_damaged_file_or_refuses_and_names_it(project, world, file, how):
    shutil.copytree(world.whole, "s")
    damage(Path("s") / file, how)
    code, said = project("--output_dir", "s")
    if code:
        assert code == 2 and Path(file).name in error_of(said)
    else:
        assert_whole(Path("s"), world.whole)
    assert (code == 0) == ("shard" in file), said


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("file", DAMAGED)
def test_a_reader_names_a_damaged_file(world, file, how):
    """Of a source's gradients and tables it only sees what is no array of the expected kind; those
    of targets, and what sums are made of, are held against their receipts."""
    shutil.copytree(world.whole, "s")
    damage(Path("s") / file, how, at=0.9)
    if how == "flip" and file.startswith("train") and file.endswith(".npy"):
        assert values_of(Path("s")) != values_of(world.whole)
    else:
        with pytest.raises(GradexError, match=Path(file).name):
            values_of(Path("s"))


def test_a_flipped_bit_in_any_byte_of_what_describes_a_store_is_noticed(tmp_path, space):
    """Numbers of rows, hashes, settings: all but the gradients and tables themselves."""
    make(tmp_path / "s", space)
    for file in sorted((tmp_path / "s").rglob("*.json")):
        content = file.read_bytes()
        for at in range(len(content)):
            flipped = bytearray(content)
            flipped[at] ^= 1 << at % 7
            file.write_bytes(flipped)
            with pytest.raises(GradexError, match=r"\.json|format|dtype"):
                store = GradientStore.open(tmp_path / "s")
                assert store.origin and store.receipts("train", "a")
                pytest.fail(f"{file.name}: {flipped!r}")
        file.write_bytes(content)


def test_a_damaged_preconditioner_is_never_used(project):
    flags = ["--precondition", "adam", "--output_dir", "s"]
    assert project(*flags)[0] == 0
    whole = files_of(Path("s"))
    for how in ("flip", "truncate", "remove"):
        damage(Path("s/precondition.npy"), how)
        receipts_of(Path("s"))[0].receipt.unlink()
        code, said = project(*flags)
        assert code == 2 and "precondition.npy" in error_of(said)
        Path("s/precondition.npy").write_bytes(whole["precondition.npy"])
        assert project(*flags)[0] == 0
        assert files_of(Path("s")) == whole


def _estimates(forking: Forking, store: Path, output_dir: str) -> bytes:
    words = ["--store", store, "--num_subsets", 8, "--output_dir", output_dir]
    code, said = forking.run("estimate", *words)
    assert code == 0, said
    return Path(output_dir, "estimates.csv").read_bytes()


def test_damaged_sums_are_made_again(forking, world):
    shutil.copytree(world.whole, "s")
    wanted = _estimates(forking, Path("s"), "first")
    sums = sorted(Path("s/stats").iterdir())
    before = files_of(Path("s"))
    assert len(sums) == len(NAMES)
    for file, how in zip(sums, ("flip", "truncate", "remove", "flip"), strict=True):
        damage(file, how)
    assert _estimates(forking, Path("s"), "second") == wanted
    assert files_of(Path("s")) == before


def test_sums_are_not_made_of_damaged_gradients(forking, project, world):
    """They are kept under the hash of the right ones, and would outlive the repair."""
    shutil.copytree(world.whole, "s")
    damage(Path("s/train/copy/shard-00001.npy"), "flip", at=0.9)
    code, said = forking.run("estimate", "--store", "s", "--num_subsets", 8)
    assert code == 2 and "train/copy/shard-00001.npy" in error_of(said)
    assert project("--output_dir", "s")[0] == 0
    shutil.copytree(world.whole, "other")
    rows = [
        [line.split(b",")[1:] for line in _estimates(forking, Path(store), f"e{store}").split()]
        for store in ("s", "other")
    ]
    assert rows[0] == rows[1]


# Two writers.


@pytest.mark.parametrize("where", [["--output_dir", "s"], []], ids=["named", "default"])
def test_of_two_that_begin_at_once_one_works_and_the_other_is_told(start, world, where):
    for dim in (16, 17, 18):
        pair = [start(*where, "--project_dim", dim) for _ in range(2)]
        codes = [child.wait() for child in pair]
        assert sorted(codes) == [0, 2], [child.said() for child in pair]
        told = error_of(pair[codes.index(2)].said())
        assert "another process" in told, told
        made = Path("s") if where else _only(Path("gradients"))
        if dim == 16:
            assert_whole(made, world.whole)
        else:
            assert not [file for file in files_of(made) if file.endswith(".tmp")]
        assert len(list(made.parent.glob("*.part"))) == 0
        shutil.rmtree(made)


def _only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_a_second_writer_is_told_while_the_first_works(start, project, world):
    first = start("--output_dir", "s")
    wait_until(lambda: receipts_of(Path("s")))
    code, said = project("--output_dir", "s")
    assert first.is_running(), "the first was too quick"
    assert code == 2 and "another process is writing here; wait for it" in error_of(said)
    assert first.wait() == 0
    assert_whole(Path("s"), world.whole)


def test_a_store_that_was_made_meanwhile_is_not_made_again(tmp_path, space, monkeypatch):
    """Between looking for a store and creating one, another process may have done both."""
    made = []

    def slow(part, *given, **more):
        monkeypatch.undo()
        GradientStore.create(tmp_path / "s", space, origin=ORIGIN, shard_rows=4)
        made.append(files_of(tmp_path / "s"))
        part.mkdir(*given, **more)

    monkeypatch.setattr(Path, "mkdir", slow)
    with pytest.raises(GradexError, match="another process"):
        GradientStore.create(tmp_path / "s", space, origin={}, shard_rows=8)
    assert files_of(tmp_path / "s") == made[0]
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_an_interrupted_creation_with_other_settings_leaves_nothing_behind(tmp_path, space):
    (tmp_path / "s.part").mkdir()
    for name in ("precondition.npy", "precondition.npy.tmp"):
        (tmp_path / "s.part" / name).touch()
    plain = space | {"precondition": "none"}
    GradientStore.create(tmp_path / "s", plain, origin=ORIGIN, shard_rows=4)
    assert set(files_of(tmp_path / "s")) == {"manifest.json", "origin.json", "plan.json"}


# Appended to.


@pytest.fixture
def tasks(world) -> Iterator[Path]:
    """The tasks of the meta-training, to be changed; they are put back as they were."""
    before = files_of(world.tasks)
    yield world.tasks
    for name, content in before.items():
        (world.tasks / name).write_bytes(content)


def append_to(file: Path, count: int) -> None:
    rows = [{"prompt": f"more {i}=", "completion": "abc"} for i in range(count)]
    file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def grow(tasks, tmp_path) -> list[str]:
    """Rows at the end of a file and a file more; the flags that take them in."""
    append_to(tasks / "copy.jsonl", 9)
    write_jsonl(tmp_path / "new.jsonl", skill_rows("upper", 21, seed=9))
    return ["--append", "--more_tasks", str(tmp_path / "new.jsonl"), "--output_dir"]


def test_appending_touches_no_file_of_other_sources(project, world, grow):
    shutil.copytree(world.whole, "s")
    stamps = stamps_of(Path("s"))
    assert project(*grow, "s")[0] == 0
    after, store = stamps_of(Path("s")), GradientStore.open(Path("s"))
    assert store.sources == store.targets == [*NAMES, "new"]
    written = {file for file in stamps if after[file] != stamps[file]}
    last = f"train/copy/shard-{len(GradientStore.open(world.whole).shards('train', 'copy')) - 1:05}"
    allowed = ("plan.json", "origin.json", last, "target/copy/")
    assert written and all(file.startswith(allowed) for file in written), written
    assert len(store.table("train", "copy")) + len(store.table("target", "copy")) == 49


def test_kills_while_appending_leave_the_store_of_an_undisturbed_one(start, project, world, grow):
    """And between them a reader has the store from before, that from after, or an error."""
    shutil.copytree(world.whole, "whole")
    assert project(*grow, "whole")[0] == 0
    drawn = random.Random(1)
    for number in range(4):
        store, code = Path(f"s{number}"), None
        shutil.copytree(world.whole, store)
        while code != 0:
            child = start(*grow, store)
            wait_until(_has_begun(child, store))
            time.sleep(drawn.uniform(0, 0.15))
            code = child.signal(signal.SIGKILL)
            assert code in (0, -signal.SIGKILL), child.said()
            try:
                assert values_of(store) in (values_of(world.whole), values_of(Path("whole")))
            except GradexError as error:
                assert "missing, so the shard is not complete" in str(error)
        assert_whole(store, Path("whole"))


def test_later_stages_work_with_an_appended_source(forking, project, world, grow):
    shutil.copytree(world.whole, "s")
    assert project(*grow, "s")[0] == 0
    assert b",new," in _estimates(forking, Path("s"), "e")
    chosen = ["--store", "s", "--target", "new", "--method", "all", "--output_dir", "chosen"]
    for stage, words in (
        ("select_sources", chosen),
        ("finetune", ["--selection", "chosen/selection.json", "--output_dir", "tuned"]),
    ):
        code, said = forking.run(stage, *words)
        assert code == 0, said
    results = json.loads(Path("tuned/results.json").read_text())
    assert results["target"] == "new" and results["selected"] == [*NAMES, "new"]


@pytest.mark.parametrize("how", ["removed", "changed", "moved"])
def test_appending_is_refused_where_any_row_is_gone_or_has_moved(world, tasks, how):
    """Training rows and held-out ones alike; the order of held-out rows alone does not matter."""
    file, store = tasks / "copy.jsonl", GradientStore.open(world.whole)
    lines = file.read_text().splitlines(keepends=True)
    held_out = set()
    for number, line in enumerate(lines):
        rest = lines[:number] + lines[number + 1 :]
        if how == "changed":
            rest.insert(number, line.replace("=", "!"))
        elif how == "moved":
            rest.insert(0 if number else 1, line)
        file.write_text("".join(rest))
        sources = load_sources([str(tasks)])
        try:
            require_only_added(store, sources)
            held_out.add(number)
        except GradexError as error:
            assert "copy.jsonl: the" in str(error) and "put new rows at the end" in str(error)
    assert len(held_out) == 0 if how != "moved" else len(held_out) < 15, held_out


@pytest.mark.parametrize("ending", [".json", ".rows.npy", ".npy"])
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_appending_mends_a_damaged_shard(project, world, grow, ending, how):
    """Nothing else could: without --append the rows are no longer those of the meta-training."""
    shutil.copytree(world.whole, "whole")
    assert project(*grow, "whole")[0] == 0
    shutil.copytree(world.whole, "s")
    for shard in ("train/copy/shard-00000", "target/upper/shard-00000"):
        damage(Path("s", shard + ending), how)
    code, said = project(*grow, "s")
    assert code == 0, said
    assert_whole(Path("s"), Path("whole"))


def test_a_store_that_grew_meanwhile_is_not_set_back(tmp_path, space):
    """Of two that append, the later one has not read what the earlier one added."""
    make(tmp_path / "s", space)
    store, other = (GradientStore.open(tmp_path / "s") for _ in range(2))
    store.require_unchanged()
    other.enter("train", "b", rows=1, data_hash="h")
    other.save_plan()
    with pytest.raises(GradexError, match="another process has changed it meanwhile"):
        store.require_unchanged()


def good_rows(store: GradientStore) -> set[tuple[str, bytes]]:
    sides = [("train", name) for name in store.sources]
    sides += [("target", name) for name in store.targets]
    return {
        (f"{side} {name}", row) for side, name in sides for row in store.table(side, name)["id"]
    }


def test_appended_rows_of_a_new_class_are_left_out(forking, model_folder, tmp_path):
    """The head stays as it was trained; even where all the shortest rows are of the new class."""
    for name in ("one", "two"):
        rows = [{"text": f"{name} number {i}", "label": f"{i % 3}"} for i in range(40)]
        write_jsonl(tmp_path / f"tasks/{name}.jsonl", rows)
    meta = _train(forking, model_folder("bert"), tmp_path / "tasks", tmp_path / "meta")
    flags = ["--meta_dir", meta, "--project_dim", 16, "--output_dir", "s"]
    assert forking.run("project", *flags)[0] == 0
    before = GradientStore.open(Path("s"))
    known = good_rows(before)
    file = tmp_path / "tasks/one.jsonl"
    rows = [{"text": f"{i}", "label": "new"} for i in range(30)]
    rows.append({"text": "one number 41", "label": "0"})
    file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    code, said = forking.run("project", *flags, "--append")
    assert code == 0, said
    assert "30 rows left out: label 'new' is not one of the model's" in said
    after = GradientStore.open(Path("s"))
    assert after.space == before.space
    assert known < good_rows(after) and len(good_rows(after)) == len(known) + 1
    assert _estimates(forking, Path("s"), "e")
