"""Moving the adapter: the law of the lift, weights that come back, real losses at small steps."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from gradex.checks.subject import fresh_adapter
from gradex.data.subsets import membership
from gradex.data.tokens import Encoder
from gradex.errors import GradexError
from gradex.estimators.displaced import Lift, MetaModel, displaced, lift_of
from gradex.estimators.linear import Linear
from gradex.estimators.protocol import Displacing
from gradex.estimators.shift import Shift
from gradex.gradients.description import digest
from gradex.gradients.layers import trainable_slots
from gradex.gradients.per_sample import per_sample_gradients
from gradex.gradients.projectors import make_projector
from gradex.gradients.store import GradientStore
from gradex.models.load import BaseSpec, load_base

SIZE, DIM = 3000, 20
each_kind = pytest.mark.parametrize("kind", ["sjlt", "rademacher"])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def divisor(size: int = SIZE) -> np.ndarray:
    """A preconditioner, its entries a hundred times apart."""
    return np.logspace(-1, 1, size, dtype=np.float32)


def empty_store(path, *, kind: str, precondition: np.ndarray | None = None) -> GradientStore:
    space = {
        "project_dim": DIM,
        "differentiate": "loss",
        "dtype": "float32",
        "projector": kind,
        "seed": 4,
        "precondition": "none" if precondition is None else f"adam {digest(precondition)}",
    }
    return GradientStore.create(path, space, origin={}, shard_rows=8, precondition=precondition)


@each_kind
@pytest.mark.parametrize("precondition", [None, divisor()])
def test_the_lift_is_the_adjoint_of_the_stores_sketch(tmp_path, kind, precondition):
    """<P^T C g, z> = <g, C P z>, with the gradient divided as project divides it."""
    lift = lift_of(empty_store(tmp_path / "store", kind=kind, precondition=precondition))
    g, z = draw(SIZE), draw(DIM, seed=1)
    divided = g if precondition is None else g / torch.from_numpy(precondition)
    sketch = make_projector(kind, DIM, seed=4).project(divided[None])[0]
    torch.testing.assert_close(sketch @ z, g @ lift(z.numpy(), size=SIZE), rtol=1e-4, atol=1e-3)


@each_kind
@pytest.mark.parametrize("scale", [None, torch.from_numpy(1 / divisor())])
def test_the_gain_is_the_length_of_what_is_lifted(kind, scale):
    """In mean over projections within its standard error, and for each of them nearly."""
    z, ratios = draw(DIM).numpy(), []
    for seed in range(50):
        lift = Lift(make_projector(kind, DIM, seed=seed), scale)
        length = float(lift(z, size=SIZE).norm())
        ratios.append(length / (lift.gain(SIZE) * np.linalg.norm(z)))
    squares = np.square(ratios)
    assert abs(squares.mean() - 1) < 4 * squares.std() / 50**0.5
    assert np.abs(np.array(ratios) - 1).max() < 0.2


def test_a_projection_without_a_way_back_is_refused(tmp_path):
    store = empty_store(tmp_path / "store", kind="rademacher_fastjl")
    with pytest.raises(GradexError, match=r"no way back to the weights.*--projector sjlt"):
        lift_of(store)


def test_weights_are_moved_and_come_back_bit_by_bit():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    slots = trainable_slots(model)
    before = [p.detach().clone() for p in model.parameters()]
    displacement = 1e3 * draw(sum(p.numel() for p in before))  # no sum of floats undoes that
    with pytest.raises(RuntimeError, match="inside"), displaced(slots, displacement):
        moved = torch.cat([p.detach().flatten() for p in model.parameters()])
        rest = torch.cat([p.flatten() for p in before])
        torch.testing.assert_close(moved, rest + displacement)
        raise RuntimeError("inside")
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.fixture
def meta_model(model_folder, toy_batch) -> MetaModel:
    """A small model with an adapter drawn at random, and one target."""
    base = load_base(BaseSpec(str(model_folder("llama"))))
    model = fresh_adapter(base)
    encoder = Encoder(base.tokenizer, family=base.family, max_length=64, label_ids={})
    return MetaModel(model, encoder, trainable_slots(model), {"t": toy_batch("causal")[0]})


def test_small_steps_change_the_loss_as_the_gradient_says(meta_model, toy_batch):
    batch = toy_batch("causal")[1]
    gradient = per_sample_gradients(meta_model.model, batch).mean(0)
    lift = Lift(make_projector("sjlt", DIM), None)
    w = lift((lift.projector.project(gradient[None])[0]).numpy(), size=meta_model.size)
    w *= 0.01 * meta_model.norm / w.norm()
    change = (meta_model.losses(w) - meta_model.losses(-w)) / 2  # what is even in w cancels
    np.testing.assert_allclose(change[0], float(gradient @ w), rtol=1e-3)


def test_losses_are_the_same_before_and_after_a_step(meta_model):
    rest = torch.zeros(meta_model.size)
    before = meta_model.losses(rest)
    far = meta_model.losses(rest + 1)
    assert meta_model.losses(rest) == before != far


@dataclass
class Bowl:
    """Two targets: one loss is linear in the weights, the other the square of the distance."""

    gradient: torch.Tensor

    @property
    def size(self) -> int:
        return len(self.gradient)

    def losses(self, w: torch.Tensor) -> np.ndarray:
        return np.array([1.5 + float(self.gradient @ w), float(w.square().sum())])


class Planted:
    """An estimator that leads every source to a place of its own."""

    def fit(self, store, *, sources=None, targets=None, split="select"):
        self.sources_ = sources
        return self

    def displacements(self, member):
        return member @ np.arange(1.0, 1 + DIM * len(self.sources_)).reshape(-1, DIM)

    def predict(self, subsets):
        raise AssertionError("a shift asks for displacements alone")


class PlantedStore(GradientStore):
    sources, targets = ("a", "b"), ("line", "bowl")


@pytest.mark.parametrize("length", [None, 0.5])
def test_a_shift_is_the_loss_at_the_lifted_displacement(tmp_path, length):
    empty_store(tmp_path / "store", kind="sjlt")
    store, bowl = PlantedStore.open(tmp_path / "store"), Bowl(draw(SIZE))
    shift = Shift(Planted(), length=length, load=lambda *_, split: bowl).fit(store)
    subsets = [frozenset("a"), frozenset("ab")]
    found = shift.predict(subsets)
    sketch = make_projector("sjlt", DIM, seed=4).project(bowl.gradient[None])[0].numpy()
    z = Planted().fit(store, sources=["a", "b"]).displacements(membership(subsets, ["a", "b"]))
    lengths = np.array([float(lift_of(store)(one, size=SIZE).norm()) for one in z])
    step = np.ones(2) if length is None else length / lengths
    np.testing.assert_allclose(found.value[:, 0], 1.5 + step * (z @ sketch), rtol=1e-4)
    np.testing.assert_allclose(found.value[:, 1], (step * lengths) ** 2, rtol=1e-4)
    assert found.targets == ["line", "bowl"] and not found.calibrated


def test_unknown_sources_are_refused(tmp_path):
    empty_store(tmp_path / "store", kind="sjlt")
    store = PlantedStore.open(tmp_path / "store")
    shift = Shift(Planted(), load=lambda *_, split: Bowl(draw(SIZE))).fit(store)
    with pytest.raises(GradexError, match="unknown source 'z'"):
        shift.predict([frozenset("z")])


def test_linear_leads_somewhere_and_a_shift_does_not():
    assert isinstance(Linear(), Displacing) and not isinstance(Shift(Linear()), Displacing)
