"""Searches for the best subset of sources, given a function that scores subsets.

A selector knows nothing of gradients: `score(subsets)` returns one number a subset, lower is
better, and is called with as many subsets at once as possible. What it may choose, `rules` say.
All are deterministic: of equal scores the first in the order of the names is taken.
"""

from gradex.estimators.gains import GainInterval
from gradex.selection.backward import backward_select
from gradex.selection.forward import forward_select
from gradex.selection.random_ensemble import random_ensemble
from gradex.selection.ranked import random_select, select_all, top_select
from gradex.selection.rules import Rules
from gradex.selection.scores import Score, TargetScore
from gradex.selection.surrogate import surrogate_select
from gradex.selection.swap import swap_select

__all__ = [
    "GainInterval",
    "Rules",
    "Score",
    "TargetScore",
    "backward_select",
    "forward_select",
    "random_ensemble",
    "random_select",
    "select_all",
    "surrogate_select",
    "swap_select",
    "top_select",
]
