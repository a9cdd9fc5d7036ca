"""The embedded demo world: a toy language model and 18 toy sources that show the machinery.

    python -m gradex.data.demo              # what the shipped model can do
    python -m gradex.data.demo --rebuild    # pretrain it again, about two minutes on one core

It is a toy and claims nothing about real language models. A small Llama is pretrained on string
and arithmetic skills: it masters most of them and has hardly met the five `TARGETS`. Every skill
is a source, and every target has a `wrong_` twin: its prompts with the answers of other rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchEncoding, LlamaForCausalLM, PreTrainedTokenizerFast

Row = dict[str, str]
Chat = list[dict[str, str]]
Skill = Callable[[random.Random], Row]

MODEL_DIR = Path(__file__).parent / "demo_model"
SPLIT_SIZES = {"train": 150, "select": 200, "test": 200}
LETTERS = "abcdefghijklmnop"
DIGITS = "0123456789"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _on_words(
    verb: str, alphabet: str, lengths: range, answer: Callable[[str], Iterable[str]]
) -> Skill:
    def generate(rng: random.Random) -> Row:
        word = "".join(rng.sample(alphabet, rng.choice(lengths)))
        return {"prompt": f"{verb}: {word}", "completion": "".join(answer(word))}

    return generate


def _on_three_numbers(verb: str, answer: Callable[[list[int]], int]) -> Skill:
    def generate(rng: random.Random) -> Row:
        numbers = rng.sample(range(10, 100), 3)
        prompt = f"{verb}: {' '.join(map(str, numbers))}"
        return {"prompt": prompt, "completion": str(answer(numbers))}

    return generate


def _arithmetic(sign: str, answer: Callable[[int, int], int]) -> Skill:
    def generate(rng: random.Random) -> Row:
        left, right = rng.randrange(100, 1000), rng.randrange(1, 10)
        return {"prompt": f"{left}{sign}{right}", "completion": str(answer(left, right))}

    return generate


def _successors(word: str) -> Iterator[str]:
    return (chr(ord(character) + 1) for character in word)


SKILLS: dict[str, Skill] = {
    "add": _arithmetic("+", operator.add),
    "subtract": _arithmetic("-", operator.sub),
    "reverse": _on_words("reverse", LETTERS, range(3, 7), reversed),
    "reverse_digits": _on_words("reverse", DIGITS, range(3, 7), reversed),
    "sort": _on_words("sort", LETTERS, range(3, 6), sorted),
    "sort_digits": _on_words("sort", DIGITS, range(3, 6), sorted),
    "next": _on_words("next", LETTERS[:-1], range(3, 6), _successors),
    "next_digits": _on_words("next", DIGITS[:-1], range(3, 6), _successors),
    "max": _on_three_numbers("max", max),
    "min": _on_three_numbers("min", min),
    "first": _on_words("first", LETTERS, range(4, 8), operator.itemgetter(0)),
    "last": _on_words("last", LETTERS, range(4, 8), operator.itemgetter(-1)),
    "copy": _on_words("copy", LETTERS, range(4, 8), str),
}
TARGETS = ("add", "reverse", "sort", "next", "max")
WRONG = tuple(f"wrong_{name}" for name in TARGETS)
# How often pretraining draws a skill, where others count 1: rare enough to leave it unlearned.
RARITY = {"add": 0.2, "subtract": 0.5, "reverse": 0.18, "sort": 0.18, "next": 0.07, "max": 0.08}


def demo_rows(name: str, split: str = "train") -> list[Row]:
    """The rows of a source, such as "sort" or "wrong_sort", in its train, select or test split."""
    if name in WRONG:
        return _with_wrong_answers(demo_rows(name.removeprefix("wrong_"), split))
    rng = random.Random(f"demo world, {name}")
    rows: dict[str, Row] = {}
    while len(rows) < sum(SPLIT_SIZES.values()):
        row = SKILLS[name](rng)
        rows[row["prompt"]] = row
    unique = iter(rows.values())
    return {part: [next(unique) for _ in range(size)] for part, size in SPLIT_SIZES.items()}[split]


def _with_wrong_answers(rows: list[Row]) -> list[Row]:
    """Give each row the answer of the next row that has another one."""
    answers = [row["completion"] for row in rows]
    following = [answers[index:] + answers[:index] for index in range(len(rows))]
    return [
        {**row, "completion": next(a for a in candidates if a != row["completion"])}
        for row, candidates in zip(rows, following, strict=True)
    ]


def write_world(root: Path) -> None:
    """Write tasks/demo/*.yaml and data/demo/*.jsonl below `root`, the same bytes every time."""
    tasks, data = root / "tasks" / "demo", root / "data" / "demo"
    tasks.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    for name in (*SKILLS, *WRONG):
        (tasks / f"{name}.yaml").write_text(_task_text(name), encoding="utf-8")
        (data / f"{name}.jsonl").write_text(_lines(name, "train"), encoding="utf-8")
    for name, split in itertools.product(TARGETS, ("select", "test")):
        (data / f"{name}.{split}.jsonl").write_text(_lines(name, split), encoding="utf-8")


def _task_text(name: str) -> str:
    example = demo_rows(name)[0]
    kind = "A wrong answer to every prompt" if name in WRONG else "A toy skill"
    files = f"../../data/demo/{name}"
    held_out = f"select: {files}.select.jsonl\ntest: {files}.test.jsonl\n"
    return (
        f"# {kind}, for example {example['prompt']!r} -> {example['completion']!r}.\n"
        f"name: {name}\npath: {files}.jsonl\nformat: prompt_completion\nmetric: exact_match\n"
        + (f"role: both\n{held_out}" if name in TARGETS else "role: source\n")
    )


def _lines(name: str, split: str) -> str:
    return "".join(json.dumps(row) + "\n" for row in demo_rows(name, split))


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


def _pretraining_batches(seed: int, size: int) -> Iterator[list[Row]]:
    """Fresh rows of all skills, without the prompts on which targets are selected and tested."""
    held_out = itertools.product(TARGETS, ("select", "test"))
    forbidden = {row["prompt"] for name, split in held_out for row in demo_rows(name, split)}
    rng = random.Random(f"demo world, pretraining {seed}")
    weights = [RARITY.get(name, 1.0) for name in SKILLS]
    while True:
        drawn = [SKILLS[name](rng) for name in rng.choices(list(SKILLS), weights, k=size)]
        yield [row for row in drawn if row["prompt"] not in forbidden]


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
    *, steps: int = 2400, seed: int = 0, batch_size: int = 64, learning_rate: float = 3e-3
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a new toy model on the completions of freshly drawn rows."""
    import torch
    from tqdm import trange
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = _small_llama(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98))
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    batches = _pretraining_batches(seed, batch_size)
    for _ in trange(steps, desc="pretraining"):
        _completion_loss(model, tokenizer, next(batches)).backward()
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


if __name__ == "__main__":
    main()
