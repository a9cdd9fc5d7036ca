"""What moves a row in its batch is found and blamed: positions, padding, company, rounding."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradex.checks.invariance import Gap, Measured, Setting, Skipped, Taken, gap, survey
from gradex.checks.subject import Subject, Survey, examine_model, fresh_adapter, mixed_lengths
from gradex.data.tokens import Encoder
from gradex.gradients.per_sample import GradientPass
from gradex.models.load import BaseSpec, load_base
from gradex.reporting.checkup import blame, explanations, model_lines

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq", "bert": "classifier"}


def of_a_tiny(folder, examples, family, damage=lambda model: None) -> Survey:
    """A survey in float32 of a model, damaged by a function of it."""
    base = load_base(BaseSpec(str(folder)))
    damage(base.model)
    encoder = Encoder(base.tokenizer, family=family, max_length=64)
    gradients = GradientPass(fresh_adapter(base), family)
    own = Setting("float32", base.model.config._attn_implementation, "right")
    outcomes = tuple(survey(gradients, encoder, examples, dtype="float32"))
    assert base.model.config._attn_implementation == own.attention
    return Survey(own, outcomes, (3, 9), True, {})


@pytest.fixture
def look(model_folder, toy_batch, sound):
    """look(kind, damage): a survey; of models without damage it is made once."""

    def check(kind: str, *damage) -> Survey:
        if not damage and kind in sound:
            return sound[kind]
        examples, _ = toy_batch(FAMILIES[kind])
        found = of_a_tiny(model_folder(kind), examples, FAMILIES[kind], *damage)
        return found if damage else sound.setdefault(kind, found)

    return check


@pytest.fixture(scope="module")
def sound():
    return {}


def within(found: Survey, **wanted) -> bool:
    """Whether all settings with these values were measured and are within tolerance."""
    chosen = [
        one
        for one in found.outcomes
        if all(getattr(one.setting, key) == value for key, value in wanted.items())
    ]
    return all(isinstance(one, Measured) and one.is_within for one in chosen)


@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_are_the_same_in_a_batch_padded_right(look, kind):
    found = look(kind)
    assert len(found.outcomes) == 4 and within(found, padding="right")
    assert explanations(found)[0].startswith("a row is the same in every batch that gradex makes")


def test_llama_is_the_same_under_either_padding(look):
    found = look("llama")
    assert within(found) and len(explanations(found)) == 1


@pytest.mark.parametrize(
    ("kind", "why"),
    [("gpt2", "positions do not follow the mask"), ("bert", "the padding is read")],
)
def test_left_padding_is_blamed(look, kind, why):
    """GPT-2 counts padding as positions; BERT reads the class off the first place as well."""
    found = look(kind)
    assert not within(found, padding="left")
    said = explanations(found)[1]
    assert said.startswith("left padding moves row row")
    assert said.endswith(f"{why}; pad right, as gradex does")


def test_left_padding_is_not_tried_on_a_decoder(look):
    left = [one for one in look("t5").outcomes if one.setting.padding == "left"]
    assert all(isinstance(one, Skipped) and "first label" in one.reason for one in left)


class Mixing(nn.Module):
    """Takes the mean over the batch off, as a batch norm in training mode does."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) - 0.1 * x.mean(0, keepdim=True)


def mix(model):
    model.model.norm = Mixing(model.model.norm)


def test_rows_that_see_one_another_are_found(look):
    found = look("llama", mix)
    assert not within(found, padding="right")
    (one,) = [one for one in found.outcomes if one.setting == found.own]
    assert one.company.gradient > 1e-3 > one.padding.size
    assert "the rows of a batch see one another: beside others the loss" in explanations(found)[0]


