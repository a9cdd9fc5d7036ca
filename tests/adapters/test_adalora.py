"""AdaLoRA: peft's choice of triplets, an exact budget, a penalty apart, no loss in folders."""

import copy
import warnings

import peft
import pytest
import torch

from gradex.adapters.adalora import Allocator, kept_ranks, orthogonality, svd_layers
from gradex.adapters.attach import attach
from gradex.adapters.folder import export, load, load_all
from gradex.adapters.kinds import parse_options
from gradex.adapters.residual import ADAPTER
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.gradients.per_sample import GradientPass, make_pass, per_sample_gradients
from gradex.models.load import BaseSpec, load_base
from gradex.models.losses import sample_objectives

STEPS = 12


@pytest.fixture
def base(model_folder):
    return lambda model="llama": load_base(BaseSpec(str(model_folder(model))))


def attached(base, *words: str, rank: int = 2, steps: int = STEPS):
    options = parse_options("adalora", words)
    spec = AdapterSpec(kind="adalora", rank=rank, alpha=6.0, options=options)
    return attach(base, spec, seed=0, steps=steps).train()


def losses(model, batch):
    return sample_objectives(model, dict(batch), "causal")[0]["loss"]


def train_step(model, optimizer, batch):
    optimizer.zero_grad()
    (losses(model, batch).mean() + orthogonality(model)).backward()
    optimizer.step()


def nonzero(model) -> int:
    return sum(rank["kept"] for rank in kept_ranks(model).values())


@pytest.fixture
def trained(base, toy_batch):
    """trained(*settings, until=step): a model after its steps, and what allotted its ranks."""

    def run(*words: str, until: int = STEPS, **more):
        model = attached(base(), *words, **more)
        allocator = Allocator(model, steps=STEPS)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(1, until + 1):
            train_step(model, optimizer, toy_batch("causal")[1])
            allocator.after_step(step)
        return model, allocator

    return run


def test_it_keeps_what_peft_keeps(base, toy_batch):
    """Two copies on the same gradients, one allotted by peft's own loop."""
    _, batch = toy_batch("causal")
    ours = attached(base(), "tinit=2", "tfinal=3", "deltaT=2")
    theirs = copy.deepcopy(ours)
    allocator = Allocator(ours, steps=STEPS)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (ours, theirs)]
    for step in range(1, STEPS + 1):
        train_step(ours, optimizers[0], batch)
        train_step(theirs, optimizers[1], batch)
        allocator.after_step(step)
        theirs.base_model.update_and_allocate(step)
        for (name, one), (_, other) in zip(svd_layers(ours), svd_layers(theirs), strict=True):
            kept = one.lora_E[ADAPTER] != 0, other.lora_E[ADAPTER] != 0
            assert torch.equal(*kept), (step, name)
    pattern = theirs.peft_config[ADAPTER].rank_pattern
    ours_pattern = ours.peft_config[ADAPTER].rank_pattern
    assert {name.replace(".default", ""): kept for name, kept in pattern.items()} == ours_pattern


