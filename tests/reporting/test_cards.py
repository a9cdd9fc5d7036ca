"""The model card: front matter the Hub can read, and text that no name can break."""

import json
import shlex
from dataclasses import replace

import pytest
import yaml

from gradex.adapters.kinds import KINDS, kind_of
from gradex.adapters.spec import AdapterSpec
from gradex.models.load import BaseSpec
from gradex.reporting.cards import adapter_card
from gradex.train_arguments import PEFT
from gradex.training.optimizers import OptimizerSpec
from gradex.training.recipe import Recipe

OUTCOMES = [
    {"name": "all sources", "sources": 18, "loss": [0.52, 0.5], "metric": None},
    {
        "name": "selection",
        "sources": 2,
        "loss": [0.31, float("nan")],
        "metric": {"name": "exact match", "values": [0.8]},
    },
]
NASTY = "a|b```\n---\n# <script>x</script>"


def card(**changes: object) -> str:
    about = {
        "base": "owner/model",
        "family": "causal",
        "target": "sort",
        "selected": ["sort", "max"],
        "method": "forward",
        "results": OUTCOMES,
        "command": "python -m gradex.finetune --base owner/model",
        "versions": {"torch": "2.13.0"},
    }
    return adapter_card(**about | changes)


def recipe(kind: str = "lora", **more: object) -> Recipe:
    base = BaseSpec("owner/model", **more.pop("loaded", {}))
    adapter = AdapterSpec(8, 16.0, kind=kind, options=more.pop("options", {}))
    settings = {"max_steps": 60, "learning_rate": 3e-4, "batch_size": 8} | more
    return Recipe(base=base, adapter=adapter, **settings)


def lm_eval_words(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith("lm_eval ")]
    return shlex.split(line)


def model_args(text: str) -> dict:
    """As lm_eval 0.4.13 reads them: JSON, or a comma between keys with their values."""
    words = lm_eval_words(text)
    value = words[words.index("--model_args") + 1]
    if value.startswith("{"):
        return json.loads(value)
    return dict(part.split("=", 1) for part in value.split(","))


@pytest.mark.parametrize("kind", [*KINDS, PEFT])
def test_every_kind_is_named_with_what_it_is(kind: str) -> None:
    text = card(recipe=recipe(kind))
    assert f"Its kind is `{kind}`: {kind_of(kind).about}." in text
    assert front_matter(text)["tags"] == ["gradex", kind]
    assert ("of twice the rank (16)" in text) == kind_of(kind).from_base
    assert (kind == "full") != ("PeftModel.from_pretrained(base," in text)
    assert f"| Adapter | `{kind}` |" in text
    ranked = kind not in ("ia3", "full", PEFT)
    assert ("| Rank | 8 |" in text) == ranked


def test_a_model_of_its_own_loads_without_peft() -> None:
    text = card(recipe=recipe("full"), folder="runs/x/adapter")
    assert "# Model for `sort`" in text
    assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder")' in text
    assert front_matter(text)["library_name"] == "transformers"
    # The folder has no tokenizer of its own.
    assert model_args(text) == {"pretrained": "runs/x/adapter", "tokenizer": "owner/model"}


def test_the_recipe_is_told_as_a_table() -> None:
    optimizer = OptimizerSpec("adamp", {"delta": 0.05}, "cosine", loraplus_ratio=16.0)
    made = recipe(
        "adalora", options={"init_r": 12, "tinit": None}, optimizer=optimizer, batch_size=None,
        tokens_per_batch=2048, accumulate=2, warmup_steps=5, weight_decay=0.1, seed=3,
    )  # fmt: skip
    text = card(recipe=made, kept_step=40)
    for line in (
        "| Adapter | `adalora` |", "| Rank | 8 |", "| Alpha | 16 |", "| Layers | `all-linear` |",
        "| Adapter settings | `init_r=12` |", "| Optimizer | `adamp` |",
        "| Optimizer settings | `delta=0.05` |", "| LoRA+ ratio | 16 |",
        "| Schedule | `cosine`, 5 steps of warm-up |", "| Learning rate | 0.0003 |",
        "| Weight decay | 0.1 |", "| Steps | 60; this is step 40, the best on the select rows |",
        "| Batch | up to 2048 padded tokens, 2 a step |", "| Precision | `32-true` |",
        "| Seed | 3 |",
    ):  # fmt: skip
        assert line in text, line
    assert "| Batch | 8 rows |" in card(recipe=recipe())


