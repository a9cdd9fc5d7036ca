"""Runs independent pieces of work in this process, or in several on this machine.

An engine knows no stage: it is given the pieces, and how a worker makes itself ready. Every piece
leaves its own result on disk, so that what an engine was doing when it died is all that is lost;
running the same command again is the way on.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from gradex.config import be_quiet
from gradex.errors import GradexError

Piece = TypeVar("Piece")
Result = TypeVar("Result")
# Told while a piece is worked on: what it is, and how much more of it is done.
Advance = Callable[[str, int], None]
Work = Callable[[Piece, Advance], Result]
POLL_SECONDS = 0.2


def run_local(
    pieces: Sequence[Piece],
    start: Callable[[int], Work],
    *,
    num_workers: int,
    advance: Advance,
) -> Iterator[Result]:
    """The results as they come; `start` makes a worker, told its index, in its own process."""
    if not pieces:
        return
    if min(num_workers, len(pieces)) == 1:
        with one_thread():
            work = start(0)
            yield from (work(piece, advance) for piece in pieces)
        return
    context = multiprocessing.get_context("spawn")
    told, index = context.Queue(), context.Value("i", 0)
    count = min(num_workers, len(pieces))
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(start, told, index))
    try:
        with _no_interrupt():
            waiting = {pool.submit(_work, piece) for piece in pieces}
        yield from _results(waiting, told, advance, pool)
    except BrokenProcessPool:
        raise GradexError(
            "a worker process died (killed, or out of memory); what was finished is kept: run the "
            "same command again, with fewer --num_workers if memory was short"
        ) from None
    finally:
        _end(pool)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes begun here never see a Ctrl-C, the parent sees it afterwards and ends them.

    To block the signal is not enough: a thread that does not block it may be given it, and Python
    then interrupts the main thread, which would leave a process half begun.
    """
    put_off: list[tuple] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, lambda *args: put_off.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if put_off and callable(handler):
            handler(*put_off[0])


def _results(
    waiting: set[Future], told: Any, advance: Advance, pool: ProcessPoolExecutor
) -> Iterator[Any]:
    while waiting:
        done, waiting = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        while not told.empty():
            advance(*told.get())
        yield from (future.result() for future in done)
        # The pool itself may not look at a worker that it began last until another has a result.
        if waiting and connection.wait([p.sentinel for p in _processes(pool)], timeout=0):
            raise BrokenProcessPool


def _processes(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    return list((pool._processes or {}).values())


def _end(pool: ProcessPoolExecutor) -> None:
    """Stop at once: a worker's unfinished piece is begun anew by the next run."""
    processes = _processes(pool)
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


# What a worker process keeps between pieces.
_state: dict[str, Any] = {}


def _begin(start: Callable[[int], Work], told: Any, index: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    be_quiet(logging.ERROR)  # the parent has said what is to be said
    torch.set_num_threads(1)
    with index.get_lock():
        mine, index.value = index.value, index.value + 1
    _state.update(start=start, index=mine, told=told)


def _work(piece: Any) -> Any:
    if "work" not in _state:  # here and not in _begin, whose errors would not reach the parent
        _state["work"] = _state["start"](_state["index"])
    return _state["work"](piece, lambda name, amount: _state["told"].put((name, amount)))


def _end_with_parent() -> None:
    """A worker must not outlive a parent that was killed: the next run would write beside it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, hence the same bits however many workers there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
