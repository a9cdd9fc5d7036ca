"""EVA: principal components of the inputs, ranks dealt out by what they explain."""

import logging

import peft
import pytest
import torch

from gradex.adapters.attach import attach
from gradex.adapters.beginning import Beginning
from gradex.adapters.eva import Components, deal_out, input_components
from gradex.adapters.folder import export, load
from gradex.adapters.kinds import parse_options
from gradex.adapters.residual import ADAPTER, lora_layers
from gradex.adapters.spec import AdapterSpec
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq", "bert": "classifier"}


@pytest.fixture
def base(model_folder):
    return lambda model="llama": load_base(BaseSpec(str(model_folder(model))))


def spec_of(**more) -> AdapterSpec:
    settings = {"rank": 4, "alpha": 6.0, "options": {"rho": 2.0}} | more
    return AdapterSpec(kind="eva", **settings)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cuts", [(), (10,), (3, 4, 20, 41)])
def test_components_of_batches_are_those_of_all_rows(cuts):
    """All of them are kept here, so that nothing is lost on the way."""
    rows = drawn(50, 6) @ drawn(6, 6, seed=1) + 3 * drawn(6, seed=2)
    components = Components(6, seed=0)
    for part in torch.tensor_split(rows, cuts):
        components.add(part)
    _, s, vh = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    torch.testing.assert_close(components.explained, s.square() / s.square().sum())
    along = (components.directions * vh).sum(1).abs()
    torch.testing.assert_close(along, torch.ones(6), rtol=0, atol=1e-4)


def test_the_first_components_of_many_batches_are_nearly_those_of_all_rows():
    rows = drawn(400, 30) * torch.logspace(1, -1, 30) @ drawn(30, 30, seed=1)
    components = Components(4, seed=0)
    for part in rows.split(25):
        components.add(part)
    _, s, vh = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    shares = s.square() / s.square().sum()
    torch.testing.assert_close(components.explained, shares[:4], rtol=0.05, atol=0)
    assert torch.linalg.svdvals(components.directions @ vh[:4].T).min() > 0.9


def test_rows_that_do_not_vary_explain_nothing():
    components = Components(3, seed=0)
    components.add(torch.ones(1, 5))
    components.add(torch.ones(4, 5))
    assert not components.explained.any()


def test_ranks_go_where_they_explain_most():
    explained = {"a": torch.tensor([0.6, 0.3, 0.02]), "b": torch.tensor([0.1, 0.05, 0.0])}
    assert deal_out(explained, budget=2) == {"a": 2, "b": 0}
    assert deal_out(explained, budget=4) == {"a": 2, "b": 2}
    assert deal_out(explained, budget=9) == {"a": 3, "b": 2}


def inputs_of(model, layer: str, batch, family) -> torch.Tensor:
    """What the layer of the plain model reads at the tokens that count."""
    seen = []
    module = model.get_submodule(layer.removeprefix("base_model.model."))
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(**batch) if family != "classifier" else model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        )
    handle.remove()
    labelled, real = batch["labels"] != -100, batch["attention_mask"].bool()
    of_encoder = "encoder" in layer or "EncDecAttention.k" in layer or "EncDecAttention.v" in layer
    if family == "causal":
        return seen[0][labelled & real]
    return seen[0][real if of_encoder else labelled]


@pytest.mark.parametrize("model", FAMILIES)
def test_every_layer_begins_with_the_components_of_its_inputs(base, toy_batch, model):
    """Of all rows at once and in two batches: what is padding in them counts in none."""
    family = FAMILIES[model]
    _, batch = toy_batch(family)
    parts = [{key: value[i : i + 2] for key, value in batch.items()} for i in (0, 2)]
    for batches in ([batch], parts):
        adapted = attach(base(model), spec_of(), seed=0, batches=batches)
        for name, layer in lora_layers(adapted):
            if "pooler" in name:
                continue
            rows = inputs_of(base(model).model, name, batch, family)
            spread = rows - rows.mean(0)
            a = layer.lora_A[ADAPTER].weight.detach()
            torch.testing.assert_close(a @ a.T, torch.eye(len(a)), rtol=0, atol=1e-4)
            best = torch.linalg.svdvals(spread)[: len(a)]
            if batches is not parts:
                torch.testing.assert_close(torch.linalg.svdvals(spread @ a.T), best)
            assert (spread @ a.T).norm() > 0.9 * best.norm()
            assert not layer.lora_B[ADAPTER].weight.any()


