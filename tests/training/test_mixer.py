"""The mixer: shares move to what teaches the target, and a training that died repeats them."""

import logging

import numpy as np
import pytest
import torch

from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.sources import Source
from gradex.data.tokens import Encoder, encode_all
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base
from gradex.training import mixer as mixers
from gradex.training.fit import fit
from gradex.training.mixer import Mixing, ParetoMixer, target_examples
from gradex.training.mixture import Mixture
from gradex.training.module import FineTuner
from gradex.training.recipe import Recipe
from tests.conftest import skill_rows

STEPS = 12


@pytest.fixture(scope="module")
def world(model_folder):
    """The target's own skill and wrong answers, and the target; with an encoder."""
    base = load_base(BaseSpec(str(model_folder("llama"))))
    encoder = Encoder(base.tokenizer, family="causal", max_length=64)

    def rows(skill: str, seed: int):
        return [to_row(r, "prompt_completion") for r in skill_rows(skill, 24, seed=seed)]

    sources = {
        "noise": encode_all(encoder, rows("noise", 1))[0],
        "copy": encode_all(encoder, rows("copy", 2))[0],
    }
    return sources, target_of(select=rows("copy", 3)), encoder


def target_of(select=(), test=()) -> Source:
    splits = {"train": (), "select": tuple(select), "test": tuple(test)}
    return Source("t", "t.jsonl", "prompt_completion", "loss", splits)


@pytest.fixture
def train(world, model_folder, tmp_path):
    """train(folder) -> the trained parameters, and the mixture as it ended."""
    sources, target, encoder = world

    def run(name: str, *, shares=None, every=4, mixer=True, labelled=True, **more):
        settings = {"max_steps": STEPS, "learning_rate": 1e-2, "batch_size": 8} | more
        base = BaseSpec(str(model_folder("llama")))
        recipe = Recipe(base=base, adapter=AdapterSpec(rank=4, alpha=8.0), **settings)
        mixture = Mixture({source: len(found) for source, found in sources.items()})
        if shares:
            mixture.set_shares(0, shares)
        examples = target_examples(encoder, target, labelled=labelled)
        mixing = Mixing(sources, examples, every=every, rows=8, labelled=labelled)
        model, _ = fit(
            recipe, load_base(base), encoder=encoder, folder=tmp_path / name, name="t",
            examples=[example for found in sources.values() for example in found],
            mixture=mixture, beside=[ParetoMixer(mixing)] if mixer else [],
        )  # fmt: skip
        trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        return trained, mixture

    return run


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_shares_go_to_the_targets_own_skill(train):
    _, mixture = train("a", shares={"noise": 0.9, "copy": 0.1})
    assert [step for step, _ in mixture.history] == [0, 4, 8]
    assert mixture.history[0][1] == {"noise": 0.9, "copy": 0.1}
    assert all(shares["copy"] > 0.7 for _, shares in mixture.history[1:])


def test_shares_that_are_open_are_solved_for_first(train):
    _, mixture = train("a")
    assert [step for step, _ in mixture.history] == [0, 4, 8]
    assert mixture.history[0][1]["copy"] > 0.5


