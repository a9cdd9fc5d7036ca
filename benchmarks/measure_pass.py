"""One measurement of gradient_pass.py, in a process of its own: JSON in, JSON out.

    python measure_pass.py '{"measure": "time", "workload": "short", "repeats": 5, "passes":
                             [["pass_workloads.plain_pass", 512]]}'

`time` runs the given passes in turns, so that noise hits all alike, and compares their sketches
with exact gradients; `memory` runs a single one, once, and reads the peak of the process.
"""

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from time import perf_counter, process_time

import torch
from pass_workloads import Pass, Sketches, Workload, build, exact_gradients, plain_pass
from torch import Tensor
from torch.nn.functional import normalize

CUDA = torch.cuda.is_available()
COMPARED_ROWS = 200


def factory(path: str) -> Callable[[Workload, int], Pass]:
    module, function = path.split(".")
    return getattr(import_module(module), function)


def time_passes(workload: str, passes: list[tuple[str, int]], repeats: int) -> list[dict]:
    # Each has a model of its own: some tools change the model they are given.
    runs = [factory(path)(build(workload), dim) for path, dim in passes]
    warm_up = [run() for run in runs]
    rounds = [[_seconds(run) for run in runs] for _ in range(repeats)]
    work = build(workload)
    exact = _cosines(exact_gradients(work, COMPARED_ROWS))
    return [
        {"rows": len(work.rows), "seconds": seconds} | _quality(sketches, exact)
        for sketches, seconds in zip(warm_up, zip(*rounds, strict=True), strict=True)
    ]


def _seconds(run: Pass) -> float:
    """On a CPU those of the processor: one thread's, whoever else works on the machine."""
    clock = perf_counter if CUDA else process_time
    _synchronize()
    start = clock()
    run()
    _synchronize()
    return clock() - start


def _synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def _quality(sketches: Sketches | None, exact: Tensor) -> dict:
    """How much is stored a sample, and how well its cosines follow the exact ones."""
    if sketches is None:
        return {}
    both = torch.stack([_cosines(sketches[:COMPARED_ROWS]), exact])
    return {"numbers": sketches.shape[1], "correlation": torch.corrcoef(both)[0, 1].item()}


def _cosines(vectors: Tensor) -> Tensor:
    unit = normalize(vectors.double(), dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit @ unit.T)[first, second]


def peak_memory(workload: str, path: str, dim: int, imports: str | None) -> int:
    """Bytes the pass adds at its peak to model, data and libraries, its result not counted."""
    if imports:
        import_module(imports)
    work = build(workload)
    # Two rows through the model: kernels and buffers that every pass sets up once.
    plain_pass(replace(work, rows=work.rows[:2]), dim)()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    before = _peak()
    sketches = factory(path)(work, dim)()
    kept = 0 if sketches is None or CUDA else sketches.nbytes
    return _peak() - before - kept


def _peak() -> int:
    if CUDA:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    torch.set_num_threads(1)
    request = json.loads(sys.argv[1])
    measures = {"time": time_passes, "memory": peak_memory}
    result = measures[request.pop("measure")](**request)
    device = torch.cuda.get_device_name() if CUDA else "cpu"
    # The last line, whatever a tool has printed before.
    print(json.dumps({"device": device, "result": result}))


if __name__ == "__main__":
    main()
