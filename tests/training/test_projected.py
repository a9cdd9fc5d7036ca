"""AdamP and SGDP: a projected step is tangential, vectors are left alone, and it is counted."""

import math

import pytest
import torch
from torch import nn

from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.models.load import BaseSpec, load_base
from gradex.training import fit as fitting
from gradex.training.fit import fit
from gradex.training.module import FineTuner
from gradex.training.optimizers import OptimizerSpec, make_optimizer
from gradex.training.projected import ProjectedFraction
from gradex.training.recipe import Recipe

LR, DECAY = 0.1, 0.5
# The package adds eps before it corrects the bias, torch after: without eps they are the same.
NO_EPS = 1e-30


def optimizer_of(name: str, *weights, **options):
    model = nn.Module()
    for i, weight in enumerate(weights):
        model.register_parameter(f"p{i}", nn.Parameter(weight.clone()))
    spec = OptimizerSpec(name, options)
    return make_optimizer(spec, model, learning_rate=LR, weight_decay=DECAY), *model.parameters()


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tangential(gradient, weight):
    """The part of each row of the gradient that is orthogonal to the weight's row."""
    along = (gradient * weight).sum(1, keepdim=True) / (weight * weight).sum(1, keepdim=True)
    return gradient - along * weight


class Reference:
    """AdamP from its formulas, in loops over rows."""

    def __init__(self, w):
        self.w, self.delta, self.ratio, self.t = w.clone(), 0.1, 0.1, 0
        self.m, self.v = torch.zeros_like(w), torch.zeros_like(w)

    def step(self, g):
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        u = self.m / (1 - 0.9**self.t) / ((self.v / (1 - 0.999**self.t)).sqrt() + NO_EPS)
        decay = 1.0
        for parts in (list(zip(g, self.w, u, strict=True)), [(g, self.w, u)]):
            if all(self.orthogonal(g_part, w_part) for g_part, w_part, _ in parts):
                for _, w_part, u_part in parts:
                    unit = w_part / w_part.norm()
                    u_part -= unit * (unit * u_part).sum()
                decay = self.ratio
                break
        self.w = (1 - LR * DECAY * decay) * self.w - LR * u
        return decay != 1.0

    def orthogonal(self, g, w):
        cosine = (g * w).sum() / (g.norm() * w.norm())
        return abs(cosine) < self.delta / math.sqrt(w.numel())


def test_steps_are_those_of_the_formulas_whichever_view_projects():
    """Gradients orthogonal in every row, as a whole only, and not at all, several times over."""
    start = randn(5, 7).double()
    optimizer, weight = optimizer_of("adamp", start, eps=NO_EPS)
    reference = Reference(start)
    fired = []
    for step in range(12):
        g = randn(5, 7, seed=step + 1).double()
        if step % 3 == 0:
            g = tangential(g, reference.w)
        if step % 3 == 1:
            g = tangential(g.view(1, -1), reference.w.view(1, -1)).view(5, 7)
        weight.grad = g.clone()
        optimizer.step()
        fired.append(reference.step(g))
        assert optimizer.projected == [(int(fired[-1]), 1)]
        torch.testing.assert_close(weight.detach(), reference.w, rtol=1e-10, atol=1e-10)
    assert fired[0::3] == fired[1::3] == [True] * 4 and not all(fired[2::3])


@pytest.mark.parametrize("name", ["adamp", "sgdp"])
def test_a_projected_step_is_tangential(name):
    start = randn(6, 8).double()
    optimizer, weight = optimizer_of(name, start)
    weight.grad = tangential(randn(6, 8, seed=1).double(), start)
    optimizer.step()
    moved = weight.detach() - (1 - LR * DECAY * 0.1) * start
    assert moved.norm() > 0.1
    radial = (moved * start).sum(1) / start.norm(dim=1)
    assert radial.abs().max() < 1e-7


def test_vectors_step_as_with_adamw():
    start = randn(9).double()
    found, expected = (optimizer_of(name, start, eps=NO_EPS) for name in ("adamp", "adamw"))
    for step in range(5):
        for optimizer, weight in (found, expected):
            row = weight.detach().view(1, 9)
            weight.grad = tangential(randn(1, 9, seed=step).double(), row).view(9)
            optimizer.step()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)
    assert found[0].projected == [(0, 0)]


def test_the_first_step_from_zeros_is_that_of_adamw():
    """LoRA's B: there is no radial direction, and nothing is divided by its length."""
    zeros = torch.zeros(6, 4).double()
    found, expected = (optimizer_of(name, zeros, eps=NO_EPS) for name in ("adamp", "adamw"))
    usual = optimizer_of("adamp", zeros)
    for optimizer, weight in (found, expected, usual):
        weight.grad = randn(6, 4).double()
        optimizer.step()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=0)
    assert torch.isfinite(usual[1]).all() and usual[0].projected == [(1, 1)]


