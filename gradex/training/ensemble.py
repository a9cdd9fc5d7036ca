"""One adapter a group of sources, combined by weighted outputs, beside one adapter on all of them.

After EnsembleLoRA (Li et al., 2025, arXiv 2505.21930). A target's weights are those of the least
loss on its select rows (`ensemble_weights`); its test rows are only measured on. All adapters are
trained for the same number of steps. What they are compared with: one adapter on all the groups'
sources with as many steps, one with as many steps as all members together, and the best member.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gradex.adapters.blend import Blend
from gradex.adapters.folder import export, load_all
from gradex.data.formats import Row
from gradex.data.sources import Source, Sources
from gradex.data.tokens import Encoder, class_names, encode_all
from gradex.errors import GradexError, unknown
from gradex.models.encoding import load_with_encoder, on_best_device
from gradex.models.load import Base, BaseSpec
from gradex.models.scoring import label_log_probs, score
from gradex.records import read_json, require_shape, write_json
from gradex.selection.groups import Groups
from gradex.training.begin import Start, start_examples
from gradex.training.ensemble_weights import Importance, LogProbs, best_weights, mixture_loss
from gradex.training.fit import fit
from gradex.training.prepare import load_base_and_encoder, training_examples
from gradex.training.recipe import Recipe

FORMAT = "gradex-ensemble/1"
WHAT = f"an ensemble as finetune --ensemble writes it ({FORMAT})"
SHAPE = {
    "format": str, "base": {"path": str, "dtype": str, "qlora": bool}, "max_length": int,
    "classes": list, "adapters": dict, "weights": dict,
}  # fmt: skip
SINGLES = ("one", "one_longer")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ensemble:
    """Several adapters on one base, and target -> adapter -> weight."""

    model: nn.Module
    encoder: Encoder
    weights: Mapping[str, Mapping[str, float]]

    def of(self, target: str) -> Blend:
        """A model whose logits are the ensemble's log-probabilities, weighted for a target."""
        if target not in self.weights:
            raise unknown("target", target, self.weights, "the ensemble")
        return Blend(self.model, self.weights[target])


