"""From a run's settings to loaded things, and from a model to scores."""

from collections.abc import Sequence

from torch import nn

from gradex.data.sources import Sources
from gradex.data.tokens import Encoder, Example, class_names, encode_all, log_bad
from gradex.data.true_runs import Scores
from gradex.errors import GradexError
from gradex.models.encoding import load_with_encoder
from gradex.models.load import Base, BaseSpec
from gradex.models.scoring import score


def load_base_and_encoder(
    spec: BaseSpec, sources: Sources, *, max_length: int
) -> tuple[Base, Encoder]:
    """The base model and the encoder that turns the sources' rows into its ids."""
    return load_with_encoder(spec, class_names(sources), max_length=max_length)


def training_examples(
    encoder: Encoder, sources: Sources, names: Sequence[str]
) -> tuple[list[Example], dict[str, dict[str, str]]]:
    """The examples of the sources' training rows, and the bad rows (id -> reason) of each."""
    found, bad = source_examples(encoder, sources, names)
    return [example for examples in found.values() for example in examples], bad


def source_examples(
    encoder: Encoder, sources: Sources, names: Sequence[str]
) -> tuple[dict[str, list[Example]], dict[str, dict[str, str]]]:
    """The same, source by source."""
    found: dict[str, list[Example]] = {}
    bad: dict[str, dict[str, str]] = {}
    for name in names:
        found[name], unusable = encode_all(encoder, sources[name].rows["train"])
        if not found[name]:
            raise GradexError(
                f"source '{name}': none of its {len(unusable)} rows has a label within "
                f"--max_length {encoder.max_length} tokens; raise it, or leave the source out"
            )
        if unusable:
            bad[name] = unusable
            log_bad(name, unusable)
    return found, bad


def select_examples(
    encoder: Encoder, sources: Sources, targets: Sequence[str]
) -> dict[str, list[Example]]:
    """The examples of the targets' select rows, target by target."""
    found = {name: encode_all(encoder, sources[name].rows["select"])[0] for name in targets}
    for name, examples in found.items():
        if not examples:
            raise GradexError(
                f"target '{name}': none of its select rows has a label within --max_length "
                f"{encoder.max_length} tokens; raise it, or leave the target out"
            )
    return found


def split_scores(
    model: nn.Module,
    sources: Sources,
    encoder: Encoder,
    targets: Sequence[str],
    *,
    splits: Sequence[str] = ("select", "test"),
) -> Scores:
    """Target -> split -> loss (and metric) on its rows."""
    return {
        name: {split: score(model, source.rows[split], encoder, source.metric) for split in splits}
        for name, source in sources.items()
        if name in targets
    }


def test_scores(
    model: nn.Module, sources: Sources, encoder: Encoder, targets: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Target -> loss (and metric) on its test rows, in the order of the targets."""
    scores = split_scores(model, sources, encoder, targets, splits=["test"])
    return {name: scores[name]["test"] for name in targets}
