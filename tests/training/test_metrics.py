"""The numbers of a training: every step once, whatever broke off, and the same for every logger."""

import csv
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch as pl
import pytest
from conftest import skill_rows

from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base
from gradex.training import loggers
from gradex.training.fit import fit
from gradex.training.loggers import require_loggers
from gradex.training.metrics import as_csv
from gradex.training.module import FineTuner
from gradex.training.optimizers import OptimizerSpec
from gradex.training.recipe import Recipe

STEPS = 8


def test_columns_are_in_the_order_in_which_lines_have_them():
    lines = [{"step": 1, "loss": 0.5}, {"step": 1_234_567, "loss": 0.1234567, "more": 2.0}]
    assert as_csv(lines) == "step,loss,more\n1,0.5,\n1234567,0.123457,2\n"


class Squares(pl.Callback):
    """Has a column of its own, filled at every second step."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step % 2:
            module.note(square=float(trainer.global_step**2))


@pytest.fixture
def train(model_folder, tmp_path):
    """train(folder) -> the losses, and the lines of metrics.csv."""
    spec = BaseSpec(str(model_folder("llama")))
    encoder = Encoder(load_base(spec).tokenizer, family="causal", max_length=64)
    rows = [to_row(row, "prompt_completion") for row in skill_rows("copy", 12, seed=0)]
    examples, _ = encode_all(encoder, rows)

    def run(name: str, **more):
        report_to = more.pop("report_to", ())
        settings = {"max_steps": STEPS, "learning_rate": 1e-2, "batch_size": 4, "warmup_steps": 2}
        recipe = Recipe(base=spec, adapter=AdapterSpec(rank=4, alpha=8.0), **settings | more)
        _, losses = fit(
            recipe, load_base(spec), examples=examples, encoder=encoder, folder=tmp_path / name,
            name="t", beside=[Squares()], report_to=report_to,
        )  # fmt: skip
        return losses, lines_of(tmp_path / name)

    return run


def lines_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_line_for_every_step(train, accumulate):
    losses, lines = train("a", accumulate=accumulate)
    assert [int(line["step"]) for line in lines] == list(range(1, STEPS + 1))
    assert [float(line["loss"]) for line in lines] == pytest.approx(losses, rel=1e-5)
    rates = [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]  # of two steps of warm-up
    assert [float(line["learning_rate"]) / 1e-2 for line in lines] == pytest.approx(rates, rel=1e-4)
    assert [line["square"] for line in lines] == ["", "1", "", "9", "", "25", "", "49"]


def test_adamp_has_a_column_of_its_own(train):
    _, lines = train("a", optimizer=OptimizerSpec("adamp"))
    assert all(0 <= float(line["projected_fraction"]) <= 1 for line in lines)


@pytest.mark.parametrize("dies_at", [1, 5])
def test_an_interrupted_training_has_every_line_once(train, tmp_path, monkeypatch, dies_at):
    train("whole")
    step = FineTuner.training_step

    def dying(self, batch, index):
        if self.global_step == dies_at:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FineTuner, "training_step", dying)
        train("cut")
    assert len(lines_of(tmp_path / "cut")) == dies_at, "written along"
    train("cut")
    whole, cut = (tmp_path / name / "metrics.csv" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_whose_package_is_missing(train, monkeypatch, name):
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(GradexError, match=f"--report_to {name}: .*`pip install {name}`"):
        train("a", report_to=[name])
    require_loggers(None)
    require_loggers(["none"])


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_is_told_the_same_numbers(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, lines = train("a", report_to=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "a/tensorboard")).Reload()
    assert {"loss", "learning_rate", "square"} <= set(events.Tags()["scalars"])
    for name in ("loss", "learning_rate", "square"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(int(line["step"]), float(line[name])) for line in lines if line[name]]
        assert told == [(step, pytest.approx(value, rel=1e-5)) for step, value in wanted]


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_stays_offline_where_it_is_told_to(train, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    train("a", report_to=["wandb"])
    assert list((tmp_path / "a/wandb").glob("offline-run-*/*.wandb")) and wandb.run is None
