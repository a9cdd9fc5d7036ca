"""Writes the model card of an adapter: what it was trained on and how to load it."""

import json
from collections.abc import Mapping

from huggingface_hub import ModelCardData

from gradex.reporting.markdown import code, fenced, table_row
from gradex.reporting.quantities import count, mean_and_spread, percent
from gradex.reporting.tables import metric_name

CLASSES = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classifier": "AutoModelForSequenceClassification",
}


def adapter_card(
    *,
    base: str,
    family: str,
    target: str | None,
    selected: list[str],
    method: str,
    results: list[dict],
    command: str,
    versions: dict,
    shares: Mapping[str, float] | None = None,
) -> str:
    """The card as Markdown with YAML front matter; `results` are the outcomes of a report, `shares`
    those of the sources in the training, where they were not mixed by their rows."""
    parts = [
        _front_matter(base),
        f"# LoRA adapter for {code(target)}" if target else "# LoRA adapter of all sources",
        _training(base, target, selected=selected, method=method, shares=shares or {}),
        _results(results),
        "## How to load it",
        _loading(base, family),
        "## How it was made",
        fenced(command, "sh"),
        "\n".join(f"- {code(name)} {code(version)}" for name, version in versions.items()),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(base: str) -> str:
    reference = base if _is_reference(base) else None
    card = ModelCardData(base_model=reference, library_name="peft", tags=["gradex", "lora"])
    return f"---\n{card.to_yaml()}\n---"


def _is_reference(base: str) -> bool:
    """True for owner/name on the Hub and for a path; a bare name could mean another's model."""
    return "/" in base and base.isprintable()


def _training(
    base: str, target: str | None, *, selected: list[str], method: str, shares: Mapping[str, float]
) -> str:
    sources = "1 source" if len(selected) == 1 else f"{len(selected)} sources"
    opening = f"A LoRA adapter of {code(base)}, meta-trained with gradex on {sources}:"
    if target:
        opening = (
            f"A LoRA adapter of {code(base)}, fine-tuned with gradex for {code(target)} on "
            f"{sources} chosen by {code(method)} selection:"
        )
    told = {name: f": {percent(share)} of the training" for name, share in shares.items()}
    return "\n".join([opening, "", *(f"- {code(name)}{told.get(name, '')}" for name in selected)])


def _results(results: list[dict]) -> str:
    if not results:
        return ""
    metric = metric_name(results)
    head = ["Model", "Sources", "Test loss", *([code(metric)] if metric else [])]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in results:
        cells = [code(row["name"]), count(row.get("sources")), mean_and_spread(row.get("loss"))]
        if metric:
            cells.append(mean_and_spread((row.get("metric") or {}).get("values")))
        rows.append(cells)
    return "\n".join(["## Results", "", *map(table_row, rows)])


def _loading(base: str, family: str) -> str:
    if _is_reference(base):
        load_base = f"{CLASSES[family]}.from_pretrained({json.dumps(base)})"
        imports = f"from peft import PeftModel\nfrom transformers import {CLASSES[family]}"
    else:
        load_base = "...  # the base model named above"
        imports = "from peft import PeftModel"
    load_adapter = 'PeftModel.from_pretrained(base, "path/to/this/folder")'
    return fenced(f"{imports}\n\nbase = {load_base}\nmodel = {load_adapter}", "python")
