"""The same training in the words of other trainers: files that LLaMA-Factory, axolotl, trl and
open-instruct are started with.

Their keys are those of LLaMA-Factory 0.9.5, axolotl 0.19.0, trl 1.16.0 and open-instruct's
finetune.py of 2026. All files name rows relative to the folder that they lie in.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from gradex.selection.portions import COLUMNS, Kind
from gradex.training import trainer_adapters as adapters
from gradex.training.job import Job, RowFile
from gradex.training.stepping_elsewhere import optimizer_words
from gradex.training.trainer_adapters import adapter_keys

CLIP = 1.0  # the gradient's largest norm in our own training


@dataclass(frozen=True)
class Trainer:
    """`files` makes the content of each file; `kinds` of rows are those the trainer learns from as
    we do, `one_column` that all files of a training must have the same one. `adapters` are
    those it has."""

    command: str
    files: Callable[[Job], dict[str, str]]
    kinds: tuple[Kind, ...]
    adapters: adapters.Adapters
    one_column: bool = False

    def refuses(self, kinds: Mapping[str, Kind], adapter: str) -> str | None:
        """Why it cannot train this adapter on sources of these kinds, in words; None where it
        can."""
        if adapter not in self.adapters:
            return f"it has no adapter like --adapter {adapter}"
        for name, kind in kinds.items():
            if kind not in self.kinds:
                return f"'{name}' holds {TOLD[kind]}"
        if self.one_column and len({COLUMNS[kind] for kind in kinds.values()}) > 1:
            return "it reads either conversations or plain texts, and these sources are both"
        return None


TOLD: dict[Kind, str] = {
    "chat": "conversations",
    "conversation": "conversations in which user and assistant do not take turns",
    "text": "plain texts without a prompt",
    "labelled": "texts with a class",
}


def _llamafactory(job: Job) -> dict[str, str]:
    recipe, adapter = job.recipe, job.recipe.adapter
    lora = {
        "finetuning_type": "lora",
        "lora_rank": adapter.rank,
        "lora_alpha": _whole(adapter.alpha),
        "lora_dropout": adapter.dropout,
        "lora_target": "all" if job.all_linear else ",".join(adapter.targets),
    }
    content = {
        "model_name_or_path": job.base,
        **({"quantization_bit": 4} if recipe.base.qlora else {}),
        "stage": "sft",
        "do_train": True,
        **adapter_keys(adapter, adapters.LLAMAFACTORY, lora),
        "dataset_dir": ".",
        "dataset": ",".join(file.word for file in job.files),
        "mix_strategy": "concat",
        "cutoff_len": job.max_length,
        **_of_transformers(job),
        "output_dir": "output/llamafactory",
    }
    entries = {file.word: _dataset_info(file) for file in job.files}
    return {
        "dataset_info.json": json.dumps(entries, indent=1) + "\n",
        "llamafactory.yaml": _yaml(content, job, LLAMAFACTORY.command),
    }


def _dataset_info(file: RowFile) -> dict[str, Any]:
    return {
        "file_name": file.path,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }


def _axolotl(job: Job) -> dict[str, str]:
    recipe, adapter = job.recipe, job.recipe.adapter
    targets = {"lora_target_modules": list(adapter.targets)}
    words = optimizer_words(recipe.optimizer, learning_rate=recipe.learning_rate)
    lora = {
        "adapter": "qlora" if recipe.base.qlora else "lora",
        "load_in_4bit": recipe.base.qlora,
        "lora_r": adapter.rank,
        "lora_alpha": _whole(adapter.alpha),
        "lora_dropout": adapter.dropout,
        **({"lora_target_linear": True} if job.all_linear else targets),
    }
    content = {
        "base_model": job.base,
        **adapter_keys(adapter, adapters.AXOLOTL, lora),
        "datasets": [_axolotl_dataset(file) for file in job.files],
        "val_set_size": 0,
        "sequence_len": job.max_length,
        "excess_length_strategy": "truncate",  # the default drops long rows
        "sample_packing": False,
        "train_on_inputs": False,
        "micro_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.accumulate,
        "max_steps": recipe.max_steps,
        "num_epochs": job.epochs,  # axolotl ends at whichever comes first
        "optimizer": words.pop("optim"),
        **words,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler": recipe.optimizer.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": CLIP,
        "bf16": job.bf16,
        "fp16": job.fp16,
        "seed": recipe.seed,
        "output_dir": "output/axolotl",
    }
    return {"axolotl.yaml": _yaml(content, job, AXOLOTL.command)}


def _axolotl_dataset(file: RowFile) -> dict[str, Any]:
    entry = {"path": file.path, "ds_type": "json"}
    if file.kind == "text":
        return entry | {"type": "completion", "field": "text"}
    return entry | {
        "type": "chat_template",
        "field_messages": "messages",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }


def _trl(job: Job) -> dict[str, str]:
    recipe, adapter = job.recipe, job.recipe.adapter
    column = COLUMNS[job.files[0].kind][0]
    lora = {
        "use_peft": True,
        "lora_r": adapter.rank,
        "lora_alpha": _whole(adapter.alpha),
        "lora_dropout": adapter.dropout,
        "lora_target_modules": list(adapter.targets),
    }
    quantised = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
    content = {
        "model_name_or_path": job.base,
        "dtype": recipe.base.dtype,
        **(quantised if recipe.base.qlora else {}),
        **adapter_keys(adapter, adapters.TRL, lora),
        "datasets": [
            {"path": "json", "data_files": file.path, "columns": [column]} for file in job.files
        ],
        "assistant_only_loss": column == "messages",  # the default learns the prompts too
        "packing": False,
        "max_length": job.max_length,
        **_of_transformers(job),
        "output_dir": "output/trl",
    }
    return {"trl.yaml": _yaml(content, job, TRL.command)}


def _of_transformers(job: Job) -> dict[str, Any]:
    """What trl and LLaMA-Factory both hand on to the Trainer of transformers."""
    recipe = job.recipe
    return {
        "max_steps": recipe.max_steps,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.accumulate,
        **optimizer_words(recipe.optimizer, learning_rate=recipe.learning_rate),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.optimizer.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": CLIP,
        "bf16": job.bf16,
        "fp16": job.fp16,
        "seed": recipe.seed,
        "report_to": "none",
    }


def _open_instruct(job: Job) -> dict[str, str]:
    recipe, adapter = job.recipe, job.recipe.adapter
    lora = {
        "use_lora": True,
        "use_qlora": recipe.base.qlora,
        "lora_rank": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
    }
    # A fraction of each file: 1.0 is every row once.
    mixed = [word for file in job.files for word in (file.path, "1.0")]
    flags: dict[str, Any] = {
        "model_name_or_path": job.base,
        **adapter_keys(adapter, adapters.OPEN_INSTRUCT, lora),
        "dataset_mixer_list": mixed,
        "dataset_mixer_list_splits": "train",
        "max_seq_length": job.max_length,
        "max_train_steps": recipe.max_steps,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.accumulate,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.optimizer.schedule,
        "warmup_ratio": _ratio(recipe.warmup_steps, recipe.max_steps),
        "weight_decay": recipe.weight_decay,
        "clip_grad_norm": CLIP,
        "seed": recipe.seed,
        "output_dir": "output/open_instruct",
        "push_to_hub": False,
        "try_launch_beaker_eval_jobs": False,
    }
    lines = [_shell(name, value) for name, value in flags.items()]
    what = "adapts layers of its own choice" if adapter.kind == "lora" else "trains"
    head = _comments([f"open-instruct {what}, in bfloat16.", *job.notes])
    start = ["accelerate launch --module open_instruct.finetune", *lines, '"$@"']
    script = f'#!/bin/sh\n{head}cd "$(dirname "$0")" || exit 1\n'
    return {"open_instruct.sh": script + " \\\n    ".join(start) + "\n"}


def _ratio(part: int, whole: int) -> float:
    """A ratio from which `part` comes back when the product with `whole` is rounded down."""
    return (part + 0.5) / whole if part else 0.0


def _shell(name: str, value: Any) -> str:
    words = value if isinstance(value, list) else [value]
    return shlex.join([f"--{name}", *map(str, words)])


def _yaml(content: Mapping[str, Any], job: Job, command: str) -> str:
    head = _comments([f"In this folder: {command}", *job.notes])
    return head + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def _comments(lines: list[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)


def _whole(value: float) -> int | float:
    """A number that other trainers declare to be whole, as one where it is."""
    return int(value) if float(value).is_integer() else value


LLAMAFACTORY = Trainer(
    "llamafactory-cli train llamafactory.yaml", _llamafactory, ("chat",), adapters.LLAMAFACTORY
)  # fmt: skip
AXOLOTL = Trainer(
    "axolotl train axolotl.yaml", _axolotl, ("chat", "conversation", "text"), adapters.AXOLOTL
)  # fmt: skip
TRL = Trainer(
    "trl sft --config trl.yaml", _trl, ("chat", "conversation", "text"), adapters.TRL,
    one_column=True,
)  # fmt: skip
OPEN_INSTRUCT = Trainer(
    "sh open_instruct.sh", _open_instruct, ("chat", "conversation"), adapters.OPEN_INSTRUCT
)  # fmt: skip

TRAINERS: dict[str, Trainer] = {
    "llamafactory": LLAMAFACTORY,
    "axolotl": AXOLOTL,
    "trl": TRL,
    "open_instruct": OPEN_INSTRUCT,
}
