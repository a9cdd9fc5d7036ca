"""A person's mistake gives one sentence and exit code 2, and leaves no run that looks finished."""

import contextlib
import importlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from gradex.cli import STAGES, main
from gradex.gradients.shards import sha256
from gradex.records import SEAL, write_json, write_sealed

ROWS = [{"prompt": f"{i} ab=", "completion": f"x{i}"} for i in range(40)]
GOOD = "".join(json.dumps(row) + "\n" for row in ROWS)
STEPS = ["--max_steps", "1", "--per_device_train_batch_size", "4"]
SHARD = "train/one/shard-00000"

# The parser rewrites the types of fields that stages share; under the type checker of these tests
# every stage has to be there before the first command line is parsed.
for stage in STAGES:
    importlib.import_module(f"gradex.{stage}")


def write(path: str | Path, content: str | bytes) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    """As a faulty writer would leave it: where there is a checksum, it is that of the content."""
    content = json.loads(path.read_text())
    write = write_json if content.pop(SEAL, None) is None else write_sealed
    change(content)
    write(path, content)


@pytest.fixture(scope="module")
def model(model_folder) -> Path:
    return model_folder("llama")


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> SimpleNamespace:
    """Every stage's folder, made once; tests that damage one take a copy."""
    root = tmp_path_factory.mktemp("made")
    for number, name in enumerate(("one", "two", "three")):
        write(root / f"tasks/{name}.jsonl", GOOD.replace("ab=", f"{number}="))
    train = ["--model_name_or_path", str(model), "--tasks", str(root / "tasks"), *STEPS]
    meta, store, chosen = (str(root / name) for name in ("meta", "store", "chosen"))
    with contextlib.chdir(root):
        assert main(["meta_train", *train, "--output_dir", meta]) == 0
        small = ["--project_dim", "8"]
        assert main(["project", "--meta_dir", meta, *small, "--output_dir", store]) == 0
        assert main(["select_sources", "--store", store, "--output_dir", chosen]) == 0
    return SimpleNamespace(
        tasks=root / "tasks", meta=root / "meta", store=root / "store", chosen=root / "chosen"
    )


@pytest.fixture
def copied(made) -> SimpleNamespace:
    """The same folders as copies in the test's own folder."""
    for name in ("tasks", "meta", "store", "chosen"):
        shutil.copytree(getattr(made, name), name)
    shutil.rmtree("store/stats")  # sums of sound shards would hide what becomes of their copies
    return SimpleNamespace(**{name: Path(name) for name in ("tasks", "meta", "store", "chosen")})


@pytest.fixture
def refused(capsys):
    """refused(words, says): the command ends with 2 and one sentence that holds all of `says`."""

    def check(*words: object, says: list[str]) -> str:
        capsys.readouterr()
        code = main([str(word) for word in words])
        told = capsys.readouterr().err
        errors = [line for line in told.splitlines() if line.startswith("gradex: error:")]
        assert code == 2, told
        assert len(errors) == 1 and "Traceback" not in told, told
        for part in says:
            assert part in errors[0], f"expected {part!r} in: {errors[0]}"
        finished = [run for run in Path("runs").glob("*/*") if not run.name.endswith(".part")]
        assert finished == []
        return errors[0]

    return check


@pytest.fixture
def refused_training(refused, model):
    """The same for meta_train with a model that is in order."""

    def check(*words: object, says: list[str]) -> str:
        base = ["meta_train", "--model_name_or_path", model, *STEPS, "--output_dir", "made_run"]
        message = refused(*base, *words, says=says)
        assert not Path("made_run").exists()
        return message

    return check


# Data files.


def test_missing_data(refused_training):
    refused_training("--tasks", "gone.jsonl", says=["--tasks gone.jsonl", "no such file"])
    refused_training("--tasks", "gone/", says=["--tasks gone", "no such file or folder", "init"])
    refused_training(says=["--tasks tasks/demo", "gradex init"])


BAD_FILES = {
    "broken.jsonl": (GOOD + '{"prompt": \n', ["broken.jsonl:41", "not valid JSON", "one object"]),
    "list.jsonl": (GOOD + "[1, 2]\n", ["list.jsonl:41", "found list", "expected an object"]),
    "deep.jsonl": ("[" * 100_000 + "\n", ["deep.jsonl:1", "nested too deeply"]),
    "broken.json": ('[\n{"a": 1},\n{]', ["broken.json:3", "not valid JSON"]),
    "string.json": ('"text"', ["string.json", "found str", "expected a list"]),
    "numbers.json": ("[1, 2]", ["numbers.json[0]", "found int", "expected an object"]),
    "binary.jsonl": (GOOD.encode() + b"\x8f\xff\x00\n", ["binary.jsonl:41", "not UTF-8", "save"]),
    "binary.json": (b"\x8f\xff\x00", ["binary.json:1", "not UTF-8", "save"]),
    "binary.csv": (b"prompt,completion\n\x8f\xff,b\n", ["binary.csv:2", "not UTF-8", "save"]),
    "wide.jsonl": (GOOD.encode("utf-16"), ["wide.jsonl:1", "not UTF-8", "save"]),
    "binary.parquet": (b"\x8f\xff\x00" * 50, ["binary.parquet", "not a readable parquet"]),
    "empty.parquet": (b"", ["empty.parquet", "not a readable parquet"]),
    "rows.xyz": (GOOD, ["rows.xyz", "unknown kind of file '.xyz'", ".jsonl"]),
    "rows": (GOOD, ["rows", "unknown kind of file", ".jsonl"]),
    "other.jsonl": (
        '{"question": "a", "reply": "b"}\n',
        ["other.jsonl:1", "question, reply", "prompt, completion", "`columns:`"],
    ),
    "empty.jsonl": ("", ["empty", "no usable row", "give it rows or leave it out"]),
    "blank.jsonl": ("\n\n", ["blank", "no usable row"]),
    "header.csv": ("prompt,completion\n", ["header", "no usable row"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_data_file(refused_training, made, name):
    content, says = BAD_FILES[name]
    write(name, content)
    refused_training("--tasks", name, made.tasks, says=says)


def test_a_folder_of_nothing(refused_training):
    write("folder/readme.md", "")
    refused_training("--tasks", "folder", says=["--tasks folder", "neither YAMLs nor data files"])
    write("folder/empty.jsonl", "")
    refused_training("--tasks", "folder", says=["--tasks", "none of the sources has a training"])


def test_an_empty_source_in_a_folder_is_left_out(model, capsys):
    write("folder/empty.jsonl", "")
    write("folder/rows.jsonl", GOOD)
    words = ["--model_name_or_path", str(model), "--tasks", "folder", *STEPS]
    assert main(["meta_train", *words, "--output_dir", "run"]) == 0
    notes = json.loads(Path("run/sources.json").read_text())["notes"]
    assert any("empty: no usable row" in note for note in notes)


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".pt", ".bin"])
def test_a_pickle_is_not_read(refused_training, suffix):
    path = write(f"rows{suffix}", pickle.dumps(_Trap("data")))
    refused_training("--tasks", path, says=[path.name, "pickle", "--allow_pickle", "jsonl"])
    assert not Path("trapped_data").exists()


def test_a_pickle_that_is_none(refused_training):
    write("rows.pkl", b"zz")
    says = ["rows.pkl", "not a readable pickle"]
    refused_training("--tasks", "rows.pkl", "--allow_pickle", says=says)


class _Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self):
        return open, (f"trapped_{self.mark}", "w")


