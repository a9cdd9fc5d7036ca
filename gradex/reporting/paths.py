"""Says what each step of a search did, for methods whose steps lead from one subset to the next."""

from gradex.reporting.names import one_line, short
from gradex.reporting.quantities import count, is_finite

HOW = {
    "forward": "Each step adds the source that lowers the estimate most, given those already "
    "chosen.",
    "backward": "From all sources, each step takes out the one that the estimate can best do "
    "without.",
    "swap": "Each step makes the move that lowers the estimate most: sources added, dropped or "
    "exchanged.",
    "topk": "Each step adds the next source of the ranking, whatever the estimate.",
}
MOST_MOVED = 4  # names that fit on a line


def path_of(selection: dict) -> list[dict]:
    """The trace of a selection whose method goes a path, each step with what it `did`."""
    trace = (selection.get("trace") or []) if selection.get("method") in HOW else []
    steps = [{**step, "did": did(step)} for step in trace]
    if steps and "start" not in steps[0] and is_finite(selection.get("base_value")):
        steps.insert(0, {"step": 0, "did": "no source", "value": selection["base_value"]})
    return steps


def did(step: dict) -> str:
    """A name where one source was added; + and − before names where there are other moves."""
    if "start" in step:
        return f"{count(len(step['start']))} sources"
    if isinstance(step.get("added"), str):
        return one_line(step["added"])
    moved = [f"+ {short(name)}" for name in _names(step.get("added"))]
    moved += [f"− {short(name)}" for name in _names(step.get("removed"))]
    return "  ".join(moved[:MOST_MOVED])


def _names(moved: str | list[str] | None) -> list[str]:
    return [moved] if isinstance(moved, str) else moved or []


def ending(selection: dict) -> str:
    """Why the search ended, and how much it left untried."""
    trace = selection.get("trace") or []
    why = (trace[-1].get("stop") or {}).get("reason") if trace else None
    sentences = [f"The search ended: {one_line(why)}."] if why else []
    skipped = sum(step.get("skipped") or 0 for step in trace)
    if skipped:
        tried = sum(step.get("tried") or 0 for step in trace)
        sentences.append(
            f"It tried {count(tried)} candidates and skipped {count(skipped)} that did not look "
            "promising when they were last tried."
        )
    return " ".join(sentences)