def load_ensemble(
    folder: Path, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> Ensemble:
    """The ensemble of a finished run of finetune --ensemble."""
    content = _read(folder / "ensemble.json")
    spec = BaseSpec(
        **{key: content["base"][key] for key in SHAPE["base"]},
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    base, encoder = load_with_encoder(spec, content["classes"], max_length=content["max_length"])
    places = {name: folder / place for name, place in content["adapters"].items()}
    return Ensemble(_with_adapters(base, places), encoder, content["weights"])


def _read(path: Path) -> dict[str, Any]:
    """ensemble.json, checked to weigh exactly the adapters that it names."""
    content = read_json(path, WHAT, SHAPE)
    if content["format"] != FORMAT:
        raise GradexError(f"{path}: the format is {content['format']}, expected {WHAT}")
    names = content["adapters"]
    require_shape(names, dict.fromkeys(names, str), where=f"{path}: adapters", what=WHAT)
    for target, weights in content["weights"].items():
        where = f"{path}: weights: {target}"
        require_shape(weights, dict.fromkeys(names, float), where=where, what=WHAT)
    return content


def tune_ensemble(
    groups: Groups, sources: Sources, recipe: Recipe, *, max_length: int, folder: Path
) -> dict[str, Any]:
    """Train, weigh and measure; adapters/ and ensemble.json go to the folder.

    A finished adapter in the folder is kept, and one whose training broke off is gone on with.
    """
    if recipe.adapter.kind == "full":
        raise GradexError(
            "--adapter full: an ensemble has several adapters on one base, and all weights of a "
            "model are no adapter; say --adapter lora, or leave out --ensemble"
        )
    members = dict(zip(member_names(len(groups)), groups.members, strict=True))
    for name, trained_on in (members | dict.fromkeys(SINGLES, groups.sources)).items():
        longer = len(groups) if name == "one_longer" else 1
        own = replace(recipe, max_steps=longer * recipe.max_steps)
        _train(own, sources, trained_on, max_length=max_length, folder=folder, name=name)
    base, encoder = load_base_and_encoder(recipe.base, sources, max_length=max_length)
    base = on_best_device(base)
    targets = [sources[name] for name in groups.targets]
    before = [{"base": _scores(base.model, target, encoder)} for target in targets]
    model = _with_adapters(base, {name: folder / _place(name) for name in (*members, *SINGLES)})
    after = [_measure(model, target, encoder, list(members)) for target in targets]
    _record(folder, recipe.base, after, encoder=encoder, classes=class_names(sources))
    measured = [row | base_row for row, base_row in zip(after, before, strict=True)]
    _tell(measured, len(groups))
    return {
        "method": "ensemble",
        "groups": groups.members,
        "steps": recipe.max_steps,
        "targets": measured,
    }


def member_names(count: int) -> list[str]:
    """Like the folders of the groups; peft takes a bare number for that of a layer."""
    return [f"group-{number}" for number in range(count)]


def _place(name: str) -> str:
    return f"adapters/{name}"


def _train(
    recipe: Recipe,
    sources: Sources,
    members: Sequence[str],
    *,
    max_length: int,
    folder: Path,
    name: str,
) -> None:
    """An adapter on the members' rows, which appears in the folder when it is finished."""
    place = folder / _place(name)
    if place.exists():
        return
    base, encoder = load_base_and_encoder(recipe.base, sources, max_length=max_length)
    examples, _ = training_examples(encoder, sources, members)
    checkpoints = folder / "checkpoints" / name
    told = f"adapter {name.replace('_', ' ')}"
    model, losses = fit(
        recipe, base, examples=examples, encoder=encoder, folder=checkpoints, name=told,
        start=Start(rows=start_examples(recipe.start_source, encoder, sources)),
    )  # fmt: skip
    part = place.with_name(f"{name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed here
    export(model, part, base_path=recipe.base.source, card=None)
    write_json(part / "curve.json", {"loss": losses})
    shutil.copy(checkpoints / "metrics.csv", part)
    part.rename(place)


def _with_adapters(base: Base, places: Mapping[str, Path]) -> nn.Module:
    return on_best_device(replace(base, model=load_all(base, places))).model


def _scores(model: nn.Module, target: Source, encoder: Encoder) -> dict[str, float]:
    return score(model, target.rows["test"], encoder, target.metric)


def _measure(
    model: nn.Module, target: Source, encoder: Encoder, names: Sequence[str]
) -> dict[str, Any]:
    """A target's weights from its select rows, and what each model gives on its test rows."""
    log_probs, importance = token_log_probs(model, target.rows["select"], encoder, names)
    weights = best_weights(log_probs, importance)
    losses = (-(log_probs @ importance)).tolist()
    best = int(np.argmin(losses))
    shares = dict(zip(names, weights.tolist(), strict=True))
    measured: dict[str, Any] = {
        "target": target.name,
        "weights": shares,
        "select_losses": dict(zip(names, losses, strict=True)),
        "select_loss": mixture_loss(log_probs, importance, weights),
        "best": names[best],
    }
    singles = {"best_member": names[best]} | dict.fromkeys(SINGLES)
    for key, name in singles.items():
        model.set_adapter(name or key)
        measured[key] = _scores(model, target, encoder)
    return measured | {"ensemble": _scores(Blend(model, shares), target, encoder)}


def token_log_probs(
    model: nn.Module, rows: Sequence[Row], encoder: Encoder, names: Sequence[str]
) -> tuple[LogProbs, Importance]:
    """What each adapter gives to the label tokens of the rows, one pass an adapter, and each
    token's share in the mean over rows of a row's mean loss."""
    examples, _ = encode_all(encoder, rows)
    if not examples:
        raise GradexError("none of the target's select rows has a label left; raise --max_length")
    found = []
    for name in names:
        model.set_adapter(name)
        found.append(np.concatenate(label_log_probs(model, examples, encoder)))
    counts = np.array([example.n_labels for example in examples])
    importance = np.repeat(1 / (counts * len(counts)), counts)
    return np.array(found, dtype=np.float64), importance


def _record(
    folder: Path,
    base: BaseSpec,
    measured: Sequence[Mapping[str, Any]],
    *,
    encoder: Encoder,
    classes: Sequence[str],
) -> None:
    """ensemble.json: all that `load_ensemble` needs. Trust in the base is not handed on."""
    described = asdict(base)
    content = {
        "format": FORMAT,
        "base": {key: described[key] for key in SHAPE["base"]},
        "max_length": encoder.max_length,
        "classes": list(classes),
        "adapters": {name: _place(name) for name in measured[0]["weights"]},
        "weights": {row["target"]: row["weights"] for row in measured},
    }
    write_json(folder / "ensemble.json", content)


def _tell(measured: Sequence[Mapping[str, Any]], members: int) -> None:
    for row in measured:
        log.info(
            "%s: test loss %.3f by the ensemble of %d adapters, %.3f by one adapter on all their "
            "sources (%.3f with %d times the steps), %.3f by the best member", row["target"],
            row["ensemble"]["loss"], members, row["one"]["loss"], row["one_longer"]["loss"],
            members, row["best_member"]["loss"],
        )  # fmt: skip
