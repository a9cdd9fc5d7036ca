"""Scores of generated answers, and how well estimates rank the truth.

An answer is what a text states last: of the numbers, the choices (A) to (J), or yes and no.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
CHOICE = re.compile(r"\(([A-J])\)|(?<![\w'])([A-J])(?![\w'])")
YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
STATED = re.compile(r"(?:####|\banswer(?: is|:| =)|\btherefore,?|\bso,)", re.IGNORECASE)


def _numbers(text: str) -> list[str]:
    return [_plain_number(match.group()) for match in NUMBER.finditer(text)]


def _plain_number(text: str) -> str:
    """1,000 and $1000.0 are 1000."""
    text = text.replace(",", "").replace("$", "")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text or "0"


def _choices(text: str) -> list[str]:
    return [first or second for first, second in CHOICE.findall(text)]


def _yes_no(text: str) -> list[str]:
    same = {"true": "yes", "false": "no"}
    return [same.get(word.lower(), word.lower()) for word in YES_NO.findall(text)]


# What an answer can be. The kind is told from the reference, in this order.
EXTRACTORS: dict[str, Callable[[str], list[str]]] = {
    "number": _numbers,
    "choice": _choices,
    "yes_no": _yes_no,
}


def answer_kind(reference: str) -> str:
    """Whether a reference answer is a number, a choice, yes or no, or other text."""
    tail = STATED.split(reference)[-1].strip().rstrip(".")
    for kind, extract in EXTRACTORS.items():
        found = extract(tail)
        if found and _is_short(tail, found[-1]):
            return kind
    for kind, extract in EXTRACTORS.items():
        if extract(tail):
            return kind
    return "text"


def _is_short(text: str, found: str) -> bool:
    return len(text) <= len(found) + 4


def extract_answer(text: str, kind: str) -> str:
    """The last answer of a kind that a text states; empty where it states none."""
    if kind == "text":
        return normalise(STATED.split(text)[-1])
    found = EXTRACTORS[kind](text)
    return found[-1] if found else ""


def normalise(text: str) -> str:
    """Case, punctuation at the end and runs of white space do not make an answer wrong."""
    text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split()).strip().rstrip(".").casefold()


def exact_match(generated: str, reference: str) -> bool:
    return generated.strip() == reference.strip()


def answer_match(generated: str, reference: str) -> bool:
    kind = answer_kind(reference)
    wanted = extract_answer(reference, kind)
    return bool(wanted) and extract_answer(generated, kind) == wanted


# Metric of a task -> does the generated text earn the point. `loss` needs no generation.
METRICS: dict[str, Callable[[str, str], bool] | None] = {
    "loss": None,
    "exact_match": exact_match,
    "answer": answer_match,
}


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; nan for fewer than three pairs or where one side is constant."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def relative_error(estimate: Sequence[float], truth: Sequence[float]) -> float:
    """Mean of |estimate - truth| / truth."""
    estimate, truth = np.asarray(estimate, dtype=float), np.asarray(truth, dtype=float)
    return float(np.mean(np.abs(estimate - truth) / np.abs(truth)))
