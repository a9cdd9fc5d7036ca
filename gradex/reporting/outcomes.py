"""What fine-tunes gave, in the one shape that the model card and the report show."""

from collections.abc import Sequence


def outcome(name: str, scores: Sequence[dict[str, float]], *, sources: int) -> dict:
    """A model's test scores over its seeds: every loss, and the metric where the task has one."""
    metrics = [key for key in scores[0] if key != "loss"]
    metric = None
    if metrics:
        values = [score[metrics[0]] for score in scores]
        metric = {"name": metrics[0].replace("_", " "), "values": values}
    losses = [score["loss"] for score in scores]
    return {"name": name, "sources": sources, "loss": losses, "metric": metric}
