"""Scores of subsets whose best choice is known, for searches to be held against."""

import numpy as np

NAMES = list("abcdef")
EFFECTS = dict(zip(NAMES, (-3.0, 2.0, -1.0, 0.5, -2.0, 1.0), strict=True))


def additive(subsets):
    """Each source has its effect whatever the others: `a`, `e` and `c` help."""
    return np.array([10 + sum(EFFECTS[name] for name in subset) for subset in subsets])


def redundant(subsets):
    """`a` and `b` do the same good, and more sources are worse."""
    return np.array([-5.0 * bool(s & {"a", "b"}) + len(s) for s in subsets])


def synergetic(subsets):
    """`a` and `b` each help a little, together much."""
    return np.array(
        [-2.0 * bool(s & {"a", "b"}) - 5.0 * ({"a", "b"} <= s) + len(s) for s in subsets]
    )


def xor(subsets):
    """Exactly one of `a` and `b` harms; both together are best. `c` helps a little."""
    harm = np.array([4.0 * (("a" in s) != ("b" in s)) for s in subsets])
    good = np.array([6.0 * ({"a", "b"} <= s) + 2.0 * ("c" in s) for s in subsets])
    return harm - good + 0.5 * np.array([len(s) for s in subsets])


def counting(score):
    """The score, and the batches of subsets that it was asked for, as sets."""
    seen = []

    def watched(subsets):
        seen.append(set(subsets))
        return score(subsets)

    return watched, seen
