"""The model card: front matter the Hub can read, and text that no name can break."""

import pytest
import yaml

from gradex.reporting.cards import adapter_card

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
    text = card(
        target=NASTY, selected=[NASTY], method=NASTY, results=[outcome], versions={NASTY: NASTY}
    )
    lines = text.splitlines()
    assert lines.count("---") == 2
    assert [line for line in lines if line.startswith("# ")] == [lines[lines.index("---", 1) + 2]]
    (row,) = [line for line in lines if line.startswith("| `")]
    assert row.replace(r"\|", "").count("|") == 4
    assert all("````" in line for line in lines if "<script>" in line)


def test_a_command_cannot_leave_its_block() -> None:
    text = card(command="echo '\n```\n# out'")
    assert "````sh\necho '\n```\n# out'\n````" in text
