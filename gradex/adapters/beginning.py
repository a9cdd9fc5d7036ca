"""What an adapter may begin from, beside its spec and the base model."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradex.data.tokens import Batch, Family


@dataclass(frozen=True)
class Beginning:
    """`steps`: the optimizer steps of the training that is planned; 0 where none is. `batches`:
    calibration rows, for the kinds that read some."""

    family: Family
    model_type: str
    transposed: bool  # the layers are GPT-2's, which keep their weights as (in, out)
    seed: int
    steps: int = 0
    batches: Sequence[Batch] = ()
