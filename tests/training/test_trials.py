"""True fine-tunes: kept by what decides them, begun where they should, each once."""

import json
from dataclasses import replace

import pytest

from gradex.adapters.attach import attach
from gradex.adapters.folder import export
from gradex.adapters.spec import AdapterSpec
from gradex.data.sources import SplitRule, load_sources
from gradex.errors import GradexError
from gradex.models.load import BaseSpec
from gradex.training.prepare import load_base_and_encoder, split_scores
from gradex.training.recipe import Recipe
from gradex.training.trials import Trials

ONE, TWO = frozenset({"copy"}), frozenset({"upper", "noise_one"})
ORDER = ["upper", "copy", "noise_one"]


@pytest.fixture
def trials(model_folder, toy_tasks) -> Trials:
    spec = BaseSpec(str(model_folder("llama")))
    recipe = Recipe(
        spec, AdapterSpec(rank=4, alpha=8.0), max_steps=3, learning_rate=1e-2, batch_size=4
    )
    sources = load_sources([str(toy_tasks)], ["copy"], rule=SplitRule(held_out=0.4))
    return Trials(recipe, sources, 32, ["copy"])


@pytest.fixture
def trained(monkeypatch) -> list:
    """The (subset, seed) of every training that begins."""
    begun, train = [], Trials._train

    def counted(self, subset, seed, *rest):
        begun.append((subset, seed))
        return train(self, subset, seed, *rest)

    monkeypatch.setattr(Trials, "_train", counted)
    return begun


@pytest.fixture
def adapter(trials, tmp_path):
    """An adapter whose weights are far from those of a fresh one."""
    base, _ = load_base_and_encoder(trials.recipe.base, trials.sources, max_length=32)
    model = attach(base, trials.recipe.adapter, seed=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    export(model, tmp_path / "adapter", base_path="base", card="")
    return tmp_path / "adapter"


def test_a_finished_fine_tune_is_kept(trials, trained, tmp_path):
    first = trials.run([ONE, TWO], tmp_path / "runs", order=ORDER)
    again = trials.run([TWO, ONE, TWO], tmp_path / "runs", order=ORDER)
    assert [run.subset for run in first] == [ONE, TWO]
    assert again == [first[1], first[0], first[1]]
    assert trained == [(ONE, 0), (TWO, 0)]
    assert not list((tmp_path / "runs").glob("*/checkpoints"))
    kept = [json.loads(f.read_text())["subset"] for f in (tmp_path / "runs").glob("*/result.json")]
    assert sorted(kept) == [["copy"], ["upper", "noise_one"]]


def test_both_splits_of_every_target_are_measured(trials, tmp_path):
    [run] = trials.run([ONE], tmp_path, order=ORDER)
    assert set(run.scores) == {"copy"} and set(run.scores["copy"]) == {"select", "test"}
    assert run.scores["copy"]["select"]["loss"] != run.scores["copy"]["test"]["loss"] > 0


def test_every_subset_gets_every_seed(trials, tmp_path):
    found = trials.run([ONE, TWO], tmp_path, order=ORDER, seeds=[5, 0])
    assert [(run.subset, run.seed) for run in found] == [(ONE, 5), (ONE, 0), (TWO, 5), (TWO, 0)]
    assert len({run.scores["copy"]["test"]["loss"] for run in found}) == 4
    [own] = replace(trials, recipe=replace(trials.recipe, seed=5)).run(
        [ONE], tmp_path / "own", order=ORDER
    )
    assert own == found[0]


def test_an_interrupted_list_goes_on(trials, monkeypatch, tmp_path):
    whole = trials.run([ONE, TWO], tmp_path / "whole", order=ORDER)
    train, begun = Trials._train, []

    def dying(self, *arguments):
        begun.append(arguments)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return train(self, *arguments)

    monkeypatch.setattr(Trials, "_train", dying)
    with pytest.raises(KeyboardInterrupt):
        trials.run([ONE, TWO], tmp_path / "killed", order=ORDER)
    assert trials.run([ONE, TWO], tmp_path / "killed", order=ORDER) == whole
    assert len(begun) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r | {"recipe": "other"},
        lambda r: r | {"seed": 9},
        lambda r: r | {"subset": ["upper"]},
        lambda r: {"scores": r["scores"]},
    ],
)
def test_a_result_of_another_fine_tune_is_not_taken(trials, trained, tmp_path, damage):
    [right] = trials.run([ONE], tmp_path, order=ORDER)
    [file] = tmp_path.glob("*/result.json")
    wrong = damage(json.loads(file.read_text()))
    wrong["scores"]["copy"]["test"]["loss"] = 99.0
    file.write_text(json.dumps(wrong))
    assert trials.run([ONE], tmp_path, order=ORDER) == [right]
    assert len(trained) == 2


