"""Looks at select rows: they change nothing but the end, which is that of the smallest loss."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import skill_rows

from gradex import meta_train as stage
from gradex.adapters import folder as adapters
from gradex.adapters.points import points_in
from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.errors import GradexError
from gradex.meta_train import Config, meta_train
from gradex.models.load import BaseSpec, load_base
from gradex.models.scoring import row_losses
from gradex.training import fit as fitting
from gradex.training.early_stopping import Looking, SelectLoss, looking
from gradex.training.fit import fit
from gradex.training.module import FineTuner
from gradex.training.recipe import Recipe

STEPS = 20


@pytest.fixture(scope="module")
def world(model_folder):
    """The base, rows to learn by heart, and two targets whose rows follow no rule: they get
    better while the model learns which letters there are, and worse when it is sure."""
    base = BaseSpec(str(model_folder("llama")))
    encoder = Encoder(load_base(base).tokenizer, family="causal", max_length=64)

    def examples(skill: str, count: int, seed: int):
        rows = skill_rows(skill, count, seed=seed)
        return encode_all(encoder, [to_row(row, "prompt_completion") for row in rows])[0]

    targets = {"a": examples("noise", 12, 1), "b": examples("noise", 5, 2)}
    return base, encoder, examples("noise", 8, 0), targets


@pytest.fixture
def train(world, tmp_path):
    """train(folder) -> the trained parameters, the losses, the looks, and the folder."""
    base, encoder, examples, targets = world

    def run(name: str, *, patience=2, every=2, keep_at=(), **more):
        settings = {"max_steps": STEPS, "learning_rate": 3e-2, "batch_size": 8} | more
        recipe = Recipe(base=base, adapter=AdapterSpec(rank=4, alpha=8.0), **settings)
        looks = SelectLoss(Looking(every, patience), targets) if every else None
        model, losses = fit(
            recipe, load_base(base), examples=examples, encoder=encoder, folder=tmp_path / name,
            name="t", keep_at=keep_at, beside=[looks] if looks else [],
        )  # fmt: skip
        found = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        return found, losses, looks, tmp_path / name

    return run


def same(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def scripted(monkeypatch, *losses: float) -> None:
    """The looks find these losses, one after the other, by the step."""
    monkeypatch.setattr(SelectLoss, "_measure", lambda self, trainer, _: losses[len(self.losses)])


@pytest.mark.parametrize(
    ("patience", "found", "ends", "best"),
    [
        (1, [5, 4, 4, 3], 3, 2),  # as good is not better
        (2, [5, 4, 4.5, 3, 6, 7, 1], 6, 4),
        (2, [5, 6, 7, 1], 3, 1),
        (3, [5, 4, 3, 2, 1], 5, 5),
    ],
)
def test_training_ends_after_so_many_looks_without_a_smaller_loss(
    train, world, monkeypatch, patience, found, ends, best
):
    scripted(monkeypatch, *map(float, found))
    points = [2 * best]
    ended, losses, looks, folder = train("a", patience=patience, max_steps=10, keep_at=points)
    assert len(losses) == min(10, 2 * ends) and looks.kept_step == 2 * best
    kept = adapters.load(load_base(world[0]), points_in(folder)[2 * best])
    kept = {n: p for n, p in kept.named_parameters() if p.requires_grad}
    assert same(ended, kept)


def test_it_ends_where_the_select_rows_get_worse(train, world):
    base, encoder, _, targets = world
    _, losses, looks, folder = train("a", keep_at=range(1, STEPS))
    assert len(losses) < STEPS and looks.kept_step < len(losses)
    for step, loss in looks.losses.items():
        model = adapters.load(load_base(base), points_in(folder)[step])
        means = [row_losses(model, rows, encoder).mean() for rows in targets.values()]
        assert loss == pytest.approx(sum(means) / 2, rel=1e-5)
    assert looks.kept_step == min(looks.losses, key=looks.losses.get)


@pytest.mark.parametrize("more", [{}, {"accumulate": 2}, {"precision": "bf16-mixed"}])
def test_looking_changes_nothing(train, more):
    plain, losses, *_ = train("plain", every=None, max_steps=6, **more)
    looked, told, looks, _ = train("looked", patience=None, max_steps=6, every=4, **more)
    assert same(plain, looked) and told == losses
    assert list(looks.losses) == [4, 6] and looks.kept_step is None


@pytest.mark.parametrize("dies_at", ["step 3", "step 7", "the end"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_training_ends_at_the_same_step(train, monkeypatch, dies_at, accumulate):
    """Before, between and after the looks, and when all is over but nothing written yet; looks and
    checkpoints are at the same steps here."""
    whole, losses, looks, folder = train("whole", accumulate=accumulate)
    assert 7 < len(losses) < STEPS
    step = FineTuner.training_step

    def dying(self, batch, index):
        if dies_at == f"step {self.global_step}":
            raise KeyboardInterrupt
        return step(self, batch, index)

    def dying_end(module):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FineTuner, "training_step", dying)
        if dies_at == "the end":
            patch.setattr(fitting, "_require_finite", dying_end)
        train("cut", accumulate=accumulate)
    again, told, seen, other = train("cut", accumulate=accumulate)
    assert same(whole, again) and told == losses
    assert (seen.losses, seen.kept_step) == (looks.losses, looks.kept_step)
    assert (other / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()


def test_a_finished_training_is_not_gone_on_from(train, monkeypatch):
    """Killed after the very last step: what is kept is the best adapter all the same."""
    whole, losses, looks, _ = train("whole", patience=100)
    assert len(losses) == STEPS and looks.kept_step < STEPS

    def dying_end(module):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "_require_finite", dying_end)
        train("cut", patience=100)
    again, told, *_ = train("cut", patience=100)
    assert same(whole, again) and told == losses


def test_a_select_loss_that_is_no_number(train, monkeypatch):
    monkeypatch.setattr("gradex.training.early_stopping.np.mean", lambda _: float("nan"))
    with pytest.raises(GradexError, match="the select loss is nan at step 2; try a lower"):
        train("a")


def test_flags_become_looks():
    assert looking(None, None, steps=100) is None
    assert looking(7, None, steps=100) == Looking(7)
    assert looking(None, 3, steps=100) == Looking(10, 3)
    assert looking(None, 3, steps=4) == Looking(1, 3)


@pytest.fixture
def trained(model_folder, toy_tasks, monkeypatch):
    """trained(change) -> a meta-training with looks, whose targets' test rows went through it."""
    load = stage.load_data

    def run(change) -> Path:
        def loaded(settings):
            sources = load(settings)
            changed = {
                name: replace(s, rows=dict(s.rows) | {"test": change(s.rows["test"])})
                for name, s in sources.items()
            }
            return replace(sources, by_name=changed)

        monkeypatch.setattr(stage, "load_data", loaded)
        return meta_train(
            Config(
                model_name_or_path=str(model_folder("llama")), tasks=[str(toy_tasks)], max_steps=12,
                per_device_train_batch_size=8, learning_rate=3e-2, eval_every=2, early_stopping=1,
            )
        )  # fmt: skip

    return run


def test_test_rows_play_no_part(trained):
    """Other ones leave every byte of the adapter and of the numbers as it was."""
    plain = trained(lambda rows: rows)
    relabelled = trained(
        lambda rows: tuple(replace(r, messages=(*r.prompt, ("assistant", "?"))) for r in rows)
    )
    for name in ("adapter/adapter_model.safetensors", "metrics.csv", "curve.json"):
        assert (plain / name).read_bytes() == (relabelled / name).read_bytes(), name
    lines = list(csv.DictReader((plain / "metrics.csv").read_text().splitlines()))
    looked = [int(line["step"]) for line in lines if line["select_loss"]]
    assert looked == list(range(2, len(lines) + 1, 2))
