"""A model all of whose target layers are truncated for a while: what that does to its outputs.

In the host's memory are the layers' weights as they were and, for one metric at a time, the
directions that may be discarded, 4 bytes x out x the most of them a layer. The device holds the
model and what one layer's decomposition needs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from gradex.adapters.attach import attach
from gradex.adapters.covariance import Context
from gradex.adapters.covariance_cache import Contexts
from gradex.adapters.residual import base_weight, lora_layers
from gradex.adapters.spec import AdapterSpec
from gradex.adapters.truncation import Smallest, smallest, without
from gradex.data.tokens import Encoder, Example
from gradex.errors import GradexError
from gradex.models.load import Base
from gradex.models.scoring import label_log_probs
from gradex.progress import progress
from gradex.records import read_json, write_json

MOST_LOSS = 200.0  # a perplexity of 1e87


def with_targets(base: Base, targets: Sequence[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The model and those of its layers that an adapter of these targets would have.

    They are found as adapters find them: by attaching one, which stays and is switched off.
    """
    model = attach(base, AdapterSpec(rank=1, targets=tuple(targets)), seed=0).eval()
    model.base_model.disable_adapter_layers()
    return model, dict(lora_layers(model))


@dataclass(frozen=True)
class Truncations:
    """Layers with their contexts on calibration rows, and on the rows that are measured."""

    layers: Mapping[str, Any]
    seen: Contexts
    measured: Contexts
    originals: Mapping[str, Tensor]

    @staticmethod
    def of(layers: Mapping[str, Any], seen: Contexts, measured: Contexts) -> "Truncations":
        originals = {
            name: base_weight(layer).to("cpu", copy=True) for name, layer in layers.items()
        }
        return Truncations(layers, seen, measured, originals)

    def smallest(self, metric: str, count: int) -> dict[str, Smallest]:
        """Layer -> the components that a metric discards first."""
        found = {}
        with progress(f"components, {metric}", len(self.layers), unit="layer") as bar:
            for name, layer in self.layers.items():
                found[name] = self._smallest(name, base_weight(layer), metric, count)
                bar.update()
        return found

    def _smallest(self, name: str, weight: Tensor, metric: str, count: int) -> Smallest:
        device = weight.device
        context = Context(*(part.to(device) for part in self.seen[name]))
        measured = self.measured[name].covariance.to(device)
        try:
            found = smallest(weight, context, metric=metric, count=count, measured=measured)
        except GradexError as error:
            raise GradexError(f"{name}: {error}") from None
        return Smallest(found.directions.cpu(), found.shares.cpu())

    @contextmanager
    def truncated(self, found: Mapping[str, Smallest], *, discard: int) -> Iterator[None]:
        """Within the block every layer lacks its `discard` smallest; after it, all is as it was."""
        try:
            for name, layer in self.layers.items():
                weight = base_weight(layer)
                weight.copy_(without(weight, found[name], discard=discard))
            yield
        finally:
            for name, layer in self.layers.items():
                base_weight(layer).copy_(self.originals[name])


def fewest_components(layers: Mapping[str, Any]) -> tuple[int, str]:
    """The number of components that every layer has, and a layer that has no more."""
    return min((min(base_weight(layer).shape), name) for name, layer in layers.items())


@dataclass(frozen=True)
class Study:
    """Measures a model in every setting, a file each; what lies there is not measured again."""

    model: nn.Module
    encoder: Encoder
    examples: Mapping[str, Sequence[Example]]
    truncations: Truncations
    metrics: Sequence[str]
    discards: Sequence[int]
    folder: Path

    def content(self) -> dict[str, Any]:
        intact = self._kept("intact", lambda: self._measure({}))
        settings = [
            {"metric": metric, "discard": discard, **found}
            for metric in self.metrics
            for discard, found in self._by_discard(metric)
        ]
        return {
            "targets": list(self.examples),
            "metrics": list(self.metrics),
            "discards": list(self.discards),
            "components": fewest_components(self.truncations.layers)[0],
            "intact": intact,
            "settings": settings,
        }

    def _by_discard(self, metric: str) -> Iterator[tuple[int, dict[str, Any]]]:
        names = {discard: f"{metric}-{discard}" for discard in self.discards}
        open_yet = any(not self._file(name).exists() for name in names.values())
        found = self.truncations.smallest(metric, max(self.discards)) if open_yet else {}
        for discard, name in names.items():
            yield discard, self._kept(name, partial(self._truncated, found, discard))

    def _truncated(self, found: Mapping[str, Smallest], discard: int) -> dict[str, Any]:
        errors = {name: one.error(discard) for name, one in found.items()}
        with self.truncations.truncated(found, discard=discard):
            return self._measure(errors)

    def _measure(self, errors: Mapping[str, float]) -> dict[str, Any]:
        """Perplexity is of all label tokens of a target, and their geometric mean over targets."""
        losses = {name: self._loss(rows) for name, rows in self.examples.items()}
        return {
            "perplexity": _perplexity(sum(losses.values()) / len(losses)),
            "targets": {name: _perplexity(loss) for name, loss in losses.items()},
            "output_error": sum(errors.values()) / max(1, len(errors)),
            "layers": dict(errors),
        }

    def _loss(self, rows: Sequence[Example]) -> float:
        return -float(np.concatenate(label_log_probs(self.model, rows, self.encoder)).mean())

    def _kept(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = self._file(name)
        if not file.exists():
            self.folder.mkdir(exist_ok=True)
            write_json(file, measure())
        return read_json(file, "what was measured in a setting", {"perplexity": float})

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _perplexity(loss: float) -> float:
    """Where it is out of all measure one is as bad as another."""
    return math.exp(min(loss, MOST_LOSS))
