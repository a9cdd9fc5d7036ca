"""The workloads of gradient_pass.py: a random LoRA model, rows of random tokens and their loss.

Also here are the passes every other one is measured against: plain forward and backward with the
full LM head, the same with the head on label tokens only, and gradex itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import LlamaConfig, LlamaForCausalLM

from gradex.data.tokens import IGNORED, Batch, Example, collate, token_batches
from gradex.gradients.collect import Sketch
from gradex.gradients.per_sample import GradientPass
from gradex.gradients.projectors import make_projector

VOCABULARY = 2000
SOURCES = 8
TOKEN_BUDGET = 4096
LABELLED_SHARE = 0.3

# One repetition over all rows of a workload; returns the sketches, in the order of the rows.
Sketches = Float[Tensor, "sample dim"]
Pass = Callable[[], Sketches | None]


class Shape(NamedTuple):
    """What tells one workload from another."""

    hidden: int
    intermediate: int
    layers: int
    rows: int
    draw_lengths: Callable[[np.random.Generator, int], np.ndarray]


def _log_uniform(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(16), np.log(257), rows)).astype(int)


def _uniform(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.integers(8, 33, rows)


SHAPES = {
    "ragged": Shape(256, 688, 4, 256, _log_uniform),
    "short": Shape(64, 176, 2, 2048, _uniform),
}


@dataclass(frozen=True)
class Workload:
    """A model in eval mode, its rows and the device both are on."""

    model: PeftModel
    rows: list[Example]
    device: torch.device

    def batches(self) -> list[list[int]]:
        """Positions of the rows, by length, at most TOKEN_BUDGET padded tokens a batch."""
        return list(token_batches([row.length for row in self.rows], TOKEN_BUDGET))

    def collate(self, positions: list[int]) -> Batch:
        batch = collate([self.rows[i] for i in positions], family="causal", pad_id=0)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def adapter(self) -> list[torch.nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if "lora_" in name]

    def adapter_layers(self) -> list[str]:
        """Names of the Linear layers that hold the adapter, two a wrapped layer."""
        names = (name for name, _ in self.model.named_modules())
        return [name for name in names if name.endswith(("lora_A.default", "lora_B.default"))]


def build(name: str) -> Workload:
    """The workload of this name, the same at every call."""
    shape = SHAPES[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Workload(_random_model(shape).to(device), _random_rows(shape), device)


def _random_model(shape: Shape) -> PeftModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=4, max_position_embeddings=256,
        attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, target_modules="all-linear"))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            # At B = 0, where LoRA starts, every gradient of A would be zero.
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def _random_rows(shape: Shape) -> list[Example]:
    """Rows of random tokens from a few sources that share none, by Zipf's law within a source.

    That spreads the gradients' cosines as text does; rows of uniformly random tokens are all but
    orthogonal, and no sketch could rank them.
    """
    rng = np.random.default_rng(0)
    width = VOCABULARY // SOURCES
    frequency = 1 / np.arange(1, width + 1)
    rows = []
    for i, length in enumerate(shape.draw_lengths(rng, shape.rows)):
        words = rng.choice(width, size=length, p=frequency / frequency.sum())
        ids = words + width * rng.integers(SOURCES)
        labels = ids.copy()
        labels[: length - round(LABELLED_SHARE * length)] = IGNORED
        rows.append(Example(str(i), ids, labels))
    return rows


def forward(model: torch.nn.Module, batch: Batch) -> Float[Tensor, "sample token vocab"]:
    mask = batch["attention_mask"]
    return model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).logits


def mean_label_losses(logits: Tensor, batch: Batch) -> Float[Tensor, " sample"]:
    """Each sample's mean loss over its label tokens: what every pass differentiates.

    Token losses as transformers takes them: over all logits, labels shifted, -100 ignored.
    """
    targets = pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
    token_losses = cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return token_losses.view_as(targets).sum(1) / (targets != IGNORED).sum(1)


def _sample_means(token_losses: Tensor, learned: Tensor) -> Float[Tensor, " sample"]:
    owner = learned.nonzero()[:, 0]
    sums = token_losses.new_zeros(len(learned)).index_add(0, owner, token_losses)
    return sums / learned.sum(1)


def plain_pass(work: Workload, dim: int) -> Pass:
    """Forward and backward of all rows, the LM head on every token: the floor, 1.00."""

    def run() -> None:
        for positions in work.batches():
            batch = work.collate(positions)
            work.model.zero_grad()
            mean_label_losses(forward(work.model, batch), batch).sum().backward()

    return run


def label_head_pass(work: Workload, dim: int) -> Pass:
    """The plain pass with the LM head on label tokens only."""
    causal = work.model.get_base_model()

    def run() -> None:
        for positions in work.batches():
            batch = work.collate(positions)
            targets = batch["labels"][:, 1:]
            learned = targets != IGNORED
            work.model.zero_grad()
            hidden = causal.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
            logits = causal.lm_head(hidden[:, :-1][learned])
            token_losses = cross_entropy(logits, targets[learned], reduction="none")
            _sample_means(token_losses, learned).sum().backward()

    return run


def gradex_pass(work: Workload, dim: int) -> Pass:
    """Every sample's gradient in one forward and backward, sketched by `sjlt` on the way."""
    projector = make_projector("sjlt", dim)

    def run() -> Sketches:
        out = torch.zeros(len(work.rows), dim)
        gradients = GradientPass(work.model, "causal")
        with gradients.hooked():
            for positions in work.batches():
                sketch = Sketch(projector, len(positions), work.device)
                gradients.run(work.collate(positions), {"loss": sketch.add})
                out[positions] = sketch.projected.cpu()
        return out

    return run


def exact_gradients(work: Workload, count: int) -> Float[Tensor, "sample param"]:
    """The gradients of at most `count` rows from plain autograd, one row at a time."""
    adapter, out = work.adapter(), []
    for i in range(min(count, len(work.rows))):
        batch = work.collate([i])
        loss = mean_label_losses(forward(work.model, batch), batch).sum()
        out.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, adapter)]).cpu())
    return torch.stack(out)
