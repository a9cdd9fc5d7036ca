"""Which ranks AdaLoRA left to the layers: a row a kind of layer, a column a depth of the model."""

from collections.abc import Iterator, Mapping
from typing import Any

from gradex.reporting.names import one_line

Ranks = Mapping[str, Mapping[str, int]]  # layer -> how much it has `kept`, and `of` what


def rank_table(ranks: Ranks) -> dict[str, Any]:
    """The rows and columns of the table, and the sums; empty without ranks."""
    if not ranks:
        return {}
    places = {name: _place(name) for name in ranks}
    stacks = {stack for stack, _, _ in places.values()}
    rows: dict[str, dict[int, int]] = {}
    for name, (stack, depth, layer) in places.items():
        label = layer if len(stacks) == 1 else f"{stack} {layer}".strip()
        rows.setdefault(one_line(label), {})[depth] = ranks[name]["kept"]
    depths = sorted({depth for _, depth, _ in places.values()})
    return {
        "depths": depths,
        "rows": [
            {"name": label, "kept": [kept.get(depth) for depth in depths]}
            for label, kept in rows.items()
        ],
        "kept": sum(rank["kept"] for rank in ranks.values()),
        "of": sum(rank["of"] for rank in ranks.values()),
        "most": max(rank["of"] for rank in ranks.values()),
    }


def _place(name: str) -> tuple[str, int, str]:
    """decoder.block.3.layer.0.SelfAttention.q -> decoder.block, 3, layer.0.SelfAttention.q"""
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return ".".join(parts[:at]), int(part), ".".join(parts[at + 1 :])
    return "", 0, name


def rank_lines(ranks: Ranks) -> Iterator[str]:
    """The same for a log."""
    table = rank_table(ranks)
    if not table:
        return
    yield (
        f"ranks: {table['kept']} of {table['of']} are kept, of {table['most']} a layer, by depth:"
    )
    for row in table["rows"]:
        kept = ("-" if rank is None else str(rank) for rank in row["kept"])
        yield f"  {row['name']}: {' '.join(kept)}"
