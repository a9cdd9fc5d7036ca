"""Stages in processes that can be killed: forked from one that has the imports behind it.

Started as a script, this reads orders as lines of JSON and answers each with a number. `Forking`
is the other end: a test starts a stage with it as a person would, in a process group of its own.
"""

import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Child:
    """A stage that runs, or has run, in a process of its own."""

    forking: "Forking"
    pid: int
    log: Path
    code: int | None = None

    def wait(self) -> int:
        """The exit code; that of a killed process is its signal's, negative."""
        if self.code is None:
            self.code = self.forking.ask(do="wait", pid=self.pid)
        return self.code

    def signal(self, number: int = signal.SIGKILL) -> int:
        """Send it to this process alone; the exit code, which may be that of a normal end."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self.wait()

    def is_running(self) -> bool:
        return _runs(self.pid)

    @property
    def workers(self) -> list[int]:
        """Processes of its group besides itself that make shards."""
        return [pid for pid in self.others if b"spawn_main" in _command(pid)]

    @property
    def others(self) -> list[int]:
        """All processes of its group besides itself."""
        running = (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())
        return sorted(pid for pid in running if _group(pid) == self.pid != pid and _runs(pid))

    def said(self) -> str:
        return self.log.read_text()


class Forking:
    """Runs stages, each in a fresh child of one process."""

    def __init__(self, logs: Path):
        self.logs, self.count = logs, 0
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(
        self, stage: str, *words: object, shard_rows: int = 4, most_bytes: int | None = None
    ) -> Child:
        """Begin a stage in the current folder; no file may become longer than `most_bytes`."""
        self.count += 1
        log = self.logs / f"{self.count:04d}.txt"
        log.touch()
        pid = self.ask(
            do="start", stage=stage, words=[str(word) for word in words], folder=os.getcwd(),
            log=str(log), shard_rows=shard_rows, most_bytes=most_bytes,
        )  # fmt: skip
        return Child(self, pid, log)

    def run(self, stage: str, *words: object, **more: int) -> tuple[int, str]:
        """A stage from beginning to end: its exit code and what it said."""
        child = self.start(stage, *words, **more)
        return child.wait(), child.said()

    def warm(self, model: Path, adapter: Path) -> None:
        """Load a model once, so that what is imported only then is there for every child."""
        self.ask(do="warm", model=str(model), adapter=str(adapter))

    def ask(self, **order: object) -> int:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def wait_until(true, *, seconds: float = 60, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited in vain {what}"
        time.sleep(0.002)


def _runs(pid: int) -> bool:
    return _stat(pid)[0] != "Z"


def _group(pid: object) -> int:
    return int(_stat(pid)[2])


def _stat(pid: object) -> list[str]:
    """State, parent, group, ...; those of a process that is no more are Z 0 0."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", "0", "0"]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "start":
            answer = os.fork()
            if answer == 0:
                # A shell that begins something in the background has it ignore interrupts.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = _run(order)
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)  # tearing down a copied interpreter takes a second
        elif order["do"] == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(order["pid"], 0)[1])
        else:
            answer = _warm(order)
        print(answer, file=answers, flush=True)


def _run(order: dict) -> int:
    from gradex import project
    from gradex.config import main

    os.setsid()
    os.chdir(order["folder"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["most_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["most_bytes"], resource.RLIM_INFINITY))
    project.SHARD_ROWS = order["shard_rows"]
    stage = importlib.import_module(f"gradex.{order['stage']}")
    return main(getattr(stage, order["stage"]), stage.Config, order["words"])


def _warm(order: dict) -> int:
    """No backward pass: torch refuses one in the children of a process that has done one."""
    from gradex import project
    from gradex.adapters import folder as spec
    from gradex.config import be_quiet, parse
    from gradex.models.encoding import load_with_encoder
    from gradex.models.load import BaseSpec

    be_quiet()
    parse(project.Config, [], stage="project")
    base, _ = load_with_encoder(BaseSpec(order["model"]), (), max_length=512)
    spec.load(base, Path(order["adapter"]))
    gc.collect(), gc.freeze()  # so that children share the pages
    return 0


if __name__ == "__main__":
    _serve()
