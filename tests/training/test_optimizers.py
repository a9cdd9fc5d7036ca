"""Optimizers: the default is what it was, every other one resumes, LoRA+ scales B alone."""

import pytest
import torch
from torch import nn

from gradex.adapters.attach import attach
from gradex.adapters.kinds import KINDS, parse_options
from gradex.adapters.spec import AdapterSpec
from gradex.arguments import inheriting
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import sample_objectives
from gradex.train_arguments import TrainArguments
from gradex.training.fit import fit
from gradex.training.module import FineTuner
from gradex.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerSpec,
    make_optimizer,
    make_schedule,
    parse_optimizer_args,
    require_optimizer,
)
from gradex.training.recipe import Recipe


@pytest.fixture
def train(model_folder, tmp_path):
    """train(folder, OptimizerSpec, ...): trained parameters after some steps of a tiny Llama."""

    def run(name: str, optimizer: OptimizerSpec, *, kind: str = "lora", **more):
        recipe = Recipe(
            base=BaseSpec(str(model_folder("llama"))), optimizer=optimizer, batch_size=4,
            adapter=AdapterSpec(rank=4, alpha=8.0, kind=kind, options=parse_options(kind, [])),
            **{"max_steps": 6, "learning_rate": 1e-2} | more,
        )  # fmt: skip
        base = load_base(recipe.base)
        encoder = Encoder(base.tokenizer, family="causal", max_length=64)
        rows = [
            to_row({"prompt": f"{i}=", "completion": "abab"}, "prompt_completion")
            for i in range(10)
        ]
        examples, _ = encode_all(encoder, rows)
        model, _ = fit(
            recipe, base, examples=examples, encoder=encoder, folder=tmp_path / name, name="t"
        )
        return trained(model)

    return run


def trained(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def require_same(found, wanted):
    assert list(found) == list(wanted)
    for name, parameter in found.items():
        assert torch.equal(parameter, wanted[name]), name


def adamw_by_hand(self):
    """AdamW with a rate that falls linearly to zero, without any registry."""
    trained = [p for p in self.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay
    )
    steps = self.recipe.max_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, (steps - step) / steps)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_by_default_every_bit_is_that_of_adamw_with_linear_decay(train, monkeypatch, decay):
    found = train("found", OptimizerSpec(), weight_decay=decay, max_steps=7)
    monkeypatch.setattr(FineTuner, "configure_optimizers", adamw_by_hand)
    require_same(found, train("wanted", OptimizerSpec(), weight_decay=decay, max_steps=7))


