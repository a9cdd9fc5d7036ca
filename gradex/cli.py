"""`gradex <stage> [flags]`: one console script over the stages, and `gradex run/config.yaml`."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from gradex import __version__

# In the order of the path. Stages are imported only when they run, so that help stays quick.
STAGES = {
    "init": "make a workspace (tasks/, data/, ...) with the embedded demo in it",
    "meta_train": "train one adapter on all sources",
    "project": "one sketched gradient per row, kept in a gradient store",
    "calibrate": "true fine-tunes of a few subsets, which turn estimates into losses",
    "estimate": "predict the target loss of fine-tuning on any subset of the sources",
    "trust": "measure how far from the meta adapter the estimates can be trusted",
    "transfer": "which sources help and which hurt each target, alone and in pairs",
    "group": "make each cluster of rows a source, or split the sources into groups",
    "select_sources": "search the subsets for the sources worth training on",
    "weigh": "weigh the sources for a target, and tell which of them are in conflict",
    "finetune": "fine-tune the base model on a selection",
    "reduce": "keep of a trained LoRA only the components that fit the base",
    "export": "hand a selection to another trainer: its rows and the files to train on them",
    "convert": "any adapter as a plain LoRA of the original base, old Bone adapters as MiSS",
    "merge": "merge an adapter into its base: a plain model, checked against the two",
    "verify": "true fine-tunes of held-out subsets beside their estimates",
    "report": "one HTML page: the choice, prediction beside truth, how to repeat it",
    "decompose": "measure what a model loses with the smallest components of its layers",
    "doctor": "look for what is wrong with a gradient store, or with a model",
    "pipeline": "all stages from meta_train to report, one after the other",
}


def usage() -> str:
    lines = [f"  {name:<15} {what}" for name, what in STAGES.items()]
    return "\n".join(
        [
            f"gradex {__version__}: choose the data sources to fine-tune on",
            "",
            "usage: gradex STAGE [flags]         gradex STAGE --help lists a stage's flags",
            "       gradex RUN/config.yaml       runs a finished run again",
            "",
            "stages, in the order of the path; each works without flags on the embedded demo:",
            *lines,
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if words[0].endswith((".yaml", ".yml")):
        return _replay(words[0], words[1:])
    return run_stage(words[0], words[1:])


def run_stage(stage: str, argv: Sequence[str]) -> int:
    if stage not in STAGES:
        print(f"gradex: error: unknown stage '{stage}'; known are: {', '.join(STAGES)}",
              file=sys.stderr)  # fmt: skip
        return 2
    module = importlib.import_module(f"gradex.{stage}")
    from gradex.config import main as run

    return run(getattr(module, stage), module.Config, argv)


def _replay(config: str, argv: Sequence[str]) -> int:
    from gradex.config import read_yaml
    from gradex.errors import GradexError, printable

    try:
        stage = str(read_yaml(Path(config)).get("stage"))
    except GradexError as error:
        print(printable(f"gradex: error: {error}"), file=sys.stderr)
        return 2
    return run_stage(stage, ["--config", config, *argv])
