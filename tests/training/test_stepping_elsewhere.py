"""Optimizers in the words of other trainers: what is told is the same there, the rest refused."""

from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

from gradex.adapters.spec import AdapterSpec
from gradex.models.load import BaseSpec
from gradex.training.job import Job, RowFile
from gradex.training.optimizers import OPTIMIZERS, SCHEDULES, OptimizerSpec, make_optimizer
from gradex.training.recipe import Recipe
from gradex.training.stepping_elsewhere import why_not
from gradex.training.trainers import TRAINERS

RECIPE = Recipe(
    base=BaseSpec("owner/model"), adapter=AdapterSpec(), max_steps=10, learning_rate=1e-3,
    batch_size=2, weight_decay=0.1,
)  # fmt: skip
BETAS = OptimizerSpec(options={"betas": (0.8, 0.95), "eps": 1e-6}, schedule="cosine")
YAMLS = ("llamafactory", "axolotl", "trl")


def told(trainer: str, spec: OptimizerSpec) -> str:
    job = Job([RowFile("a", "data/a.jsonl", "chat", 5)], replace(RECIPE, optimizer=spec), 8)
    (name,) = [name for name in TRAINERS[trainer].files(job) if name.startswith(trainer)]
    return TRAINERS[trainer].files(job)[name]


def keys(trainer: str, spec: OptimizerSpec) -> dict:
    found = yaml.safe_load(told(trainer, spec))
    names = {"optimizer": "optim", "lr_scheduler": "lr_scheduler_type"}  # axolotl's
    return {names.get(key, key): value for key, value in found.items()}


@pytest.mark.parametrize("spec", [OptimizerSpec(), OptimizerSpec("sgd"), BETAS])
def test_transformers_makes_the_same_optimizer_of_the_words(spec, tmp_path):
    from transformers import Trainer, TrainingArguments

    found = keys("trl", spec)
    words = {k: v for k, v in found.items() if k.startswith("adam_")}
    arguments = TrainingArguments(
        str(tmp_path), optim=found["optim"], learning_rate=found["learning_rate"],
        lr_scheduler_type=found["lr_scheduler_type"], weight_decay=found["weight_decay"], **words,
    )  # fmt: skip
    ours = make_optimizer(spec, nn.Linear(2, 2), learning_rate=1e-3, weight_decay=0.1)
    theirs = Trainer(nn.Linear(2, 2), arguments, train_dataset=[0]).create_optimizer()
    assert type(theirs) is type(ours)
    settings = ("lr", "weight_decay", *spec.options)
    assert [theirs.param_groups[0][s] for s in settings] == [
        ours.param_groups[0][s] for s in settings
    ]
    assert arguments.lr_scheduler_type == spec.schedule


@pytest.mark.parametrize("trainer", YAMLS)
def test_words_of_the_three(trainer):
    found = keys(trainer, BETAS)
    wanted = {
        "optim": "adamw_torch", "lr_scheduler_type": "cosine", "adam_beta1": 0.8,
        "adam_beta2": 0.95, "adam_epsilon": 1e-6,
    }  # fmt: skip
    assert wanted.items() <= found.items()
    assert "adam_beta1" not in keys(trainer, OptimizerSpec())


@pytest.mark.parametrize("trainer", ["llamafactory", "axolotl"])
def test_loraplus_is_told_where_it_is_known(trainer):
    found = keys(trainer, OptimizerSpec(loraplus_ratio=16.0))
    assert (found["loraplus_lr_ratio"], found["loraplus_lr_embedding"]) == (16.0, 1e-3)
    assert "loraplus_lr_ratio" not in keys(trainer, OptimizerSpec())


def test_open_instruct_is_told_the_schedule():
    assert "--lr_scheduler_type cosine " in told("open_instruct", OptimizerSpec(schedule="cosine"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_known_to_those_who_are_told_them(schedule):
    from transformers.trainer_utils import SchedulerType

    assert SchedulerType(schedule)
    refusing = {name for name in TRAINERS if why_not(name, OptimizerSpec(schedule=schedule))}
    assert refusing == ({"open_instruct"} if schedule == "inverse_sqrt" else set())


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"adamw", "sgd"}))
@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_is_not_the_same_anywhere_is_refused(trainer, name):
    assert why_not(trainer, OptimizerSpec(name)) == f"it has no optimizer {name}"


@pytest.mark.parametrize(
    ("spec", "refusing"),
    [
        (OptimizerSpec(), set()),
        (OptimizerSpec("sgd"), {"open_instruct"}),
        (OptimizerSpec("sgd", {"momentum": 0.9}), set(TRAINERS)),
        (OptimizerSpec(options={"amsgrad": True}), set(TRAINERS)),
        (BETAS, {"open_instruct"}),
        (OptimizerSpec(loraplus_ratio=4.0), {"trl", "open_instruct"}),
    ],
)
def test_who_cannot_take_such_steps(spec, refusing):
    assert {name for name in TRAINERS if why_not(name, spec)} == refusing


def test_torch_is_where_the_mapped_classes_are():
    """What two packages implement would not be the same to the last bit."""
    assert {OPTIMIZERS[name].module for name in ("adamw", "sgd")} == {torch.optim.__name__}
