"""Other tools' per-sample gradients on the workloads of gradient_pass.py, a function a tool.

Each function takes a workload and how many numbers to store a sample, prepares the tool and
returns a pass. Where a tool leaves a choice open it gets what is quickest here, where its own
setting draws a matrix again and again it is measured both ways. Tools are imported inside the
functions: they may not be installed.
"""

import logging
import tempfile
from math import isqrt

import numpy as np
import torch
from pass_workloads import Pass, Sketches, Workload, forward, mean_label_losses
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradex.data.tokens import IGNORED

ROWS_OF_2024 = 8  # the batch size of its scripts
ROWS_OF_LESS = 16  # LESS projects so many gradients at once


def bergson_pass(work: Workload, dim: int) -> Pass:
    """bergson's default: each layer's gradient between two random matrices, to side x side."""
    side = isqrt(dim // len(work.adapter_layers()))
    return _bergson(work, side, "per_module")


def bergson_global_pass(work: Workload, dim: int) -> Pass:
    """bergson with `projection_target: global`: one dense projection of the whole gradient."""
    return _bergson(work, dim, "global")


def _bergson(work: Workload, projection_dim: int, target: str) -> Pass:
    from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector
    from bergson.utils.peft import detect_peft_modules

    data, layers = _as_dataset(work), detect_peft_modules(work.model)
    processor = GradientProcessor(projection_dim=projection_dim, projection_target=target)
    config = IndexConfig(run_path=f"{tempfile.mkdtemp()}/index", loss_reduction="mean")
    config.partial_run_path.mkdir()
    # As its `build` does: no weight gradients, and the graph hangs on the embeddings.
    work.model.requires_grad_(False)
    work.model.get_input_embeddings().requires_grad_(True)

    def run() -> Sketches:
        inner = work.model.base_model
        collector = InMemoryCollector(
            model=inner, data=data, cfg=config, processor=processor, target_modules=layers
        )
        computer = CollectorComputer(
            work.model, data, collector=collector, batches=work.batches(), cfg=config
        )
        computer.run_with_collector_hooks()
        return torch.cat(list(collector.gradients.values()), dim=1)

    return run


def _as_dataset(work: Workload):
    from datasets import Dataset

    columns = {
        "input_ids": [row.input_ids.tolist() for row in work.rows],
        "labels": [row.labels.tolist() for row in work.rows],
    }
    return Dataset.from_dict(columns)


def dattri_pass(work: Workload, dim: int) -> Pass:
    """dattri's LoGra: each layer's input and output gradient projected, then multiplied.

    Its attributor's `cache` wants batches of one size, so its hooks and compressors are driven
    here, as `cache` does, over batches by tokens. Its FactGraSS takes as long.
    """
    from dattri.algorithm.block_projected_if.core.hook import HookManager

    layers, side = work.adapter_layers(), isqrt(dim // len(work.adapter_layers()))
    compressors = _logra_compressors(work, layers, side)
    hooks = HookManager(work.model, layers, device=work.device.type)
    hooks.set_compressors(compressors)

    def run() -> Sketches:
        out = torch.zeros(len(work.rows), len(layers) * side**2)
        for positions in work.batches():
            batch = work.collate(positions)
            work.model.zero_grad()
            # It multiplies by the batch size: its losses are means over the samples.
            mean_label_losses(forward(work.model, batch), batch).mean().backward()
            out[positions] = torch.cat(hooks.get_compressed_grads(), dim=1).cpu()
        return out

    return run


def _logra_compressors(work: Workload, layers: list[str], side: int) -> list:
    """What dattri's LoGraAttributor sets up: a Gaussian matrix a side, no second projection."""
    from dattri.algorithm.block_projected_if.core.compressor import setup_model_compressors

    batch = work.collate(work.batches()[0])
    common = {"device": work.device.type, "proj_max_batch_size": 64}
    return setup_model_compressors(
        work.model,
        layers,
        sparsifier_kwargs=common | {"proj_dim": side, "proj_type": "normal"},
        projector_kwargs=common | {"proj_dim": -1, "proj_type": "identity"},
        sample_inputs={name: batch[name] for name in ("input_ids", "attention_mask")},
        device=work.device.type,
    )


def traker_pass(work: Workload, dim: int) -> Pass:
    """traker's vmap over samples, and blocks of 100 columns of its BasicProjector, its default."""
    return _traker_pass(work, dim, block=100)


def traker_held_pass(work: Workload, dim: int) -> Pass:
    """The same with a block as wide as the matrix, which is then drawn once and held."""
    return _traker_pass(work, dim, block=dim)


def _traker_pass(work: Workload, dim: int, block: int) -> Pass:
    traker = _traker(work, dim, block)

    def run() -> Sketches:
        traker.saver.current_store["is_featurized"][:] = 0
        for positions in work.batches():
            batch = work.collate(positions)
            traker.featurize((batch["input_ids"], batch["labels"]), inds=np.array(positions))
        return torch.tensor(np.array(traker.saver.current_store["grads"]))

    return run


def _traker(work: Workload, dim: int, block: int):
    from trak import TRAKer

    # vmap would take the gradients of frozen weights too, were they parameters.
    _frozen_weights_to_buffers(work.model)
    traker = TRAKer(
        work.model,
        _label_loss_task(),
        train_set_size=len(work.rows),
        save_dir=tempfile.mkdtemp(),
        device=work.device.type,
        projector=_basic_projector(work, dim, block),
        logging_level=logging.WARNING,
        use_half_precision=False,
    )
    traker.load_checkpoint(work.model.state_dict(), model_id=0)
    return traker


def _basic_projector(work: Workload, dim: int, block: int):
    """Dense signs; of several blocks only one is held, and each is drawn anew every time."""
    from trak.projectors import BasicProjector

    size = sum(parameter.numel() for parameter in work.adapter())
    return BasicProjector(size, dim, 0, "rademacher", work.device, block_size=block)


def _frozen_weights_to_buffers(model: torch.nn.Module) -> None:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


def _label_loss_task():
    """traker ships no task for language models; this one is a sample's mean label loss."""
    from trak.modelout_functions import AbstractModelOutput

    class LabelLoss(AbstractModelOutput):
        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(model, weights: dict, buffers: dict, ids: Tensor, labels: Tensor) -> Tensor:
            # vmap can neither select the label tokens nor build a mask from padding; rows are
            # padded on the right, so that a causal model needs none.
            inputs = {"input_ids": ids.unsqueeze(0), "use_cache": False}
            out = torch.func.functional_call(model, (weights, buffers), kwargs=inputs)
            return cross_entropy(out.logits[0, :-1], labels[1:], ignore_index=IGNORED)

        def get_out_to_loss_grad(self, model, weights: dict, buffers: dict, batch) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    return LabelLoss()


def less_pass(work: Workload, dim: int) -> Pass:
    """LESS's recipe: batches of one, p.grad concatenated, and for every 16 of them traker's
    BasicProjector with blocks of 128 columns."""
    return _less_pass(work, dim, block=128)


def less_held_pass(work: Workload, dim: int) -> Pass:
    """The same with the whole matrix of params x dim drawn once and held."""
    return _less_pass(work, dim, block=dim)


def _less_pass(work: Workload, dim: int, block: int) -> Pass:
    adapter, projector = work.adapter(), _basic_projector(work, dim, block)

    def gradient(row: int) -> Tensor:
        batch = work.collate([row])
        work.model.zero_grad()
        mean_label_losses(forward(work.model, batch), batch).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in adapter])

    def run() -> Sketches:
        sketches, count = [], len(work.rows)
        for start in range(0, count, ROWS_OF_LESS):
            rows = range(start, min(start + ROWS_OF_LESS, count))
            gradients = torch.stack([gradient(row) for row in rows])
            sketches.append(projector.project(gradients, model_id=0))
        return torch.cat(sketches).cpu()

    return run


def recipe_2024_pass(work: Workload, dim: int) -> Pass:
    """The code of arXiv 2409.19458: a backward a sample through the graph of its batch of 8,
    then one row times a dense +-1 matrix of params x dim in float64 on the host."""
    adapter = work.adapter()
    size = sum(parameter.numel() for parameter in adapter)
    signs = np.random.default_rng(0).integers(2, size=(size, dim))
    matrix = (2 * signs - 1).astype(float) / np.sqrt(dim)
    by_length = [position for batch in work.batches() for position in batch]

    def run() -> Sketches:
        out = np.zeros((len(work.rows), dim))
        for start in range(0, len(by_length), ROWS_OF_2024):
            positions = by_length[start : start + ROWS_OF_2024]
            batch = work.collate(positions)
            losses = mean_label_losses(forward(work.model, batch), batch)
            for position, loss in zip(positions, losses, strict=True):
                gradient = torch.autograd.grad(loss, adapter, retain_graph=True)
                flat = torch.cat([g.flatten() for g in gradient]).cpu().float().numpy()
                out[position] = flat @ matrix
        return torch.from_numpy(out)

    return run
