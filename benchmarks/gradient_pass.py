"""Cost of per-sample gradients, in plain forward and backward passes over the same batches.

    python benchmarks/gradient_pass.py
    pip install --no-deps -r benchmarks/peers.txt
    python benchmarks/gradient_pass.py --peers

Every tool turns each row's gradient into about --dim numbers: time and peak memory beside a plain
pass, and how well the cosines of the numbers follow those of the exact gradients. Tools run in
processes of their own, each in turns with a plain pass there, with one thread; on a GPU if any.
Time is the processor's (on a GPU the clock's), plain = 1.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

# No torch here: a child's peak memory starts from what its parent held when it was started.
HERE = Path(__file__).parent
LARGE_DIM = 8192
WORKLOADS = ("ragged", "short")


@dataclass(frozen=True)
class Row:
    """A line of the table: a pass, its dimension, and the distribution a peer comes in."""

    label: str
    path: str
    dim: int
    distribution: str | None = None
    imports: str | None = None

    @property
    def installed(self) -> str | None:
        """The version; nothing to install is an empty one."""
        try:
            return version(self.distribution) if self.distribution else ""
        except PackageNotFoundError:
            return None


def own_rows(dim: int) -> list[Row]:
    rows = [
        Row("plain forward and backward", "pass_workloads.plain_pass", dim),
        Row("plain, head on label tokens", "pass_workloads.label_head_pass", dim),
    ]
    for numbers in dict.fromkeys((dim, LARGE_DIM)):
        rows.append(Row("**gradex**, sjlt", "pass_workloads.gradex_pass", numbers))
    return rows


def peer_rows(dim: int) -> list[Row]:
    bergson, trak = ("bergson", "bergson"), ("traker", "trak.projectors")
    dattri = ("dattri", "dattri.algorithm.logra")
    return [
        Row("bergson {}, two-sided a layer", "peer_passes.bergson_pass", dim, *bergson),
        Row("bergson {}, global", "peer_passes.bergson_global_pass", dim, *bergson),
        Row("dattri {}, LoGra", "peer_passes.dattri_pass", dim, *dattri),
        Row("traker {}, vmap", "peer_passes.traker_pass", dim, *trak),
        Row("traker {}, matrix held", "peer_passes.traker_held_pass", dim, *trak),
        Row("LESS's loop, traker {}", "peer_passes.less_pass", dim, *trak),
        Row("LESS's loop, matrix held", "peer_passes.less_held_pass", dim, *trak),
        Row("2024 recipe, dense float64", "peer_passes.recipe_2024_pass", dim),
    ]


def measure(**request) -> dict:
    """What measure_pass.py answers, from a fresh process with one thread."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # dattri compiles its compressors: no quicker on a CPU, and it needs a compiler.
    quiet = {"TQDM_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    # glibc hoards what is freed; with large blocks returned at once a peak is the same every time.
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536"} if request["measure"] == "memory" else {}
    # Some tools insist on writing files: they go when the process has ended.
    with tempfile.TemporaryDirectory() as scratch:
        child = subprocess.run(
            [sys.executable, HERE / "measure_pass.py", json.dumps(request)],
            env=os.environ | one_thread | quiet | exact | {"TMPDIR": scratch},
            capture_output=True,
            text=True,
        )
    if child.returncode:
        raise RuntimeError(f"{request}\n{child.stderr}")
    return json.loads(child.stdout.splitlines()[-1])


def measure_group(workload: str, rows: list[Row], repeats: int) -> list[dict]:
    """Results of rows that take turns in one process; the first is its plain pass."""
    passes = [(row.path, row.dim) for row in rows]
    timed = measure(measure="time", workload=workload, passes=passes, repeats=repeats)
    plain = timed["result"][0]["seconds"]
    return [
        result
        | {
            "label": row.label.format(row.installed),
            "device": timed["device"],
            "ratios": [own / floor for own, floor in zip(result["seconds"], plain, strict=True)],
        }
        for row, result in zip(rows, timed["result"], strict=True)
    ]


def with_memory(workload: str, row: Row, result: dict) -> dict:
    print(f"{workload}: {result['label']}", file=sys.stderr)
    request = {"path": row.path, "dim": row.dim, "imports": row.imports}
    return result | {"bytes": measure(measure="memory", workload=workload, **request)["result"]}


def measure_workload(workload: str, args: argparse.Namespace) -> list[dict]:
    own = own_rows(args.dim)
    measured = measure_group(workload, own, args.repeats)
    results = [with_memory(workload, *pair) for pair in zip(own, measured, strict=True)]
    for peer in peer_rows(args.dim) if args.peers else []:
        if peer.installed is None:
            results.append({"label": peer.label.replace(" {}", "") + ": not installed"})
        else:
            beside_plain = measure_group(workload, [own[0], peer], args.repeats)
            results.append(with_memory(workload, peer, beside_plain[1]))
    return results


HEADER = """\
| {} | numbers a row | time | from - to | rows/s | peak memory | MB | cosines |
|---|---:|---:|---:|---:|---:|---:|---:|"""


def line(result: dict, plain_bytes: int) -> str:
    if "ratios" not in result:
        return f"| {result['label']} | | | | | | | |"
    ratios = sorted(result["ratios"])
    cells = [
        result["label"],
        f"{result['numbers']:,}" if "numbers" in result else "",
        f"{median(ratios):.2f}",
        f"{ratios[0]:.2f} - {ratios[-1]:.2f}",
        f"{result['rows'] / median(result['seconds']):,.0f}",
        f"{result['bytes'] / plain_bytes:.2f}",
        f"{result['bytes'] / 2**20:,.0f}",
        f"{result['correlation']:.2f}" if "correlation" in result else "",
    ]
    return f"| {' | '.join(cells)} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=[*WORKLOADS, "both"], default="both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--peers", action="store_true", help="measure the installed peers too")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    return parser.parse_args()


def title(device: str) -> str:
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    machine = f"{device}, {os.cpu_count()} CPUs, one thread a process"
    return f"`{shlex.join(['python', *sys.argv])}`: {machine}, {versions}\n"


def main() -> None:
    args = parse()
    everything: dict[str, list[dict]] = {}
    for workload in WORKLOADS if args.workload == "both" else [args.workload]:
        results = measure_workload(workload, args)
        if not everything:
            print(title(results[0]["device"]))
        everything[workload] = results
        print(HEADER.format(workload))
        print("\n".join(line(result, results[0]["bytes"]) for result in results), end="\n\n")
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
