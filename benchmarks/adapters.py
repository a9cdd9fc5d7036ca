"""Every kind of adapter on one selection of the demo world: test loss, forgetting, time, memory.

    python benchmarks/adapters.py

Each kind has the rank at which it trains about as many numbers as LoRA of rank 8, where it has such
a rank. Its learning rate is the best of a few in the development world (seed 1); what is printed is
then measured in the demo world (seed 0), over three seeds, in a process of its own. Seconds are
those of the processor in training. Forgetting is how much the loss rises on `copy` and `count`,
which the base masters and the selection leaves out. Half an hour on one core.
"""

import json
import logging
import math
import resource
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from estimate_quality import Row, number, say
from quality_worlds import World, demo_world, entered, store_of
from torch import nn

from gradex.adapters.kinds import KINDS, parse_options
from gradex.adapters.spec import AdapterSpec
from gradex.data.demo import TARGETS, demo_rows
from gradex.data.formats import to_row
from gradex.data.tokens import Encoder, encode_all
from gradex.errors import GradexError
from gradex.models.scoring import row_losses
from gradex.select_sources import Config as SelectConfig
from gradex.select_sources import select_sources
from gradex.selection.chosen import read_chosen
from gradex.train_arguments import PEFT
from gradex.training.begin import Start, start_examples
from gradex.training.fit import fit
from gradex.training.prepare import load_base_and_encoder, test_scores, training_examples
from gradex.training.recipe import make_recipe

REPORTED, DEVELOPMENT = demo_world(0), demo_world(1)
OLD_SKILLS = ("copy", "count")
SEEDS = (0, 1, 2)
LORA = AdapterSpec(rank=8, alpha=16.0)
SCALE = LORA.alpha / LORA.rank
# Ranks at which other kinds train about as many numbers; (IA)^3 and VeRA have far fewer at any.
ALIKE = {
    "mica": (17, []), "miss": (16, []), "bone": (16, []), "miss_mini": (64, ["mini_r=16"]),
    "vera": (64, []),
}  # fmt: skip
RATES = (5e-4, 1.5e-3, 5e-3, 1.5e-2, 5e-2)
KEPT_BY = {"corda_kpm": "copy"}  # kind -> the source whose rows it begins from, not the training's
HEAD = ["rank", "trained", "learning rate", "test loss", "spread", "forgotten", "seconds", "MiB"]
WORK = Path("runs/adapters")


@dataclass(frozen=True)
class Trained:
    """How many numbers were trained, the mean test loss over the targets, and how much the loss of
    the old skills rose."""

    count: int
    loss: float
    forgotten: float
    seconds: float


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--kind", help="this one alone, as JSON")
    said = parser.parse_args()
    logging.disable(logging.WARNING)
    if said.kind:
        print(json.dumps(_measure(said.kind)))
        return
    for world in (REPORTED, DEVELOPMENT):
        _select(world)
    kinds = [kind for kind in KINDS if kind != PEFT]
    say("adapter", [("adapter", HEAD), *(_row(kind) for kind in kinds)])


def _select(world: World) -> None:
    """The sources of the targets themselves: what there is to gain is the same for every kind."""
    with entered(world, WORK / world.name):
        if not Path("selection").exists():
            store = store_of(world, project_dim=100)
            config = SelectConfig(
                store=str(store.path), target=list(TARGETS), must=list(TARGETS),
                max_sources=len(TARGETS),
                output_dir="selection",
            )  # fmt: skip
            select_sources(config)


def _row(kind: str) -> Row:
    command = [sys.executable, __file__, "--kind", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return kind, [done.stderr.strip().splitlines()[-1], *[""] * (len(HEAD) - 1)]
    found = json.loads(done.stdout.splitlines()[-1])
    runs = [Trained(**run) for run in found["runs"]]
    losses = [run.loss for run in runs]
    return kind, [
        "" if "lora_r" in KINDS[kind].unread else str(found["rank"]),
        f"{runs[0].count:,}", f"{found['rate']:g}", number(fmean(losses)),
        number(stdev(losses)), number(fmean(run.forgotten for run in runs)),
        f"{fmean(run.seconds for run in runs):.1f}", f"{found['peak']:,.0f}",
    ]  # fmt: skip


def _measure(kind: str) -> dict[str, Any]:
    spec = _like_lora(kind)
    with entered(DEVELOPMENT, WORK / DEVELOPMENT.name):
        tried = {rate: _loss_or_none(spec, rate) for rate in RATES}
    rate = min((rate for rate in RATES if tried[rate] is not None), key=lambda rate: tried[rate])
    with entered(REPORTED, WORK / REPORTED.name):
        runs = [_train(spec, rate, seed=seed) for seed in SEEDS]
    return {
        "rank": spec.rank,
        "rate": rate,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "runs": [asdict(run) for run in runs],
    }


def _like_lora(kind: str) -> AdapterSpec:
    """The spec of a kind that trains about as many numbers as LoRA."""
    rank, words = ALIKE.get(kind, (LORA.rank, []))
    options = parse_options(kind, words)
    return AdapterSpec(kind=kind, rank=rank, alpha=SCALE * rank, options=options)


def _loss_or_none(spec: AdapterSpec, rate: float) -> float | None:
    """None where so large a rate lets the training explode."""
    try:
        loss = _train(spec, rate, seed=0).loss
    except GradexError:
        return None
    return loss if math.isfinite(loss) else None


def _train(spec: AdapterSpec, rate: float, *, seed: int) -> Trained:
    chosen = read_chosen("selection", allow_pickle=False)
    settings = chosen.recorded | {"trust_remote_code": False, "allow_pickle": False, "seed": seed}
    recipe = replace(make_recipe(settings), adapter=spec, learning_rate=rate)
    max_length = chosen.recorded["max_length"]
    base, encoder = load_base_and_encoder(recipe.base, chosen.sources, max_length=max_length)
    examples, _ = training_examples(encoder, chosen.sources, chosen.selection.selected)
    before, began = _old_loss(base.model, encoder), time.process_time()
    model, _ = fit(
        recipe, base, examples=examples, encoder=encoder, folder=Path("none"), name=spec.kind,
        start=Start(rows=start_examples(KEPT_BY.get(spec.kind), encoder, chosen.sources)),
    )  # fmt: skip
    seconds = time.process_time() - began
    shutil.rmtree("none", ignore_errors=True)
    scores = test_scores(model, chosen.sources, encoder, TARGETS)
    return Trained(
        count=sum(p.numel() for p in model.parameters() if p.requires_grad),
        loss=fmean(scores[target]["loss"] for target in TARGETS),
        forgotten=_old_loss(model, encoder) - before,
        seconds=seconds,
    )


def _old_loss(model: nn.Module, encoder: Encoder) -> float:
    """On rows of the old skills that no training has seen."""
    rows = [
        to_row(record, "prompt_completion")
        for skill in OLD_SKILLS
        for record in demo_rows(skill, "test")
    ]
    examples, _ = encode_all(encoder, rows)
    return float(row_losses(model, examples, encoder).mean())


if __name__ == "__main__":
    main()