@pytest.mark.parametrize("scores", [[], {"copy": []}, {"copy": {"test": {"loss": "1"}}}])
def test_a_damaged_result_is_made_again(trials, trained, tmp_path, scores):
    [right] = trials.run([ONE], tmp_path, order=ORDER)
    [file] = tmp_path.glob("*/result.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scores": scores}))
    assert trials.run([ONE], tmp_path, order=ORDER) == [right]
    assert len(trained) == 2


def test_a_fine_tune_without_a_loss_is_no_result(trials, monkeypatch, tmp_path):
    """Weights can be finite, and too large for any loss to be."""
    from gradex.training import trials as module

    spoiled = {"copy": {"select": {"loss": float("nan")}}}
    monkeypatch.setattr(module, "split_scores", lambda *_: spoiled)
    with pytest.raises(GradexError, match=r"copy: found a loss of nan .* lower --learning_rate"):
        trials.run([ONE], tmp_path, order=ORDER)
    assert not list(tmp_path.glob("*/result.json"))


def test_training_goes_on_from_the_start_adapter(trials, adapter, tmp_path):
    """With steps of next to no length the scores are those of the adapter itself."""
    from gradex.adapters.folder import load

    still = replace(trials, recipe=replace(trials.recipe, learning_rate=1e-12), start=adapter)
    [run] = still.run([ONE], tmp_path / "meta", order=ORDER)
    base, encoder = load_base_and_encoder(still.recipe.base, still.sources, max_length=32)
    expected = split_scores(load(base, adapter), still.sources, encoder, ["copy"])
    fresh = replace(still, start=None).run([ONE], tmp_path / "base", order=ORDER)[0].scores
    for split in ("select", "test"):
        wanted = expected["copy"][split]["loss"]
        assert run.scores["copy"][split]["loss"] == pytest.approx(wanted, rel=1e-5)
        assert abs(fresh["copy"][split]["loss"] - wanted) > 0.01


def test_what_decides_a_result_is_in_the_recipe_hash(trials, adapter):
    recipe = trials.recipe
    fewer = replace(trials.sources, by_name=dict(list(trials.sources.items())[1:]))
    others = [
        trials,
        replace(trials, max_length=31),
        replace(trials, start=adapter),
        replace(trials, sources=fewer),
        *(
            replace(trials, recipe=replace(recipe, **change))
            for change in (
                {"max_steps": 4},
                {"learning_rate": 2e-2},
                {"adapter": AdapterSpec(rank=8)},
                {"base": replace(recipe.base, dtype="bfloat16")},
            )
        ),
    ]
    assert len({other.recipe_hash for other in others}) == len(others)


def test_what_decides_nothing_is_not_in_the_recipe_hash(trials, adapter):
    trusting = replace(trials.recipe.base, trust_remote_code=True)
    elsewhere = replace(trials.recipe, seed=7, devices="2", base=trusting)
    assert replace(trials, recipe=elsewhere).recipe_hash == trials.recipe_hash
    assert replace(trials, targets=["copy", "upper"]).recipe_hash == trials.recipe_hash
    grown = replace(trials, start=adapter)
    other_rank = replace(grown, recipe=replace(grown.recipe, adapter=AdapterSpec(rank=9)))
    assert grown.recipe_hash == other_rank.recipe_hash, "an adapter that is there has its shape"


def test_each_source_is_encoded_once(trials, monkeypatch, tmp_path):
    from gradex.training import trials as module

    asked, encode = [], module.training_examples

    def counted(encoder, sources, names):
        asked.extend(names)
        return encode(encoder, sources, names)

    monkeypatch.setattr(module, "training_examples", counted)
    trials.run([ONE, ONE | TWO, TWO], tmp_path, order=ORDER)
    assert sorted(asked) == ["copy", "noise_one", "upper"]


def test_an_unknown_source_is_refused(trials, tmp_path):
    with pytest.raises(GradexError, match="unknown source 'gone'; known are: copy"):
        trials.run([frozenset({"gone"})], tmp_path, order=ORDER)


def test_a_metric_that_is_not_measured_is_refused(trials):
    trials.require_metric("loss")
    with pytest.raises(GradexError, match="--metric answer: 'copy' is not measured by it"):
        trials.require_metric("answer")
