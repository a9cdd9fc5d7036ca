"""Base models and tokenizers from a folder, the hub, or the embedded demo.

Causal models, encoder-decoders and sequence classifiers are told apart by their config. Weights
come from safetensors files; code or pickles that a model brings are refused unless allowed.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from gradex.data.demo import MODEL_DIR
from gradex.data.tokens import Family
from gradex.errors import GradexError, first_line

log = logging.getLogger(__name__)
DEMO = "demo"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BaseSpec:
    """How to load a base model: all that must be the same in every stage of a path."""

    path: str
    dtype: str = "float32"
    qlora: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def source(self) -> str:
        return str(MODEL_DIR) if self.path == DEMO else self.path


def base_spec(settings: dict[str, Any]) -> BaseSpec:
    """The base model of a run's settings."""
    return BaseSpec(
        path=settings["model_name_or_path"],
        dtype="bfloat16" if settings["bf16"] else "float32",
        qlora=settings["qlora"],
        trust_remote_code=settings["trust_remote_code"],
        allow_pickle=settings["allow_pickle"],
    )


@dataclass
class Base:
    """A loaded base model with its tokenizer."""

    model: nn.Module
    tokenizer: Any
    family: Family


def load_tokenizer(spec: BaseSpec):
    """The tokenizer of a base, with a padding token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            spec.source, trust_remote_code=spec.trust_remote_code
        )
    except Exception as error:  # a broken file makes libraries raise whatever they stumble over
        raise _not_loaded(spec, "tokenizer", error) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None or len(tokenizer) == 0:
        raise GradexError(f"{spec.path}: its tokenizer has no padding or end token; name one in "
                          "tokenizer_config.json")  # fmt: skip
    return tokenizer


def load_base(spec: BaseSpec, *, labels: Sequence[str] | None = None) -> Base:
    """The base model in eval mode; `labels` are a classifier's class names."""
    _check_folder(spec)
    config = _load_config(spec)
    tokenizer = load_tokenizer(spec)
    family = family_of(config)
    model = _load_model(spec, config, family, labels)
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        raise GradexError(
            f"{spec.path}: the tokenizer has {len(tokenizer)} tokens, the model embeds "
            f"{model.get_input_embeddings().num_embeddings}; they do not belong together"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    return Base(model.eval(), tokenizer, family)


def family_of(config) -> Family:
    """Told from the architecture that the config names."""
    named = " ".join(config.architectures or ())
    if "ForSequenceClassification" in named:
        return "classifier"
    if config.is_encoder_decoder:
        return "seq2seq"
    if "ForMaskedLM" in named or config.model_type in ("bert", "roberta", "distilbert"):
        return "classifier"
    return "causal"


def bare(model: Any) -> Any:
    """The transformers model below an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def label_ids(model: nn.Module, labels: Sequence[str]) -> dict[str, int]:
    """Class name -> class index: the model's own names where the data uses them."""
    own = {str(name): int(index) for name, index in model.config.label2id.items()}
    if set(labels) <= set(own):
        return own
    return {name: index for index, name in enumerate(labels)}


def _check_folder(spec: BaseSpec) -> None:
    """A local folder must hold a config and weights; a name without a folder is a hub id."""
    folder = Path(spec.source)
    if not folder.exists():
        if not HUB_ID.fullmatch(spec.path) or ("/" in spec.path and folder.parent.is_dir()):
            raise GradexError(f"{spec.path}: no such model folder")
        log.info("%s: no such folder here, asking the hub for it", spec.path)
        return
    if not (folder / "config.json").is_file():
        raise GradexError(f"{spec.path}: not a model folder (it has no config.json)")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(folder.glob("*.bin"))
        if not pickled:
            raise GradexError(f"{spec.path}: a model folder without weights (*.safetensors)")
        if not spec.allow_pickle:
            raise GradexError(
                f"{pickled[0]}: weights in a pickle file; convert them to safetensors, or pass "
                "--allow_pickle if you trust where they come from"
            )


def _load_config(spec: BaseSpec):
    from transformers import AutoConfig

    try:
        raw = _raw_config(spec)
        if raw.get("auto_map") and not spec.trust_remote_code:
            raise GradexError(
                f"{spec.path}: the model wants to run code of its own (auto_map in config.json); "
                "read that code, then pass --trust_remote_code"
            )
        return AutoConfig.from_pretrained(spec.source, trust_remote_code=spec.trust_remote_code)
    except GradexError:
        raise
    except Exception as error:
        raise _not_loaded(spec, "config", error) from None


def _raw_config(spec: BaseSpec) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    return PreTrainedConfig.get_config_dict(spec.source)[0]


def stored_dtype(spec: BaseSpec) -> BaseSpec:
    """The same base in the dtype that its files have, float32 where that is none of ours."""
    _check_folder(spec)
    name = str(_load_config(spec).dtype).removeprefix("torch.")
    return replace(spec, dtype=name if name in DTYPES else "float32")


def _load_model(spec: BaseSpec, config, family: Family, labels: Sequence[str] | None) -> nn.Module:
    import transformers

    classes = {
        "causal": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "classifier": transformers.AutoModelForSequenceClassification,
    }
    arguments: dict[str, Any] = {
        "dtype": DTYPES[spec.dtype],
        "trust_remote_code": spec.trust_remote_code,
        "use_safetensors": None if spec.allow_pickle else True,
    }
    if family == "classifier" and labels and not set(labels) <= set(config.label2id):
        config.num_labels = len(labels)
        arguments["ignore_mismatched_sizes"] = True
        log.info("%s: a new classification head for %d classes", spec.path, len(labels))
    if spec.qlora:
        arguments |= _quantised()
    try:
        # A new classification head is drawn here: from a fixed seed, so that a path repeats.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, report = classes[family].from_pretrained(
                spec.source, config=config, output_loading_info=True, **arguments
            )
    except Exception as error:
        raise _not_loaded(spec, "weights", error) from None
    _require_all_weights(spec, family, report["missing_keys"])
    if spec.qlora:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model)
    return model


