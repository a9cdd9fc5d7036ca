"""How good a model is on rows: the loss of each, and the answers it generates."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from gradex.data.formats import Row
from gradex.data.metrics import METRICS
from gradex.data.tokens import Batch, Encoder, Example, collate, encode_all, token_batches
from gradex.errors import GradexError
from gradex.models.losses import label_logits, margins, sample_objectives
from gradex.progress import progress

TOKENS_PER_BATCH = 4096
MAX_NEW_TOKENS = 256


def score(model: nn.Module, rows: Sequence[Row], encoder: Encoder, metric: str) -> dict[str, float]:
    """Mean loss over the rows that have a label, and the task's metric where it has another."""
    model.eval()
    examples, bad = encode_all(encoder, rows)
    rows = [row for row in rows if row.id not in bad]
    if not rows:
        raise GradexError("none of the target's test rows has a label left; raise --max_length")
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
def row_losses(
    model: nn.Module,
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    name: str = "test losses",
) -> np.ndarray:
    """The mean label loss of every example, in their order; a bar of this name shows it."""
    losses = np.empty(len(examples))
    with progress(name, len(examples), unit="row") as bar:
        for positions in token_batches([e.length for e in examples], tokens_per_batch):
            batch = batch_on(model, [examples[i] for i in positions], encoder)
            values, _ = sample_objectives(model, batch, encoder.family)
            losses[positions] = values["loss"].cpu().numpy()
            bar.update(len(positions))
    return losses


@torch.inference_mode()
def label_log_probs(
    model: nn.Module,
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[np.ndarray]:
    """The log-probability of every label token, an array an example, in their order."""
    log_probs = [np.empty(0)] * len(examples)
    with progress("label tokens", len(examples), unit="row") as bar:
        for positions in token_batches([e.length for e in examples], tokens_per_batch):
            batch = batch_on(model, [examples[i] for i in positions], encoder)
            found = label_logits(model, batch, encoder.family)
            values = logsigmoid(margins(found.logits, found.labels)).cpu().numpy()
            ends = found.owner.bincount(minlength=len(positions)).cumsum(0)[:-1].tolist()
            parts = np.split(values, ends)
            for position, part in zip(positions, parts, strict=True):
                log_probs[position] = part
            bar.update(len(positions))
    return log_probs


@torch.inference_mode()
def _accuracy(model: nn.Module, examples: Sequence[Example], encoder: Encoder) -> float:
    right = 0
    for positions in token_batches([e.length for e in examples], TOKENS_PER_BATCH):
        batch = batch_on(model, [examples[i] for i in positions], encoder)
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(examples)


@torch.inference_mode()
def generate(
    model: nn.Module,
    rows: Sequence[Row],
    encoder: Encoder,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[str]:
    """Greedy completions of the rows' prompts, in their order.

    A completion may grow to twice the longest reference (and 8 tokens), up to MAX_NEW_TOKENS.
    """
    prompts = [encoder.prompt_ids(row) for row in rows]
    longest = max(len(encoder.tokenizer(row.completion)["input_ids"]) for row in rows)
    new_tokens = min(MAX_NEW_TOKENS, 2 * longest + 8)
    texts = [""] * len(rows)
    lengths = [len(prompt) + new_tokens for prompt in prompts]
    with progress("test answers", len(rows), unit="row") as bar:
        for positions in token_batches(lengths, tokens_per_batch):
            chosen = [Example("", prompts[i], prompts[i]) for i in positions]
            answers = _greedy(model, chosen, encoder, new_tokens=new_tokens)
            for position, text in zip(positions, answers, strict=True):
                texts[position] = text
            bar.update(len(positions))
    return texts


def _greedy(
    model: nn.Module, prompts: Sequence[Example], encoder: Encoder, *, new_tokens: int
) -> list[str]:
    """Greedy answers; of the model's own generation config only the end tokens count."""
    tokenizer = encoder.tokenizer
    writes_after_prompt = encoder.family == "causal"
    # What is generated follows the last token of the row, so that padding goes to the left.
    side = "left" if writes_after_prompt else "right"
    batch = batch_on(model, prompts, encoder, padding_side=side)
    batch.pop("labels")
    out = model.generate(
        **batch,
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_ends(model, tokenizer),
    )
    start = batch["input_ids"].shape[1] if writes_after_prompt else 0
    return tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)


def _ends(model: nn.Module, tokenizer) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those the model names besides."""
    own = model.generation_config.eos_token_id
    named = own if isinstance(own, list) else [own]
    return sorted({token for token in (*named, tokenizer.eos_token_id) if token is not None})


def batch_on(
    model: nn.Module,
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    padding_side: Literal["right", "left"] = "right",
) -> Batch:
    """The examples as a batch on the model's device."""
    batch = collate(
        examples,
        family=encoder.family,
        pad_id=encoder.tokenizer.pad_token_id,
        padding_side=padding_side,
    )
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}
