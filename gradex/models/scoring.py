"""How good a model is on rows: the loss of each, and the answers it generates."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from gradex.data.formats import Row
from gradex.data.metrics import METRICS
from gradex.data.tokens import Encoder, Example, collate, encode_all, token_batches
from gradex.models.losses import sample_objectives
from gradex.progress import progress

MAX_NEW_TOKENS = 256


@torch.inference_mode()
def row_losses(
    model: nn.Module, examples: Sequence[Example], encoder: Encoder, *, tokens_per_batch: int = 4096
) -> np.ndarray:
    """The mean label loss of every example, in their order."""
    losses = np.empty(len(examples))
    with progress("test losses", len(examples), unit="row") as bar:
        for positions in token_batches([e.length for e in examples], tokens_per_batch):
            batch = _to_device(model, [examples[i] for i in positions], encoder)
            values, _ = sample_objectives(model, batch, encoder.family)
            losses[positions] = values["loss"].cpu().numpy()
            bar.update(len(positions))
    return losses


def _to_device(model: nn.Module, examples: Sequence[Example], encoder: Encoder):
    batch = collate(examples, family=encoder.family, pad_id=encoder.tokenizer.pad_token_id)
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def score(model: nn.Module, rows: Sequence[Row], encoder: Encoder, metric: str) -> dict[str, float]:
    """Mean loss over rows, and the task's metric where it has one besides the loss."""
    model.eval()
    examples, _ = encode_all(encoder, rows)
    result = {"loss": float(row_losses(model, examples, encoder).mean())}
    if encoder.family == "classifier":
        result["accuracy"] = _accuracy(model, examples, encoder)
    elif METRICS[metric] is not None:
        generated = generate(model, rows, encoder)
        reference = [row.answer or row.completion for row in rows]
        earned = [METRICS[metric](g, r) for g, r in zip(generated, reference, strict=True)]
        result[metric] = float(np.mean(earned))
    return result


@torch.inference_mode()
def _accuracy(model: nn.Module, examples: Sequence[Example], encoder: Encoder) -> float:
    right = 0
    for positions in token_batches([e.length for e in examples], 4096):
        batch = _to_device(model, [examples[i] for i in positions], encoder)
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(examples)


@torch.inference_mode()
def generate(
    model: nn.Module, rows: Sequence[Row], encoder: Encoder, *, tokens_per_batch: int = 4096
) -> list[str]:
    """Greedy completions of the rows' prompts, in their order.

    A completion may grow to twice the longest reference (and 8 tokens), up to MAX_NEW_TOKENS.
    """
    tokenizer = encoder.tokenizer
    prompts = [encoder.prompt_ids(row) for row in rows]
    longest = max(len(tokenizer(row.completion)["input_ids"]) for row in rows)
    new_tokens = min(MAX_NEW_TOKENS, 2 * longest + 8)
    texts = [""] * len(rows)
    lengths = [len(prompt) + new_tokens for prompt in prompts]
    with progress("test answers", len(rows), unit="row") as bar:
        for positions in token_batches(lengths, tokens_per_batch):
            chosen = [prompts[i] for i in positions]
            answers = _greedy(model, chosen, encoder, new_tokens=new_tokens)
            for position, text in zip(positions, answers, strict=True):
                texts[position] = text
            bar.update(len(positions))
    return texts


def _greedy(
    model: nn.Module, prompts: Sequence[np.ndarray], encoder: Encoder, *, new_tokens: int
) -> list[str]:
    tokenizer = encoder.tokenizer
    batch = _prompt_batch(model, prompts, tokenizer.pad_token_id)
    out = model.generate(
        **batch,
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    start = 0 if encoder.family == "seq2seq" else batch["input_ids"].shape[1]
    return tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)


def _prompt_batch(model: nn.Module, prompts: Sequence[np.ndarray], pad_id: int):
    """Left-padded prompts: what is generated follows the last one's end in every row."""
    examples = [Example("", prompt, prompt) for prompt in prompts]
    batch = collate(examples, family="causal", pad_id=pad_id, padding_side="left")
    batch.pop("labels")
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}
