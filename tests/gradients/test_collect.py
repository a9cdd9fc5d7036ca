"""The pass over a shard: what is stored is the projected gradient, bad rows are named,
and nothing of the size of rows times parameters is held."""

import numpy as np
import pytest
import torch

from gradex.adapters.attach import attach
from gradex.adapters.spec import AdapterSpec
from gradex.data.formats import Row
from gradex.data.tokens import Encoder, collate, encode_all, guess_lengths
from gradex.gradients import precondition
from gradex.gradients.budget import LEAST, MOST, bytes_kept, fitting_tokens
from gradex.gradients.collect import Collector
from gradex.gradients.per_sample import GradientPass, per_sample_gradients
from gradex.gradients.projectors import make_projector
from gradex.models.load import BaseSpec, load_base


def make_rows(count: int) -> list[Row]:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), rng.integers(2, 30))) for _ in range(count)]
    pairs = [(("user", f"{word}="), ("assistant", word[:4])) for word in words]
    return [Row(f"id{i:04d}", pair) for i, pair in enumerate(pairs)]


def make_passing(folder, *, rank: int):
    """A gradient pass over a toy Llama with LoRA away from its start, and the rows' encoder."""
    base = load_base(BaseSpec(str(folder)))
    model = attach(base, AdapterSpec(rank=rank, alpha=4.0), seed=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(1)
            )
    return GradientPass(model.eval(), "causal"), Encoder(base.tokenizer, family="causal")


@pytest.fixture
def passing(model_folder):
    return make_passing(model_folder("llama"), rank=2)


def make_collector(passing, **settings) -> Collector:
    usual = {"differentiate": "loss", "dtype": "float32", "tokens_per_batch": 200}
    return Collector(*passing, make_projector("sjlt", 16), **usual | settings)


def exact(passing, rows):
    gradients, encoder = passing
    examples, _ = encode_all(encoder, rows)
    batch = collate(examples, family="causal", pad_id=0)
    return per_sample_gradients(gradients.model, batch)


def test_stored_rows_are_projected_gradients_with_their_norms(passing):
    rows = make_rows(12)
    wanted = exact(passing, rows)
    heard = []
    parts, faults = make_collector(passing).collect(rows, ["train"] * 12, heard.append)
    stored, table = parts[""]
    np.testing.assert_allclose(
        stored, make_projector("sjlt", 16).project(wanted), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(table["grad_norm"], wanted.norm(dim=1), rtol=1e-4)
    assert sum(heard) == sum(e.length for e in encode_all(passing[1], rows)[0])
    assert not faults.bad and not faults.left_out and table["ok"].all()


def test_a_preconditioned_row_is_divided_before_it_is_projected(passing):
    rows = make_rows(12)
    wanted = exact(passing, rows)
    divisor = precondition.adam_divisor(*passing, rows, tokens_per_batch=200)
    mean = wanted.double().square().mean(0)
    # Up to one scale, the divisor is the fourth root of the mean square, with its floor.
    ratio = torch.from_numpy(divisor) / (mean + 1e-6 * mean.mean()) ** 0.25
    assert ratio.std() / ratio.mean() < 1e-4
    divided = wanted / torch.from_numpy(divisor)
    np.testing.assert_allclose(divided.square().sum(), wanted.square().sum(), rtol=1e-4)
    collector = make_collector(passing, scale=torch.from_numpy(1 / divisor))
    stored, table = collector.collect(rows, ["train"] * 12, lambda tokens: None)[0][""]
    np.testing.assert_allclose(
        stored, make_projector("sjlt", 16).project(divided), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(table["grad_norm"], divided.norm(dim=1), rtol=1e-4)


def test_another_budget_moves_no_more_than_the_last_bits(passing):
    rows = make_rows(20)
    stored = [
        make_collector(passing, tokens_per_batch=budget).collect(
            rows, ["train"] * 20, lambda tokens: None
        )[0][""][0]
        for budget in (1, 100, 4096)
    ]
    for other in stored[1:]:
        gap = np.linalg.norm(other - stored[0], axis=1) / np.linalg.norm(stored[0], axis=1)
        assert gap.max() < 1e-5


def test_a_row_that_is_not_finite_is_named_and_spoils_no_other(passing):
    rows = make_rows(12)
    gradients, encoder = passing
    clean = make_collector(passing).collect(rows, ["train"] * 12, lambda tokens: None)[0][""][0]
    poison = encoder.encode(rows[5]).input_ids[0]
    marked = [row for row in rows if poison in encoder.encode(row).input_ids]
    embedding = gradients.model.get_base_model().get_input_embeddings()
    embedding.weight.data[poison] = torch.nan
    parts, faults = make_collector(passing).collect(rows, ["train"] * 12, lambda tokens: None)
    stored, table = parts[""]
    assert faults.bad == {row.id: "its loss is not finite" for row in marked}
    assert (~table["ok"]).sum() == len(marked) and np.isfinite(stored).all()
    np.testing.assert_allclose(stored[table["ok"]], clean[table["ok"]], rtol=1e-5)


def test_a_row_without_a_label_is_left_out_and_is_not_bad(passing):
    rows = make_rows(4)
    passing[1].max_length = len(passing[1].encode(rows[1]).input_ids) - 5
    parts, faults = make_collector(passing).collect(rows, ["train"] * 4, lambda tokens: None)
    assert rows[1].id in faults.left_out and not faults.bad
    assert not parts[""][1]["ok"][1]


def test_guessed_lengths_add_up_to_about_the_true_ones(passing):
    rows, encoder = make_rows(300), passing[1]
    true = [encoder.encode(row).length for row in rows]
    guessed = guess_lengths(encoder, rows)
    assert abs(sum(guessed) / sum(true) - 1) < 0.15
    encoder.max_length = 10
    assert max(guess_lengths(encoder, rows)) == 10


def test_what_a_pass_keeps_does_not_depend_on_the_rows_sketch(passing):
    gradients, encoder = passing
    examples, _ = encode_all(encoder, make_rows(8))
    batch = collate(examples, family="causal", pad_id=0)
    kept = bytes_kept(gradients, batch)
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    assert 1.8 < bytes_kept(gradients, twice) / kept < 2.2


@pytest.mark.parametrize(("free", "wanted"), [(0, LEAST), (2**60, MOST)])
def test_a_measured_budget_stays_within_bounds(passing, monkeypatch, free, wanted):
    monkeypatch.setattr("gradex.gradients.budget.free_bytes", lambda device: free)
    examples, _ = encode_all(passing[1], make_rows(4))
    assert fitting_tokens(*passing, examples, num_workers=1) == wanted


def test_more_workers_share_the_memory(passing, monkeypatch):
    examples, _ = encode_all(passing[1], make_rows(4))
    batch = collate(examples, family="causal", pad_id=0)
    per_token = bytes_kept(passing[0], batch) / batch["input_ids"].numel()
    monkeypatch.setattr(
        "gradex.gradients.budget.free_bytes", lambda device: int(4.2 * 1024 * per_token)
    )
    assert fitting_tokens(*passing, examples, num_workers=1) == 1024
    assert fitting_tokens(*passing, examples, num_workers=2) == 512


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_nothing_of_rows_times_parameters_or_parameters_times_dims_is_made(model_folder):
    passing = make_passing(model_folder("llama"), rank=64)
    params = sum(slot.size for slot in passing[0].slots)
    rows = make_rows(32)
    with _Largest() as largest:
        make_collector(passing, tokens_per_batch=4096).collect(
            rows, ["train"] * 32, lambda tokens: None
        )
    assert largest.numbers < min(32 * params, 16 * params) / 2
