"""A truncated model: every target layer replaced, measured as it is, and brought back."""

import pytest
import torch

from gradex.adapters.covariance_cache import contexts
from gradex.adapters.residual import base_weight
from gradex.adapters.truncation import METRICS
from gradex.checks.truncations import Study, Truncations, fewest_components, with_targets
from gradex.data.tokens import Encoder, collate
from gradex.models.load import BaseSpec, load_base
from gradex.models.scoring import row_losses

FAMILIES = {"llama": "causal", "gpt2": "causal", "t5": "seq2seq", "bert": "classifier"}


@pytest.fixture
def study(model_folder, toy_batch, tmp_path):
    def make(kind: str, discards=(2, 16)) -> Study:
        base = load_base(BaseSpec(str(model_folder(kind))))
        model, layers = with_targets(base, ["all-linear"])
        examples, batch = toy_batch(base.family)
        fewer = collate(examples[:3], family=base.family, pad_id=0)
        seen = contexts(model, layers, [batch], base.family)
        truncations = Truncations.of(layers, seen, contexts(model, layers, [fewer], base.family))
        encoder = Encoder(base.tokenizer, family=base.family)
        rows = {"one": examples[:3], "two": examples[2:]}
        return Study(model, encoder, rows, truncations, list(METRICS), discards, tmp_path / kind)

    return make


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_model_is_truncated_for_a_while(study, kind):
    found = study(kind)
    layers = found.truncations.layers
    intact = row_losses(found.model, found.examples["two"], found.encoder)
    for metric in METRICS:
        components = found.truncations.smallest(metric, 16)
        with found.truncations.truncated(components, discard=8):
            for name, layer in layers.items():
                rank = torch.linalg.matrix_rank(base_weight(layer), rtol=1e-5)
                assert rank == min(base_weight(layer).shape) - 8, name
            lossy = row_losses(found.model, found.examples["two"], found.encoder)
        assert (lossy != intact).any()
        assert (row_losses(found.model, found.examples["two"], found.encoder) == intact).all()


def test_the_weights_come_back_after_an_error(study):
    found = study("llama")
    before = [p.detach().clone() for p in found.model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        components = found.truncations.smallest("plain", 4)
        with found.truncations.truncated(components, discard=4):
            raise KeyboardInterrupt
    assert all(torch.equal(a, b) for a, b in zip(before, found.model.parameters(), strict=True))


def test_the_content_is_that_of_each_setting_by_hand(study):
    found = study("llama")
    content = found.content()
    assert content["components"] == fewest_components(found.truncations.layers)[0] == 16
    assert [(s["metric"], s["discard"]) for s in content["settings"]] == [
        (metric, discard) for metric in METRICS for discard in (2, 16)
    ]
    losses = row_losses(found.model, found.examples["one"], found.encoder)
    labels = [example.n_labels for example in found.examples["one"]]
    mean = sum(losses * labels) / sum(labels)
    assert content["intact"]["targets"]["one"] == pytest.approx(float(torch.tensor(mean).exp()))
    by_target = torch.tensor(list(content["intact"]["targets"].values()))
    assert content["intact"]["perplexity"] == pytest.approx(float(by_target.log().mean().exp()))
    for setting in content["settings"]:
        errors = setting["layers"].values()
        assert setting["output_error"] == pytest.approx(sum(errors) / len(errors))
        assert all(0 < error <= 1.001 for error in errors)


def test_what_was_measured_is_not_measured_again(study, monkeypatch):
    found, count = study("llama"), []
    loss = Study._loss
    monkeypatch.setattr(Study, "_loss", lambda self, rows: count.append(1) or loss(self, rows))
    whole = found.content()
    assert len(count) == 2 * (1 + 3 * 2)
    (found.folder / "context-16.json").unlink()
    assert found.content() == whole
    assert len(count) == 2 * (1 + 3 * 2) + 2
