"""Small models of every family, a small world of sources, small stores: no network, no GPU."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gradex.gradients.shards import ROW_TYPE, Faults, quantise, write_shard
from gradex.gradients.store import GradientStore
from gradex.progress import say_once

LETTERS = "abcdefghij"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own: stages write below the current one."""
    monkeypatch.chdir(tmp_path)
    say_once.cache_clear()


def make_tokenizer():
    """One token a character, without a chat template."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<s>", "</s>", *map(chr, range(32, 127)), "\n"]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _configs():
    from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 99}
    return {
        "llama": LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, architectures=["LlamaForCausalLM"],
            **ids,
        ),
        "gpt2": GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=128, architectures=["GPT2LMHeadModel"],
            **ids,
        ),
        "t5": T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
            architectures=["T5ForConditionalGeneration"], **ids,
        ),
        "bert": BertConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, num_labels=3,
            architectures=["BertForSequenceClassification"], **ids,
        ),
    }  # fmt: skip


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """model_folder("llama" | "gpt2" | "t5" | "bert"): a tiny random model with its tokenizer."""
    import transformers

    root = tmp_path_factory.mktemp("models")
    configs = _configs()

    def make(kind: str) -> Path:
        folder = root / kind
        if not folder.exists():
            config = configs[kind]
            torch.manual_seed(0)
            getattr(transformers, config.architectures[0])(config).save_pretrained(folder)
            make_tokenizer().save_pretrained(folder)
        return folder

    return make


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def skill_rows(skill: str, count: int, *, seed: int) -> list[dict]:
    """Prompt and completion of toy skills: copy, upper, and noise (answers at random)."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list(LETTERS), 4)) for _ in range(count)]
    noise = ["".join(rng.choice(list(LETTERS.upper()), 4)) for _ in range(count)]
    answers = {"copy": words, "upper": [w.upper() for w in words], "noise": noise}[skill]
    return [
        {"prompt": f"{i} {word}=", "completion": answer}
        for i, (word, answer) in enumerate(zip(words, answers, strict=True))
    ]


@pytest.fixture
def toy_tasks(tmp_path) -> Path:
    """A folder of four data files: two useful sources, two noisy ones."""
    folder = tmp_path / "toy"
    for number, name in enumerate(("copy", "noise_one", "noise_two", "upper")):
        rows = skill_rows(name.split("_")[0], 40, seed=number)
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def toy_batch():
    """toy_batch(family): ragged examples and their padded batch."""
    from gradex.data.tokens import Example, collate

    def make(family: str, *, padding_side: str = "right"):
        rng = np.random.default_rng(0)
        examples = []
        for i, length in enumerate((5, 9, 3, 7)):
            ids = rng.integers(3, 99, length)
            labels = np.where(np.arange(length) < 2, -100, ids)
            if family == "seq2seq":
                labels = rng.integers(3, 99, length - 1)
            if family == "classifier":
                labels = np.array([i % 3])
            examples.append(Example(f"row{i}", ids, labels))
        batch = collate(examples, family=family, pad_id=0, padding_side=padding_side)
        return examples, batch

    return make


SPACE = {
    "model": "m",
    "project_dim": 5,
    "differentiate": "loss",
    "dtype": "float32",
    "precondition": "none",
}


def _table(count: int, *, split: str = "train") -> np.ndarray:
    rows = np.zeros(count, ROW_TYPE)
    rows["id"] = [f"id{i}" for i in range(count)]
    rows["split"], rows["ok"], rows["scale"], rows["grad_norm"] = split, True, 1, 1
    return rows


def _make_store(path, sources: dict[str, np.ndarray], *, shard_rows: int = 4, dtype="float32"):
    """A store that holds the given gradients, a source each, and a target `t`."""
    space = SPACE | {"dtype": dtype}
    store = GradientStore.create(path, space, origin={}, shard_rows=shard_rows)
    entries = [("train", name, gradients) for name, gradients in sources.items()]
    entries.append(("target", "t", np.ones((2, 5), np.float32)))
    for side, name, gradients in entries:
        rows = _table(len(gradients), split="train" if side == "train" else "select")
        shards = store.enter(side, name, rows=len(rows), data_hash="h")
        for i, shard in enumerate(shards):
            part = slice(i * shard_rows, (i + 1) * shard_rows)
            stored, scale = quantise(gradients[part], dtype)
            piece = rows[part].copy()
            piece["scale"] = scale
            write_shard(shard, {"": (stored, piece)}, faults=Faults({}, {}), versions={})
    store.save_plan()
    return GradientStore.open(path)


def _gradients(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


@pytest.fixture
def space():
    return dict(SPACE)


@pytest.fixture
def table():
    """table(count): what is known of `count` good rows."""
    return _table


@pytest.fixture
def gradients():
    """gradients(count): rows of 5 random numbers."""
    return _gradients


@pytest.fixture
def make_store():
    """make_store(path, {source: gradients}): see above."""
    return _make_store
