"""Writes the model card of an adapter: what it is, what it was trained on, how to load it."""

from collections.abc import Mapping

from huggingface_hub import ModelCardData

from gradex.adapters.kinds import kind_of
from gradex.adapters.spec import AdapterSpec
from gradex.reporting.markdown import code, fenced, table_row
from gradex.reporting.quantities import count, mean_and_spread, percent
from gradex.reporting.recipe_table import recipe_table
from gradex.reporting.tables import metric_name
from gradex.reporting.usage import FOLDER, Product, is_reference, lm_eval_line, python_lines
from gradex.training.recipe import Recipe

FULL = "full"  # the kind that trains all weights: no adapter, a model
# Those that are not called LoRA.
NAMES = {
    "rslora": "rsLoRA", "dora": "DoRA", "pissa": "PiSSA", "pissa_niter": "PiSSA",
    "milora": "MiLoRA", "olora": "OLoRA", "corda_kpm": "CorDA", "corda_ipm": "CorDA",
    "loraga": "LoRA-GA", "eva": "EVA", "mica": "MiCA", "vera": "VeRA", "ia3": "(IA)³",
    "miss": "MiSS", "miss_mini": "MiSS", "bone": "Bone", "adalora": "AdaLoRA", "peft": "peft",
}  # fmt: skip


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
    recipe: Recipe | None = None,
    folder: str | None = None,
    kept_step: int | None = None,
) -> str:
    """The card as Markdown with YAML front matter; `results` are the outcomes of a report, `shares`
    those of the sources in the training, where they were not mixed by their rows. Without a
    `recipe` it is that of a plain LoRA; `folder` is where the adapter lies, `kept_step` the step
    that it is from, where that may not be the last one."""
    spec = recipe.adapter if recipe else AdapterSpec()
    product = _product(base, family, recipe, folder or FOLDER)
    title = "Model" if product.is_whole else f"{_name(spec)} adapter"
    parts = [
        _front_matter(base, spec.kind, is_whole=product.is_whole),
        f"# {title} for {code(target)}" if target else f"# {title} of all sources",
        _training(_subject(base, spec), target, selected, method=method, shares=shares or {}),
        _kind(base, spec) if recipe else "",
        _results(results),
        "## How to load it",
        fenced(python_lines(product), "python"),
        _evaluation(product),
        recipe_table(recipe, kept_step) if recipe else "",
        "## How it was made",
        fenced(command, "sh"),
        "\n".join(f"- {code(name)} {code(version)}" for name, version in versions.items()),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _product(base: str, family: str, recipe: Recipe | None, folder: str) -> Product:
    if recipe is None:
        return Product(base, base, family, folder)
    is_whole, spec = recipe.adapter.kind == FULL, recipe.base
    return Product(
        base, spec.source, family, folder, is_whole, dtype=spec.dtype, in_4bit=spec.qlora
    )


def _name(spec: AdapterSpec) -> str:
    return NAMES.get(spec.kind, "LoRA")


def _front_matter(base: str, kind: str, *, is_whole: bool) -> str:
    reference = base if is_reference(base) else None
    library = "transformers" if is_whole else "peft"
    card = ModelCardData(base_model=reference, library_name=library, tags=["gradex", kind])
    return f"---\n{card.to_yaml()}\n---"


def _subject(base: str, spec: AdapterSpec) -> str:
    if spec.kind == FULL:
        return f"This model, {code(base)} with all its weights trained, was"
    return f"This {_name(spec)} adapter of {code(base)} was"


def _training(
    subject: str,
    target: str | None,
    selected: list[str],
    *,
    method: str,
    shares: Mapping[str, float],
) -> str:
    sources = "1 source" if len(selected) == 1 else f"{len(selected)} sources"
    opening = f"{subject} meta-trained with gradex on {sources}:"
    if target:
        opening = (
            f"{subject} fine-tuned with gradex for {code(target)} on {sources} chosen by "
            f"{code(method)} selection:"
        )
    told = {name: f": {percent(share)} of the training" for name, share in shares.items()}
    return "\n".join([opening, "", *(f"- {code(name)}{told.get(name, '')}" for name in selected)])


def _kind(base: str, spec: AdapterSpec) -> str:
    """What the kind does, after whom, and what is in the folder where that is not what trained."""
    told = f"Its kind is {code(spec.kind)}: {kind_of(spec.kind).about}."
    if not kind_of(spec.kind).from_base:
        return told
    return (
        f"{told} Training began from a part s B₀A₀ of each weight W, with the rest W − s B₀A₀ "
        f"frozen below, and ended at W − s B₀A₀ + s BA. The folder holds the difference to W, s BA "
        f"− s B₀A₀, as a plain LoRA of twice the rank ({2 * spec.rank}), so that it loads on "
        f"{code(base)} as it was published; no changed base is needed, and `gradex.json` tells "
        "gradex to take the two halves apart."
    )


def _evaluation(product: Product) -> str:
    line = lm_eval_line(product)
    if line is None:
        return ""
    asked = (
        "With [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness) "
        "(`pip install 'lm_eval[hf]'`), on any of the tasks that `lm_eval ls tasks` lists:"
    )
    return "\n\n".join(["## How to evaluate it", asked, fenced(line, "sh")])


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
