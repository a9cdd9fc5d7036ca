"""The files of other trainers: only keys that they document, with the values of the recipe.

The keys below are those of the trainers' own argument classes: LLaMA-Factory 0.9.5 hparams/ and
data/parser.py, axolotl 0.19.0 utils/schemas/, trl 1.16.0 (SFTConfig, ModelConfig, DatasetConfig),
open-instruct finetune.py FlatArguments.
"""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gradex.adapters.spec import AdapterSpec
from gradex.models.load import BaseSpec
from gradex.training.job import Job, RowFile
from gradex.training.recipe import Recipe
from gradex.training.trainers import TRAINERS

RECIPE = Recipe(
    base=BaseSpec("owner/model"), adapter=AdapterSpec(rank=4, alpha=8.0, dropout=0.1),
    max_steps=100, learning_rate=1e-3, batch_size=8, accumulate=2, weight_decay=0.01,
    warmup_steps=29, precision="bf16-mixed", seed=3,
)  # fmt: skip
FILES = [
    RowFile("a%20b", "data/a%20b.jsonl", "chat", 30),
    RowFile("12", "data/12.jsonl", "chat", 9),
]
JOB = Job(FILES, RECIPE, max_length=128)

OF_TRANSFORMERS = {
    "max_steps": int, "per_device_train_batch_size": int, "gradient_accumulation_steps": int,
    "optim": str, "learning_rate": float, "lr_scheduler_type": str, "warmup_steps": int,
    "weight_decay": float, "max_grad_norm": float, "bf16": bool, "fp16": bool, "seed": int,
    "report_to": str, "output_dir": str,
}  # fmt: skip
LLAMAFACTORY = OF_TRANSFORMERS | {
    "model_name_or_path": str, "quantization_bit": int, "stage": str, "do_train": bool,
    "finetuning_type": str, "lora_rank": int, "lora_alpha": int, "lora_dropout": float,
    "lora_target": str, "dataset_dir": str, "dataset": str, "mix_strategy": str, "cutoff_len": int,
}  # fmt: skip
TRL = OF_TRANSFORMERS | {
    "model_name_or_path": str, "dtype": str, "load_in_4bit": bool, "bnb_4bit_quant_type": str,
    "use_bnb_nested_quant": bool, "use_peft": bool, "lora_r": int, "lora_alpha": int,
    "lora_dropout": float, "lora_target_modules": list, "datasets": list,
    "assistant_only_loss": bool, "packing": bool, "max_length": int,
}  # fmt: skip
AXOLOTL = {
    "base_model": str, "adapter": str, "load_in_4bit": bool, "lora_r": int, "lora_alpha": int,
    "lora_dropout": float, "lora_target_linear": bool, "lora_target_modules": list,
    "datasets": list, "val_set_size": int, "sequence_len": int, "excess_length_strategy": str,
    "sample_packing": bool, "train_on_inputs": bool, "micro_batch_size": int,
    "gradient_accumulation_steps": int, "max_steps": int, "num_epochs": int, "optimizer": str,
    "learning_rate": float, "lr_scheduler": str, "warmup_steps": int, "weight_decay": float,
    "max_grad_norm": float, "bf16": bool, "fp16": bool, "seed": int, "output_dir": str,
}  # fmt: skip
OPEN_INSTRUCT = {
    "model_name_or_path", "use_lora", "use_qlora", "lora_rank", "lora_alpha", "lora_dropout",
    "dataset_mixer_list", "dataset_mixer_list_splits", "max_seq_length", "max_train_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "warmup_ratio", "weight_decay", "clip_grad_norm", "seed", "output_dir",
    "push_to_hub", "try_launch_beaker_eval_jobs",
}  # fmt: skip
YAMLS = {"llamafactory": LLAMAFACTORY, "axolotl": AXOLOTL, "trl": TRL}

VARIANTS = {
    "plain": JOB,
    "quantised": replace(JOB, recipe=replace(RECIPE, base=replace(RECIPE.base, qlora=True))),
    "some layers": replace(
        JOB, recipe=replace(RECIPE, adapter=AdapterSpec(targets=("q_proj", "v_proj")))
    ),
    "hostile": Job(
        [RowFile("null", "data/null.jsonl", "chat", 3)],
        replace(RECIPE, base=BaseSpec("a: b # ${x} '\"\n- c")), max_length=8,
    ),
}  # fmt: skip


