"""How an adapter or model folder is loaded and evaluated: lines that a person pastes.

The evaluation is that of lm-evaluation-harness (`lm_eval` 0.4.13), for models that generate.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLASSES = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classifier": "AutoModelForSequenceClassification",
}
FOLDER = "path/to/this/folder"
TASKS = "arc_easy,hellaswag"
# What lm_eval cannot take for a number, a truth value or the end of a value: a path, owner/name.
PLAIN = re.compile(r"[\w.~-]*(/[\w.~-]*)+")


@dataclass(frozen=True)
class Product:
    """What a training leaves: `is_whole` for a model of its own, else an adapter of the base.
    `folder` is where it lies, `source` what its base is loaded from."""

    base: str
    source: str
    family: str
    folder: str
    is_whole: bool = False
    dtype: str = "float32"
    in_4bit: bool = False


def is_reference(base: str) -> bool:
    """True for owner/name on the Hub and for a path; a bare name could mean another's model."""
    return "/" in base and base.isprintable()


def python_lines(product: Product) -> str:
    """Loads it."""
    kind = CLASSES[product.family]
    if product.is_whole:
        return f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("{FOLDER}")'
    if is_reference(product.base):
        load_base = f"{kind}.from_pretrained({json.dumps(product.base)})"
        imports = f"from peft import PeftModel\nfrom transformers import {kind}"
    else:
        load_base = "...  # the base model named above"
        imports = "from peft import PeftModel"
    load_adapter = f'PeftModel.from_pretrained(base, "{FOLDER}")'
    return f"{imports}\n\nbase = {load_base}\nmodel = {load_adapter}"


def lm_eval_line(product: Product) -> str | None:
    """Evaluates it; None for a classifier, which generates nothing."""
    if product.family == "classifier":
        return None
    if product.is_whole:
        args: dict[str, Any] = {"pretrained": product.folder, "tokenizer": product.source}
    else:
        args = {"pretrained": product.source, "peft": product.folder}
    if product.dtype != "float32":
        args["dtype"] = product.dtype
    if product.in_4bit:
        args["load_in_4bit"] = True
    words = ["lm_eval", "--model", "hf", "--model_args", _model_args(args), "--tasks", TASKS]
    return shlex.join([*words, "--batch_size", "auto"])


def _model_args(args: Mapping[str, Any]) -> str:
    """As key=value, or as JSON where a name might be read as something else."""
    names = [args[key] for key in ("pretrained", "peft", "tokenizer") if key in args]
    if all(map(PLAIN.fullmatch, names)):
        return ",".join(f"{key}={value}" for key, value in args.items())
    return json.dumps(dict(args))
