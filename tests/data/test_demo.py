"""The demo world: what its docs promise of rows, splits, wrong twins and the shipped model."""

import subprocess
import sys

import pytest

from gradex.data.demo import MODEL_DIR, SKILLS, SPLIT_SIZES, TARGETS, WRONG, demo_rows
from gradex.data.demo_training import build_tokenizer, rebuild, skill_accuracy

NAMED = "add subtract multiply reverse reverse_digits sort copy max min first last count".split()


def test_thirteen_skills_and_five_wrong_twins():
    assert len(SKILLS) == 13 and set(NAMED) <= set(SKILLS)
    assert len(WRONG) == len(TARGETS) == 5


@pytest.mark.parametrize("name", [*SKILLS, *WRONG])
def test_rows_are_unique_and_always_the_same(name):
    rows = demo_rows(name)
    assert rows == demo_rows(name)
    assert len({row["prompt"] for row in rows}) == len(rows) == SPLIT_SIZES["train"]


@pytest.mark.parametrize("name", TARGETS)
def test_splits_share_no_prompt(name):
    splits = [{row["prompt"] for row in demo_rows(name, split)} for split in SPLIT_SIZES]
    assert [len(split) for split in splits] == [150, 200, 200]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


@pytest.mark.parametrize("name", TARGETS)
def test_a_wrong_twin_has_the_prompts_and_never_the_answer(name):
    for right, wrong in zip(demo_rows(name), demo_rows(f"wrong_{name}"), strict=True):
        assert right["prompt"] == wrong["prompt"]
        assert right["completion"] != wrong["completion"]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("add", lambda p: str(sum(map(int, p.split("+"))))),
        ("sort", lambda p: "".join(sorted(p.split()[1]))),
        ("reverse_digits", lambda p: p.split()[1][::-1]),
        ("max", lambda p: str(max(map(int, p.split()[1:])))),
        ("count", lambda p: str(len(p.split()[1]))),
    ],
)
def test_answers_are_right(name, answer):
    assert all(row["completion"] == answer(row["prompt"]) for row in demo_rows(name))


def test_the_template_marks_the_answer_and_its_end():
    tokenizer = build_tokenizer()
    messages = [{"role": "user", "content": "2+3"}, {"role": "assistant", "content": "5"}]
    out = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(learned) == "5</s>"


def test_the_shipped_folder_is_small_and_safe():
    files = list(MODEL_DIR.iterdir())
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja"}


def test_importing_the_world_is_quick():
    code = "import sys, gradex.data.demo; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_the_recipe_gives_the_same_skills_again(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rebuild(tmp_path / "model")
    for name in SKILLS:
        scores = []
        for folder in (MODEL_DIR, tmp_path / "model"):
            model = AutoModelForCausalLM.from_pretrained(folder)
            scores.append(skill_accuracy(model, AutoTokenizer.from_pretrained(folder), name))
        assert abs(scores[0] - scores[1]) < 0.15, (name, scores)
