"""Ranks that cut the weights into whole blocks, and the error that names them where one does not.

Bone and MiSS cut a layer's inputs, Bone its outputs too, into blocks of the rank; MiSS mini repeats
a matrix of `mini_r` columns along the outputs.
"""

import math
from collections.abc import Mapping, Sequence

from torch import nn

from gradex.adapters.spec import ALL_LINEAR, AdapterSpec
from gradex.errors import GradexError

HEADS = ("score", "classifier")  # of a classifier; trained whole, not adapted
Shapes = Mapping[str, tuple[int, int]]  # layer -> outputs and inputs


def target_shapes(model: nn.Module, spec: AdapterSpec) -> Shapes:
    """The Linear layers that the spec means."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not set(HEADS) & set(name.split("."))
    }
    return {
        name: (module.out_features, module.in_features)
        for name, module in linear.items()
        if (spec.targets == (ALL_LINEAR,) and module is not output)
        or name.endswith(tuple(f".{target}" for target in spec.targets))
    }


def require_blocks(shapes: Shapes, spec: AdapterSpec) -> None:
    """Bone: the rank divides the inputs and the outputs of every layer."""
    sides = [(name, side) for name, shape in shapes.items() for side in shape]
    _require_divides(f"--lora_r {spec.rank}", spec.rank, sides, spec.kind)


def require_shards(shapes: Shapes, spec: AdapterSpec) -> None:
    """MiSS: no more shards than inputs; the last of them may be short."""
    least = min((inputs for _, inputs in shapes.values()), default=spec.rank)
    if spec.rank > least:
        raise GradexError(
            f"--lora_r {spec.rank}: --adapter {spec.kind} cuts the inputs of a layer into shards, "
            f"and the narrowest has {least}; ranks up to that would do"
        )


def require_shards_and_tiles(shapes: Shapes, spec: AdapterSpec) -> None:
    """MiSS mini: `mini_r` divides the outputs of every layer besides."""
    require_shards(shapes, spec)
    width = spec.options["mini_r"]
    outputs = [(name, side) for name, (side, _) in shapes.items()]
    _require_divides(f"--adapter_args mini_r={width}", width, outputs, spec.kind)


def _require_divides(flag: str, size: int, sides: Sequence[tuple[str, int]], kind: str) -> None:
    common = math.gcd(*(side for _, side in sides))
    wrong = [(name, side) for name, side in sides if size < 1 or side % size]
    if wrong:
        name, side = wrong[0]
        fits = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise GradexError(
            f"{flag}: --adapter {kind} cuts weights into blocks of that size, which does not divide"
            f" the {side} of {name}; these would do: {fits}"
        )
