"""finetune --ensemble: an adapter a group, weighted by select rows, each trained once."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_jsonl

from gradex.arguments import record_of
from gradex.cli import main
from gradex.data.recorded import load_data
from gradex.data.tokens import encode_all
from gradex.errors import GradexError
from gradex.models.scoring import row_losses, score
from gradex.records import write_json
from gradex.selection.choice import Choice, Selection
from gradex.training.ensemble import load_ensemble
from gradex.training.module import FineTuner

GROUPS = (["copy", "noise_one"], ["upper", "noise_two"])
TARGETS = ("copy", "upper")
RECIPE = {
    "lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0, "lora_target_modules": ["all-linear"],
    "learning_rate": 1e-2, "weight_decay": 0.0, "warmup_steps": 0, "max_steps": 4,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "devices": "1",
    "num_nodes": 1, "strategy": "auto", "seed": 0,
}  # fmt: skip


def settings_for(model: Path, tasks: Path) -> dict:
    data = {"tasks": [str(tasks)], "target": None, "held_out": 0.4, "split_seed": 0}
    base = {"model_name_or_path": str(model), "bf16": False, "qlora": False}
    return data | base | RECIPE | {"max_length": 48, "allow_pickle": False}


def write_selection(path: Path, sources: list[str], settings: dict) -> Path:
    hashes = load_data(settings).data_hashes()
    path.parent.mkdir(parents=True, exist_ok=True)
    return Selection(
        **vars(Choice(sources, 0.0)), method="group", targets=dict.fromkeys(TARGETS, 1.0),
        base_value=1.0, calibrated=False, store="store", fingerprint="f", n_sources=4,
        data={name: hashes[name] for name in {*sources, *TARGETS}}, **record_of(settings),
    ).write(path)  # fmt: skip


def write_groups(settings: dict, folder: Path = Path("groups")) -> Path:
    """What a run of group --sources leaves."""
    entries = []
    for number, sources in enumerate(GROUPS):
        file = f"group-{number}/selection.json"
        write_selection(folder / file, sources, settings)
        entries.append({"sources": sources, "selection": file})
    content = {"format": "gradex-groups/1", "groups": entries, "store": "store"}
    write_json(folder / "groups.json", content)
    return folder


def tuned(*words: str, run: str = "run") -> Path:
    assert main(["finetune", *words, "--output_dir", run]) == 0
    return Path(run)


def weights_of(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def labelled_tasks(tmp_path) -> Path:
    """The names of the toy tasks, with texts of three classes."""
    for name in (*GROUPS[0], *GROUPS[1]):
        rows = [{"text": f"{name} number {i}", "label": str(i % 3)} for i in range(40)]
        write_jsonl(tmp_path / f"labelled/{name}.jsonl", rows)
    return tmp_path / "labelled"


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_what_is_written_is_what_can_be_loaded(model_folder, toy_tasks, labelled_tasks, kind):
    settings = settings_for(model_folder(kind), labelled_tasks if kind == "bert" else toy_tasks)
    run = tuned("--ensemble", str(write_groups(settings)))
    results = json.loads((run / "results.json").read_text())
    assert [row["target"] for row in results["targets"]] == list(TARGETS)
    sources, ensemble = load_data(settings), load_ensemble(run)
    for row in results["targets"]:
        target, blend = sources[row["target"]], ensemble.of(row["target"])
        again = score(blend, target.rows["test"], ensemble.encoder, target.metric)
        assert again == pytest.approx(row["ensemble"], rel=1e-5)
        examples, _ = encode_all(ensemble.encoder, target.rows["select"])
        select = row_losses(blend, examples, ensemble.encoder).mean()
        assert select == pytest.approx(row["select_loss"], rel=1e-5)
        assert row["select_loss"] <= min(row["select_losses"].values()) + 1e-7
        assert row["best"] == min(row["select_losses"], key=row["select_losses"].get)
        assert sum(row["weights"].values()) == pytest.approx(1)
    with pytest.raises(GradexError, match="unknown target 'gone'; known are: copy, upper"):
        ensemble.of("gone")


def test_adapters_are_those_of_single_fine_tunes(model_folder, toy_tasks):
    """A member of its group's selection, the one adapter of all sources; each with its steps."""
    settings = settings_for(model_folder("llama"), toy_tasks)
    groups = write_groups(settings)
    run = tuned("--ensemble", str(groups / "groups.json"), "--max_steps", "3")
    every = write_selection(Path("all/selection.json"), [*GROUPS[0], *GROUPS[1]], settings)
    for name, file, steps in (
        ("group-1", groups / "group-1/selection.json", 3),
        ("one", every, 3),
        ("one_longer", every, 6),
    ):
        words = ["--selection", str(file), "--max_steps", str(steps)]
        single = tuned(*words, run=f"single-{name}")
        assert weights_of(run / "adapters" / name) == weights_of(single / "adapter")
        curve = json.loads((run / "adapters" / name / "curve.json").read_text())
        assert len(curve["loss"]) == steps
        metrics = (run / "adapters" / name / "metrics.csv").read_text().splitlines()
        assert len(metrics) == 1 + len(curve["loss"])
    assert not (run / "checkpoints").exists()


