"""Engines: each piece once, whoever works on it; a worker's trouble is told by the parent."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from gradex import engines
from gradex.engines import one_thread, run_local
from gradex.errors import GradexError

# A module of its own, so that the processes that are started can import it without these tests.
TOY = """
import os, signal, time
from pathlib import Path
from gradex.errors import GradexError

def start(index):
    def work(piece, advance):
        if piece == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if piece == "fail":
            raise GradexError("piece 'fail' cannot be done")
        if piece == "wait":
            Path(f"waiting-{os.getpid()}").touch()
            time.sleep(60)
        advance(str(piece), 1)
        time.sleep(0.1)
        return piece, index, os.getpid()
    return work

def start_without_memory(index):
    raise MemoryError("no room for a model")
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_worker.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    import toy_worker

    return toy_worker


def run(pieces, start, *, num_workers: int, told: list | None = None) -> list:
    def advance(name: str, amount: int) -> None:
        if told is not None:
            told.append((name, amount))

    return list(run_local(pieces, start, num_workers=num_workers, advance=advance))


def test_one_worker_is_this_process_and_goes_in_order(toy):
    told = []
    done = run([3, 1, 2], toy.start, num_workers=1, told=told)
    assert done == [(piece, 0, os.getpid()) for piece in (3, 1, 2)]
    assert told == [("3", 1), ("1", 1), ("2", 1)]


def test_one_piece_starts_no_process(toy):
    assert run([7], toy.start, num_workers=4) == [(7, 0, os.getpid())]
    assert run([], toy.start, num_workers=4) == []


def test_more_workers_do_each_piece_once_and_have_an_index_each(toy):
    told = []
    done = run(range(6), toy.start, num_workers=2, told=told)
    assert sorted(piece for piece, _, _ in done) == list(range(6))
    processes = {index: pid for _, index, pid in done}
    assert set(processes) <= {0, 1} and os.getpid() not in processes.values()
    assert all(processes[index] == pid for _, index, pid in done)
    assert set(told) <= {(str(i), 1) for i in range(6)} and told
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes.values())


def test_a_mistake_in_a_worker_is_told_as_it_is(toy):
    with pytest.raises(GradexError, match="piece 'fail' cannot be done"):
        run(["fail", "wait"], toy.start, num_workers=2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in waiting())


@pytest.mark.slow
def test_a_worker_that_cannot_begin_says_why(toy):
    with pytest.raises(MemoryError, match="no room for a model"):
        run([1, 2], toy.start_without_memory, num_workers=2)


def test_a_killed_worker_is_one_sentence_and_ends_the_others(toy):
    with pytest.raises(GradexError, match=r"a worker process died.*run the same command again"):
        run(["wait", "die"], toy.start, num_workers=2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in waiting())


def waiting() -> list[str]:
    return [file.name.split("-")[1] for file in Path().glob("waiting-*")]


@pytest.mark.slow
def test_who_stops_listening_ends_the_workers(toy):
    results = run_local([1, "wait"], toy.start, num_workers=2, advance=lambda name, amount: None)
    assert next(results)[0] == 1
    while not waiting():
        time.sleep(0.01)
    results.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in waiting())


def test_one_thread_is_for_the_block_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(ValueError), one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_an_interrupt_waits_whichever_thread_is_given_it():
    """The main thread blocks the signal; one that was there before does not, and gets it."""
    done, ended = [], threading.Event()
    idle = threading.Thread(target=ended.wait)
    idle.start()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt), engines._no_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            done.append("all of it")
    finally:
        ended.set()
        idle.join()
    assert done == ["all of it"] and signal.getsignal(signal.SIGINT) is handler
