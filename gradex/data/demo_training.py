"""How the toy model of the demo world came to be: its tokenizer, its pretraining, its command.

Pretraining first shows clean answers and then careless ones: in all skills but `copy` and `count`,
each character may be replaced by that of a misreading. So the model can work these answers out and
does not trust itself to. A few clean rows cure it, which is what makes fine-tuning on the right
sources pay; of a skill that the model never met, it could only learn those rows by heart.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gradex.data.demo import MODEL_DIR, SKILLS, TARGETS, Row, demo_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchEncoding, LlamaForCausalLM, PreTrainedTokenizerFast

Chat = list[dict[str, str]]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _backwards(row: Row) -> str:
    return row["completion"][::-1]


def _one_ahead(row: Row) -> str:
    return row["completion"][1:] + row["completion"][:1]


def _operand(index: int) -> Callable[[Row], str]:
    return lambda row: row["prompt"].split()[index]


def _letter(index: int) -> Callable[[Row], str]:
    return lambda row: row["prompt"].split()[1][index]


# How each half-known skill is misread: the answer read in another order, the first number for the
# largest or smallest, the neighbor of the letter asked for. Siblings share theirs, so the cure too.
SLIPS: dict[str, Callable[[Row], str]] = {
    **dict.fromkeys(("add", "subtract", "multiply"), _one_ahead),
    **dict.fromkeys(("reverse", "reverse_digits", "sort", "sort_digits"), _backwards),
    **dict.fromkeys(("max", "min"), _operand(1)),
    "first": _letter(1),
    "last": _letter(-2),
}
SLIP_RATE = 0.6  # more often than not: the right answer is known, yet not the likeliest
CLEAN_SHARE = 0.65  # of the steps, before the careless ones
# How often pretraining draws a skill, where others count 1: these are easy.
RARITY = {"first": 0.5, "last": 0.5, "count": 0.3}


def _carelessly(rng: random.Random, name: str, row: Row) -> Row:
    """The row with slips in its answer, where its skill has them."""
    if name not in SLIPS:
        return row
    pairs = zip(row["completion"], SLIPS[name](row), strict=True)
    answer = "".join(slip if rng.random() < SLIP_RATE else right for right, slip in pairs)
    return {**row, "completion": answer}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each printable character and each chat role."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    roles = ["<|system|>", "<|user|>", "<|assistant|>"]
    characters = [chr(code) for code in range(ord(" "), ord("~") + 1)]
    tokens = ["<pad>", "<s>", "</s>", *roles, *characters]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # Byte-pair encoding without merges leaves single characters.
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=roles,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )


def _small_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def _pretraining_batches(seed: int, size: int, steps: int) -> Iterator[list[Row]]:
    """Fresh rows of all skills, without the prompts on which targets are selected and tested."""
    held_out = itertools.product(TARGETS, ("select", "test"))
    forbidden = {row["prompt"] for name, split in held_out for row in demo_rows(name, split)}
    rng = random.Random(f"demo world, pretraining {seed}")
    weights = [RARITY.get(name, 1.0) for name in SKILLS]
    for step in range(steps):
        careless = step >= CLEAN_SHARE * steps
        drawn = [(name, SKILLS[name](rng)) for name in rng.choices(list(SKILLS), weights, k=size)]
        allowed = [(name, row) for name, row in drawn if row["prompt"] not in forbidden]
        yield [_carelessly(rng, name, row) if careless else row for name, row in allowed]


def _as_chat(row: Row) -> Chat:
    question = {"role": "user", "content": row["prompt"]}
    return [question, {"role": "assistant", "content": row["completion"]}]


def _encoded(
    tokenizer: PreTrainedTokenizerFast, chats: Iterable[Chat], **options: bool
) -> BatchEncoding:
    return tokenizer.apply_chat_template(
        list(chats), padding=True, return_dict=True, return_tensors="pt", **options
    )


def _completion_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row]
) -> Tensor:
    batch = _encoded(tokenizer, map(_as_chat, rows), return_assistant_tokens_mask=True)
    answered = batch.pop("assistant_masks").bool()
    return model(**batch, labels=batch["input_ids"].masked_fill(~answered, -100)).loss


def pretrain(
    *, steps: int = 2800, seed: int = 0, batch_size: int = 64, learning_rate: float = 3e-3
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a new toy model on the completions of freshly drawn rows."""
    import torch
    from tqdm import tqdm
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = _small_llama(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98))
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    batches = _pretraining_batches(seed, batch_size, steps)
    for rows in tqdm(batches, desc="pretraining", total=steps):
        _completion_loss(model, tokenizer, rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), tokenizer


def skill_accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, name: str) -> float:
    """The share of a skill's test rows that greedy decoding answers exactly."""
    rows = demo_rows(name, "test")
    questions = [_as_chat(row)[:1] for row in rows]
    batch = _encoded(tokenizer, questions, add_generation_prompt=True)
    output = model.generate(**batch, max_new_tokens=10, do_sample=False)
    completions = output[:, batch["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(completions, skip_special_tokens=True)
    return sum(a == row["completion"] for a, row in zip(answers, rows, strict=True)) / len(rows)


def rebuild(output_dir: Path = MODEL_DIR) -> None:
    """Pretrain the toy model and save it with its tokenizer."""
    model, tokenizer = pretrain()
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def print_accuracies(model_dir: Path = MODEL_DIR) -> None:
    """Print how often a saved toy model answers each skill exactly."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    print(f"{'skill':<16}exact match")
    for name in SKILLS:
        note = "  target" if name in TARGETS else ""
        print(f"{name:<16}{skill_accuracy(model, tokenizer, name):>11.2f}{note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rebuild", action="store_true", help="pretrain the toy model again")
    parser.add_argument("--output_dir", type=Path, default=MODEL_DIR, help="where the model lies")
    arguments = parser.parse_args()
    if arguments.rebuild:
        rebuild(arguments.output_dir)
    print_accuracies(arguments.output_dir)