@pytest.mark.parametrize("family", ["causal", "seq2seq"])
def test_the_line_that_evaluates_it(family: str) -> None:
    text = card(recipe=recipe(), family=family, folder="runs/finetune/x/adapter")
    assert lm_eval_words(text) == [
        "lm_eval", "--model", "hf", "--model_args",
        "pretrained=owner/model,peft=runs/finetune/x/adapter", "--tasks", "arc_easy,hellaswag",
        "--batch_size", "auto",
    ]  # fmt: skip
    loaded = {"dtype": "bfloat16", "qlora": True}
    args = model_args(card(recipe=recipe(loaded=loaded), folder="a/b"))
    assert args["dtype"] == "bfloat16" and args["load_in_4bit"] == "True"


def test_a_classifier_is_not_evaluated_by_generation() -> None:
    assert "lm_eval" not in card(recipe=recipe(), family="classifier")


@pytest.mark.parametrize(
    "name", ["a b/c,peft=d", "x/$(rm -rf ~)", "it's/`id`", 'q"/{}', "a/\nb", "7"]
)
def test_no_name_breaks_the_line_that_evaluates_it(name: str) -> None:
    made = recipe()
    made = replace(made, base=replace(made.base, path=name))
    text = card(recipe=made, base=name, folder=f"runs/{name}")
    assert model_args(text) == {"pretrained": name, "peft": f"runs/{name}"}


def front_matter(text: str) -> dict:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def test_front_matter_is_that_of_a_peft_adapter() -> None:
    assert front_matter(card()) == {
        "base_model": "owner/model",
        "library_name": "peft",
        "tags": ["gradex", "lora"],
    }


@pytest.mark.parametrize("base", ["demo", "a/b\nlicense: mit", "a/\x00", ""])
def test_a_base_that_is_no_reference_stays_out_of_the_front_matter(base: str) -> None:
    assert "base_model" not in front_matter(card(base=base))


@pytest.mark.parametrize("base", ["./models/base", "/models/my: base", "a/b # c", "a/'\"b"])
def test_a_path_is_quoted_as_yaml_needs_it(base: str) -> None:
    assert front_matter(card(base=base))["base_model"] == base


def test_the_body_says_what_how_and_how_well() -> None:
    text = card()
    assert "for `sort` on 2 sources chosen by `forward` selection:\n\n- `sort`\n- `max`" in text
    assert "| `all sources` | 18 | 0.510 ±\N{NO-BREAK SPACE}0.014 | – |" in text
    assert "| `selection` | 2 | 0.310 | 0.800 |" in text
    assert 'AutoModelForCausalLM.from_pretrained("owner/model")' in text
    assert "PeftModel.from_pretrained(base," in text


def test_results_are_left_out_when_there_are_none() -> None:
    assert "## Results" not in card(results=[])


def test_no_name_breaks_the_markdown() -> None:
    outcome = {"name": NASTY, "sources": 1, "loss": [0.5], "metric": None}
    nasty = recipe("peft", options={NASTY: NASTY})
    nasty = replace(nasty, adapter=replace(nasty.adapter, targets=(NASTY,)), precision=NASTY)
    text = card(
        target=NASTY, selected=[NASTY], method=NASTY, results=[outcome], versions={NASTY: NASTY},
        recipe=nasty, base=NASTY, folder=NASTY,
    )  # fmt: skip
    lines = text.splitlines()
    assert lines.count("---") == 2
    assert [line for line in lines if line.startswith("# ")] == [lines[lines.index("---", 1) + 2]]
    (row,) = [line for line in lines if line.startswith("| `")]
    assert row.replace(r"\|", "").count("|") == 4
    (evaluated,) = [i for i, line in enumerate(lines) if line.startswith("lm_eval ")]
    assert lines[evaluated - 1] == "````sh" and lines[evaluated + 1] == "````"
    del lines[evaluated]
    assert all("````" in line for line in lines if "<script>" in line)


def test_a_command_cannot_leave_its_block() -> None:
    text = card(command="echo '\n```\n# out'")
    assert "````sh\necho '\n```\n# out'\n````" in text
