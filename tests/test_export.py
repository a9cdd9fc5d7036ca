"""The folder that other trainers read: all training rows and no other, or no folder."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from gradex.cli import main
from gradex.data.sources import load_sources
from gradex.export import Config, export
from gradex.selection.choice import Selection

HOSTILE = [
    "super_glue/record:1.0.2", "null", "12", "default", "...", ".hidden", "x~y", "日本", "%41",
    "a \"b\" 'c' #d ${e}: - [f] {g} *? `h` | <i>", "dataset_info",
]  # fmt: skip
DEMO = {"model_name_or_path": "demo", "bf16": False, "qlora": False}
RECIPE = {
    "adapter": "lora", "calib_rows": 256, "lora_r": 8, "lora_alpha": 16.0,
    "lora_dropout": 0.0, "lora_target_modules": ["all-linear"],
    "learning_rate": 5e-3, "weight_decay": 0.0, "warmup_steps": 0, "max_steps": 10,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "devices": "1",
    "num_nodes": 1, "strategy": "auto", "seed": 7,
}  # fmt: skip


def write_source(name: str, records: list[dict], number: int) -> None:
    file = f"rows{number}.jsonl"
    Path("tasks").mkdir(exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    Path("tasks", file).write_text("".join(lines), encoding="utf-8")
    task = yaml.safe_dump({"name": name, "path": file})
    Path("tasks", f"task{number}.yaml").write_text(task, encoding="utf-8")


def pairs(name: str, count: int = 100) -> list[dict]:
    odd = "\n\r\u2028\u0085é日\U0001f600'\""
    return [{"prompt": f"{i} {name}{odd}", "completion": f"{odd}{i}"} for i in range(count)]


def select(sources: dict[str, list[dict]], **changes: object) -> Selection:
    """A selection of all these sources, in selection.json."""
    for number, (name, records) in enumerate(sources.items()):
        write_source(name, records, number)
    found = load_sources(["tasks"])
    names = list(sources)
    target = found.targets[0]
    about = {
        "selected": names, "method": "forward", "targets": {target: 1.0}, "value": 1.0,
        "base_value": 2.0, "calibrated": False, "scores": {}, "trace": [], "weights": {},
        "rows": {}, "store": "gradients/x", "fingerprint": "f", "base": DEMO,
        "tasks": {"tasks": ["tasks"], "target": None, "held_out": 0.2, "split_seed": 0,
                  "max_length": 64},
        "recipe": RECIPE, "data": {name: found[name].data_hash for name in names},
        "n_sources": len(names),
    }  # fmt: skip
    selection = Selection(**about | changes)
    selection.write(Path("selection.json"))
    return selection


def exported(**flags: str) -> Path:
    return export(Config(selection="selection.json", output_dir="out", **flags))


def records_of(folder: Path) -> dict[str, list[dict]]:
    """Source -> its records, of data/ or mixture/."""
    found: dict[str, list[dict]] = {}
    for file in folder.glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            record = json.loads(line)
            found.setdefault(record["source"], []).append(record)
    return found


def load(folder: Path, *name: str):
    from datasets import load_dataset

    return load_dataset(str(folder), *name, split="train")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def refused(capsys):
    def check(*words: str, says: list[str]) -> None:
        capsys.readouterr()
        assert main(["export", "--selection", "selection.json", "--output_dir", "out", *words]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(errors) == 1 and all(part in errors[0] for part in says), errors
        assert not Path("out").exists()

    return check


def test_training_rows_and_no_others_come_back_with_their_ids():
    select({name: pairs(name) for name in ("one", "two")})
    sources = load_sources(["tasks"])
    again = load_sources([str(exported() / "data")], ["tasks/rows0.jsonl"])
    for name in ("one", "two"):
        rows = again[name].rows["train"]
        assert rows == sources[name].rows["train"]
        held_out = [row for split in ("select", "test") for row in sources[name].rows[split]]
        assert held_out and not {row.id for row in rows} & {row.id for row in held_out}


def test_names_that_mean_something_elsewhere_are_only_names():
    select({name: pairs(name) for name in HOSTILE})
    folder = exported()
    assert set(records_of(folder / "data")) == set(HOSTILE)
    assert {path.parent for path in folder.rglob("*.jsonl")} == {folder / "data"}
    info = json.loads((folder / "dataset_info.json").read_text())
    assert all((folder / entry["file_name"]).is_file() for entry in info.values())
    assert sorted(load(folder).unique("source")) == sorted(HOSTILE)
    card = (folder / "README.md").read_text()
    configs = yaml.safe_load(card.split("---\n")[1])["configs"]
    for config in configs[1:]:
        assert len(load(folder, config["config_name"]).unique("source")) == 1


def test_load_dataset_reads_all_sources_and_each():
    selection = select({name: pairs(name) for name in ("one", "two")})
    folder = exported(to="hf")
    every = load(folder)
    assert every.column_names == ["messages", "source", "id"]
    assert set(every["source"]) == set(selection.selected)
    assert set(load(folder, "two")["source"]) == {"two"}
    assert every[0]["messages"][0]["content"].endswith("\n\r\u2028\u0085é日\U0001f600'\"")


def test_shares_are_those_of_the_mixture_and_every_row_is_in_data():
    select(
        {"small": pairs("small", 10), "large": pairs("large", 200), "none": pairs("none")},
        weights={"small": 0.6, "large": 0.4, "none": 0.0},
    )
    folder = exported()
    mixed = records_of(folder / "mixture")
    assert {name: len(rows) for name, rows in mixed.items()} == {"small": 48, "large": 32}
    data = records_of(folder / "data")
    sources = load_sources(["tasks"])
    assert {n: len(rows) for n, rows in data.items()} == {
        name: len(sources[name].rows["train"]) for name in data
    }
    assert {rows[0]["weight"] for rows in data.values()} == {0.6, 0.4, 0.0}
    assert Counter(load(folder, "mixture by shares")["source"]) == {"small": 48, "large": 32}


def test_every_trainer_is_given_the_mixture():
    """What it concatenates is the mixture, whatever it knows of weights."""
    select({n: pairs(n) for n in ("one", "two")}, weights={"one": 0.75, "two": 0.25})
    folder = exported()
    files = {"mixture/one.jsonl", "mixture/two.jsonl"}
    info = json.loads((folder / "dataset_info.json").read_text())
    assert {entry["file_name"] for entry in info.values()} == files
    axolotl = yaml.safe_load((folder / "axolotl.yaml").read_text())
    assert {entry["path"] for entry in axolotl["datasets"]} == files
    assert axolotl["num_epochs"] == 1  # the mixture is as long as the training
    trl = yaml.safe_load((folder / "trl.yaml").read_text())
    assert {entry["data_files"] for entry in trl["datasets"]} == files
    assert all(file in (folder / "open_instruct.sh").read_text() for file in files)


def test_only_the_rows_that_the_selection_names():
    select({name: pairs(name) for name in ("one", "two")})
    ids = [row.id for row in load_sources(["tasks"])["one"].rows["train"]][3:9]
    select({name: pairs(name) for name in ("one", "two")}, rows={"one": ids})
    data = records_of(exported() / "data")
    assert [record["id"] for record in data["one"]] == ids
    assert len(data["two"]) > 20


def test_a_row_that_is_measured_on_never_leaves(refused):
    select({"one": pairs("one")})
    row = load_sources(["tasks"])["one"].rows["test"][0]
    select({"one": pairs("one")}, rows={"one": [row.id]})
    refused(says=["`rows`", row.id, "training rows", "select again"])


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"one": 1.0}, "no share of 'two'"),
        ({"one": 0.5, "two": 0.4}, "sum to 0.9"),
        ({"one": 1.5, "two": -0.5}, "'two' is -0.5"),
        ({"one": float("nan"), "two": 1.0}, "'one' is nan"),
    ],
)
def test_shares_that_are_none(refused, weights, says):
    select({n: pairs(n) for n in ("one", "two")}, weights=weights)
    refused(says=["selection.json", says])


def test_texts_with_a_class_are_for_readers_that_have_classes(refused, caplog):
    select({"one": [{"text": f"a{i}", "label": i % 3} for i in range(100)]})
    refused("--to", "trl", says=["--to trl", "'one' holds texts with a class", "--to jsonl"])
    folder = exported()
    assert "no files for axolotl" in caplog.text
    assert load(folder).column_names == ["text", "label", "source", "id"]
    written = {path.name for path in folder.iterdir()}
    assert written == {"data", "README.md", "selection.json", "config.yaml"}
    assert "Not for `trl`" in (folder / "README.md").read_text()


def test_an_adapter_that_a_trainer_does_not_have_is_not_exchanged_for_another(refused, caplog):
    select({"one": pairs("one")}, recipe=RECIPE | {"adapter": "pissa"})
    refused("--to", "trl", says=["--to trl", "no adapter like --adapter pissa", "--to jsonl"])
    folder = exported()
    assert "no files for trl: it has no adapter like --adapter pissa" in caplog.text
    assert (folder / "axolotl.yaml").exists() and not (folder / "trl.yaml").exists()
    assert not (folder / "open_instruct.sh").exists()
    assert "Not for `trl`" in (folder / "README.md").read_text()


def test_sources_of_different_columns_are_loaded_one_by_one():
    chat, text = pairs("chat"), [{"text": f"a{i}"} for i in range(100)]
    select({"chat": chat, "text": text})
    folder = exported()
    assert load(folder, "text").column_names == ["text", "source", "id"]
    assert load(folder, "chat").column_names == ["messages", "source", "id"]
    with pytest.raises(ValueError, match="chat"):
        load(folder)
    assert (folder / "axolotl.yaml").exists() and not (folder / "trl.yaml").exists()


@pytest.mark.parametrize("name", ["2024-01-01", "2024-01-01 10:00:00"])
def test_a_name_that_readers_take_for_a_time(refused, name):
    select({name: pairs(name)})
    refused(says=[name, "read as a time"])


def test_texts_that_readers_take_for_times(refused):
    dates = [f"20{i:02}-01-01" for i in range(100)]
    select({"days": [{"prompt": day, "completion": day} for day in dates]})
    refused(says=["'days'", "every text is a date"])


def test_each_reader_gets_its_own_files_alone():
    select({"one": pairs("one")})
    own = {
        "jsonl": set(), "hf": {"README.md"}, "trl": {"trl.yaml"}, "axolotl": {"axolotl.yaml"},
        "llamafactory": {"llamafactory.yaml", "dataset_info.json"},
        "open_instruct": {"open_instruct.sh"},
    }  # fmt: skip
    for to, files in own.items():
        folder = exported(to=to)
        always = {"data", "selection.json", "config.yaml"}
        assert {path.name for path in folder.iterdir()} == files | always
        shutil.rmtree(folder)


def test_rows_that_changed_since_are_refused(refused):
    select({"one": pairs("one")})
    write_source("one", pairs("one")[1:], 0)
    refused(says=["the rows of 'one' are not those", "gradients/x"])


def test_a_folder_that_is_there_is_left_as_it_is(capsys):
    select({"one": pairs("one")})
    Path("out").mkdir()
    words = ["export", "--selection", "selection.json", "--output_dir", "out"]
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert list(Path("out").iterdir()) == []


def test_an_interrupted_export_is_no_folder_and_goes_on(monkeypatch):
    select({name: pairs(name) for name in ("one", "two")})
    from gradex.training import trainers
    from gradex.training.trainer_adapters import TRL

    def dies(job):
        raise KeyboardInterrupt

    broken = trainers.Trainer("", dies, ("chat",), TRL)
    with monkeypatch.context() as patch:
        patch.setitem(trainers.TRAINERS, "trl", broken)
        with pytest.raises(KeyboardInterrupt):
            exported()
    assert not Path("out").exists()
    assert (exported() / "trl.yaml").exists() and not Path("out.part").exists()


def test_the_folder_can_be_moved_and_repeats_itself():
    select({"one": pairs("one")}, weights={"one": 1.0})
    first = {path.name: path.read_bytes() for path in exported().rglob("*.jsonl")}
    Path("out").rename("moved")
    second = {path.name: path.read_bytes() for path in exported().rglob("*.jsonl")}
    assert first == second
    for name in ("axolotl.yaml", "trl.yaml", "llamafactory.yaml", "open_instruct.sh"):
        assert "out/" not in Path("moved", name).read_text().replace("output/", "")


def test_a_selection_hands_no_trust_on():
    base = DEMO | {"trust_remote_code": True, "allow_pickle": True}
    select({"one": pairs("one")}, base=base)
    folder = exported()
    for path in folder.glob("*.*ml"):
        assert "trust" not in path.read_text()


def test_the_newest_selection_is_taken_without_flags():
    select({"one": pairs("one")})
    run = Path("runs/select_sources/x")
    run.mkdir(parents=True)
    shutil.copy("selection.json", run)
    (run / "config.yaml").write_text("stage: select_sources\ncreated: '2026'\n")
    assert (export(Config()) / "data/one.jsonl").exists()


@pytest.mark.parametrize("shares", [{}, {"add": 0.7, "copy": 0.3}])
def test_trl_tokenizes_the_rows_as_we_do(monkeypatch, shares):
    trl = pytest.importorskip("trl")
    plain = [{"prompt": f"{i}+1", "completion": str(i + 1)} for i in range(100)]
    copies = [{"prompt": f"copy: {i}", "completion": str(i)} for i in range(100)]
    select({"add": plain, "copy": copies}, weights=shares)
    monkeypatch.chdir(exported(to="trl"))
    classes = (trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig, trl.DatasetMixtureConfig)
    parser = trl.TrlParser(classes)
    _, training, model, data = parser.parse_args_and_config(
        ["--config", "trl.yaml", "--use_cpu", "true"], fail_with_unknown_args=True
    )
    trainer = trl.SFTTrainer(
        model=model.model_name_or_path, args=training,
        train_dataset=trl.get_dataset(data)["train"], peft_config=trl.get_peft_config(model),
    )  # fmt: skip
    batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
    found = [(batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) for batch in batches]
    assert sorted(found) == sorted(_ours(Path("mixture" if shares else "data")))


def _ours(folder: Path) -> list[tuple[list[int], list[int]]]:
    from gradex.data.formats import to_row
    from gradex.data.tokens import Encoder
    from gradex.models.load import BaseSpec, load_tokenizer

    encoder = Encoder(load_tokenizer(BaseSpec("demo")), family="causal", max_length=64)
    rows = [to_row(r, "messages") for records in records_of(folder).values() for r in records]
    examples = map(encoder.encode, rows)
    return [(example.input_ids.tolist(), example.labels.tolist()) for example in examples]