def test_layers_of_one_input_share_their_components(base, toy_batch, monkeypatch):
    calls, add = [], Components.add
    monkeypatch.setattr(Components, "add", lambda self, rows: (calls.append(1), add(self, rows)))
    _, batch = toy_batch("causal")
    adapted = attach(base(), AdapterSpec(rank=4), seed=0)
    begun = Beginning("causal", "llama", False, seed=0, batches=[batch, batch])
    found = input_components(adapted, begun, most=4)
    blocks = [found[f"base_model.model.model.layers.0.{name}"] for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )]  # fmt: skip
    assert len({id(block) for block in blocks}) == 4
    assert len(calls) == 4 * 2 * 2  # layers that differ, blocks, batches
    assert blocks[0].rows == 2 * int((batch["labels"] != -100).sum())


def test_the_ranks_are_redistributed_within_the_budget(base, toy_batch, tmp_path):
    """And go with the folder: with gradex, and with peft alone."""
    _, batch = toy_batch("causal")
    adapted = attach(base(), spec_of(), seed=0, batches=[batch])
    ranks = {name: len(layer.lora_A[ADAPTER].weight) for name, layer in lora_layers(adapted)}
    assert sum(ranks.values()) == 4 * 14 and 4 < max(ranks.values()) <= 8
    scales = {layer.scaling[ADAPTER] for _, layer in lora_layers(adapted)}
    assert scales == {6.0 / 4}
    export(adapted, tmp_path / "a", base_path="base", card=None)
    alone = peft.PeftModel.from_pretrained(base().model, tmp_path / "a")
    for loaded in (alone, load(base(), tmp_path / "a")):
        found = {n: (len(x.lora_A[ADAPTER].weight), x.scaling) for n, x in lora_layers(loaded)}
        assert found == {name: (rank, {ADAPTER: 6.0 / 4}) for name, rank in ranks.items()}


def test_no_redistribution_gives_every_layer_its_rank(base, toy_batch):
    _, batch = toy_batch("causal")
    adapted = attach(base(), spec_of(options={"rho": 1.0}), seed=0, batches=[batch])
    ranks = [len(layer.lora_A[ADAPTER].weight) for _, layer in lora_layers(adapted)]
    assert ranks == [4] * 14 and not adapted.peft_config[ADAPTER].rank_pattern


def test_too_few_tokens_are_told(base, toy_batch, caplog):
    _, batch = toy_batch("causal")
    few = {key: value[:1, :5] for key, value in batch.items()}
    with caplog.at_level(logging.WARNING):
        attach(base(), spec_of(), seed=0, batches=[few])
    assert "fewer than the 56 of the ranks" in caplog.text
    one = {key: value[:1, :3] for key, value in batch.items()}
    with pytest.raises(GradexError, match="do not vary"):
        attach(base(), spec_of(), seed=0, batches=[one])
    with pytest.raises(GradexError, match=r"--adapter eva: .*none are given"):
        attach(base(), spec_of(), seed=0)


def test_it_agrees_with_peft_where_peft_can(base, toy_batch):
    """Its own start on a text model, from a batch that is more tokens than components."""
    _, batch = toy_batch("causal")
    config = peft.LoraConfig(
        r=4, lora_alpha=6.0, target_modules="all-linear", init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=1.0), task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(base().model, config, low_cpu_mem_usage=True)
    peft.initialize_lora_eva_weights(theirs, [batch], show_progress_bar=False)
    ours = attach(base(), spec_of(options={"rho": 1.0}), seed=0, batches=[batch])
    theirs = dict(lora_layers(theirs))
    for name, layer in lora_layers(ours):
        a, b = (x.lora_A[ADAPTER].weight.detach() for x in (layer, theirs[name]))
        assert torch.linalg.svdvals(a @ b.T).min() > 0.99


@pytest.mark.parametrize("word", ["rho=0.9", "rho=nan", "rho=inf", "rho=much", "rho"])
def test_a_share_that_cannot_be_is_refused(word):
    with pytest.raises(GradexError, match=r"--adapter_args rho.*expected rho=FLOAT \(at least 1\)"):
        parse_options("eva", [word])