class Ahead(nn.Module):
    """Lets every token see the last one, be it padding or not."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + x[:, -1:]


def look_ahead(model):
    model.model.norm = Ahead(model.model.norm)


def test_a_model_that_reads_its_padding_is_found(look):
    found = look("llama", look_ahead)
    (one,) = [one for one in found.outcomes if one.setting == found.own]
    assert one.padding.size > 1e-3 > one.company.size and not one.positions_help
    assert "the model reads its padding: with it, on the right" in explanations(found)[0]


def test_a_pass_that_is_wrong_is_told_from_a_model_that_mixes():
    setting = Setting("float32", "sdpa", "right")
    fine, off = Gap(1e-6, 1e-6, "a"), Gap(1e-6, 0.5, "b")
    assert blame(Measured(setting, off, fine, off)).startswith("the batched pass gives row b")
    mixed = Gap(1e-4, 0.5, "c")
    assert "see one another" in blame(Measured(setting, mixed, fine, mixed))


def test_what_only_bfloat16_moves_is_blamed_on_nothing_else():
    """Where float32 is the same, the padding that goes over the tolerance is rounding."""
    off, fine = Gap(0.1, 0.1, "a"), Gap(1e-6, 1e-6, "a")
    half, exact = (Setting(dtype, "sdpa", "left") for dtype in ("bfloat16", "float32"))
    outcomes = (
        Measured(replace(half, padding="right"), fine, fine, fine),
        Measured(replace(exact, padding="right"), fine, fine, fine),
        Measured(half, off, off, fine, positions_help=True),
        Measured(exact, fine, fine, fine),
    )
    found = Survey(outcomes[0].setting, outcomes, (3, 9), True, {})
    assert not any("left padding" in line for line in explanations(found))
    moved = (*outcomes[:3], replace(outcomes[3], batch=off, padding=off))
    assert "left padding moves row a" in explanations(replace(found, outcomes=moved))[-1]


def test_an_attention_that_the_model_refuses_is_said(look):
    def refuse(model):
        def set_attn_implementation(name):
            raise ValueError(f"{name} is not for this model\nsee ...")

        model.set_attn_implementation = set_attn_implementation

    found = look("llama", refuse)
    (skipped,) = [one for one in found.outcomes if isinstance(one, Skipped)]
    assert skipped.setting.attention == "eager"
    assert "eager, right" in str([*model_lines(found)])
    assert skipped.reason == "eager is not for this model"


def test_bfloat16_is_told_from_the_batch(model_folder, rows):
    subject = Subject(BaseSpec(str(model_folder("llama"))), (), 64, None)
    found = examine_model(subject, rows, count=3)
    assert {one.setting.dtype for one in found.outcomes} == {"float32", "bfloat16"}
    half, exact = (
        next(one for one in found.outcomes if one.setting == replace(found.own, dtype=dtype))
        for dtype in ("bfloat16", "float32")
    )
    assert half.batch.gradient > 1e-4 > exact.batch.gradient
    said = [line for line in explanations(found) if line.startswith("bfloat16 moves gradients")]
    assert "the rounding does it, not the batch" in said[0] and found.is_batched


@pytest.fixture
def rows():
    from gradex.data.formats import to_row

    records = [{"prompt": "ab" * i, "completion": "xy" * (1 + i % 3)} for i in range(1, 12)]
    return [to_row(record, "prompt_completion") for record in records]


def test_rows_are_chosen_from_the_shortest_to_the_longest(model_folder, rows):
    tokenizer = load_base(BaseSpec(str(model_folder("llama")))).tokenizer
    encoder = Encoder(tokenizer, family="causal", max_length=64)
    lengths = [encoder.encode(row).length for row in rows]
    chosen = [example.length for example in mixed_lengths(encoder, rows, count=4)]
    assert chosen == sorted(chosen) and len(chosen) == 4
    assert (chosen[0], chosen[-1]) == (min(lengths), max(lengths))
    assert len(mixed_lengths(encoder, rows, count=1)) == 1
    assert len(mixed_lengths(encoder, rows, count=99)) == len(rows)


def test_a_fresh_adapter_moves_every_gradient(model_folder, toy_batch):
    from gradex.gradients.per_sample import per_sample_gradients

    model = fresh_adapter(load_base(BaseSpec(str(model_folder("llama")))))
    gradients = per_sample_gradients(model, toy_batch("causal")[1])
    assert (gradients.norm(dim=0) > 0).float().mean() > 0.99


def test_a_gap_names_the_worst_row_and_what_is_not_finite():
    wanted = Taken(torch.tensor([1.0, 2.0]), torch.eye(2))
    off = Taken(torch.tensor([1.1, 2.0]), torch.tensor([[1.0, 0.0], [0.0, 1.5]]))
    found = gap(off, wanted, ["a", "b"])
    assert found.row == "b" and found.gradient == pytest.approx(0.5)
    assert found.loss == pytest.approx(0.1)
    off.losses[0] = float("nan")
    assert gap(off, wanted, ["a", "b"]) == Gap(float("inf"), 0.5, "a")


def test_a_row_next_to_nothing_does_not_decide():
    wanted = Taken(torch.tensor([1e-9, 2.0]), torch.diag(torch.tensor([1e-9, 1.0])))
    off = Taken(wanted.losses + 1e-8, wanted.gradients + 1e-8)
    assert gap(off, wanted, ["a", "b"]).size < 1e-6
