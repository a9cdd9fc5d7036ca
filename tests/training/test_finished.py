"""Where an adapter lies and what its base is, told from runs and folders."""

import json
from pathlib import Path

import pytest
from trained_adapters import make_trained

from gradex.arguments import TrustArguments
from gradex.errors import GradexError
from gradex.models.load import BaseSpec, load_base
from gradex.training.finished import Finished, find_adapter, find_finished


def found(place: str | None = None, base: str | None = None) -> Finished:
    return find_finished(place, base=base, trust=TrustArguments())


def write_run(name: str, **settings) -> Path:
    run = Path("runs", name)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps(settings))
    return run


def test_an_adapter_says_its_base_itself(model_folder, toy_batch):
    place = model_folder("llama")
    make_trained(Path("a"), place, "lora", toy_batch("causal")[1])
    assert found("a").base.path == str(place)
    assert found("a", base="demo").base.path == "demo"


def test_of_a_whole_model_the_run_says_it(model_folder, toy_batch):
    """Or the selection that the run was trained on."""
    place, batch = str(model_folder("llama")), toy_batch("causal")[1]
    meta = write_run("meta_train/one", stage="meta_train", model_name_or_path=place)
    Path("chosen.json").write_text(json.dumps({"base": {"model_name_or_path": place}}))
    tuned = write_run("finetune/one", stage="finetune", selection="chosen.json", created="1")
    for folder in (meta / "adapter", meta / "points/10", tuned / "adapter"):
        make_trained(folder, Path(place), "full", batch)
        assert found(str(folder)) == Finished(folder, BaseSpec(place))
    assert found().adapter == tuned / "adapter" == find_adapter(str(tuned))
    Path("chosen.json").unlink()
    with pytest.raises(GradexError, match=r"chosen.json: no such file; .* --base MODEL"):
        found()


def test_the_base_is_loaded_in_the_dtype_of_its_files(model_folder, toy_batch):
    base = load_base(BaseSpec(str(model_folder("llama")), dtype="bfloat16"))
    base.model.save_pretrained("half")
    base.tokenizer.save_pretrained("half")
    make_trained(Path("a"), Path("half"), "lora", toy_batch("causal")[1])
    assert found("a").base.dtype == "bfloat16"
    assert found("a", base=str(model_folder("llama"))).base.dtype == "float32"
