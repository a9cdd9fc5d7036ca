"""The n-grams of a source's or target's rows: hashed words and pairs of words, and how two differ.

    KL(target || subset) = sum p_t (log p_t - log p_S)

of smoothed distributions over the buckets, which is DSIR's "KL reduction" up to a constant: Xie et
al., NeurIPS 2023 (arXiv 2302.03169).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import xxhash
from jaxtyping import Float

from gradex.data.formats import Row
from gradex.data.recorded import load_data, require_same_data
from gradex.data.sources import Sources
from gradex.data.tokens import plain_text
from gradex.errors import GradexError
from gradex.gradients.description import Side
from gradex.gradients.store import GradientStore

BUCKETS = 10_000  # of hashed words and pairs of words, as in DSIR
SEEN = 0.99  # the share of a distribution that its text decides; the rest is even over the buckets
WORD = re.compile(r"\w+|[^\w\s]+")
Counts = Float[np.ndarray, "_ bucket"]


def open_ngrams(
    store: GradientStore, *, allow_pickle: bool
) -> Callable[[Side, str, str], Iterator[Counts]]:
    """The counts of a source's or target's hashed n-grams, all its rows in one vector."""
    sources = _sources_of(store, allow_pickle=allow_pickle)

    def read(side: Side, name: str, split: str) -> Iterator[Counts]:
        yield _hashed_counts(sources[name].rows[split])[None]

    return read


def _sources_of(store: GradientStore, *, allow_pickle: bool) -> Sources:
    """The rows that a store was made of; refused where they are gone or have changed."""
    try:
        sources = load_data(store.recorded_settings() | {"allow_pickle": allow_pickle})
        require_same_data(sources, store.data_hashes(), where=str(store.path))
    except GradexError as error:
        raise GradexError(
            f"the estimator ngram reads the rows that {store.path} was made of: {error}"
        ) from None
    return sources


def _hashed_counts(rows: Iterable[Row]) -> Float[np.ndarray, " bucket"]:
    grams: Counter[str] = Counter()
    for row in rows:
        words = WORD.findall(f"{plain_text(row.prompt)} {row.completion}".lower())
        grams.update(words)
        grams.update(map(" ".join, pairwise(words)))
    buckets = [xxhash.xxh3_64_intdigest(gram.encode("utf-8", "surrogatepass")) for gram in grams]
    at = np.array([bucket % BUCKETS for bucket in buckets], dtype=np.int64)
    return np.bincount(at, list(grams.values()), minlength=BUCKETS)


def divergence(
    subsets: Float[np.ndarray, "subset bucket"], targets: Float[np.ndarray, "target bucket"]
) -> Float[np.ndarray, "subset target"]:
    """KL(target || subset), of counts or of means of counts."""
    p, q = _distributions(targets), _distributions(subsets)
    return (p * np.log(p)).sum(1) - np.log(q) @ p.T


def _distributions(counts: Counts) -> Counts:
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    return SEEN * counts / total + (1 - SEEN) / counts.shape[1]
