"""The stage group: what it makes is taken by all other stages, and nothing is lost on the way."""

import csv
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import skill_rows, write_jsonl

from gradex import group as module
from gradex.cli import main as gradex
from gradex.data.recorded import load_data
from gradex.doctor import Config as DoctorConfig
from gradex.doctor import doctor
from gradex.errors import GradexError
from gradex.estimators.linear import Linear
from gradex.finetune import Config as FinetuneConfig
from gradex.finetune import finetune
from gradex.gradients.store import GradientStore, open_store
from gradex.group import Config, group
from gradex.meta_train import Config as MetaConfig
from gradex.meta_train import meta_train
from gradex.project import Config as ProjectConfig
from gradex.project import project
from gradex.report import Config as ReportConfig
from gradex.report import report
from gradex.select_sources import Config as SelectConfig
from gradex.select_sources import select_sources
from gradex.selection.choice import Selection
from gradex.selection.groups import read_groups

STEPS = {"max_steps": 6, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def world(model_folder, tmp_path_factory):
    """A store of two skills that are one source without names, and a target of its own."""
    root = tmp_path_factory.mktemp("world")
    mixed = skill_rows("copy", 40, seed=0) + skill_rows("upper", 40, seed=1)
    mixed[5] = {"prompt": "=cmd|' /C calc'!A0\n\x1b[31m<script>", "completion": "abcd"}
    write_jsonl(root / "tasks/mixed.jsonl", mixed)
    write_jsonl(root / "tasks/upper.jsonl", skill_rows("upper", 40, seed=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        tasks, model = str(root / "tasks"), str(model_folder("llama"))
        meta = meta_train(MetaConfig(model_name_or_path=model, tasks=[tasks], **STEPS))
        project(ProjectConfig(meta_dir=str(meta), project_dim=24, output_dir="store"))
    return root


@pytest.fixture
def store(world) -> GradientStore:
    return GradientStore.open(world / "store")


def lines(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines()))


def config(store: GradientStore, **more) -> Config:
    return Config(store=str(store.path), **more)


def test_clusters_go_all_the_way_like_any_source(store, world):
    shutil.copytree(world / "runs", "runs")
    assert len(store.points()) == 2, "or the test says nothing of them"
    run = group(config(store, source=["mixed"], num_clusters=4))
    made = open_store(str(run))
    clusters = [f"mixed/cluster-00{i}" for i in range(4)]
    assert made.sources == [*clusters, "upper"] and made.targets == store.targets
    assert made.path.parent == Path("gradients") and "-groups4-" in made.path.name
    assert made.space == store.space and len(made.points()) == 2
    doctor(DoctorConfig(store=str(made.path)))
    chosen = Selection.read(select_sources(SelectConfig(store=str(run), target=["upper"])))
    assert set(chosen.selected) <= set(made.sources) and chosen.store == str(made.path)
    tuned = finetune(FinetuneConfig(max_steps=1))
    assert json.loads((tuned / "results.json").read_text())["selected"] == chosen.selected
    page = report(ReportConfig()).read_text()
    assert "mixed/cluster-000" in page
    assert f"gradex {run}/config.yaml" in page


def test_the_rows_and_their_estimates_are_those_of_the_source(store):
    made = open_store(str(group(config(store, source=["mixed"], num_clusters=5))))
    clusters = [name for name in made.sources if name != "upper"]
    old, new = store.source("mixed"), [made.source(name) for name in clusters]
    order = np.argsort(old.table["id"])
    table = np.concatenate([block.table for block in new])
    again = np.argsort(table["id"])
    assert table[again].tobytes() == old.table[order].tobytes()
    gradients = np.concatenate([block.gradients for block in new])
    assert gradients[again].tobytes() == old.gradients[order].tobytes()
    before = Linear().fit(store).predict([frozenset(["mixed"]), frozenset(["mixed", "upper"])])
    after = Linear().fit(made).predict([frozenset(clusters), frozenset([*clusters, "upper"])])
    np.testing.assert_allclose(after.value, before.value, rtol=1e-5)


def test_the_data_are_the_same_rows_under_other_names(store):
    run = group(config(store, source=["mixed"], num_clusters=3))
    before, after = (load_data(s.recorded_settings() | {"allow_pickle": False})
                     for s in (store, open_store(str(run))))  # fmt: skip
    parts = [after[name].rows["train"] for name in after if name.startswith("mixed/")]
    assert {row for part in parts for row in part} == set(before["mixed"].rows["train"])
    assert after["upper"].rows == before["upper"].rows
    for split in ("select", "test"):
        assert after["mixed"].rows[split] == before["mixed"].rows[split]
    assert after.data_hashes() == open_store(str(run)).data_hashes()


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
def test_the_tables_say_what_is_where(store, method):
    run = group(config(store, num_clusters=6, method=method))
    made = open_store(str(run))
    rows = lines(run / "group.csv")
    for name in made.sources:
        ids = {row["row"] for row in rows if row["cluster"] == name}
        assert ids == set(made.table("train", name)["id"].astype(str))
    clusters = lines(run / "clusters.csv")
    assert [c["cluster"] for c in clusters] == made.sources
    for cluster in clusters:
        table = made.table("train", cluster["cluster"])
        assert int(cluster["rows"]) == len(table)
        assert float(cluster["mean_loss"]) == pytest.approx(table["loss"].mean(), rel=1e-4)
    for number in (1, 2, 3):
        for cell in (cluster[f"sample_{number}"] for cluster in clusters):
            assert cell == "" or cell.startswith('"'), "a formula, to a spreadsheet"
    assert "\x1b" not in (run / "clusters.csv").read_text()


def test_by_default_all_sources_are_cut_each_by_its_rows(store, caplog):
    caplog.set_level(logging.INFO)
    run = group(config(store))
    made = open_store(str(run))
    rows = sum(entry["rows"] for entry in store.plan["train"].values())
    assert (
        len(made.sources)
        == rows // 10
        == yaml.safe_load((run / "config.yaml").read_text())["num_clusters"]
    )
    assert {name.split("/")[0] for name in made.sources} == set(store.sources)
    assert f"next: gradex select_sources --store {made.path}" in caplog.text


def test_a_written_config_repeats_the_clusters(store):
    first = group(config(store, num_clusters=5, method="kmeans", seed=3))
    assert gradex([str(first / "config.yaml")]) == 0
    (second,) = set(Path("runs/group").iterdir()) - {first}
    for name in ("group.csv", "clusters.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    one, two = open_store(str(first)), open_store(str(second))
    assert one.path != two.path and one.plan == two.plan, "each run has tasks of its own"


def test_a_killed_run_leaves_no_store_and_is_taken_up(store, monkeypatch):
    whole = group(config(store, num_clusters=4))
    real, made = module.regroup, []

    def dying(*arguments, **named):
        made.append(real(*arguments, **named))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "regroup", dying)
    with pytest.raises(KeyboardInterrupt):
        group(config(store, num_clusters=4))
    (part,) = Path("runs/group").glob("*.part")
    monkeypatch.setattr(module, "regroup", real)
    run = group(config(store, num_clusters=4))
    assert run.name == part.name.removesuffix(".part") and not part.exists()
    assert open_store(str(run)).path == made[0].path
    assert (run / "group.csv").read_bytes() == (whole / "group.csv").read_bytes()


def test_clusters_can_be_cut_again(store):
    first = group(config(store, source=["mixed"], num_clusters=2))
    second = group(Config(store=str(first), source=["mixed/cluster-000"], num_clusters=2))
    made = open_store(str(second))
    assert made.sources == [
        "mixed/cluster-000/cluster-000", "mixed/cluster-000/cluster-001", "mixed/cluster-001",
        "upper",
    ]  # fmt: skip
    doctor(DoctorConfig(store=str(made.path)))


def test_sources_that_go_together_have_a_selection_each(make_store, caplog):
    """Three that point where the target's gradients do, two that point away."""
    caplog.set_level(logging.INFO)
    rng = np.random.default_rng(0)
    shifts = {"a": 1.0, "b/x": -1.0, "c": 1.0, "d": -1.0, "e": 1.0}
    named = {n: (rng.normal(size=(20, 5)) * 0.3 + s).astype(np.float32) for n, s in shifts.items()}
    store = make_store(Path("store"), named)
    store.save_origin({"base": {}, "tasks": {}, "recipe": {}})
    run = group(Config(store="store", sources=True, num_groups=2))
    groups = read_groups(run)
    assert groups.members == [["a", "c", "e"], ["b/x", "d"]]
    found = groups.selections
    fitted = Linear().fit(store)
    for selection in found:
        assert selection.method == "group" and selection.targets == {"t": 1.0}
        estimate = fitted.predict([frozenset(selection.selected)]).value[0, 0]
        assert selection.value == pytest.approx(estimate)
    assert (run / "groups.png").is_file()
    pairs = lines(run / "affinity.csv")
    assert len(pairs) == 10
    least = min(pairs, key=lambda pair: float(pair["together"]))
    assert {least["source"], least["other"]} <= {"a", "c", "e"}
    assert "group 1: b/x, d" in caplog.text and f"finetune --ensemble {run}" in caplog.text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--num_clusters", "200"], "--num_clusters: found 200, expected at least one for each of"),
        (["--num_clusters", "1"], "each of the 2 sources (--source names fewer)"),
        (["--num_clusters", "0"], "--num_clusters: found 0, expected a number above 0"),
        (["--source", "nothing"], "--source: unknown source 'nothing'; known are: mixed, upper"),
        (["--num_groups", "2"], "--num_groups: is for groups of sources"),
        (["--estimator", "flow"], "--estimator: is for groups of sources"),
        (["--num_subsets", "9"], "--num_subsets: is for groups of sources"),
        (["--target", "upper"], "--target: is for groups of sources"),
        (["--sources", "--num_clusters", "2"], "--num_clusters: is for clusters of rows"),
        (["--sources", "--source", "mixed"], "--source: is for clusters of rows"),
        (["--sources", "--method", "kmeans"], "--method: is for clusters of rows"),
        (["--sources", "--num_groups", "3"], "--num_groups: found 3, expected a number from 1"),
        (["--sources", "--num_groups", "0"], "--num_groups: found 0, expected a number above 0"),
        (["--sources", "--target", "x"], "unknown target 'x'"),
        (["--sources", "--num_subsets", "1"], "together in none of the 1 subsets"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_and_leave_no_store(store, capsys, flags, says):
    assert gradex(["group", "--store", str(store.path), *flags]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert says in error
    assert not Path("gradients").exists() and not list(Path("runs/group").glob("*[!t]"))


def test_rows_that_changed_since_are_refused(store, world, tmp_path):
    content = yaml.safe_load((world / "store/origin.json").read_text())
    settings = store.recorded_settings()
    changed = write_jsonl(tmp_path / "other/mixed.jsonl", skill_rows("copy", 12, seed=9))
    write_jsonl(tmp_path / "other/upper.jsonl", skill_rows("upper", 40, seed=2))
    assert settings["tasks"] == content["tasks"]["tasks"]
    copy = GradientStore.create(
        tmp_path / "copy", store.space, shard_rows=store.shard_rows,
        origin=store.origin | {"tasks": store.origin["tasks"] | {"tasks": [str(changed.parent)]}},
    )  # fmt: skip
    copy.plan = store.plan
    copy.save_plan()
    with pytest.raises(GradexError, match="the rows of 'mixed' are not those that"):
        group(Config(store=str(copy.path)))
    assert not Path("runs").exists()


def test_modes_share_nothing_but_what_both_read(store):
    """A config of one mode is no mistake of the other's, as long as it says nothing of it."""
    assert replace(config(store), seed=4).seed == 4
    assert replace(config(store, sources=True), seed=4).sources
