"""Scores of generated answers, and how well estimates rank the truth.

An answer is what a text states last: of the numbers, the choices (A) to (J), or yes and no.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

# Whole numbers may group thousands by commas; what follows a digit is no sign but a minus.
WHOLE = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+"
NUMBER = re.compile(rf"(?:(?<![\w)])-\$?|\$-?)?(?:(?:{WHOLE})(?:\.\d+|/\d+)?|\.\d+)", re.ASCII)
# A and I are words, too: without brackets they count before punctuation or after "is".
CHOICE = re.compile(
    r"\(([A-J])\)|(?<![\w'])([B-HJ]|(?<=\bis )[AI]|[AI](?!'|\s+\w))(?![\w'])",
)
YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
STATED = re.compile(
    r"(?:####|\\boxed\b|\banswer(?: is\b:?|:| =)|\btherefore\b,?|\bso,)", re.IGNORECASE
)


def _numbers(text: str) -> list[str]:
    return [_plain_number(match.group()) for match in NUMBER.finditer(text.replace("−", "-"))]


def _plain_number(text: str) -> str:
    """1,000 and $1000.0 are 1000."""
    whole, _, decimals = text.strip("-$").replace(",", "").partition(".")
    whole, decimals = re.sub("^0+(?=[0-9])", "", whole) or "0", decimals.rstrip("0")
    number = f"{whole}.{decimals}" if decimals else whole
    return f"-{number}" if "-" in text and number != "0" else number


def _choices(text: str) -> list[str]:
    return [first or second for first, second in CHOICE.findall(text)]


def _yes_no(text: str) -> list[str]:
    same = {"true": "yes", "false": "no"}
    return [same.get(word.lower(), word.lower()) for word in YES_NO.findall(text)]


PATTERNS = {"choice": CHOICE, "yes_no": YES_NO, "number": NUMBER}
# What an answer can be: how to find all that a text holds of a kind.
EXTRACTORS: dict[str, Callable[[str], list[str]]] = {
    "choice": _choices,
    "yes_no": _yes_no,
    "number": _numbers,
}
NEVER = re.compile(r"(?!)")
# An answer that opens a text is that text's answer, whatever is said about it afterwards.
OPENINGS = {
    "choice": re.compile(r"\([A-J]\)|[A-J](?:[).:](?=\s(?!\w\.)|$)|$)"),
    "yes_no": re.compile(r"(?:yes|no|true|false)(?=[.,;:!]|$)", re.IGNORECASE),
    "number": NEVER,
}
# And so is one that closes it in this form.
CLOSINGS = {
    "choice": re.compile(r"\([A-J]\)$"),
    "yes_no": NEVER,
    "number": re.compile(rf"=\s*{NUMBER.pattern}$", re.ASCII),
}


def answer_kind(reference: str) -> str:
    """Whether a reference answer is a number, a choice, yes or no, or other text.

    Other text may hold a number or a capital by chance ("World War 2"), so a number in a sentence
    counts only where words such as "the answer is" come before it.
    """
    tail = _stated(reference)
    for kind in EXTRACTORS:
        if OPENINGS[kind].match(tail) or CLOSINGS[kind].search(tail) or _is_all(kind, tail):
            return kind
    return "number" if STATED.search(reference) and _numbers(tail) else "text"


def _stated(text: str) -> str:
    """What follows the last "the answer is"; all of a text that has none."""
    return STATED.split(text)[-1].strip().rstrip(".")


def _is_all(kind: str, text: str) -> bool:
    """One answer with at most quotes, or a number's unit, around it."""
    rest, count = PATTERNS[kind].subn("", text)
    return count == 1 and len(rest) <= (4 if kind == "number" else 2)


def extract_answer(text: str, kind: str) -> str:
    """The last answer of a kind that a text states; empty where it states none."""
    tail = _stated(text)
    if kind == "text":
        return normalise(tail)
    extract = EXTRACTORS[kind]
    opening = OPENINGS[kind].match(tail)
    for part in (opening.group() if opening else "", tail, text):
        found = extract(part)
        if found:
            return found[-1]
    return ""


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
# What a fine-tune may be scored by; classifiers, whatever their task says, by their accuracy.
SCORES = (*METRICS, "accuracy")


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; nan for fewer than three pairs or where one side is constant."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if len(a) < 3 or a.min() == a.max() or b.min() == b.max():
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def relative_error(estimate: Sequence[float], truth: Sequence[float]) -> float:
    """Mean of |estimate - truth| / |truth|; nan where a truth is 0, or there is none."""
    estimate, truth = np.asarray(estimate, dtype=float), np.asarray(truth, dtype=float)
    if not truth.all() or not len(truth):
        return float("nan")
    return float(np.mean(np.abs(estimate - truth) / np.abs(truth)))
