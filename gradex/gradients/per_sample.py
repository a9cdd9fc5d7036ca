"""Per-sample gradients of everything an adapter trains, from one batched forward and backward.

A tap at the output of each layer that holds trainable parameters keeps the layer's input x; when
the backward pass brings the gradient g at the output, a closed formula in x and g gives every
sample's gradient at once (see formulas). Autograd is never asked for a weight's gradient, the graph
begins at the first tap, and each layer's gradients are handed on and dropped. Samples must not
share a scalar: the objectives are summed over samples, each a mean over its own label tokens.

Where no tap can tell the samples apart, `LoopPass` takes one backward a sample.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradex.data.tokens import Batch, Family
from gradex.gradients.gather import Consumer, Gathering, SharedInput, Unseen, unseen
from gradex.gradients.layers import Layer, layers_of, loop_reason, param_count, trainable_slots
from gradex.models.load import bare
from gradex.models.losses import Objective, sample_objectives
from gradex.progress import say_once

Objectives = dict[Objective, Float[Tensor, " sample"]]


class GradientPass:
    """Taps on a model's trainable layers; `run` feeds each layer's gradients to a consumer."""

    def __init__(self, model: nn.Module, family: Family):
        self.model, self.family = model, family
        self.slots = trainable_slots(model)
        self.layers = layers_of(self.slots)
        self._by_sample = _trains_head(model, self.layers)
        self._recording = False

    @contextmanager
    def hooked(self) -> Iterator["GradientPass"]:
        """Install the taps; autograd is asked for no weight's gradient meanwhile."""
        handles = [
            layer.module.register_forward_hook(self._on_forward(layer), with_kwargs=True)
            for layer in self.layers
        ]
        try:
            for slot in self.slots:
                slot.parameter.requires_grad_(False)
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for slot in self.slots:
                slot.parameter.requires_grad_(True)

    def run(self, batch: Batch, consumers: dict[Objective, Consumer]) -> tuple[Objectives, Tensor]:
        """One forward and a backward an objective; returns the objectives and label counts."""
        ids = batch["input_ids"]
        self._gathering = Gathering(len(ids))
        self._anchor = torch.zeros((), device=ids.device, requires_grad=True)
        # Gradient checkpointing runs layers again in the backward pass: these are no new calls.
        self._recording = True
        try:
            values, counts = sample_objectives(
                self.model, batch, self.family, by_sample=self._by_sample
            )
        finally:
            self._recording = False
        last = list(consumers)[-1]
        for objective, consume in consumers.items():
            self._gathering.begin(consume)
            values[objective].sum().backward(retain_graph=objective != last)
            self._gathering.finish()
        return {name: value.detach() for name, value in values.items()}, counts

    def slow_layers(self) -> dict[str, str]:
        """Layers without a formula, and the way that their gradients were taken."""
        return {layer.name: layer.alone.way for layer in self.layers if layer.alone is not None}

    def _on_forward(self, layer: Layer) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor | None:
            gathering = self._gathering
            if not torch.is_grad_enabled() or gathering.is_resting:
                return None
            kept = output if layer.reads_output else _only_input(layer, args, kwargs)
            if not isinstance(output, Tensor):
                raise unseen(layer.name, "returns more than one tensor")
            shared = gathering.register(layer, kept) if self._recording else None
            tapped = _Tap.apply(output, kept.detach(), self._anchor, gathering, layer, shared)
            # Models and tuners may add to a layer's output in place, which no view allows; only to
            # LoRA's own matrices nobody does.
            return tapped if ".lora_" in layer.name else tapped.clone()

        return hook


