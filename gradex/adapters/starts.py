"""What the kinds that begin from a split of the base's weights begin from: a function (model, spec,
beginning) each, which sets every layer of a freshly attached LoRA."""

from functools import partial

import torch
from torch import nn

from gradex.adapters import inits
from gradex.adapters.beginning import Beginning
from gradex.adapters.corda import context_svd
from gradex.adapters.covariance_cache import contexts
from gradex.adapters.inits import Splitter
from gradex.adapters.residual import base_weight, lora_layers, take_out
from gradex.adapters.spec import AdapterSpec


def pissa(model: nn.Module, spec: AdapterSpec, beginning: Beginning) -> None:
    _split_every_layer(model, spec, inits.principal_svd)


def pissa_niter(model: nn.Module, spec: AdapterSpec, beginning: Beginning) -> None:
    generator = torch.Generator().manual_seed(beginning.seed)
    niter = spec.options["niter"]
    fast = partial(inits.principal_svd_fast, niter=niter, generator=generator)
    _split_every_layer(model, spec, fast)


def milora(model: nn.Module, spec: AdapterSpec, beginning: Beginning) -> None:
    _split_every_layer(model, spec, inits.minor_svd)


def mid(model: nn.Module, spec: AdapterSpec, beginning: Beginning) -> None:
    _split_every_layer(model, spec, inits.middle_svd)


def olora(model: nn.Module, spec: AdapterSpec, beginning: Beginning) -> None:
    _split_every_layer(model, spec, inits.first_of_qr)


def corda_kpm(model: nn.Module, spec: AdapterSpec, beginning: Beginning) -> None:
    _split_by_context(model, spec, beginning, largest=False)


def corda_ipm(model: nn.Module, spec: AdapterSpec, beginning: Beginning) -> None:
    _split_by_context(model, spec, beginning, largest=True)


def _split_by_context(
    model: nn.Module, spec: AdapterSpec, beginning: Beginning, *, largest: bool
) -> None:
    """Layer by layer, each with its own context on the calibration rows."""
    layers = dict(lora_layers(model))
    seen = contexts(model, layers, beginning.batches, beginning.family)
    for name, layer in layers.items():
        weight = base_weight(layer)
        covariance = seen[name].covariance.to(weight.device)
        a, b, _ = context_svd(
            weight, covariance, spec.rank, spec.alpha, largest=largest, where=name
        )
        take_out(layer, a, b)


def _split_every_layer(model: nn.Module, spec: AdapterSpec, split: Splitter) -> None:
    for name, layer in lora_layers(model):
        a, b, _ = split(base_weight(layer), spec.rank, spec.alpha, where=name)
        take_out(layer, a, b)