def _require_all_weights(spec: BaseSpec, family: Family, missing: Iterable[str]) -> None:
    """Layers that the files lack would be random; only a new classification head may be."""
    lacking = sorted(name for name in missing if not _is_head(family, name))
    if lacking:
        raise GradexError(
            f"{spec.path}: the weights lack {len(lacking)} of the model's tensors ({lacking[0]}, "
            "...); the config and the weights do not belong together"
        )


def _is_head(family: Family, name: str) -> bool:
    heads = ("classifier", "score", "pooler", "pre_classifier", "classification_head")
    return family == "classifier" and any(part in heads for part in name.split("."))


def _quantised() -> dict[str, Any]:
    """QLoRA: the base in 4-bit NF4 with double quantisation (Dettmers et al., 2023)."""
    from importlib.util import find_spec

    if not torch.cuda.is_available():
        raise GradexError("--qlora: needs a CUDA GPU and none was found; leave the flag out")
    if find_spec("bitsandbytes") is None:
        raise GradexError("--qlora: needs bitsandbytes; `pip install bitsandbytes`")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}}


def fingerprint(spec: BaseSpec, base: Base) -> dict[str, str]:
    """Weights, config and tokenizer by content; a hub model by its commit."""
    commit = getattr(base.model.config, "_commit_hash", None)
    folder, tokenizer = Path(spec.source), base.tokenizer
    model = hash_files(_model_files(folder)) if folder.is_dir() else f"{spec.path}@{commit}"
    content = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = content.to_str() if content else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    template = tokenizer.chat_template or ""
    return {
        "model": f"{model} {spec.dtype}{' nf4' if spec.qlora else ''}",
        "tokenizer": xxhash.xxh3_128_hexdigest(vocabulary.encode()),
        "chat_template": xxhash.xxh3_128_hexdigest(str(template).encode()),
    }


def _model_files(folder: Path) -> list[Path]:
    return [
        folder / "config.json",
        *sorted(folder.glob("*.safetensors")),
        *sorted(folder.glob("*.bin")),
    ]


def hash_files(files: Sequence[Path]) -> str:
    """One hash over the contents of files, in the given order."""
    digest = xxhash.xxh3_128()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def _not_loaded(spec: BaseSpec, what: str, error: Exception) -> GradexError:
    place = "" if Path(spec.source).exists() else "no such folder here, and from the hub "
    return GradexError(f"{spec.path}: {place}its {what} could not be loaded ({first_line(error)})")
