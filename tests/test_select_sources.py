"""select_sources on stores whose gradients are given: what its flags choose, write and refuse."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from planted import store_of

from gradex.cli import main
from gradex.data.subsets import write_subsets
from gradex.data.true_runs import TrueRun, write_runs
from gradex.errors import GradexError
from gradex.records import write_sealed
from gradex.select_sources import Config, select_sources
from gradex.selection.choice import Selection

RNG = np.random.default_rng(0)
DIM = 12
ROWS = {"left": 8, "right": 16, "both": 24, "noise": 40, "silent": 8}


def rows(*directions, count):
    """Rows around the given directions, with some noise."""
    centre = np.zeros(DIM)
    centre[list(directions)] = 1
    return centre + 0.1 * RNG.normal(size=(count, DIM))


@pytest.fixture(scope="module")
def silent(tmp_path_factory) -> Path:
    """Sources along two directions, one of noise, one whose gradients are all zero."""
    path = tmp_path_factory.mktemp("silent") / "store"
    along = {"left": (0,), "right": (1,), "both": (0, 1)}
    sources = {name: rows(*along[name], count=ROWS[name]) for name in along}
    sources |= {"noise": RNG.normal(size=(ROWS["noise"], DIM)), "silent": np.zeros((8, DIM))}
    targets = {"go left": rows(0, count=6), "go right": rows(1, count=6)}
    store = store_of(path, sources, targets)
    for name, count in ROWS.items():
        assert len(store.table("train", name)) == count
    origin = {"base": {}, "tasks": {}, "recipe": {}}
    write_sealed(path / "origin.json", origin)
    return path


@pytest.fixture
def choose(silent):
    def run(**flags) -> Selection:
        config = Config(**{"store": str(silent), "never": ["silent"]} | flags)
        return Selection.read(select_sources(config))

    return run


METHODS = {
    "forward": {},
    "backward": {},
    "swap": {},
    "random_ensemble": {"num_subsets": 12},
    "surrogate": {"num_subsets": 12},
    "topk": {"top_k": 2},
    "random": {"top_k": 2},
    "all": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_selection(choose, method):
    selection = choose(method=method, **METHODS[method])
    assert selection.method == method and selection.targets == {"go left": 1.0}
    assert "silent" not in selection.selected and selection.n_sources == 5
    if method not in ("all", "random"):
        assert "left" in selection.selected
    assert not selection.calibrated and selection.weights == {}


def test_a_source_without_gradients_is_left_out_by_never_alone(choose):
    with pytest.raises(GradexError, match="'silent' are all zero or not finite; select without it"):
        choose(never=None)


def test_fine_tunes_may_hold_what_is_ruled_out(choose):
    """Those that a surrogate is fitted to: on two sources each, `silent` being the best of all."""
    losses = {"left": 0.5, "right": 0.9, "both": 0.7, "noise": 1.5, "silent": 0.1}
    subsets = [frozenset(pair) for pair in combinations(losses, 2)]
    scores = [{"go left": {"select": {"loss": sum(map(losses.get, s))}}} for s in subsets]
    runs = [TrueRun(s, 0, score) for s, score in zip(subsets, scores, strict=True)]
    write_runs(Path("runs.json"), runs, recipe="r")
    fitted = {"estimator": "surrogate", "runs": ["runs.json"], "max_sources": 2, "max_share": 0.5}
    assert choose(**fitted).selected == ["left", "both"]
    assert "silent" in choose(**fitted, never=None).selected


def test_the_choice_depends_on_the_target(choose):
    assert choose(target=["go left"]).selected[0] == "left"
    assert choose(target=["go right"]).selected[0] == "right"


def test_several_targets_are_one_number(choose):
    even = choose(target=["go left", "go right"])
    assert list(even.targets) == ["go left", "go right"]
    assert {"left", "right"} <= set(even.selected) or "both" in even.selected
    tilted = choose(target=["go left", "go right"], target_weights=[1.0, 1000.0])
    assert tilted.targets["go right"] == 1000 and tilted.selected[0] == "right"
    worst = choose(target=["go left", "go right"], robust=True)
    assert worst.value != even.value and worst.base_value != even.base_value
    assert json.loads(json.dumps(worst.trace)) == worst.trace


def test_rules_are_kept_and_shares_written(choose):
    selection = choose(must=["noise"], max_sources=2, max_share=0.6)
    assert selection.selected[0] == "noise" and len(selection.selected) == 2
    assert selection.weights["noise"] == pytest.approx(0.6)
    assert sum(selection.weights.values()) == pytest.approx(1)
    assert choose(budget=8).selected == ["left"]


def test_a_budget_counts_rows_or_tokens(choose):
    """Every row of this store has two tokens."""
    assert choose(budget=16, target=["go right"]).selected == ["right"]
    assert choose(budget=32, budget_unit="tokens", target=["go right"]).selected == ["right"]
    assert choose(budget=31, budget_unit="tokens", target=["go right"]).selected == ["left"]
    with pytest.raises(GradexError, match="all 4 sources are more than the rules allow"):
        choose(method="all", budget=80)


def test_a_search_starts_where_it_is_told(choose):
    before = choose(method="topk", top_k=1, rank_by="cosine", target=["go right"])
    folder = next(Path("runs/select_sources").iterdir())
    for start in ([str(folder)], [str(folder / "selection.json")], ["right"]):
        selection = choose(method="swap", start=start, target=["go left"])
        assert selection.trace[0]["start"] == before.selected == ["right"]
        assert "left" in selection.selected


def test_subsets_of_a_file_that_hold_what_is_ruled_out_are_dropped(choose):
    names = ["left", "right", "both", "noise", "silent"]
    subsets = [frozenset(s) for s in (names[:2], names[2:4], names[:1], names, names[1:4])]
    write_subsets(Path("s.txt"), subsets, names)
    selection = choose(method="random_ensemble", subsets="s.txt")
    assert {step["added"]: step["count"] for step in selection.trace}["left"] == 2
    write_subsets(Path("s.txt"), [frozenset(names)], names)
    with pytest.raises(GradexError, match="each of its 1 subsets holds a source of --never"):
        choose(method="random_ensemble", subsets="s.txt")


def test_random_subsets_of_fewer_sources_have_a_file_of_their_own(choose):
    choose(method="random_ensemble", num_subsets=6)
    (file,) = Path("sampled_tasks").iterdir()
    assert file.name.startswith("store-of4-") and "silent" not in file.read_text()


def test_the_seed_alone_decides_what_random_takes(choose):
    one, same = (choose(method="random", seed=3, output_dir=name) for name in "ab")
    assert one.selected == same.selected and len(one.selected) == 2
    found = {tuple(choose(method="random", seed=s, output_dir=f"r{s}").selected) for s in range(8)}
    assert len(found) > 1


REFUSED = {
    "a flag of another method": ({"screen": 3, "method": "swap"}, "say --method forward"),
    "subsets for forward": ({"num_subsets": 5}, "--num_subsets: found with --method forward"),
    "topk of how many": ({"method": "topk"}, "say how many sources to take with --top_k"),
    "unknown baseline": (
        {"method": "topk", "top_k": 1, "rank_by": "cos"}, "--rank_by: unknown baseline 'cos'"
    ),
    "both ends": (
        {"method": "random_ensemble", "top_k": 1, "threshold": 0.0}, "both say how many"
    ),
    "a target twice": ({"target": ["go left"] * 2}, "names 'go left' twice"),
    "an unknown target": ({"target": ["left"]}, "unknown target 'left'; known are: go left, go"),
    "one robust target": ({"target": ["go left"], "robust": True}, "--robust: found 1 targets"),
    "weights of the worst": (
        {"target": ["go left", "go right"], "robust": True, "target_weights": [1.0, 2.0]},
        "leave one of them out",
    ),
    "too many weights": ({"target": ["go left"], "target_weights": [1.0, 2.0]}, "found 2 weights"),
    "endless weight": (
        {"target": ["go left"], "target_weights": [1e308]}, "expected numbers above 0, from"
    ),
    "no weight": ({"target": ["go left"], "target_weights": [0.0]}, "expected numbers above 0"),
    "a unit of nothing": ({"budget_unit": "tokens"}, "without a --budget"),
    "must and never": ({"must": ["silent"]}, "--must and --never both name 'silent'"),
    "an unknown must": ({"must": ["rihgt"]}, "--must: unknown source 'rihgt'; known are: left"),
    "a small budget": ({"budget": 7}, "--budget: found 7, the smallest source, 'left' needs 8"),
    "a must beyond it": ({"budget": 20, "must": ["noise"]}, "sources of --must needs 40"),
    "impossible shares": ({"max_share": 0.2}, "need 5 sources, found 4 to choose from"),
    "nothing left": ({"never": list(ROWS)}, "--never: names every source"),
    "an unknown start": ({"method": "swap", "start": ["gone"]}, "--start: unknown source 'gone'"),
    "a start that is too large": (
        {"method": "swap", "start": ["left", "right"], "max_sources": 1}, "do not keep to the rules"
    ),
    "a threshold for none": (
        {"method": "random_ensemble", "num_subsets": 12, "threshold": -99.0}, "--threshold: 0 sour"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(choose, name):
    flags, says = REFUSED[name]
    with pytest.raises(GradexError, match=says):
        choose(**flags)
    assert not list(Path("runs").glob("select_sources/*[0-9]"))


def test_lists_on_the_command_line(silent):
    words = [
        "--store",
        str(silent),
        "--never",
        "silent",
        "noise",
        "--target",
        "go left",
        "go right",
    ]
    weights = ["--target_weights", "2", "1", "--output_dir", "out"]
    assert main(["select_sources", *words, *weights]) == 0
    assert Selection.read(Path("out/selection.json")).targets == {"go left": 2.0, "go right": 1.0}
    assert main(["select_sources", "--config", "out/config.yaml", "--output_dir", "again"]) == 0
    again, first = (Selection.read(Path(f"{name}/selection.json")) for name in ("again", "out"))
    assert again == first


def test_only_sure_takes_back_what_may_gain_nothing(choose):
    plain = choose(target=["go left"], min_gain=0.0)
    sure = choose(target=["go left"], min_gain=0.0, only_sure=True)
    assert sure.selected == plain.selected[: len(sure.selected)]
    assert choose(method="backward", only_sure=True).selected


def test_only_sure_needs_intervals(choose):
    with pytest.raises(GradexError, match=r"--only_sure: .* tells no interval"):
        choose(target=["go left", "go right"], robust=True, only_sure=True)
    with pytest.raises(GradexError, match=r"--only_sure: .*cosine tells no interval"):
        choose(estimator="cosine", only_sure=True)
    with pytest.raises(GradexError, match=r"--only_sure: .*--method swap"):
        choose(method="swap", only_sure=True)