def test_looking_changes_nothing(train, monkeypatch):
    """A mixer whose solves give the shares that were there trains as none would: no dropout is
    drawn, no gradient is left behind."""
    shares = {"noise": 0.25, "copy": 0.75}
    plain, _ = train("a", shares=shares, mixer=False)
    solve = mixers.solve
    monkeypatch.setattr(mixers, "solve", lambda *a, **k: (solve(*a, **k), shares)[1])
    assert same(train("b", shares=shares)[0], plain)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rows_are_drawn_by_the_shares_of_their_step(train, world, monkeypatch, accumulate):
    sources, _, _ = world
    noisy = {example.input_ids.tobytes() for example in sources["noise"]}
    drawn, draw = {}, FineTuner.on_before_batch_transfer

    def watched(self, number, place):
        step = self.global_step
        rows = [self.examples[i].input_ids.tobytes() for i in self._draw(number)]
        drawn.setdefault(step, []).append(sum(row in noisy for row in rows))
        return draw(self, number, place)

    solved = iter([{"noise": 1.0, "copy": 0.0}, {"noise": 0.5, "copy": 0.5}])
    monkeypatch.setattr(FineTuner, "on_before_batch_transfer", watched)
    monkeypatch.setattr(mixers, "solve", lambda *a, **k: next(solved))
    train("a", shares={"noise": 0.0, "copy": 1.0}, accumulate=accumulate)
    for step, counts in drawn.items():
        assert counts == [[0, 8, 4][step // 4]] * accumulate


@pytest.mark.parametrize(
    ("dies_at", "labelled"), [(3, True), (4, True), (5, True), (10, True), (5, False)]
)
def test_a_training_that_was_killed_repeats_its_shares(train, monkeypatch, dies_at, labelled):
    whole, mixture = train("whole", labelled=labelled)
    step = FineTuner.training_step

    def dying(self, batch, index):
        if self.global_step == dies_at:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train("cut", labelled=labelled)
    again, resumed = train("cut", labelled=labelled)
    assert resumed.history == mixture.history and same(again, whole)


def test_a_death_between_a_solve_and_its_first_step(train, monkeypatch, tmp_path):
    whole, mixture = train("whole")
    mix = ParetoMixer._mix

    def dying(self, trainer, module):
        mix(self, trainer, module)
        if trainer.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ParetoMixer, "_mix", dying)
        with pytest.raises(KeyboardInterrupt):
            train("cut")
    kept = torch.load(tmp_path / "cut/checkpoints/step.ckpt", weights_only=True)
    assert kept["global_step"] == 3
    again, resumed = train("cut")
    assert resumed.history == mixture.history and same(again, whole)


def test_half_precision(train):
    _, mixture = train("a", precision="bf16-mixed")
    assert mixture.history[-1][1]["copy"] > 0.5


def test_the_cost_is_told(train, caplog):
    with caplog.at_level(logging.INFO):
        train("a")
    # 8 rows of each source and 16 of the target, against 4 steps of 8 rows
    assert "32 rows (16 of the target) every 4 steps, in which 32 are trained on: 100%" in (
        caplog.text
    )


def test_the_targets_test_rows_play_no_part(world):
    _, _, encoder = world
    row = to_row({"prompt": "a=", "completion": "b"}, "prompt_completion")
    for labelled in (True, False):
        with pytest.raises(GradexError, match="--target t: none of its 0 select rows"):
            target_examples(encoder, target_of(test=[row]), labelled=labelled)


def test_shares_go_by_directions_alone():
    """However far a source or the target pulls; one that does not pull gets nothing."""
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(50, generator=generator)
    pulls = {name: goal + torch.randn(50, generator=generator) for name in "abc"}
    found = mixers._balanced(pulls, goal)
    scaled = {
        name: pull * scale
        for (name, pull), scale in zip(pulls.items(), (1e-6, 1, 1e5), strict=True)
    }
    assert mixers._balanced(scaled, goal / 7) == pytest.approx(found, abs=1e-4)
    assert mixers._balanced(pulls | {"d": torch.zeros(50)}, goal)["d"] == 0


def test_a_gradient_that_is_not_finite_names_its_source():
    pulls = {"good": torch.ones(3), "bad": torch.tensor([1.0, np.nan, 0.0])}
    with pytest.raises(GradexError, match="gradient of bad is not finite"):
        mixers._balanced(pulls, torch.ones(3))


def test_products_are_taken_in_double_precision():
    """In single, those of five gradients of a million parameters are not even symmetric."""
    torch.manual_seed(0)
    rows = torch.randn(1_000_000) + 0.3 * torch.randn(5, 1_000_000)
    found = mixers._inner_products(rows)
    assert np.allclose(found, found.T, rtol=1e-12)
    assert np.allclose(found, (rows.double() @ rows.double().T).numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("pull", "goal", "says"),
    [(0.0, 1.0, "no source pulls at all"), (1.0, 0.0, "the target does not pull at all")],
)
def test_where_nothing_pulls_there_are_no_shares(pull, goal, says):
    with pytest.raises(GradexError, match=f"--mixer: {says}.*leave out --mixer"):
        mixers._balanced({"a": torch.full((3,), pull)}, torch.full((3,), goal))
