"""EVA: A holds the directions that a layer's inputs vary along, and ranks go where these explain
most of the variance (Paischer et al., 2024). B is zero at first: the base is left as it is.

The inputs are those of calibration rows at tokens that count: labelled ones, and what an encoder
reads. Their principal components are kept up to date from batch to batch (Ross et al., 2008,
section 3), so that all rows are seen once and no batch has to be large.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradex.adapters.beginning import Beginning
from gradex.adapters.inits import randomised_svd
from gradex.adapters.inputs import Note, in_eval_mode, told_apart, watching
from gradex.adapters.residual import ADAPTER, base_weight, lora_layers
from gradex.adapters.spec import AdapterSpec
from gradex.data.tokens import IGNORED, Batch, Family
from gradex.errors import GradexError
from gradex.models.losses import sample_objectives

NITER = 4  # power iterations of each decomposition, which is exact for small layers
log = logging.getLogger(__name__)


def start(model: nn.Module, spec: AdapterSpec, beginning: Beginning) -> None:
    most = round(spec.rank * spec.options["rho"])
    found = input_components(model, beginning, most=most)
    budget = spec.rank * len(found)
    ranks = deal_out({name: of.explained for name, of in found.items()}, budget=budget)
    _require_filled(sum(ranks.values()), budget=budget)
    _set(model, {name: found[name].directions[:rank] for name, rank in ranks.items()})


class Components:
    """The leading principal components of rows that come in batches."""

    def __init__(self, most: int, *, seed: int):
        self.most = most
        self.generator = torch.Generator().manual_seed(seed)
        self.rows, self.variation = 0, 0.0
        self.explained: Float[Tensor, " rank"] = torch.zeros(0)
        self.directions: Float[Tensor, "rank in"] = torch.zeros(0, 0)

    def add(self, rows: Float[Tensor, "row in"]) -> None:
        """The decomposition of what is known, the centred new rows, and the shift of the mean."""
        mean, count = rows.mean(0), self.rows + len(rows)
        parts = [rows - mean]
        if self.rows:
            shift = math.sqrt(self.rows * len(rows) / count) * (self.mean - mean)
            parts += [self.scaled, shift[None]]
            mean = self.mean + (mean - self.mean) * len(rows) / count
            self.variation += float(shift.square().sum())
        self.variation += float(parts[0].square().sum())
        self.rows, self.mean = count, mean
        _, s, self.directions = randomised_svd(
            torch.cat(parts), self.most, niter=NITER, generator=self.generator
        )
        self.scaled = s[:, None] * self.directions
        self.explained = self._shares(s)

    def _shares(self, s: Float[Tensor, " rank"]) -> Float[Tensor, " rank"]:
        """Of the variation; none for directions that are rounding errors."""
        limits = torch.finfo(s.dtype)
        sound = s > max(self.directions.shape) * limits.eps * s[0]
        return s.square() / max(self.variation, limits.tiny) * sound


def deal_out(explained: Mapping[str, Float[Tensor, " rank"]], *, budget: int) -> dict[str, int]:
    """Layer -> its rank: so many of its components are among the `budget` best of all layers."""
    shares = [(-share, name) for name, of in explained.items() for share in of.tolist() if share]
    best = Counter(name for _, name in sorted(shares, key=itemgetter(0))[:budget])
    return {name: best[name] for name in explained}


def input_components(model: nn.Module, beginning: Beginning, *, most: int) -> dict[str, Components]:
    """Layer -> the components of its inputs; layers that are given the very same share them."""
    found = {
        name: Components(min(most, *base_weight(layer).shape), seed=beginning.seed)
        for name, layer in lora_layers(model)
    }
    layers, family = dict(lora_layers(model)), beginning.family
    with in_eval_mode(model), model.disable_adapter(), torch.no_grad():
        for batch in beginning.batches:
            batch = dict(told_apart(batch, family))
            with watching(layers, _adding(found, _masks(batch, family))):
                sample_objectives(model, batch, family)
    return found


def _masks(batch: Batch, family: Family) -> list[Bool[Tensor, "sample token"]]:
    """Which tokens count, one mask for each number of tokens."""
    real, labels = batch["attention_mask"].bool(), batch["labels"]
    if family == "classifier":
        return [real]
    if family == "seq2seq":
        return [real, labels != IGNORED]
    return [real & (labels != IGNORED)]


def _chosen(inputs: Tensor, masks: Sequence[Tensor]) -> Float[Tensor, "row in"]:
    """Without a mask of their shape, all: those of a head that is shown label tokens alone."""
    for mask in masks:
        if inputs.dim() == 3 and inputs.shape[:2] == mask.shape:
            return inputs[mask].float()
    return inputs.flatten(0, -2).float()


def _adding(found: dict[str, Components], masks: Sequence[Tensor]) -> Note:
    """Adds a layer's inputs to its components. Queries, keys and values are of one tensor: it is
    decomposed for the first of these, and theirs is the result."""
    last: dict[str, Any] = {"inputs": None, "name": ""}

    def add(name: str, inputs: Tensor) -> None:
        if inputs is last["inputs"] and found[name].most == found[last["name"]].most:
            found[name] = found[last["name"]]
            return
        last.update(inputs=inputs, name=name)
        rows = _chosen(inputs, masks)
        if len(rows):
            found[name].add(rows)

    return add


def _require_filled(found: int, *, budget: int) -> None:
    if not found:
        raise GradexError(
            "--adapter eva: the inputs of the calibration rows do not vary; name a --calib_source "
            "with more tokens"
        )
    if found < budget:
        log.warning(
            "eva: the inputs of the calibration rows vary along %d directions, fewer than the %d "
            "of the ranks: the adapter is smaller; more --calib_rows help", found, budget,
        )  # fmt: skip


def _set(model: Any, directions: dict[str, Float[Tensor, "rank in"]]) -> None:
    """A, and the ranks in the adapter's config, at one scale for all; layers without a rank lose
    their adapter. peft does it, where the config asks for it; later loads have nothing to do."""
    from peft import EvaConfig, initialize_lora_eva_weights

    config = model.peft_config[ADAPTER]
    config.init_lora_weights, config.eva_config = "eva", EvaConfig()
    initialize_lora_eva_weights(model, eva_state_dict=directions)
    config.init_lora_weights, config.eva_config = True, None