@pytest.mark.parametrize("ratio", [1.0, 4.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_training_ends_at_the_same_bits(train, monkeypatch, name, ratio):
    """After some steps the rate has changed, and every average has a past."""
    spec = OptimizerSpec(name, schedule="cosine", loraplus_ratio=ratio)
    whole = train("whole", spec, weight_decay=0.01, warmup_steps=2)
    step = FineTuner.training_step

    def dying(self, batch, index):
        if self.global_step == 4:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train("cut", spec, weight_decay=0.01, warmup_steps=2)
    require_same(train("cut", spec, weight_decay=0.01, warmup_steps=2), whole)


def with_gradients(model, seed):
    """Random gradients on all that is trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def begun(model_folder, kind: str, model: str = "llama", **more):
    spec = AdapterSpec(rank=4, alpha=8.0, kind=kind, options=parse_options(kind, []), **more)
    return attach(load_base(BaseSpec(str(model_folder(model)))), spec, seed=0, steps=4)


def moves(model_folder, spec: OptimizerSpec, kind: str = "lora", steps: int = 2):
    """How far each parameter is moved by some steps with given gradients."""
    model = begun(model_folder, kind)
    before = trained(model)
    optimizer = make_optimizer(spec, model, learning_rate=1e-4, weight_decay=0.0)
    for seed in range(steps):
        with_gradients(model, seed)
        optimizer.step()
    return {name: after - before[name] for name, after in trained(model).items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loraplus_has_every_optimizer_move_b_by_the_ratio(model_folder, name):
    """No optimizer undoes a rate of its own that a group has."""
    plain = moves(model_folder, OptimizerSpec(name))
    plus = moves(model_folder, OptimizerSpec(name, loraplus_ratio=8.0))
    assert sum("lora_B" in name for name in plain) == sum("lora_A" in name for name in plain) > 0
    for name, move in plain.items():
        times = 8.0 if "lora_B" in name else 1.0
        torch.testing.assert_close(plus[name], times * move, rtol=2e-3, atol=1e-6)


def test_loraplus_counts_magnitudes_among_b(model_folder):
    """As peft does it; so the documentation says."""
    plain = moves(model_folder, OptimizerSpec(), "dora", steps=1)
    plus = moves(model_folder, OptimizerSpec(loraplus_ratio=8.0), "dora", steps=1)
    times = {n: (plus[n].norm() / plain[n].norm()).item() for n in plain}
    assert any("magnitude" in name for name in times)
    for name, found in times.items():
        assert found == pytest.approx(1.0 if "lora_A" in name else 8.0, rel=1e-2), name


def test_loraplus_groups_hold_everything_once_and_decay_as_said(model_folder):
    model = begun(model_folder, "lora", targets=("q_proj", "embed_tokens"))
    optimizer = make_optimizer(
        OptimizerSpec(loraplus_ratio=4.0), model, learning_rate=1e-3, weight_decay=0.1
    )
    rates = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert rates == {"A": (1e-3, 0.1), "embedding": (1e-3, 0.1), "B": (4e-3, 0.1)}
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_a_ratio_of_nearly_one_is_no_loraplus(train):
    """The other path with the same rates ends at the same numbers; a ratio of one is no path."""
    plain = train("plain", OptimizerSpec(), weight_decay=0.1)
    plus = train("plus", OptimizerSpec(loraplus_ratio=1 + 1e-9), weight_decay=0.1)
    for name, parameter in plain.items():
        torch.testing.assert_close(plus[name], parameter, rtol=1e-5, atol=1e-7)
    require_same(train("one", OptimizerSpec(loraplus_ratio=1.0), weight_decay=0.1), plain)


def sound(spec: OptimizerSpec, *, adapter="lora", warmup=0, steps=10):
    require_optimizer(spec, adapter=adapter, warmup=warmup, steps=steps)


@pytest.mark.parametrize("kind", KINDS)
def test_loraplus_is_refused_for_adapters_without_a_trained_b(model_folder, kind):
    """What the registry says of a kind is what its parameters say."""
    names = list(trained(begun(model_folder, kind))) if not KINDS[kind].reads_rows else ["lora_B"]
    assert any("lora_B" in name for name in names) == KINDS[kind].learns_b
    if KINDS[kind].learns_b:
        return sound(OptimizerSpec(loraplus_ratio=4.0), adapter=kind)
    with pytest.raises(GradexError, match=f"{kind} trains no matrix B.*--loraplus_ratio 1"):
        sound(OptimizerSpec(loraplus_ratio=4.0), adapter=kind)
    sound(OptimizerSpec(), adapter=kind)


def test_loraplus_is_refused_where_the_model_has_no_b():
    with pytest.raises(GradexError, match="trains no matrix B"):
        make_optimizer(
            OptimizerSpec(loraplus_ratio=4.0), nn.Linear(2, 2), learning_rate=1e-3, weight_decay=0.0
        )


@pytest.mark.parametrize("kind", [k for k in KINDS if not KINDS[k].reads_rows])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_on_every_kind(model_folder, toy_batch, name, kind):
    """Shapes and memory layouts of all adapters, with the gradients that autograd makes."""
    model = begun(model_folder, kind)
    before = trained(model)
    optimizer = make_optimizer(OptimizerSpec(name), model, learning_rate=1e-3, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sample_objectives(model, toy_batch("causal")[1], "causal")[0]["loss"].mean().backward()
        optimizer.step()
    after = trained(model)
    assert all(torch.isfinite(p).all() for p in after.values())
    assert any(not torch.equal(p, before[name]) for name, p in after.items())


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_those_of_transformers(name, warmup):
    from transformers import get_scheduler

    def rates(make):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.3)
        schedule = make(optimizer)
        found = []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    wanted = rates(lambda o: get_scheduler(name, o, num_warmup_steps=warmup, num_training_steps=10))
    assert rates(lambda o: make_schedule(name, o, warmup=warmup, steps=10)) == wanted
    assert min(wanted) >= 0 and max(wanted) <= 0.3


def test_linear_rates_without_warm_up_are_exact_fractions():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=3e-4)
    schedule = make_schedule("linear", optimizer, warmup=0, steps=7)
    for step in range(9):
        assert optimizer.param_groups[0]["lr"] == 3e-4 * max(0.0, (7 - step) / 7)
        optimizer.step()
        schedule.step()


def test_decay_is_the_same_word_for_all_but_two():
    """Without a gradient to speak of, a weight shrinks by rate times decay a step."""
    for name in sorted(set(OPTIMIZERS) - {"sgd", "adan"}):
        model = nn.Linear(3, 2, bias=False)
        before = model.weight.detach().clone()
        optimizer = make_optimizer(OptimizerSpec(name), model, learning_rate=0.1, weight_decay=0.5)
        model.weight.grad = torch.zeros(2, 3)
        optimizer.step()
        if name.endswith("p"):  # zero is orthogonal to the weight: a tenth of the decay
            torch.testing.assert_close(model.weight, before * 0.995)
        else:
            torch.testing.assert_close(model.weight, before * 0.95, msg=name)


def test_settings_of_an_optimizer_are_read_by_their_types():
    words = ["delta=0.05", "nesterov=true", "betas=0.8,0.95"]
    found = parse_optimizer_args("adamp", words)
    assert found == {"delta": 0.05, "nesterov": True, "betas": (0.8, 0.95)}
    optimizer = make_optimizer(
        OptimizerSpec("adamp", found), nn.Linear(2, 2), learning_rate=1e-3, weight_decay=0.0
    )
    assert found.items() <= optimizer.defaults.items()
    assert parse_optimizer_args("sgd", ["momentum=0.9"]) == {"momentum": 0.9}
    assert parse_optimizer_args("ademamix", ["t_alpha_beta3=100"]) == {"t_alpha_beta3": 100.0}


@pytest.mark.parametrize(
    ("name", "word", "says"),
    [
        ("adamp", "delt=1", "unknown setting of adamp 'delt'; known are: betas, .*delta"),
        ("adamp", "cautious=true", "unknown setting of adamp 'cautious'"),
        ("adamw", "lr=1", "unknown setting of adamw 'lr'"),
        ("adamw", "weight_decay=1", "unknown setting of adamw 'weight_decay'"),
        ("adamw", "maximize=true", "unknown setting of adamw 'maximize'"),
        ("adamw", "eps=small", "eps=small: expected a number"),
        ("adamw", "eps=nan", "eps=nan: expected a number"),
        ("adamw", "eps", "eps: expected a number"),
        ("adamw", "amsgrad=1", "amsgrad=1: expected true or false"),
        ("adamw", "betas=0.9", r"betas=0.9: expected 2 numbers, as 0.9,0.999"),
        ("adamw", "betas=0.9,2", "adamw cannot step with them"),
        ("sgdp", "momentum=1", "sgdp cannot step with them"),
        ("adammw", "", "unknown optimizer 'adammw'; known are: adamw, sgd, adamp"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, word, says):
    with pytest.raises(GradexError, match=says):
        parse_optimizer_args(name, [word])


@pytest.mark.parametrize(
    ("schedule", "warmup", "says"),
    [
        ("linaer", 0, "unknown schedule 'linaer'; known are: linear, cosine"),
        ("reduce_lr_on_plateau", 0, "unknown schedule"),
        ("constant", 1, "say --lr_scheduler_type constant_with_warmup"),
        ("linear", 10, "found 10, expected fewer than the 10 of --max_steps"),
    ],
)
def test_schedules_that_cannot_be_are_refused(schedule, warmup, says):
    with pytest.raises(GradexError, match=says):
        sound(OptimizerSpec(schedule=schedule), warmup=warmup)


def test_a_rate_that_a_schedule_cannot_fall_from_is_told():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1e-9)
    with pytest.raises(GradexError, match=r"--lr_scheduler_type polynomial: .*smaller"):
        make_schedule("polynomial", optimizer, warmup=0, steps=3)


def test_another_optimizer_does_not_take_over_the_settings_of_the_recorded_one():
    recorded = {"optimizer": "adamp", "optimizer_args": ["delta=0.2"], "loraplus_ratio": 4.0}
    found = inheriting(TrainArguments(), recorded)
    assert (found.optimizer, found.optimizer_args) == ("adamp", ["delta=0.2"])
    found = inheriting(TrainArguments(optimizer="sgdp"), recorded)
    assert (found.optimizer, found.optimizer_args) == ("sgdp", None)
    assert found.loraplus_ratio == 4.0
    found = inheriting(TrainArguments(optimizer="adamp"), recorded)
    assert found.optimizer_args == ["delta=0.2"]
