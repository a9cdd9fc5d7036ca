"""Answers: planted ones are found, others are not; rank correlation against scipy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from gradex.data.metrics import (
    METRICS,
    answer_kind,
    answer_match,
    exact_match,
    extract_answer,
    normalise,
    relative_error,
    spearman,
)

NUMBERS = {
    "12": "12", "12.": "12", "1,000": "1000", "1,234,567.50": "1234567.5", "$5": "5",
    "$1,000.00": "1000", "3.50": "3.5", "0.0": "0", "-7": "-7", "-$5": "-5", "$-5": "-5",
    "−5": "-5", "-0": "0", ".5": "0.5", "0.50": "0.5", "007": "7", "1/2": "1/2", "-3/4": "-3/4",
    "10/20": "10/20", "50%": "50", "100": "100",
}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text):
    wanted = NUMBERS[text]
    assert answer_kind(text) == "number"
    assert extract_answer(text, "number") == wanted
    assert extract_answer(f"First 3, then 4, so the answer is {text}.", "number") == wanted
    assert extract_answer(f"I get {text}", "number") == wanted


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("10-5", "5"), ("10 - 5", "5"), ("x=-5", "-5"), ("(3)-2", "2"), ("1,2,3", "3"),
        ("2, 4, 6", "6"), ("12 apples and 1,5", "5"), ("no number", ""), ("3.5.", "3.5"),
        ("7)", "7"),
    ],
)  # fmt: skip
def test_the_last_number(text, last):
    assert extract_answer(text, "number") == last


@settings(max_examples=50, deadline=None)
@given(st.integers(-(10**9), 10**9))
def test_a_number_is_the_same_however_it_is_written(number):
    for written in (f"{number:,}", f"{number}.00", f"so the answer is {number}."):
        assert answer_match(written, str(number))
        assert answer_match(f"{number}", written)
    assert not answer_match(str(number + 1), str(number))


KINDS = {
    "The answer is (B).": ("choice", "B"),
    "(B)": ("choice", "B"),
    "B": ("choice", "B"),
    "B) 12": ("choice", "B"),
    "(B) vitamin C": ("choice", "B"),
    "Of the three, it must be (C)": ("choice", "C"),
    "answer: A": ("choice", "A"),
    "#### 42": ("number", "42"),
    "2 + 3 = 5, and 5 * 2 = 10\n#### 1,010": ("number", "1010"),
    "She has 5 + 7 = 12": ("number", "12"),
    "There are 3 cars, so the answer is 12.": ("number", "12"),
    "Therefore, he has 12 apples left.": ("number", "12"),
    "so we get \\boxed{42}": ("number", "42"),
    "12 kg": ("number", "12"),
    "yes": ("yes_no", "yes"),
    "True": ("yes_no", "yes"),
    "'no'": ("yes_no", "no"),
    "Yes, because 3 of them are.": ("yes_no", "yes"),
    "So, the answer is no.": ("yes_no", "no"),
    "Paris": ("text", "paris"),
    "So the answer is: Paris.": ("text", "paris"),
    "World War 2 ended in 1945": ("text", "world war 2 ended in 1945"),
    "A dog runs": ("text", "a dog runs"),
    "I think so": ("text", "i think so"),
    "John F. Kennedy": ("text", "john f. kennedy"),
    "J. K. Rowling": ("text", "j. k. rowling"),
    "no one": ("text", "no one"),
    "10:30": ("text", "10:30"),
    "2020-01-02": ("text", "2020-01-02"),
}


@pytest.mark.parametrize("reference", KINDS)
def test_the_kind_of_a_reference(reference):
    kind, answer = KINDS[reference]
    assert answer_kind(reference) == kind
    assert extract_answer(reference, kind) == answer
    assert answer_match(reference, reference)


EARNED = [
    ("12 of them. So the answer is 12.", "12"),
    ("She pays $1,000.", "1000"),
    ("There are 3 + 4 = 7 apples.", "#### 7"),
    ("The answer is (B). I am sure.", "(B)"),
    ("(A) is wrong, so the answer is B", "The answer is (B)."),
    ("The answer is A because it fits", "A"),
    ("(B)", "(B) vitamin C"),
    ("B.", "B"),
    ("Yes, there is no doubt.", "yes"),
    ("It can not be. So the answer is true", "yes"),
    ("  the ANSWER is   paris. ", "Paris"),
    ("Ｐａｒｉｓ", "Paris"),
]
MISSED = [
    ("13", "12"),
    ("The answer is 112.", "12"),
    ("The answer is 12.5.", "12"),
    ("The answer is 12.", "112"),
    ("The answer is Parisian.", "Paris"),
    ("", "12"),
    ("I do not know", "12"),
    ("Of (A) and (B) the answer is (A).", "(B)"),
    ("A dog", "A"),
    ("no", "yes"),
    ("London", "Paris"),
    ("It was 1945", "World War 2 ended in 1945"),
    ("", ""),
    ("anything", "####"),
]


@pytest.mark.parametrize(("generated", "reference"), EARNED)
def test_answers_that_earn_the_point(generated, reference):
    assert answer_match(generated, reference)


@pytest.mark.parametrize(("generated", "reference"), MISSED)
def test_answers_that_do_not(generated, reference):
    assert not answer_match(generated, reference)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_can_be_compared(generated, reference):
    assert isinstance(answer_match(generated, reference), bool)
    kind = answer_kind(reference)
    assert answer_match(reference, reference) == bool(extract_answer(reference, kind))


def test_normalise():
    assert normalise("  Ｔhe\n\tEnd.. ") == "the end"


def test_exact_match_forgives_white_space_around_only():
    assert exact_match(" a b\n", "a b")
    assert not exact_match("a  b", "a b")
    assert not exact_match("A b", "a b")


def test_metrics():
    assert METRICS == {"loss": None, "exact_match": exact_match, "answer": answer_match}


values = st.lists(st.integers(0, 5).map(float), min_size=3, max_size=12)


@settings(max_examples=100, deadline=None)
@given(values, st.integers(0, 1000))
def test_spearman_is_scipy_s_with_ties(first, seed):
    second = np.random.default_rng(seed).integers(0, 4, len(first)).astype(float).tolist()
    ours = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(spearmanr(first, second).statistic)
        assert spearman(second, first) == pytest.approx(ours)
        assert spearman([math.exp(v) for v in first], second) == pytest.approx(ours)
        assert spearman([-v for v in first], second) == pytest.approx(-ours)


def test_spearman_extremes():
    assert spearman([1.0, 2.0, 3.0], [10.0, 20.0, 300.0]) == pytest.approx(1)
    assert spearman([1.0, 2.0, 3.0], [3.0, 2.0, -1.0]) == pytest.approx(-1)
    assert spearman([1.0, 2.0, math.inf], [1.0, 2.0, 3.0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([], []),
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [math.inf] * 3),
        ([1.0, 2.0, math.nan], [1.0, 2.0, 3.0]),
    ],
)
def test_spearman_of_nothing_to_rank(first, second):
    assert math.isnan(spearman(first, second))


def test_relative_error():
    assert relative_error([1.0, 3.0], [2.0, 2.0]) == 0.5
    assert relative_error([2.0], [-1.0]) == 3.0
    assert math.isnan(relative_error([2.0, 1.0], [0.0, 1.0]))
    assert math.isnan(relative_error([], []))