def content(trainer: str, job: Job = JOB) -> dict:
    return yaml.safe_load(TRAINERS[trainer].files(job)[f"{trainer}.yaml"])


def flags(job: Job = JOB) -> dict[str, list[str]]:
    script = TRAINERS["open_instruct"].files(job)["open_instruct.sh"]
    words = shlex.split(script.split("open_instruct.finetune", 1)[1].replace("\\\n", " "))
    found: dict[str, list[str]] = {}
    for word in words[:-1]:
        if word.startswith("--"):
            found[word[2:]] = []
        else:
            found[list(found)[-1]].append(word)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("trainer", YAMLS)
def test_only_documented_keys_with_values_of_their_types(trainer, variant):
    for key, value in content(trainer, VARIANTS[variant]).items():
        assert key in YAMLS[trainer], key
        assert type(value) is YAMLS[trainer][key], (key, value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_documented_flags(variant):
    assert set(flags(VARIANTS[variant])) == OPEN_INSTRUCT


@pytest.mark.parametrize("trainer", YAMLS)
def test_what_a_path_holds_stays_a_value(trainer):
    key = "base_model" if trainer == "axolotl" else "model_name_or_path"
    assert content(trainer, VARIANTS["hostile"])[key] == "a: b # ${x} '\"\n- c"
    assert flags(VARIANTS["hostile"])["model_name_or_path"] == ["a: b # ${x} '\"\n- c"]


def test_the_recipe_is_repeated_in_every_file():
    """One fine-tune, four spellings."""
    lf, ax, trl, oi = content("llamafactory"), content("axolotl"), content("trl"), flags()
    spelled = {
        4: (lf["lora_rank"], ax["lora_r"], trl["lora_r"], oi["lora_rank"]),
        8.0: (lf["lora_alpha"], ax["lora_alpha"], trl["lora_alpha"], oi["lora_alpha"]),
        0.1: (lf["lora_dropout"], ax["lora_dropout"], trl["lora_dropout"], oi["lora_dropout"]),
        100: (lf["max_steps"], ax["max_steps"], trl["max_steps"], oi["max_train_steps"]),
        1e-3: (lf["learning_rate"], ax["learning_rate"], trl["learning_rate"], oi["learning_rate"]),
        128: (lf["cutoff_len"], ax["sequence_len"], trl["max_length"], oi["max_seq_length"]),
        3: (lf["seed"], ax["seed"], trl["seed"], oi["seed"]),
        0.01: (lf["weight_decay"], ax["weight_decay"], trl["weight_decay"], oi["weight_decay"]),
    }
    for value, found in spelled.items():
        assert [float(v[0] if isinstance(v, list) else v) for v in found] == [value] * 4
    batch = "per_device_train_batch_size"
    assert (lf[batch], ax["micro_batch_size"], trl[batch], oi[batch]) == (8, 8, 8, ["8"])
    assert lf["bf16"] and ax["bf16"] and trl["bf16"]
    for file in (lf, ax, trl):
        assert file["gradient_accumulation_steps"] == 2 and file["warmup_steps"] == 29
        assert not file["fp16"]


def test_open_instruct_rounds_its_warm_up_to_ours():
    for warmup in (0, 1, 29, 57, 99):
        found = flags(replace(JOB, recipe=replace(RECIPE, warmup_steps=warmup)))
        assert int(100 * float(found["warmup_ratio"][0])) == warmup


def test_axolotl_has_epochs_enough_for_the_steps():
    """It ends at the fewer of the two."""
    epochs = content("axolotl")["num_epochs"]
    assert epochs * 39 >= 100 * 8 * 2 > (epochs - 1) * 39


def test_llamafactory_finds_every_row_file():
    files = TRAINERS["llamafactory"].files(JOB)
    info = json.loads(files["dataset_info.json"])
    assert content("llamafactory")["dataset"].split(",") == list(info) == ["a%20b", "12"]
    assert info["12"] == {
        "file_name": "data/12.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role", "content_tag": "content", "user_tag": "user",
            "assistant_tag": "assistant", "system_tag": "system",
        },
    }  # fmt: skip