def test_the_table_has_every_model_of_every_target(model_folder, toy_tasks):
    run = tuned("--ensemble", str(write_groups(settings_for(model_folder("llama"), toy_tasks))))
    results = json.loads((run / "results.json").read_text())
    with open(run / "ensemble.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["target"] for line in lines] == ["copy"] * 5 + ["upper"] * 5
    for row, part in zip(results["targets"], (lines[:5], lines[5:]), strict=True):
        keys = ("base", "one", "one_longer", "best_member", "ensemble")
        losses = [row[key]["loss"] for key in keys]
        np.testing.assert_allclose([float(line["loss"]) for line in part], losses, rtol=1e-5)
        assert [int(line["training_steps"]) for line in part] == [0, 4, 8, 8, 8]
        used = sum(weight > 0 for weight in row["weights"].values())
        assert [int(line["forward_passes"]) for line in part] == [1, 1, 1, 1, used]


def test_an_interrupted_ensemble_goes_on_where_it_was(model_folder, toy_tasks, monkeypatch):
    """In the middle of the second member: the first is kept, the second goes on."""
    words = ["--ensemble", str(write_groups(settings_for(model_folder("llama"), toy_tasks)))]
    whole = tuned(*words, run="whole")
    step, count = FineTuner.training_step, []

    def counted(self, batch, index):
        count.append(self.global_step)
        if len(count) == 7:  # the third step of the second member
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(FineTuner, "training_step", counted)
    assert main(["finetune", *words, "--output_dir", "run"]) == 130
    assert main(["finetune", *words, "--output_dir", "run"]) == 0
    assert count == [0, 1, 2, 3, 0, 1, 2, *range(2, 4), *range(4), *range(8)]
    for name in ("results.json", "ensemble.csv", "ensemble.json"):
        assert (Path("run") / name).read_bytes() == (whole / name).read_bytes()


def test_the_report_tells_of_an_ensemble_and_keeps_it_from_the_fine_tunes(model_folder, toy_tasks):
    """Its results are of another kind than those of one selection."""
    steps = ["--max_steps", "3", "--per_device_train_batch_size", "8"]
    model = ["--model_name_or_path", str(model_folder("llama"))]
    assert main(["meta_train", *model, "--tasks", str(toy_tasks), *steps]) == 0
    assert main(["project", "--points", "1", "--project_dim", "20", "--output_dir", "store"]) == 0
    chosen = ["select_sources", "--target", "copy", "--method"]
    assert main([*chosen, "all", "--output_dir", "all"]) == 0
    assert main([*chosen, "forward"]) == 0
    whole = json.loads(Path("all/selection.json").read_text())
    for number, sources in enumerate(GROUPS):
        own = whole | {"selected": sources, "method": "group", "scores": {}, "trace": []}
        Path(f"groups/group-{number}").mkdir(parents=True)
        write_json(Path(f"groups/group-{number}/selection.json"), own)
    entries = [
        {"sources": sources, "selection": f"group-{number}/selection.json"}
        for number, sources in enumerate(GROUPS)
    ]
    content = {"format": "gradex-groups/1", "groups": entries, "store": whole["store"]}
    write_json(Path("groups/groups.json"), content)
    assert main(["finetune", "--ensemble", "groups"]) == 0
    assert main(["report", "--output_dir", "page"]) == 0
    found = json.loads(Path("page/report.json").read_text())
    assert found["outcomes"] == [] and found["ensemble"]["target"] == "copy"
    page = Path("page/report.html").read_text()
    assert "One adapter a group" in page and "ensemble of 2" in page


def drop_second(content: dict) -> None:
    del content["groups"][1:]


BAD_GROUPS = {
    "of another format": (lambda c: c.update(format="x"), ["groups.json", "the format is x"]),
    "of another store": (lambda c: c.update(store="other"), ["made from store", "other"]),
    "one group": (drop_second, ["groups found: 1", "two or more", "--selection"]),
    "none": (lambda c: c.update(groups=[]), ["groups found: 0", "two or more"]),
    "no list": (lambda c: c.update(groups={}), ["groups.json", "key 'groups' is dict"]),
    "no mapping": (lambda c: c.update(groups=["x", "y"]), ["group 0", "found str"]),
    "a file is gone": (
        lambda c: c["groups"][1].update(selection="gone.json"), ["gone.json", "no such file"],
    ),
    "other sources": (
        lambda c: c["groups"][0].update(sources=["upper"]), ["group-0/selection.json", "run group"],
    ),
}  # fmt: skip
BAD_SELECTIONS = {
    "other gradients": (lambda s: s.update(fingerprint="g"), ["group-1", "first group"]),
    "other targets": (lambda s: s.update(targets={"copy": 1.0}), ["its targets are copy"]),
    "shares": (
        lambda s: s.update(weights={"upper": 0.5, "noise_two": 0.5}),
        ["shares or single rows"],
    ),
    "rows": (lambda s: s.update(rows={"upper": ["id"]}), ["shares or single rows"]),
}


def refused(capsys, *words: str, says: list[str]) -> None:
    capsys.readouterr()
    code = main(["finetune", *words, "--output_dir", "run"])
    told = capsys.readouterr().err
    assert code == 2 and "Traceback" not in told and not Path("run").exists(), told
    for part in says:
        assert part in told.splitlines()[-1], told


@pytest.fixture
def groups(model_folder, toy_tasks) -> Path:
    return write_groups(settings_for(model_folder("llama"), toy_tasks))


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    write_json(file, content)


@pytest.mark.parametrize("name", BAD_GROUPS)
def test_bad_groups(capsys, groups, name):
    change, says = BAD_GROUPS[name]
    edit(groups / "groups.json", change)
    refused(capsys, "--ensemble", str(groups), says=says)


@pytest.mark.parametrize("name", BAD_SELECTIONS)
def test_bad_selections_of_groups(capsys, groups, name):
    change, says = BAD_SELECTIONS[name]
    edit(groups / "group-1/selection.json", change)
    refused(capsys, "--ensemble", str(groups), says=says)


def test_a_target_that_is_not_there(capsys, groups):
    for number in (0, 1):
        file = groups / f"group-{number}/selection.json"
        edit(file, lambda s: s.update(targets={"gone": 1.0}))
    says = ["unknown target 'gone'", "copy, noise_one"]
    refused(capsys, "--ensemble", str(groups), says=says)


def test_rows_that_have_changed(capsys, groups, toy_tasks):
    file = toy_tasks / "upper.jsonl"
    file.write_text(file.read_text().replace("=", "!"))
    refused(capsys, "--ensemble", str(groups), says=["upper.jsonl", "are not those that store"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--selection", "chosen"], ["--selection", "beside --ensemble"]),
        (["--devices", "2"], ["--devices", "one device"]),
        (["--num_train_epochs", "2"], ["--num_train_epochs", "--max_steps"]),
        (["--early_stopping", "2"], ["--early_stopping", "the same --max_steps"]),
        (["--mask", "file"], ["--mask", "beside --ensemble"]),
    ],
)
def test_flags_that_an_ensemble_does_not_have(capsys, words, says):
    refused(capsys, "--ensemble", "groups", *words, says=says)


def test_groups_that_are_not_there(capsys):
    refused(capsys, "--ensemble", "gone", says=["gone", "no such file", "gradex-groups/1"])


def test_a_damaged_ensemble(groups):
    with pytest.raises(GradexError, match=r"ensemble\.json: no such file; expected an ensemble"):
        load_ensemble(groups)
    content = {"format": "x", "base": {"path": "p", "dtype": "float32", "qlora": False}}
    content |= {"max_length": 4, "classes": [], "adapters": {}, "weights": {}}
    write_json(groups / "ensemble.json", content)
    with pytest.raises(GradexError, match="the format is x"):
        load_ensemble(groups)
    content |= {"format": "gradex-ensemble/1", "adapters": {"group-0": "a"}, "weights": {"t": {}}}
    write_json(groups / "ensemble.json", content)
    with pytest.raises(GradexError, match="weights: t: key 'group-0' is missing"):
        load_ensemble(groups)
