"""What the tests of adapters share: a fresh base without reading it anew, and a plain loop."""

from copy import deepcopy
from pathlib import Path

import torch

from gradex.adapters.attach import attach
from gradex.adapters.folder import export
from gradex.adapters.spec import AdapterSpec
from gradex.gradients.layers import param_count
from gradex.gradients.per_sample import make_pass
from gradex.models.load import Base, BaseSpec, load_base
from gradex.models.losses import sample_objectives

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq", "bert": "classifier"}
STEPS = 20  # of the training that an adapter is attached for


class Bases:
    """bases("llama"): the tiny model as it is on disk, a copy each time."""

    def __init__(self, model_folder):
        self.model_folder, self.known = model_folder, {}

    def __call__(self, model: str) -> Base:
        if model not in self.known:
            self.known[model] = load_base(BaseSpec(str(self.model_folder(model))))
        return deepcopy(self.known[model])


class Moved:
    """moved(spec, "llama", batch): an adapter that was trained, and the folder it is exported to;
    made once, and only to be read."""

    def __init__(self, bases: Bases, root: Path):
        self.bases, self.root, self.known = bases, root, {}

    def __call__(self, spec: AdapterSpec, model: str, batch):
        key = repr((spec, model))
        if key not in self.known:
            adapted = shaken(begun(self.bases(model), spec, batch))
            folder = self.root / str(len(self.known))
            export(adapted, folder, base_path="base", card=None)
            self.known[key] = adapted, folder
        return self.known[key]


def begun(base: Base, spec: AdapterSpec, batch, *, seed: int = 0):
    return attach(base, spec, seed=seed, steps=STEPS, batches=[batch])


def shaken(model):
    """The model with every trained number moved, as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def losses(model, batch, family="causal"):
    with torch.no_grad():
        return sample_objectives(model, dict(batch), family)[0]["loss"]


def at_once(model, batch, family):
    """Every sample's gradient as gradex takes it, and the way it was taken."""
    taken = make_pass(model, family, batch)
    out = torch.zeros(len(batch["input_ids"]), param_count(taken.slots))

    def keep(part, offset, samples):
        out[samples, offset : offset + part.shape[1]] = part

    with taken.hooked():
        taken.run(batch, {"loss": keep})
    return out, type(taken)


def by_loop(model, batch, family):
    """Every sample's gradient by a backward pass of its own."""
    rows = []
    for at in range(len(batch["input_ids"])):
        one = {name: tensor[at : at + 1] for name, tensor in batch.items()}
        loss = sample_objectives(model, one, family)[0]["loss"].sum()
        found = torch.autograd.grad(
            loss, list(trained(model).values()), materialize_grads=True, allow_unused=True
        )
        rows.append(torch.cat([gradient.flatten().float() for gradient in found]))
    return torch.stack(rows)


def assert_close_in_norm(found, wanted, *, tolerance: float):
    assert wanted.norm() > 0
    assert (found - wanted).norm() <= tolerance * wanted.norm()
