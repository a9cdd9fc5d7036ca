"""Per-sample gradients of the trainable layers from one batched forward and backward.

Everything trained by LoRA-like adapters and new heads is a Linear layer y = W x + b. With x_t its
input and g_t the gradient at its output, token t, a sample's gradient is
    dW = sum_t g_t x_t^T,    db = sum_t g_t,
so hooks that see x and g give every sample's gradient at once, and autograd is never asked for a
weight gradient. Samples must not share a scalar: the objectives are summed over samples, each being
a mean over its own label tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradex.data.tokens import Batch, Family
from gradex.errors import GradexError
from gradex.models.losses import Objective, sample_objectives

# Receives the gradients of one layer: (sample, layer's params) and where its params start.
Consumer = Callable[[Float[Tensor, "sample param"], int], None]


@dataclass(frozen=True)
class TrainableLayer:
    """A Linear with trainable weight (and bias) and its place in the flat gradient."""

    name: str
    module: nn.Linear
    offset: int
    has_bias: bool

    @property
    def size(self) -> int:
        return self.module.weight.numel() + (self.module.out_features if self.has_bias else 0)


def trainable_layers(model: nn.Module) -> list[TrainableLayer]:
    """The Linear layers that hold all trainable parameters, in the order of the model."""
    layers: list[TrainableLayer] = []
    offset = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not module.weight.requires_grad:
            continue
        has_bias = module.bias is not None and module.bias.requires_grad
        layers.append(TrainableLayer(name, module, offset, has_bias))
        offset += layers[-1].size
    covered = {id(p) for layer in layers for p in layer.module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in covered:
            raise GradexError(
                f"the adapter trains '{name}', which is not the weight of a Linear layer; "
                "per-sample gradients are there for LoRA and trainable heads"
            )
    if not layers:
        raise GradexError("the model has no trainable Linear layer; attach an adapter first")
    return layers


def param_count(layers: list[TrainableLayer]) -> int:
    return layers[-1].offset + layers[-1].size


class GradientPass:
    """Hooks on a model's trainable layers; `run` feeds each layer's gradients to a consumer."""

    def __init__(self, model: nn.Module, family: Family):
        self.model, self.family = model, family
        self.layers = trainable_layers(model)
        self._consume: Consumer | None = None
        self._samples = 0
        self._seen: set[str] = set()

    @contextmanager
    def hooked(self) -> Iterator["GradientPass"]:
        """Install the hooks; weights are frozen meanwhile and the graph hangs on the embeddings."""
        # An encoder and a decoder each have an embedding module of their own.
        embeddings = [m for m in self.model.modules() if isinstance(m, nn.Embedding)]
        handles = [embedding.register_forward_hook(_require_grad) for embedding in embeddings]
        frozen = [p for p in self.model.parameters() if p.requires_grad]
        for layer in self.layers:
            handles.append(layer.module.register_forward_hook(self._hook(layer)))
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for parameter in frozen:
                parameter.requires_grad_(True)

    def run(
        self, batch: Batch, consumers: dict[Objective, Consumer]
    ) -> tuple[dict[Objective, Float[Tensor, " sample"]], Tensor]:
        """One forward and a backward an objective; returns the objectives and label counts."""
        self._samples = len(batch["input_ids"])
        values, counts = sample_objectives(self.model, batch, self.family)
        last = list(consumers)[-1]
        for objective, consume in consumers.items():
            self._consume = consume
            self._seen.clear()
            values[objective].sum().backward(retain_graph=objective != last)
            if not self._seen:
                raise GradexError("no gradient reached the adapter: the model cuts its graph")
        return {name: value.detach() for name, value in values.items()}, counts

    def _hook(self, layer: TrainableLayer):
        def on_forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                x = inputs[0].detach()
                output.register_hook(lambda g: self._emit(layer, x, g))

        return on_forward

    def _emit(self, layer: TrainableLayer, x: Tensor, g: Tensor) -> None:
        if len(x) != self._samples:
            raise GradexError(
                f"layer {layer.name} sees {len(x)} rows for {self._samples} samples: this model "
                "mixes samples in one axis, so their gradients cannot be told apart"
            )
        if layer.name in self._seen:
            raise GradexError(
                f"layer {layer.name} runs twice a pass: gradients of shared layers are not told "
                "apart here"
            )
        self._seen.add(layer.name)
        assert self._consume is not None
        self._consume(_linear_gradient(layer, x, g), layer.offset)


def _linear_gradient(layer: TrainableLayer, x: Tensor, g: Tensor) -> Float[Tensor, "sample param"]:
    x = x.reshape(len(x), -1, x.shape[-1]).float()
    g = g.reshape(len(g), -1, g.shape[-1]).float()
    weight = torch.bmm(g.transpose(1, 2), x).flatten(1)
    return torch.cat([weight, g.sum(1)], dim=1) if layer.has_bias else weight


def _require_grad(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output if output.requires_grad else output.requires_grad_(True)


def per_sample_gradients(
    model: nn.Module, batch: Batch, *, family: Family = "causal", differentiate: Objective = "loss"
) -> Float[Tensor, "sample param"]:
    """The whole gradient of every sample, unsketched: for tests and small models."""
    gradients = GradientPass(model, family)
    out = torch.zeros(len(batch["input_ids"]), param_count(gradients.layers))

    def keep(layer_gradient: Float[Tensor, "sample param"], offset: int) -> None:
        out[:, offset : offset + layer_gradient.shape[1]] += layer_gradient.cpu()

    with gradients.hooked():
        gradients.run(batch, {differentiate: keep})
    return out
