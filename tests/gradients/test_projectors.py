"""Laws of the random projections: linear, seeded, slices add up, norms hold in mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradex.errors import GradexError
from gradex.gradients import fast_jl
from gradex.gradients.projectors import best_projector, hash_counter, make_projector

KINDS = ["sjlt", "rademacher"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def draw(samples: int, params: int, seed: int = 0):
    return torch.randn(samples, params, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    dim=st.integers(1, 70),
    params=st.integers(1, 300),
    cut=st.floats(0, 1),
)
def test_slices_add_up(kind, dim, params, cut):
    projector, g = make_projector(kind, dim, seed=3), draw(2, params)
    at = int(cut * params)
    parts = projector.project(g[:, :at]) + projector.project(g[:, at:], offset=at)
    torch.testing.assert_close(parts, projector.project(g), rtol=1e-4, atol=1e-5)
    together = projector.project(g[:, :at])
    projector.project(g[:, at:], offset=at, out=together)
    torch.testing.assert_close(together, parts, rtol=1e-4, atol=1e-5)


@each_kind
def test_linear(kind):
    projector, g = make_projector(kind, 16), draw(2, 500)
    left = projector.project(2 * g[:1] - 3 * g[1:])
    right = 2 * projector.project(g[:1]) - 3 * projector.project(g[1:])
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@each_kind
def test_equal_seeds_give_equal_maps_and_others_do_not(kind):
    g = draw(1, 500)
    first = make_projector(kind, 32, seed=1).project(g)
    assert torch.equal(first, make_projector(kind, 32, seed=1).project(g))
    assert not torch.allclose(first, make_projector(kind, 32, seed=2).project(g))


@each_kind
def test_norms_and_inner_products_hold_in_mean(kind):
    g = draw(2, 2000)
    products = []
    for seed in range(400):
        p = make_projector(kind, 50, seed=seed).project(g)
        products.append((p @ p.T).numpy())
    exact = (g @ g.T).numpy()
    error = np.std(products, axis=0) / np.sqrt(len(products))
    assert (np.abs(np.mean(products, axis=0) - exact) < 4 * error).all()


def test_a_short_sketch_is_the_long_one_folded():
    g = draw(3, 1000)
    long = make_projector("sjlt", 60).project(g)
    short = make_projector("sjlt", 20).project(g)
    torch.testing.assert_close(long.view(3, 3, 20).sum(1), short, rtol=1e-4, atol=1e-4)


@each_kind
def test_lift_is_the_transpose(kind):
    projector, g = make_projector(kind, 24), draw(1, 700)
    z = draw(1, 24, seed=5)[0]
    lifted = torch.cat([projector.lift(z, size=300), projector.lift(z, size=400, offset=300)])
    torch.testing.assert_close(projector.project(g)[0] @ z, g[0] @ lifted, rtol=1e-4, atol=1e-4)


def test_short_dense_sketch_is_the_beginning_of_a_long_one():
    g = draw(3, 1000)
    long = make_projector("rademacher", 400).project(g)
    short = make_projector("rademacher", 100).project(g)
    torch.testing.assert_close(2 * long[:, :100], short, rtol=1e-4, atol=1e-4)


def test_dense_signs_are_fair_and_independent():
    projector = make_projector("rademacher", 130)
    signs = projector.lift(torch.eye(130)[129], size=4000) * 130**0.5
    other = projector.lift(torch.eye(130)[1], size=4000) * 130**0.5
    torch.testing.assert_close(signs.abs(), torch.ones(4000))
    assert abs(signs.mean()) < 0.06 and abs((signs * other).mean()) < 0.06


def test_dense_signs_do_not_depend_on_the_block(monkeypatch):
    projector, g = make_projector("rademacher", 96), draw(2, 300)
    whole = projector.project(g)
    monkeypatch.setattr(type(projector), "BLOCK", 96 * 7)
    torch.testing.assert_close(projector.project(g), whole, rtol=1e-4, atol=1e-4)


def fake_kernel(rows, columns, seed):
    """What trak's kernel does: halves in, unscaled signs, a seed for each 32 columns."""
    assert columns % 512 == 0
    chunks = []
    for chunk in range(columns // 32):
        generator = torch.Generator().manual_seed(seed * 1000 + chunk)
        signs = torch.randint(2, (rows.shape[1], 32), generator=generator) * 2.0 - 1
        chunks.append(rows.half().float() @ signs)
    return torch.cat(chunks, dim=1)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(fast_jl, "_kernel", fake_kernel)
    monkeypatch.setattr(fast_jl, "why_not", lambda: fast_jl.self_test(torch.device("cpu")))


def test_the_kernels_projection_keeps_tiny_and_large_norms(gpu):
    projector = make_projector("rademacher_fastjl", 100)
    g = draw(3, 3000) * torch.tensor([[1e-9], [1.0], [1e9]])
    ratio = projector.project(g, offset=7).norm(dim=1) / g.norm(dim=1)
    assert ((ratio > 0.7) & (ratio < 1.3)).all()
    long = make_projector("rademacher_fastjl", 400).project(g, offset=7)
    torch.testing.assert_close(2 * long[:, :100], projector.project(g, offset=7))


def test_the_kernel_is_the_default_where_it_passes_its_self_test(gpu):
    assert best_projector() == "rademacher_fastjl"
    with pytest.raises(GradexError, match="no way back"):
        make_projector("rademacher_fastjl", 10).lift(torch.ones(10), size=4)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (lambda rows, columns, seed: torch.zeros(len(rows), columns), "0.00 times"),
        (lambda rows, columns, seed: fake_kernel(rows, 512, 0)[:, :32].repeat(1, 16), "repeat"),
        (lambda rows, columns, seed: 1 / 0, "division by zero"),
    ],
)
def test_a_broken_kernel_is_found_out(monkeypatch, kernel, reason):
    monkeypatch.setattr(fast_jl, "_kernel", kernel)
    assert reason in str(fast_jl.self_test(torch.device("cpu")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_kernel_is_refused_and_the_sparse_sketch_taken():
    assert best_projector() == "sjlt"
    with pytest.raises(GradexError, match=r"needs a CUDA GPU.*use --projector sjlt"):
        make_projector("rademacher_fastjl", 10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_kind
def test_the_same_map_on_a_gpu(kind):
    projector, g = make_projector(kind, 64), draw(3, 2000)
    on_gpu = projector.project(g.cuda()).cpu()
    torch.testing.assert_close(on_gpu, projector.project(g), rtol=1e-4, atol=1e-4)


def test_the_hash_is_that_of_splitmix64():
    # The published sequence for state 0: the first three outputs of the generator.
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    bits = hash_counter(torch.arange(3), 0)
    assert [int(b) % 2**64 for b in bits] == wanted


def test_an_unknown_kind_prints_the_known():
    with pytest.raises(GradexError, match="known are: sjlt, rademacher"):
        make_projector("dense", 10)