def test_the_budget_is_kept_to_at_every_deal(base, toy_batch):
    """14 matrices of rank 3 that go down to 2: 28 + 14 (1 - (step - 2) / 7)^3 triplets."""
    model = attached(base(), "tinit=2", "tfinal=3", "deltaT=2")
    allocator = Allocator(model, steps=STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wanted = {4: 33, 6: 29, 8: 28, 9: 28, 10: 28, 11: 28, 12: 28}
    for step in range(1, STEPS + 1):
        train_step(model, optimizer, toy_batch("causal")[1])
        allocator.after_step(step)
        if step in wanted:
            pattern = model.peft_config[ADAPTER].rank_pattern
            assert sum(map(sum, pattern.values())) == nonzero(model) == wanted[step]
        else:
            assert nonzero(model) == 42  # those that were dropped have grown again


def test_equal_importance_is_no_reason_to_keep_more_or_less(base):
    """Without any gradient all triplets are alike, and the first ones are kept."""
    model = attached(base())
    for _, layer in svd_layers(model):
        layer.lora_E[ADAPTER].data.fill_(1.0)
    allocator = Allocator(model, steps=STEPS)
    allocator.after_step(allocator.budget.settled)
    assert nonzero(model) == 2 * len(allocator.layers)


def test_the_scale_stays_that_of_the_rank_at_first(trained):
    model, _ = trained()
    for _, layer in svd_layers(model):
        assert float(layer.ranknum[ADAPTER]) == 3 and layer.scaling[ADAPTER] == 6.0


def test_the_penalty_is_that_of_peft(base, toy_batch):
    """Which adds it to the loss it gives, in training and without."""
    _, batch = toy_batch("causal")
    model = attached(base(), "orth_reg_weight=0.3").eval()
    whole = model(**batch).loss
    bare = model.base_model.model(**batch).loss
    torch.testing.assert_close(orthogonality(model), whole - bare, rtol=1e-5, atol=1e-6)
    assert orthogonality(model) > 0.1
    assert orthogonality(attach(base(), AdapterSpec(), seed=0)) == 0


def test_no_row_sees_the_penalty(base, toy_batch):
    _, batch = toy_batch("causal")
    heavy, light = (attached(base(), f"orth_reg_weight={w}").eval() for w in (100.0, 0.0))
    torch.testing.assert_close(losses(heavy, batch), losses(light, batch), rtol=0, atol=0)
    found = [per_sample_gradients(model, dict(batch)) for model in (heavy, light)]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def require_same_model(model, folder, base, batch):
    """Loaded here and by peft alone, which warns of a pattern that it then goes by."""
    loaded_here = load(base(), folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following rank_pattern keys")
        loaded_by_peft = peft.PeftModel.from_pretrained(base().model, folder).eval()
    with torch.no_grad():
        wanted = losses(model.eval(), batch)
        for loaded in (loaded_here, loaded_by_peft):
            torch.testing.assert_close(losses(loaded, batch), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("until", [1, 3, 4, 5, 8, 9, 10, STEPS])
def test_what_is_saved_is_the_trained_model(base, trained, toy_batch, tmp_path, until):
    """At a deal, and between two, when dropped triplets have grown again."""
    _, batch = toy_batch("causal")
    model, allocator = trained("tinit=2", "tfinal=3", "deltaT=2", until=until)
    export(model, tmp_path / "a", base_path="base", card=None)
    require_same_model(model, tmp_path / "a", base, batch)
    kept = {name: rank["kept"] for name, rank in kept_ranks(model).items()}
    sizes = {n: len(layer.lora_E[ADAPTER]) for n, layer in svd_layers(load(base(), tmp_path / "a"))}
    grown = until in (1, 3, 5)
    assert sizes == (dict.fromkeys(kept, 3) if grown else kept)
    assert allocator.kept or until < 4


@pytest.fixture
def lopsided(base, toy_batch, tmp_path):
    """A trained adapter some of whose layers have nothing left, and its folder."""
    _, batch = toy_batch("causal")
    model = attached(base(), rank=1)
    allocator = Allocator(model, steps=STEPS)
    train_step(model, torch.optim.AdamW(model.parameters(), lr=1e-2), batch)
    for name, layer in svd_layers(model):
        layer.lora_E[ADAPTER].data.fill_(0.5)
        if "mlp" in name:
            layer.lora_E[ADAPTER].grad.fill_(100.0)
    allocator.after_step(4)
    allocator.after_step(allocator.budget.settled)
    export(model, tmp_path / "a", base_path="base", card=None)
    return model, tmp_path / "a"


def test_layers_without_rank_load_again(base, toy_batch, lopsided):
    model, folder = lopsided
    ranks = [rank["kept"] for rank in kept_ranks(model).values()]
    assert 0 in ranks and max(ranks) == 2 and sum(ranks) == len(ranks)
    require_same_model(model, folder, base, toy_batch("causal")[1])


def test_gradients_at_a_loaded_adapter_are_those_of_a_loop(base, toy_batch, lopsided):
    _, batch = toy_batch("causal")
    model = load(base(), lopsided[1])
    assert isinstance(make_pass(model, "causal", dict(batch)), GradientPass)
    found = per_sample_gradients(model, dict(batch))
    trained = [p for p in model.parameters() if p.requires_grad]
    for one, loss in zip(found, losses(model, batch), strict=True):
        wanted = torch.autograd.grad(loss, trained, retain_graph=True)
        torch.testing.assert_close(one, torch.cat([w.flatten() for w in wanted]))


def test_a_loaded_adapter_is_saved_as_it_was(base, toy_batch, lopsided, tmp_path):
    _, batch = toy_batch("causal")
    model = load(base(), lopsided[1])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    export(model, tmp_path / "b", base_path="base", card=None)
    require_same_model(model, tmp_path / "b", base, batch)
    assert kept_ranks(model) == kept_ranks(load(base(), tmp_path / "b"))


def test_several_adapters_lie_side_by_side(base, trained, toy_batch, tmp_path, lopsided):
    _, batch = toy_batch("causal")
    other, _ = trained(rank=3)
    export(other, tmp_path / "b", base_path="base", card=None)
    model = load_all(base(), {"one": lopsided[1], "two": tmp_path / "b"})
    for name, wanted in (("two", other), ("one", lopsided[0]), ("two", other)):
        model.set_adapter(name)
        torch.testing.assert_close(losses(model, batch), losses(wanted.eval(), batch))


def test_a_total_that_is_not_the_training_is_refused(base):
    with pytest.raises(GradexError, match="total_step is 12, but the training is one of 13"):
        Allocator(attached(base()), steps=13)