class _Tap(torch.autograd.Function):
    """Passes an output on; on the way back its gradient goes to the gathering.

    The kept tensor lies with autograd, so that gradient checkpointing can drop and remake it.
    `anchor` needs a gradient, and so does the output from here on: no weight has to.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        kept: Tensor,
        anchor: Tensor,
        gathering: Gathering,
        layer: Layer,
        shared: SharedInput | None,
    ) -> Tensor:
        ctx.call = gathering, layer, shared
        ctx.save_for_backward(kept)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gathering, layer, shared = ctx.call
        gathering.arrive(layer, ctx.saved_tensors[0], grad, shared)
        return grad, None, None, None, None, None


def _only_input(layer: Layer, args: tuple, kwargs: dict) -> Tensor:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not tensors or (layer.alone is not None and (len(tensors) > 1 or len(args) != 1)):
        raise unseen(layer.name, f"is called with {len(tensors)} tensors")
    return tensors[0]


def _trains_head(model: nn.Module, layers: list[Layer]) -> bool:
    """Whether the output embedding holds trained parameters: it must see samples apart then."""
    head = bare(model).get_output_embeddings()
    inside = {id(module) for module in head.modules()} if head is not None else set()
    return any(id(layer.module) in inside for layer in layers)


class LoopPass:
    """The same by one forward and backward a sample and objective: exact for any model."""

    def __init__(self, model: nn.Module, family: Family):
        self.model, self.family = model, family
        self.slots = trainable_slots(model)

    @contextmanager
    def hooked(self) -> Iterator["LoopPass"]:
        yield self

    def run(self, batch: Batch, consumers: dict[Objective, Consumer]) -> tuple[Objectives, Tensor]:
        parts = [self._run_one(batch, consumers, at) for at in range(len(batch["input_ids"]))]
        values = {name: torch.cat([one[name] for one, _ in parts]) for name in parts[0][0]}
        return values, torch.cat([counts for _, counts in parts])

    def _run_one(
        self, batch: Batch, consumers: dict[Objective, Consumer], at: int
    ) -> tuple[Objectives, Tensor]:
        sample = slice(at, at + 1)
        one = {name: tensor[sample] for name, tensor in batch.items()}
        values, counts = sample_objectives(self.model, one, self.family)
        last = list(consumers)[-1]
        for objective, consume in consumers.items():
            gradients = torch.autograd.grad(
                values[objective].sum(),
                [slot.parameter for slot in self.slots],
                retain_graph=objective != last,
                materialize_grads=True,
                allow_unused=True,
            )
            for slot, gradient in zip(self.slots, gradients, strict=True):
                consume(gradient.reshape(1, -1).float(), slot.offset, sample)
        return {name: value.detach() for name, value in values.items()}, counts

    def slow_layers(self) -> dict[str, str]:
        return {"(all)": "one backward a sample"}


Pass = GradientPass | LoopPass


def make_pass(model: nn.Module, family: Family, probe: Batch) -> Pass:
    """The fused pass where it is exact on the probe, otherwise the loop, said once."""
    reason = loop_reason(model)
    if reason is None:
        try:
            return _audited(GradientPass(model, family), probe)
        except Unseen as error:
            reason = str(error)
    say_once(f"gradients by one backward a sample, which is slow: {reason}", level=logging.WARNING)
    return LoopPass(model, family)


def _audited(gradients: GradientPass, probe: Batch) -> GradientPass:
    """Per-sample gradients must add up to the batch's: autograd is asked for that once."""
    found = _collected(gradients, probe, "loss").sum(0)
    values, _ = sample_objectives(gradients.model, probe, gradients.family)
    wanted = torch.autograd.grad(
        values["loss"].sum(),
        [slot.parameter for slot in gradients.slots],
        materialize_grads=True,
        allow_unused=True,
    )
    is_half = any(parameter.dtype != torch.float32 for parameter in gradients.model.parameters())
    tolerance, least = (5e-2 if is_half else 1e-3), 1e-5 * found.norm()
    for slot, whole in zip(gradients.slots, wanted, strict=True):
        part = found[slot.offset : slot.offset + slot.size]
        whole = whole.flatten().float().cpu()
        if (part - whole).norm() > tolerance * whole.norm() + least:
            raise unseen(slot.layer_name, f"uses {slot.key} where no hook sees it")
    for name, way in gradients.slow_layers().items():
        say_once(f"no formula for {name}: its gradients are taken by {way}, which is slower")
    return gradients


def per_sample_gradients(
    model: nn.Module, batch: Batch, *, family: Family = "causal", differentiate: Objective = "loss"
) -> Float[Tensor, "sample param"]:
    """The whole gradient of every sample, unsketched: for tests and small models."""
    return _collected(make_pass(model, family, batch), batch, differentiate)


def _collected(gradients: Pass, batch: Batch, objective: Objective) -> Tensor:
    out = torch.zeros(len(batch["input_ids"]), param_count(gradients.slots))

    def keep(part: Float[Tensor, "sample param"], offset: int, samples: slice) -> None:
        out[samples, offset : offset + part.shape[1]] = part.cpu()

    with gradients.hooked():
        gradients.run(batch, {objective: keep})
    return out