def test_duplicate_names(refused_training):
    write("a/same.jsonl", GOOD)
    write("b/same.jsonl", GOOD)
    says = ["b/same.jsonl", "'same' is taken by a/same.jsonl", "another name"]
    refused_training("--tasks", "a/same.jsonl", "b/same.jsonl", says=says)
    refused_training("--tasks", "a", "b", says=says)


BAD_NAMES = ["..", ".", "/abs", "../up", "a/../../b", "~root", r"\abs", r"..\up"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_would_leave_the_store(refused_training, name):
    write("rows.jsonl", GOOD)
    write("task.yaml", yaml.safe_dump({"path": "rows.jsonl", "name": name}))
    refused_training("--tasks", "task.yaml", says=["task.yaml", "would leave the store"])
    rows = [row | {"skill": "fine" if i < 20 else name} for i, row in enumerate(ROWS)]
    write("many.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write("many.yaml", "path: many.jsonl\nsource_column: skill\n")
    refused_training("--tasks", "many.yaml", says=["many.jsonl:21", "would leave the store"])


NO_NAMES = {
    "": "printable",
    "a\nb": "printable",
    "x" * 300: "too long",
    "é" * 40: "too long",
    **dict.fromkeys(["=1+cmd|x!A0", "+1", "-e", "@sum"], "first character"),
}


@pytest.mark.parametrize(("name", "says"), NO_NAMES.items())
def test_a_name_that_is_no_name(refused_training, name, says):
    write("rows.jsonl", GOOD)
    write("task.yaml", yaml.safe_dump({"path": "rows.jsonl", "name": name}))
    refused_training("--tasks", "task.yaml", says=["task.yaml", says])


# Task YAMLs.

BAD_TASKS = {
    "": ["task.yaml", "expected `key: value` lines"],
    "- a\n": ["task.yaml", "found list", "`key: value`"],
    "path: rows.jsonl\nname: [\n": ["task.yaml:3", "not valid YAML"],
    "path: rows.jsonl\nfomat: text\n": ["task.yaml", "unknown key 'fomat'", "format"],
    "path: rows.jsonl\n3: x\n": ["task.yaml", "unknown key '3'"],
    "name: x\n": ["task.yaml", "'path' is missing"],
    "path: [a]\n": ["task.yaml", "'path' is ['a']", "expected text"],
    "path: gone.jsonl\n": ["gone.jsonl", "no such file"],
    "path: rows.jsonl\nname: 7\n": ["task.yaml", "'name' is 7", "quotes"],
    "path: rows.jsonl\nformat: foo\n": ["task.yaml", "unknown format 'foo'", "alpaca"],
    "path: rows.jsonl\nmetric: foo\n": ["task.yaml", "unknown metric 'foo'", "exact_match"],
    "path: rows.jsonl\nrole: foo\n": ["task.yaml", "unknown role 'foo'", "source, target"],
    "path: rows.jsonl\nformat: alpaca\n": ["rows.jsonl:1", "'instruction' is missing", "found"],
    "path: rows.jsonl\ncolumns: {foo: prompt}\n": ["task.yaml", "columns", "'foo'"],
    "path: rows.jsonl\ncolumns: {prompt: gone}\n": ["task.yaml", "columns.prompt", "'gone'"],
    "path: rows.jsonl\ncolumns: [a]\n": ["task.yaml", "'columns'", "expected a mapping"],
    "path: rows.jsonl\nsource_column: gone\n": ["task.yaml", "source_column", "'gone'"],
    "path: rows.jsonl\ngroup_by: gone\n": ["task.yaml", "group_by", "'gone'"],
    "path: rows.jsonl\nselect: x.jsonl\n": ["task.yaml", "`select` and `test` go together"],
    "path: rows.jsonl\nselect: x.jsonl\ntest: y.jsonl\n": ["x.jsonl", "no such file"],
    "path: rows.jsonl\npath: other.jsonl\n": ["task.yaml:2", "path"],
    "path: !!python/object/apply:os.mkdir [trapped]\n": ["task.yaml:1", "not valid YAML"],
    "path: folder\n": ["folder", "not a saved data set"],
}


@pytest.mark.parametrize("text", BAD_TASKS)
def test_bad_task_yaml(refused_training, text):
    write("rows.jsonl", GOOD)
    write("other.jsonl", GOOD)
    write("folder/rows.jsonl", GOOD)
    write("task.yaml", text)
    refused_training("--tasks", "task.yaml", says=BAD_TASKS[text])
    assert not Path("trapped").exists()


def test_a_binary_task_yaml(refused_training):
    write("task.yaml", b"\x8f\xff\x00")
    refused_training("--tasks", "task.yaml", says=["task.yaml", "not UTF-8"])


def test_a_folder_named_like_a_task(refused_training):
    write("tasks/folder.yaml/rows.jsonl", GOOD)
    refused_training("--tasks", "tasks", says=["tasks/folder.yaml", "directory"])


def test_unknown_target(refused_training, made):
    words = ["--tasks", made.tasks, "--target"]
    refused_training(*words, "gone", says=["--target", "'gone'", "one, three, two"])
    refused_training(*words, "gone.jsonl", says=["--target gone.jsonl", "no such file"])


def test_no_target_row_left(refused_training):
    write("rows.jsonl", "".join(GOOD.splitlines(keepends=True)[:2]))
    refused_training("--tasks", "rows.jsonl", says=["no target", "--target", "`select:`"])


# Flags.

BAD_TRAINING_FLAGS = [
    *((name, value, "above 0") for name in (
        "max_steps", "learning_rate", "num_train_epochs", "per_device_train_batch_size",
        "gradient_accumulation_steps", "lora_r", "lora_alpha", "max_length", "num_nodes",
        "loraplus_ratio",
        "tokens_per_batch", "eval_every", "early_stopping",
    ) for value in ("0", "-1")),
    *((name, "-1", "0") for name in ("lora_dropout", "weight_decay", "warmup_steps")),
    *(("held_out", value, "at most 1") for value in ("0", "-1", "1.5", "nan")),
    ("lora_dropout", "1", "less than 1"),
    ("lora_dropout", "nan", ""),
    ("weight_decay", "nan", ""),
    ("learning_rate", "nan", "above 0"),
    ("learning_rate", "inf", ""),
    ("num_train_epochs", "inf", ""),
    ("lora_alpha", "inf", ""),
    ("seed", "-1", ""),
    ("seed", "9" * 30, ""),
    ("max_steps", "many", "invalid int"),
    ("max_steps", "2.5", "invalid int"),
    ("bf16", "perhaps", "yes/no"),
    ("optimizer", "adamm", "known are: adamw, sgd, adamp"),
    ("optimizer_args", "beta=1", "known are: betas"),
    ("lr_scheduler_type", "cosinus", "known are: linear, cosine"),
    ("warmup_steps", "100", "--max_steps"),
    ("lora_target_modules", "gone", "q_proj"),
    ("precision", "foo", "32-true"),
    ("strategy", "foo", "auto"),
    ("devices", "0", ""),
    ("devices", "foo", ""),
    ("max_length", "1", ""),
    ("gone", "1", "--learning_rate"),
    ("tokens_per_batch", "100", "--per_device_train_batch_size"),
    ("report_to", "foo", "tensorboard, wandb"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), BAD_TRAINING_FLAGS)
def test_bad_training_flags(refused, model, made, name, value, expected):
    steps = [] if name == "num_train_epochs" else STEPS
    words = ["--model_name_or_path", model, "--tasks", made.tasks, *steps, f"--{name}", value]
    refused("meta_train", *words, says=[f"--{name}", expected])


BAD_ADAPTERS = [
    (["--adapter", "pisa"], ["unknown adapter 'pisa'", "pissa", "milora"]),
    (["--lora_target_modules", "q_proj", "q_prj"], ["q_prj is in no layer", "near: q_proj"]),
    (["--adapter", "bone", "--lora_dropout", "0.1"], ["--lora_dropout", "bone", "no dropout"]),
    (["--adapter", "milora", "--qlora"], ["--qlora", "--adapter milora"]),
    (["--adapter", "milora", "--lora_r", "64"], ["rank of 64", "--lora_r"]),
    (["--adapter_args", "mini_r=2"], ["--adapter_args mini_r", "a setting of miss_mini"]),
    (["--adapter", "ia3", "--lora_alpha", "3"], ["--lora_alpha", "nothing to --adapter ia3"]),
    (["--calib_source", "one"], ["--calib_source", "nothing to --adapter lora"]),
    (["--adapter", "peft"], ["--adapter peft", "--peft_config"]),
    (["--peft_config", "gone.json"], ["gone.json", "no such file"]),
    (["--peft_config", "list.json"], ["list.json", "found list"]),
    (["--peft_config", "[1]"], ["[1]", "no such file"]),
    (["--peft_config", "{1"], ["--peft_config", "not valid JSON"]),
    (["--peft_config", "{}"], ["'peft_type' is missing"]),
    (["--peft_config", '{"peft_type": "GONE"}'], ["unknown peft_type 'GONE'", "LOHA"]),
    (["--peft_config", '{"peft_type": "LOHA", "rank": 3}'], ["unknown setting", "'rank'"]),
    (["--peft_config", '{"peft_type": "LOHA"}', "--lora_r", "3"], ["--lora_r", "--adapter peft"]),
    (["--peft_config", '{"peft_type": "LOHA"}', "--adapter", "dora"], ["leave one of them out"]),
]


@pytest.mark.parametrize(("words", "says"), BAD_ADAPTERS)
def test_an_adapter_that_cannot_be(refused_training, made, words, says):
    write("list.json", "[1, 2]")
    refused_training("--tasks", made.tasks, *words, says=says)


BAD_FLAGS = [
    *(("project", name, value, "above 0") for name in ("project_dim", "tokens_per_batch")
      for value in ("0", "-1")),
    ("project", "dtype", "float64", "float16"),
    ("project", "projector", "foo", "sjlt"),
    ("project", "meta_dir", "gone", "gone"),
    *((stage, name, value, "above 0") for stage in ("estimate", "select_sources", "verify")
      for name, value in (("lam", "0"), ("lam", "-1"), ("lam", "nan"), ("num_subsets", "0"),
                          ("num_subsets", "-1"))),
    *((stage, "subset_size", value, "at most 1") for stage in ("estimate", "verify")
      for value in ("0", "-1", "2", "nan")),
    ("estimate", "lam", "inf", ""),
    ("estimate", "seed", "-1", ""),
    ("verify", "subset_seed", "-1", ""),
    ("estimate", "estimator", "foo", "linear"),
    ("estimate", "target", "gone", "one, three, two"),
    ("select_sources", "target", "gone", "one, three, two"),
    ("verify", "target", "gone", "one, three, two"),
    ("select_sources", "max_sources", "0", "above 0"),
    ("select_sources", "max_sources", "-1", "above 0"),
    ("select_sources", "min_gain", "nan", ""),
    ("select_sources", "method", "foo", "forward"),
    ("select_sources", "must", "gone", "one, three, two"),
    ("select_sources", "never", "gone", "one, three, two"),
    ("select_sources", "budget", "1", "the smallest source"),
    ("select_sources", "budget", "0", "above 0"),
    ("select_sources", "max_share", "0.1", "need 10 sources, found 3"),
    ("select_sources", "min_share", "2", "at most 1"),
    ("finetune", "max_steps", "0", "above 0"),
    ("finetune", "lora_r", "-1", "above 0"),
    ("finetune", "mix_every", "0", "above 0"),
    ("finetune", "mix_rows", "-1", "above 0"),
    ("finetune", "mixer", "foo", "pareto"),
    ("pipeline", "project_dim", "0", "above 0"),
    ("pipeline", "num_seeds", "0", "above 0"),
    ("pipeline", "verify_subsets", "-1", ""),
    ("pipeline", "devices", "2", "one by one"),
    ("pipeline", "early_stopping", "2", "one by one"),
    ("verify", "devices", "2", "one device"),
    ("verify", "early_stopping", "2", "the same number of steps"),
    ("calibrate", "eval_every", "2", "the same number of steps"),
    ("calibrate", "report_to", "wandb", "metrics.csv"),
    ("finetune", "mask", "gone", "no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "name", "value", "expected"), BAD_FLAGS)
def test_bad_flags(refused, model, made, stage, name, value, expected):
    reads = {
        "project": ["--meta_dir", made.meta],
        "finetune": ["--selection", made.chosen],
        "pipeline": ["--model_name_or_path", model, "--tasks", made.tasks, *STEPS],
    }
    words = reads.get(stage, ["--store", made.store])
    told = refused(stage, *words, f"--{name}", value, says=[value, expected])
    assert f"--{name}" in told or name in ("meta_dir", "target")


@pytest.mark.parametrize(
    ("estimator", "flag"), [("linear", "t"), ("flow", "lam"), ("influence", "compress")]
)
def test_a_flag_that_the_estimator_does_not_have(refused, made, estimator, flag):
    words = ["--store", made.store, "--estimator", estimator, f"--{flag}", "3"]
    refused("estimate", *words, says=[f"--{flag}", estimator, "no such flag"])


def test_flags_without_a_value_or_by_half_their_name(refused):
    refused("meta_train", "--tasks", says=["--tasks", "at least one argument"])
    refused("meta_train", "--learning", "1", says=["'--learning'", "--learning_rate"])
    refused("meta_train", "word", says=["unknown argument 'word'"])
    refused("gone", says=["unknown stage 'gone'", "meta_train"])


BAD_CONFIGS = {
    "": ["run.yaml", "expected `key: value` lines"],
    "- a\n": ["run.yaml", "found list"],
    "seed: [\n": ["run.yaml:2", "not valid YAML"],
    "gone: 1\n": ["run.yaml", "unknown key 'gone'", "learning_rate"],
    "max_steps: many\n": ["run.yaml", "--max_steps", "invalid int", "many"],
    "max_steps: [1, 2]\n": ["run.yaml", "max_steps"],
    "tasks: []\n": ["run.yaml", "--tasks"],
    "tasks: {a: 1}\n": ["run.yaml", "tasks", "expected"],
    "bf16: 3\n": ["run.yaml", "--bf16"],
    "lora_r: 0\n": ["lora_r", "above 0"],
    "stage: project\n": ["run.yaml", "`project`", "gradex run.yaml"],
    "stage: gone\n": ["run.yaml", "gone", "meta_train"],
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_bad_config(refused, text):
    write("run.yaml", text)
    told = refused("meta_train", "--config", "run.yaml", says=BAD_CONFIGS[text])
    assert "gradex gone" not in told  # no advice that cannot be followed


def test_a_config_that_is_no_file(refused):
    Path("folder.yaml").mkdir()
    write("binary.yaml", b"\x8f\xff\x00")
    refused("meta_train", "--config", "gone.yaml", says=["gone.yaml", "no such file"])
    refused("meta_train", "--config", "folder.yaml", says=["folder.yaml", "directory"])
    refused("meta_train", "--config", "binary.yaml", says=["binary.yaml", "not UTF-8"])
    refused("gone.yaml", says=["gone.yaml", "no such file"])
    refused("folder.yaml", says=["folder.yaml", "directory"])


# Models.


def settings_of_model(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update(values))


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap("weights")))


def without_some_weights(folder: Path) -> None:
    """The file of a download that lost layers: what is missing must not be drawn at random."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layers.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def with_more_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(50)])
    tokenizer.save_pretrained(folder)


def without_special_tokens(folder: Path) -> None:
    def strip(config: dict) -> None:
        for name in ("pad_token", "eos_token", "bos_token", "unk_token"):
            config.pop(name, None)

    edit_json(folder / "tokenizer_config.json", strip)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def half_of(name: str) -> Callable[[Path], None]:
    return lambda folder: write(folder / name, (folder / name).read_bytes()[:-100]) and None


def content_of(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: write(folder / name, content) and None


BAD_MODELS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["without weights"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["no config.json"]),
    "broken config": (content_of("config.json", "{"), ["config.json"]),
    "config of a list": (content_of("config.json", "[]"), ["config"]),
    "config of nothing": (content_of("config.json", "{}"), ["config", "model_type"]),
    "config of other types": (settings_of_model(hidden_size="x"), ["hidden_size"]),
    "config without heads": (settings_of_model(num_attention_heads=0), []),
    "unknown architecture": (settings_of_model(model_type="gone"), ["config", "gone"]),
    "remote code": (
        settings_of_model(auto_map={"AutoModelForCausalLM": "code.Model"}),
        ["code of its own", "auto_map", "--trust_remote_code"],
    ),
    "weights of another size": (settings_of_model(hidden_size=64), ["weights"]),
    "weights of too few layers": (settings_of_model(num_hidden_layers=3), ["weights", "layers.2"]),
    "weights that miss a layer": (without_some_weights, ["weights", "layers.1"]),
    "half of the weights": (half_of("model.safetensors"), ["weights"]),
    "empty weights": (content_of("model.safetensors", b""), ["weights"]),
    "no weights at all": (content_of("model.safetensors", b"\x8f\xff" * 99), ["weights"]),
    "pickled weights": (as_pickle, ["pytorch_model.bin", "pickle", "--allow_pickle"]),
    "no tokenizer": (
        lambda f: [file.unlink() for file in f.glob("tok*")] and None,
        ["tokenizer"],
    ),
    "broken tokenizer": (content_of("tokenizer.json", "{"), ["tokenizer"]),
    "another tokenizer file": (content_of("tokenizer.json", '{"a": 1}'), ["tokenizer"]),
    "more tokens than embeddings": (with_more_tokens, ["149 tokens", "99", "not belong"]),
    "no token to pad with": (without_special_tokens, ["tokenizer", "pad"]),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model(refused, model, made, name):
    damage, says = BAD_MODELS[name]
    shutil.copytree(model, "bad_model")
    damage(Path("bad_model"))
    words = ["--model_name_or_path", "./bad_model", "--tasks", made.tasks, *STEPS]
    refused("meta_train", *words, says=["bad_model", *says])
    assert not Path("trapped_weights").exists()


def test_a_model_that_is_not_there(refused, made):
    words = ["--tasks", made.tasks, *STEPS, "--model_name_or_path"]
    refused("meta_train", *words, "./gone", says=["./gone", "no such model folder"])
    write("file", "")
    refused("meta_train", *words, "./file", says=["./file", "not a model folder"])


def test_allowed_pickled_weights_that_cannot_be_read(refused, model, made):
    shutil.copytree(model, "bad_model")
    as_pickle(Path("bad_model"))
    words = ["--model_name_or_path", "./bad_model", "--tasks", made.tasks, *STEPS]
    refused("meta_train", *words, "--allow_pickle", says=["bad_model", "weights"])


# Where runs are written.


def test_an_output_dir_that_exists(refused, model, made):
    write("taken/file", "")
    train = ["--model_name_or_path", model, "--tasks", made.tasks, *STEPS]
    for stage, words in (
        ("meta_train", train),
        ("estimate", ["--store", made.store]),
        ("select_sources", ["--store", made.store]),
        ("finetune", ["--selection", made.chosen]),
        ("verify", ["--store", made.store, "--num_subsets", "1"]),
        ("report", ["--selection", made.chosen]),
        ("pipeline", train),
        ("merge", ["--adapter", made.meta]),
        ("convert", ["--adapter", made.meta]),
    ):
        says = ["--output_dir taken", "exists already", "name another"]
        refused(stage, *words, "--output_dir", "taken", says=says)
    assert os.listdir("taken") == ["file"]


def test_no_permission_to_write(refused, model, made):
    """A folder below a regular file: nobody, not even root, can write there."""
    write("file", "")
    train = ["--model_name_or_path", model, "--tasks", made.tasks, *STEPS]
    says = ["file", "Not a directory", "--output_dir"]
    for stage, words in (
        ("meta_train", train),
        ("project", ["--meta_dir", made.meta]),
        ("estimate", ["--store", made.store]),
        ("finetune", ["--selection", made.chosen]),
    ):
        refused(stage, *words, "--output_dir", "file/run", says=says)
    refused("init", "file/workspace", says=["file", "Not a directory"])


def test_a_store_into_a_folder_of_other_files(refused, made):
    write("folder/file", "")
    says = ["folder", "no manifest.json", "empty folder"]
    refused("project", "--meta_dir", made.meta, "--output_dir", "folder", says=says)


def test_a_workspace_over_a_workspace(refused):
    Path("tasks/demo").mkdir(parents=True)
    refused("init", says=["tasks/demo", "exists already", "another folder"])


# What earlier stages leave.


def test_nothing_was_run_before(refused):
    refused("project", says=["no finished run of meta_train", "gradex.meta_train"])
    refused("estimate", says=["no finished run of project", "gradex.project"])
    refused("select_sources", says=["no finished run of project", "gradex.project"])
    refused("verify", says=["no finished run of project", "gradex.project"])
    refused("finetune", says=["no finished run of select_sources"])
    refused("report", says=["no finished run of select_sources"])
    refused("merge", says=["no finished run of finetune"])
    refused("convert", says=["no finished run of finetune"])


def test_a_run_of_another_stage(refused, made):
    says = ["chosen", "a run of select_sources", "expected one of meta_train"]
    refused("project", "--meta_dir", made.chosen, says=says)
    refused("project", "--meta_dir", made.tasks, says=["not a finished run of meta_train"])


BAD_ADAPTERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no folder": (lambda f: shutil.rmtree(f / "adapter"), ["meta/adapter"]),
    "no weights": (
        lambda f: (f / "adapter/adapter_model.safetensors").unlink(),
        ["meta/adapter", "adapter_model.safetensors"],
    ),
    "no settings": (
        lambda f: (f / "adapter/adapter_config.json").unlink(),
        ["meta/adapter", "adapter_config.json"],
    ),
    "half of the weights": (half_of("adapter/adapter_model.safetensors"), ["meta/adapter"]),
    "broken settings": (content_of("adapter/adapter_config.json", "{"), ["adapter_config.json"]),
    "settings of nothing": (content_of("adapter/adapter_config.json", "{}"), ["meta/adapter"]),
    "another rank": (
        lambda f: edit_json(f / "adapter/adapter_config.json", lambda c: c.update(r=3)),
        ["meta/adapter", "does not fit"],
    ),
    "weights of other names": (
        lambda f: rename_weights(f / "adapter/adapter_model.safetensors"),
        ["meta/adapter", "does not fit"],
    ),
    "no sources": (lambda f: (f / "sources.json").unlink(), ["sources.json", "no such file"]),
    "sources of nothing": (content_of("sources.json", "{}"), ["sources.json", "sources"]),
    "broken sources": (content_of("sources.json", "{"), ["sources.json", "JSON"]),
    "config of nothing": (content_of("config.yaml", "stage: meta_train\n"), ["config.yaml"]),
}


def rename_weights(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({f"{name}.x": value for name, value in load_file(file).items()}, file)


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_bad_meta_run(refused, copied, name):
    damage, says = BAD_ADAPTERS[name]
    damage(copied.meta)
    refused("project", "--meta_dir", "meta", "--project_dim", "8", says=says)


def manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda store: edit_json(store / "manifest.json", change)


def plan(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda store: edit_json(store / "plan.json", change)


def array(ending: str, values: object) -> Callable[[Path], None]:
    def put(store: Path) -> None:
        rows = json.loads((store / f"{SHARD}.json").read_text())["rows"]
        made = values(rows) if callable(values) else values
        np.save(store / f"{SHARD}{ending}", made, allow_pickle=True)

    return put


def pickled_objects(rows: int) -> np.ndarray:
    out = np.empty(rows, object)
    out[:] = [_Trap("array")] * rows
    return out


def believe(file: Path) -> None:
    """Let the receipt be of the file as it is now."""
    receipt = file.with_name("shard-00000.json")
    edit_json(receipt, lambda content: content["files"].update({file.name: sha256(file)}))


def no_good_row(place: str) -> Callable[[Path], None]:
    def mark(store: Path) -> None:
        file = store / place / "shard-00000.rows.npy"
        table = np.load(file)
        table["ok"] = False
        np.save(file, table)
        believe(file)

    return mark


def no_gradient(store: Path) -> None:
    for file in store.glob("train/*/shard-00000.npy"):
        np.save(file, np.zeros_like(np.load(file)))
        believe(file)


REDO = "project"
BAD_STORES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no manifest": (lambda s: (s / "manifest.json").unlink(), ["store", "not a gradient store"]),
    "broken manifest": (content_of("manifest.json", "{"), ["manifest.json", "JSON"]),
    "manifest of a list": (content_of("manifest.json", "[]"), ["manifest.json", "list"]),
    "binary manifest": (content_of("manifest.json", b"\x8f\xff"), ["manifest.json", "JSON"]),
    "deep manifest": (content_of("manifest.json", "[" * 100_000), ["manifest.json"]),
    "another format": (manifest(lambda m: m.update(format="other/9")), ["other/9", "expected"]),
    "no space": (manifest(lambda m: m.pop("space")), ["manifest.json", "space"]),
    "no dim": (manifest(lambda m: m["space"].pop("project_dim")), ["manifest.json", "project_dim"]),
    "huge dim": (manifest(lambda m: m["space"].update(project_dim=10**9)), ["store", "1000000000"]),
    "negative dim": (manifest(lambda m: m["space"].update(project_dim=-1)), ["store", "-1"]),
    "another dim": (manifest(lambda m: m["space"].update(project_dim=9)), ["store", "9"]),
    "dim of text": (manifest(lambda m: m["space"].update(project_dim="8")), ["project_dim"]),
    "no plan": (lambda s: (s / "plan.json").unlink(), ["plan.json", "no such file"]),
    "broken plan": (content_of("plan.json", "{"), ["plan.json", "JSON"]),
    "plan of nothing": (content_of("plan.json", "{}"), ["plan.json", "train"]),
    "no source": (plan(lambda p: p["train"].clear()), ["store", "no source"]),
    "no target": (plan(lambda p: p["target"].clear()), ["store", "no target"]),
    "outside": (plan(lambda p: p["train"].update({"..": p["train"]["one"]})), ["'..'"]),
    "far outside": (plan(lambda p: p["train"].update({"../x": p["train"]["one"]})), ["../x"]),
    "shards of text": (plan(lambda p: p["train"]["one"].update(shards="x")), ["plan.json"]),
    "entry of nothing": (plan(lambda p: p["train"].update(one=None)), ["plan.json"]),
    "no receipt": (
        lambda s: (s / f"{SHARD}.json").unlink(),
        ["shard-00000.json", "missing", REDO],
    ),
    "broken receipt": (content_of(f"{SHARD}.json", "{"), ["shard-00000.json", REDO]),
    "binary receipt": (
        content_of(f"{SHARD}.json", b"\x8f\xff"),
        ["shard-00000.json", REDO],
    ),
    "receipt of nothing": (
        content_of(f"{SHARD}.json", "{}"),
        ["shard-00000.json", REDO],
    ),
    "receipt of a list": (
        content_of(f"{SHARD}.json", "[]"),
        ["shard-00000.json", REDO],
    ),
    "no gradients": (lambda s: (s / f"{SHARD}.npy").unlink(), ["shard-00000.npy", REDO]),
    "cut gradients": (half_of(f"{SHARD}.npy"), ["shard-00000.npy", REDO]),
    "empty gradients": (content_of(f"{SHARD}.npy", b""), ["shard-00000.npy", REDO]),
    "binary gradients": (content_of(f"{SHARD}.npy", b"\x8f\xff"), ["shard-00000.npy", REDO]),
    "pickled gradients": (array(".npy", pickled_objects), ["shard-00000.npy", REDO]),
    "pickled rows": (array(".rows.npy", pickled_objects), ["shard-00000.rows.npy", REDO]),
    "flat gradients": (array(".npy", np.zeros), ["shard-00000.npy", REDO]),
    "no array": (array(".npy", np.array(3.0)), ["shard-00000.npy", REDO]),
    "narrow gradients": (array(".npy", lambda n: np.zeros((n, 3))), ["shard-00000.npy", REDO]),
    "fewer rows": (array(".npy", np.zeros((1, 8))), ["shard-00000.npy", REDO]),
    "gradients of text": (
        array(".npy", lambda n: np.full((n, 8), "a")),
        ["shard-00000.npy", REDO],
    ),
    "rows of another table": (array(".rows.npy", np.zeros), ["shard-00000.rows.npy", REDO]),
    "gradients of nan": (array(".npy", lambda n: np.full((n, 8), np.nan)), ["store"]),
    "gradients of zero": (no_gradient, ["store", "zero"]),
    "no good row": (no_good_row("train/one"), ["store", "'one'", "no good row"]),
    "no good target row": (no_good_row("target/one"), ["one", "no good row"]),
}


@pytest.mark.parametrize("stage", ["estimate", "select_sources"])
@pytest.mark.parametrize("name", BAD_STORES)
def test_bad_store(refused, copied, stage, name):
    damage, says = BAD_STORES[name]
    damage(copied.store)
    few = ["--num_subsets", "4"] if stage == "estimate" else []
    refused(stage, "--store", "store", *few, "--output_dir", "run", says=says)
    assert not Path("run").exists() and not Path("trapped_array").exists()


@pytest.mark.parametrize("place", ["gone", "tasks", "file"])
@pytest.mark.parametrize("stage", ["estimate", "select_sources", "verify"])
def test_a_store_that_is_none(refused, copied, stage, place):
    write("file", "")
    refused(stage, "--store", place, says=[place, "not a gradient store"])


@pytest.mark.parametrize("text", ["{}", '{"store": 3}', "{"])
def test_a_project_run_without_its_store(refused, made, text):
    """The newest run of project says where the store is; it may be damaged too."""
    with contextlib.suppress(FileExistsError):
        write("runs/project/newest.part", "")
    write("runs/project/x/config.yaml", "stage: project\ncreated: '2000'\n")
    write("runs/project/x/store.json", text)
    with pytest.raises(AssertionError, match="assert \\["):  # the run that this test wrote itself
        refused("estimate", says=["runs/project/x/store.json"])


def test_a_store_of_another_model(refused, model, copied):
    torch.manual_seed(1)
    shutil.copytree(model, "other_model")
    from safetensors.torch import load_file, save_file

    weights = load_file("other_model/model.safetensors")
    save_file(
        {name: value + 0.01 for name, value in weights.items()},
        "other_model/model.safetensors",
        metadata={"format": "pt"},
    )
    words = ["--model_name_or_path", "./other_model", "--tasks", "tasks", *STEPS]
    assert main(["meta_train", *words, "--output_dir", "other_meta"]) == 0
    says = ["store", "was made with model=", "cannot be compared"]
    other = ["--meta_dir", "other_meta", "--project_dim", "8", "--output_dir", "store"]
    refused("project", *other, says=says)
    says = ["store", "was made with project", "cannot be compared"]
    other = ["--meta_dir", "meta", "--project_dim", "9", "--output_dir", "store"]
    refused("project", *other, says=says)


BAD_SUBSETS = {
    "one\ntwo gone\n": ["subsets.txt:2", "unknown source 'gone'", "one, three, two"],
    "# nothing\n\n": ["subsets.txt", "found no subset"],
    "": ["subsets.txt", "found no subset"],
    b"one\n\x8f\xff\n": ["subsets.txt", "not UTF-8"],
    "..%2Fone\n": ["subsets.txt:1", "unknown source '../one'"],
}


@pytest.mark.parametrize("stage", ["estimate", "verify"])
@pytest.mark.parametrize("text", BAD_SUBSETS)
def test_bad_subset_file(refused, made, stage, text):
    write("subsets.txt", text)
    refused(stage, "--store", made.store, "--subsets", "subsets.txt", says=BAD_SUBSETS[text])


def test_a_subset_file_that_is_no_file(refused, made):
    Path("folder").mkdir()
    for place in ("gone.txt", "folder"):
        words = ["--store", made.store, "--subsets", place]
        refused("estimate", *words, says=[place, "one subset of source names a line"])


def test_too_few_subsets_for_the_ensemble(refused, made):
    words = ["--store", made.store, "--method", "random_ensemble", "--num_subsets", "1"]
    refused("select_sources", *words, says=["none of the 1 subsets", "--num_subsets"])


WHOLE = "select_sources"
BAD_SELECTIONS: dict[str, tuple[object, list[str]]] = {
    "broken": (b"{", ["JSON", WHOLE]),
    "empty": (b"", ["JSON", WHOLE]),
    "binary": (b"\x8f\xff\x00", ["JSON", WHOLE]),
    "deep": (b"[" * 100_000, []),
    "list": (b"[]", ["list", WHOLE]),
    "another format": (lambda s: s.update(format="other/9"), ["other/9", "expected"]),
    **{
        f"no {key}": (lambda s, key=key: s.pop(key), [f"'{key}' is missing"])
        for key in ("selected", "targets", "store", "base", "tasks", "recipe", "data")
    },
    **{
        f"{key} of another type": (lambda s, key=key: s.update({key: 3}), [key])
        for key in ("selected", "targets", "base", "tasks", "recipe", "data")
    },
    "nothing selected": (lambda s: s.update(selected=[]), ["selected"]),
    "unknown source": (lambda s: s.update(selected=["gone"]), ["gone"]),
    "unknown target": (lambda s: s.update(targets={"gone": 1.0}), ["gone"]),
    "a source twice": (lambda s: s.update(selected=["one", "one"]), ["'one'", "each once"]),
    "sources of no name": (lambda s: s.update(selected=[{}]), ["{}", "names of sources"]),
    "weight of text": (lambda s: s.update(targets={"one": "x"}), ["targets", "'x'", "a number"]),
    "weight of nan": (lambda s: s.update(targets={"one": np.nan}), ["targets", "above 0"]),
    "score of text": (lambda s: s.update(scores={"one": "<b>"}), ["scores", "a number"]),
    "half a letter": (b'{"format": "\\ud800"}', ["JSON", "surrogates"]),
    "no hash of a source": (lambda s: s.update(data={}), ["data"]),
    "no model": (lambda s: s["base"].pop("model_name_or_path"), ["model_name_or_path"]),
    "no tasks in it": (lambda s: s["tasks"].pop("tasks"), ["tasks"]),
    "recipe of nothing": (lambda s: s.update(recipe={}), ["recipe"]),
    "negative rank": (lambda s: s["recipe"].update(lora_r=-1), ["lora_r", "above 0"]),
    "rate of text": (lambda s: s["recipe"].update(learning_rate="x"), ["learning_rate"]),
    "negative length": (lambda s: s["tasks"].update(max_length=-5), ["max_length"]),
}


@pytest.mark.parametrize("name", BAD_SELECTIONS)
def test_bad_selection(refused, copied, name):
    change, says = BAD_SELECTIONS[name]
    file = copied.chosen / "selection.json"
    if isinstance(change, bytes):
        file.write_bytes(change)
    else:
        edit_json(file, change)
    words = ["--selection", "chosen", "--output_dir", "run"]
    refused("finetune", *words, says=["selection.json", *says])
    assert not Path("run").exists()


def test_what_a_terminal_would_obey_is_written_out(refused, copied):
    edit_json(copied.chosen / "selection.json", lambda s: s.update(format="\x1b[31m\r\0"))
    refused("finetune", "--selection", "chosen", says=["the format is \\x1b[31m\\r\\x00, expected"])


def test_groups_of_no_names(refused, made):
    shutil.copytree(made.chosen, "chosen")
    entry = {"sources": [{}], "selection": "chosen/selection.json"}
    content = {"format": "gradex-groups/1", "groups": [entry, entry], "store": str(made.store)}
    write("groups.json", json.dumps(content))
    refused("finetune", "--ensemble", "groups.json", says=["selection.json", "run group again"])


def test_a_selection_that_points_elsewhere(refused, copied):
    file = copied.chosen / "selection.json"
    edit_json(file, lambda s: s["base"].update(model_name_or_path="/gone/model"))
    refused("finetune", "--selection", file, says=["/gone/model", "no such model folder"])
    edit_json(file, lambda s: s["tasks"].update(tasks=["/gone/tasks"]))
    refused("finetune", "--selection", file, says=["/gone/tasks", "no such file or folder"])
    edit_json(file, lambda s: s.update(store="/gone/store"))
    refused("report", "--selection", file, says=["/gone/store", "not a gradient store"])


def test_a_selection_brings_no_trust(refused, copied, made):
    """Whoever hands a selection on cannot make another person run pickles with it."""
    write("rows.pkl", pickle.dumps(_Trap("selection")))

    def trust(selection: dict) -> None:
        for part in ("base", "tasks", "recipe"):
            selection[part] |= {"allow_pickle": True, "trust_remote_code": True}
        selection["tasks"]["tasks"] = ["rows.pkl"]

    edit_json(copied.chosen / "selection.json", trust)
    refused("finetune", "--selection", "chosen", says=["rows.pkl", "--allow_pickle"])
    assert not Path("trapped_selection").exists()


def test_a_selection_that_is_not_there(refused, made):
    says = ["gone.json", "no such file", WHOLE]
    refused("finetune", "--selection", "gone.json", says=says)
    refused("finetune", "--selection", made.tasks, says=["selection.json", WHOLE])
    refused("report", "--selection", "gone.json", says=says)


# An interrupted run is taken up only for what it was begun for.


def begin(monkeypatch, words: list[str], *, dies_at: int) -> None:
    """Run a stage, and interrupt its training at a step."""
    from gradex.training.module import FineTuner

    step = FineTuner.training_step

    def dying(self, batch, index):
        if self.global_step == dies_at:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "training_step", dying)
        assert main(words) == 130


def adapter_of(run: str) -> bytes:
    return Path(run, "adapter/adapter_model.safetensors").read_bytes()


def test_a_training_on_other_rows_is_not_taken_up(monkeypatch, model, copied):
    """The checkpoint of rows that are there no more must not end up in an adapter."""
    train = ["meta_train", "--model_name_or_path", str(model), "--tasks", "tasks"]
    train += [*STEPS, "--max_steps", "20", "--output_dir"]
    begin(monkeypatch, [*train, "run"], dies_at=19)
    for file in copied.tasks.glob("*.jsonl"):
        file.write_text(file.read_text().replace("x", "changed"))
    assert main([*train, "fresh"]) == 0
    if main([*train, "run"]) == 0:
        assert adapter_of("run") == adapter_of("fresh")


def test_a_fine_tune_of_another_selection_is_not_taken_up(monkeypatch, copied):
    tune = ["finetune", "--selection", "chosen", "--max_steps", "20", "--output_dir"]
    file = copied.chosen / "selection.json"
    edit_json(file, lambda s: s.update(selected=["one"]))
    begin(monkeypatch, [*tune, "run"], dies_at=19)
    store = json.loads(Path("store/plan.json").read_text())
    hashes = {"two": store["train"]["two"]["data_hash"]}
    edit_json(file, lambda s: s.update(selected=["two"], data=hashes))
    assert main([*tune, "fresh"]) == 0
    if main([*tune, "run"]) == 0:
        assert adapter_of("run") == adapter_of("fresh")


def test_a_true_fine_tune_of_another_subset_is_not_taken_up(monkeypatch, made):
    """Trials are kept in the run's folder: those of one subset file must not enter another's."""
    from gradex.training.trials import Trials

    check = ["verify", "--store", str(made.store), "--subsets", "subsets.txt", "--output_dir"]
    train, count = Trials._train, []

    def dying(self, *arguments):
        count.append(arguments)
        if len(count) == 2:
            raise KeyboardInterrupt
        return train(self, *arguments)

    write("subsets.txt", "one\ntwo\n")
    with monkeypatch.context() as patch:
        patch.setattr(Trials, "_train", dying)
        assert main([*check, "run"]) == 130
    write("subsets.txt", "three\ntwo\n")
    assert main([*check, "fresh"]) == 0
    if main([*check, "run"]) == 0:
        first, second = (Path(run, "verify.csv").read_text() for run in ("run", "fresh"))
        assert first == second


@pytest.mark.parametrize("damage", [lambda b: b[:-200], lambda b: b"", lambda b: b"\x8f\xff" * 99])
def test_a_damaged_checkpoint(monkeypatch, capsys, model, made, damage):
    """A full disk or a crash in the middle of a copy: begin again, or say which file to remove."""
    train = ["meta_train", "--model_name_or_path", str(model), "--tasks", str(made.tasks)]
    train += [*STEPS, "--max_steps", "8", "--output_dir"]
    begin(monkeypatch, [*train, "run"], dies_at=5)
    file = Path("run.part/checkpoints/step.ckpt")
    file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()
    if main([*train, "run"]) == 0:
        assert main([*train, "fresh"]) == 0
        assert adapter_of("run") == adapter_of("fresh")
    else:
        assert "step.ckpt" in capsys.readouterr().err
        assert not Path("run").exists()


def test_a_last_step_that_spoils_the_adapter(refused_training, made):
    """The loss before the step is fine, the weights after it are not."""
    says = ["--learning_rate"]
    refused_training("--tasks", made.tasks, "--learning_rate", "1e38", says=says)