def test_sgdp_does_not_project_its_memory():
    """Its momentum is the plain sum of gradients, whatever the steps made of them."""
    start = randn(4, 5).double()
    optimizer, weight = optimizer_of("sgdp", start, momentum=0.9)
    buffer = torch.zeros_like(start)
    fired = 0
    for step in range(4):
        g = tangential(randn(4, 5, seed=step).double(), weight.detach())
        buffer = 0.9 * buffer + g
        weight.grad = g.clone()
        optimizer.step()
        fired += optimizer.projected[0][0]
        torch.testing.assert_close(optimizer.state[weight]["momentum"], buffer)
    assert fired == 4


def test_counting_changes_no_bit():
    """Against the class of the package as it comes."""
    from pytorch_optimizer import AdamP

    start = randn(6, 8)
    optimizer, weight = optimizer_of("adamp", start)
    plain = nn.Parameter(start.clone())
    expected = AdamP([plain], lr=LR, weight_decay=DECAY)
    counts = []
    for step in range(10):
        g = randn(6, 8, seed=step)
        weight.grad = plain.grad = tangential(g, plain.detach()) if step % 2 else g
        optimizer.step()
        expected.step()
        counts.append(optimizer.projected[0][0])
        assert torch.equal(weight, plain)
    assert counts[1::2] == [1] * 5


def test_an_error_in_a_step_leaves_the_package_as_it_was():
    from pytorch_optimizer.optimizer import adamp

    before = adamp.projection
    optimizer, weight = optimizer_of("adamp", randn(3, 3))
    weight.grad = randn(3, 3)

    def failing():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert adamp.projection is before


def test_random_gradients_project_by_chance_as_documented():
    """|N(0, 1)| < 0.1 in 8 % of steps, by the view of the whole."""
    matrices = [randn(16, 64, seed=i) for i in range(50)]
    optimizer, *weights = optimizer_of("adamp", *matrices)
    fired = asked = 0
    for step in range(40):
        for i, weight in enumerate(weights):
            weight.grad = randn(16, 64, seed=1000 * step + i)
        optimizer.step()
        fired, asked = fired + optimizer.projected[0][0], asked + optimizer.projected[0][1]
    assert asked == 2000 and 0.06 < fired / asked < 0.10


@pytest.fixture
def train(model_folder, tmp_path, monkeypatch):
    """train(folder): the callback that watched a short training with LoRA+."""
    watchers = []

    class Kept(ProjectedFraction):
        def __init__(self, *settings):
            super().__init__(*settings)
            watchers.append(self)

    monkeypatch.setattr(fitting, "ProjectedFraction", Kept)

    def run(name: str, optimizer: str = "adamp", ratio: float = 4.0):
        recipe = Recipe(
            base=BaseSpec(str(model_folder("llama"))), adapter=AdapterSpec(rank=4, alpha=8.0),
            optimizer=OptimizerSpec(optimizer, {"delta": 1.0}, loraplus_ratio=ratio),
            max_steps=6, learning_rate=1e-2, batch_size=2, accumulate=2,
        )  # fmt: skip
        base = load_base(recipe.base)
        encoder = Encoder(base.tokenizer, family="causal", max_length=64)
        row = to_row({"prompt": "1=", "completion": "abab"}, "prompt_completion")
        examples, _ = encode_all(encoder, [row])
        fit(recipe, base, examples=examples, encoder=encoder, folder=tmp_path / name, name="t")
        return watchers[-1]

    return run


@pytest.mark.parametrize("optimizer", ["adamp", "sgdp"])
def test_fractions_survive_an_interruption(train, monkeypatch, tmp_path, optimizer):
    whole = train("whole", optimizer)
    step = FineTuner.training_step

    def dying(self, batch, index):
        if self.global_step == 4:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train("cut", optimizer)
    again = train("cut", optimizer)
    assert again.fractions == whole.fractions
    assert list(whole.fractions) == ["all", "A", "B"]
    assert {len(curve) for curve in whole.fractions.values()} == {6}
    assert whole.fractions["B"][0] == 1.0  # zeros
    assert 0 < whole.means["all"] < 1
    texts = [(tmp_path / name / "projected.csv").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1] and texts[0].startswith("step,all,A,B\n1,")
    assert len(texts[0].splitlines()) == 7


def test_one_group_has_one_curve_and_the_end_is_told(train, caplog):
    with caplog.at_level("INFO"):
        assert list(train("one", ratio=1.0).fractions) == ["all"]
    told = [line for line in caplog.messages if "projected" in line]
    assert len(told) == 1 and told[0].startswith("t: tensors projected in a step: all ")
