"""What a process needs to make shards: a model of its own, a projector, one shard at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradex.adapters import folder as adapters
from gradex.data.formats import Row
from gradex.data.tokens import Encoder, encode_all
from gradex.engines import Advance, Work
from gradex.errors import GradexError
from gradex.gradients.collect import Collector
from gradex.gradients.per_sample import Pass, make_pass
from gradex.gradients.plan import ShardSpec
from gradex.gradients.shards import Faults, write_shard
from gradex.gradients.sketching import Divisor, Sketching
from gradex.models.encoding import load_with_encoder, on_best_device
from gradex.models.load import Base, BaseSpec
from gradex.models.scoring import batch_on

PROBE_ROWS = 2


@dataclass(frozen=True)
class Ground:
    """Where gradients are taken: a base model with its adapter, its encoder, and probe rows."""

    spec: BaseSpec
    classes: tuple[str, ...]
    max_length: int
    adapter: Path
    probe: tuple[Row, ...]

    def load(self, index: int = 0) -> tuple[Base, Pass, Encoder]:
        """The base, the pass over it with its adapter, and the encoder, on this worker's device."""
        base, encoder = load_with_encoder(self.spec, self.classes, max_length=self.max_length)
        base = on_best_device(base, index=index)
        model = adapters.load(base, self.adapter)
        examples, _ = encode_all(encoder, self.probe)
        if not examples:
            raise GradexError(
                f"no row has a label left within --max_length {self.max_length} tokens"
            )
        probe = batch_on(model, examples[:PROBE_ROWS], encoder)
        return base, make_pass(model, base.family, probe), encoder


@dataclass(frozen=True)
class Report:
    """What is told of a finished shard."""

    spec: ShardSpec
    faults: Faults
    tokens: int


@dataclass(frozen=True)
class StartWorker:
    """Makes a worker of a new process; travels there as it is."""

    ground: Ground
    sketching: Sketching
    divisor: Divisor
    versions: dict[str, str]

    def __call__(self, index: int) -> Work:
        _, gradients, encoder = self.ground.load(index)
        return self._work_with(gradients, encoder)

    def begin_with(self, gradients: Pass, encoder: Encoder) -> Callable[[int], Work]:
        """The same for this process, with a model that is loaded already."""
        return lambda index: self._work_with(gradients, encoder)

    def _work_with(self, gradients: Pass, encoder: Encoder) -> Work:
        collector = self.sketching.collector(gradients, encoder, self.divisor)
        return lambda spec, advance: make_shard(collector, spec, advance, self.versions)


def make_shard(
    collector: Collector, spec: ShardSpec, advance: Advance, versions: dict[str, str]
) -> Report:
    """The pass over a shard's rows, and its files."""
    tokens = 0

    def count(done: int) -> None:
        nonlocal tokens
        tokens += done
        advance(spec.name, done)

    parts, faults = collector.collect(spec.rows, spec.splits, count)
    write_shard(spec.path, parts, faults=faults, versions=versions)
    return Report(spec, faults, tokens)


def probe_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """A few short rows, on which a pass is tried out."""
    return tuple(sorted(rows, key=lambda row: sum(len(text) for _, text in row.messages))[:16])