def test_data_sets_of_the_other_trainers():
    assert content("axolotl")["datasets"][0] == {
        "path": "data/a%20b.jsonl", "ds_type": "json", "type": "chat_template",
        "field_messages": "messages", "roles_to_train": ["assistant"], "train_on_eos": "turn",
    }  # fmt: skip
    assert content("trl")["datasets"][0] == {
        "path": "json", "data_files": "data/a%20b.jsonl", "columns": ["messages"],
    }  # fmt: skip
    assert content("trl")["assistant_only_loss"]
    assert flags()["dataset_mixer_list"] == ["data/a%20b.jsonl", "1.0", "data/12.jsonl", "1.0"]


def test_plain_texts_are_learned_whole():
    job = Job([RowFile("a", "data/a.jsonl", "text", 3)], RECIPE, max_length=8)
    assert content("axolotl", job)["datasets"] == [
        {"path": "data/a.jsonl", "ds_type": "json", "type": "completion", "field": "text"}
    ]
    assert content("trl", job)["datasets"][0]["columns"] == ["text"]
    assert not content("trl", job)["assistant_only_loss"]


@pytest.mark.parametrize(
    ("kinds", "refusing"),
    [
        (["chat"], set()),
        (["chat", "conversation"], {"llamafactory"}),
        (["text"], {"llamafactory", "open_instruct"}),
        (["chat", "text"], {"llamafactory", "open_instruct", "trl"}),
        (["labelled"], set(TRAINERS)),
    ],
)
def test_a_trainer_refuses_rows_that_it_would_drop_or_train_otherwise(kinds, refusing):
    named = {f"source {i}": kind for i, kind in enumerate(kinds)}
    found = {name for name, trainer in TRAINERS.items() if trainer.refuses(named, "lora")}
    assert found == refusing


OF_KINDS = {
    "rslora": {
        "llamafactory": {"use_rslora": True}, "axolotl": {"peft_use_rslora": True},
        "trl": {"use_rslora": True},
    },
    "dora": {
        "llamafactory": {"use_dora": True}, "axolotl": {"peft_use_dora": True},
        "trl": {"use_dora": True},
    },
    "pissa": {
        "llamafactory": {"pissa_init": True, "pissa_iter": -1, "pissa_convert": True},
        "axolotl": {"peft_init_lora_weights": "pissa"},
    },
    "pissa_niter": {
        "llamafactory": {"pissa_init": True, "pissa_iter": 16, "pissa_convert": True},
        "axolotl": {"peft_init_lora_weights": "pissa_niter_16"},
    },
    "olora": {"axolotl": {"peft_init_lora_weights": "olora"}},
    "milora": {}, "corda_kpm": {}, "adalora": {}, "bone": {}, "vera": {}, "peft": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_KINDS)
def test_an_adapter_in_their_words_or_refused_by_its_name(kind):
    """Beside what makes it this kind, its keys are those of LoRA."""
    adapter = replace(RECIPE.adapter, kind=kind, options={"niter": 16})
    job = replace(JOB, recipe=replace(RECIPE, adapter=adapter))
    for name, trainer in TRAINERS.items():
        refusal = trainer.refuses({"a": "chat"}, kind)
        if name not in OF_KINDS[kind]:
            assert f"--adapter {kind}" in refusal
            continue
        assert refusal is None
        assert content(name, job) == content(name) | OF_KINDS[kind][name]


def test_all_weights_in_their_words():
    """No key of LoRA is left, which would be read as one."""
    job = replace(JOB, recipe=replace(RECIPE, adapter=AdapterSpec(kind="full")))
    assert content("llamafactory", job)["finetuning_type"] == "full"
    assert content("trl", job)["use_peft"] is False
    assert flags(job)["use_lora"] == ["False"]
    for found in (*(content(n, job) for n in ("llamafactory", "axolotl", "trl")), flags(job)):
        assert not [key for key in found if key.startswith(("lora", "adapter", "load_in"))]
    assert all(trainer.refuses({"a": "chat"}, "full") is None for trainer in TRAINERS.values())


def test_trl_itself_has_these_keys():
    trl = pytest.importorskip("trl")
    assert {"use_rslora", "use_dora", "use_peft", "lora_r"} <= set(vars(trl.ModelConfig()))


def test_the_demo_and_folders_are_found_from_everywhere():
    Path("my model").mkdir()
    for path in ("demo", "my model"):
        base = content("trl", replace(JOB, recipe=replace(RECIPE, base=BaseSpec(path))))
        assert Path(base["model_name_or_path"]).is_absolute()
