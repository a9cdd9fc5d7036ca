"""All of the path, one command: from sources to a fine-tuned adapter and a report.

    python -m gradex.pipeline
    python -m gradex.pipeline --tasks my_tasks/ --model_name_or_path MODEL --target T
    python -m gradex.pipeline --anchors 8

With --anchors estimates are calibrated on so many true fine-tunes first: from there on they are
losses with intervals, in the table, the choice and the report. Without it they are ranks, where the
store was not calibrated before.

Stages that are finished are not run again when an interrupted pipeline is repeated.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from gradex import calibrate, finetune, meta_train, project, report, runs, select_sources, verify
from gradex.arguments import DataArguments, ModelArguments, TrustArguments
from gradex.config import main, option, require_not_negative, require_positive
from gradex.data.recorded import load_data
from gradex.errors import GradexError
from gradex.estimate import Config as EstimateConfig
from gradex.estimate import estimate
from gradex.estimators.calibrated import FEWEST_ANCHORS
from gradex.gradients.store import GradientStore
from gradex.records import read_json, write_json
from gradex.train_arguments import TrainArguments, require_no_looks, require_one_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrainArguments, TrustArguments, ModelArguments, DataArguments):
    project_dim: int = option(100, "dimensions of a sketch")
    dtype: Literal["float16", "float32"] = option("float16", "numbers in the gradient store")
    method: Literal["forward", "random_ensemble"] = option("forward", "how sources are chosen")
    points: int = option(
        3, "points of the meta-training to take gradients at, as far as it kept adapters: its end, "
        "and the latest before it"
    )  # fmt: skip
    lam: float | None = option(
        None, "ridge strength, as a share of the rows' mean squared norm; default: 0.003, with "
        "--anchors what these speak for"
    )  # fmt: skip
    anchors: int | None = option(
        None, "true fine-tunes to calibrate on, so that estimates are losses; default: none"
    )
    num_subsets: int = option(1000, "random subsets to estimate")
    verify_subsets: int = option(8, "true fine-tunes of held-out subsets; 0 leaves verify out")
    num_seeds: int = option(1, "fine-tunes of the selection and of all sources, a seed each")
    output_dir: str | None = option(None, "the run's folder; default: runs/pipeline/UTC-TIME")

    def __post_init__(self):
        DataArguments.__post_init__(self)
        TrainArguments.__post_init__(self)
        require_positive(self, "project_dim", "points", "lam", "num_subsets", "num_seeds")
        require_not_negative(self, "verify_subsets")
        _require_enough(self.anchors)
        require_one_device(self, "for several, run its stages one by one")
        require_no_looks(self, "a pipeline compares its fine-tunes; run its stages one by one")


def _require_enough(anchors: int | None) -> None:
    """Told before the hours that come before the calibration."""
    if anchors is not None and anchors < FEWEST_ANCHORS:
        raise GradexError(
            f"--anchors: found {anchors}, a calibration needs at least {FEWEST_ANCHORS} true "
            "fine-tunes"
        )


def pipeline(config: Config) -> Path:
    """Returns the report's page."""
    sources = load_data(asdict(config))
    with runs.start(
        "pipeline", config, output_dir=config.output_dir, inputs=sources.data_hashes()
    ) as run:
        page = _stages(config, _Done(run.part / "stages.json"))
    return Path(page)


def _stages(config: Config, done: "_Done") -> str:
    """The path of the data; returns the report's page."""
    common = {"trust_remote_code": config.trust_remote_code, "allow_pickle": config.allow_pickle}
    meta = done.once("meta_train", meta_train.meta_train, _part(config, meta_train.Config))
    projected = _part(config, project.Config, meta_dir=meta, seed=0, tokens_per_batch=None)
    store = done.once("project", project.project, projected)
    target = _chosen_target(config, GradientStore.open(Path(store)))
    estimating = {"store": store, "lam": config.lam}
    if config.anchors is not None:
        anchored = calibrate.Config(
            **common, **estimating, anchors=config.anchors, seed=config.seed
        )
        estimating["calibration"] = done.once("calibrate", calibrate.calibrate, anchored)
    done.once("estimate", estimate, EstimateConfig(**estimating, num_subsets=config.num_subsets))
    choosing = estimating | {"target": [target]}
    sampled = {"num_subsets": config.num_subsets} if config.method == "random_ensemble" else {}
    choose = select_sources.Config(**choosing, **sampled, method=config.method)
    # The choice comes last: it is what a stage that is given no selection picks up.
    everything = done.once(
        "select_all", select_sources.select_sources, select_sources.Config(**choosing, method="all")
    )
    chosen = done.once("select_sources", select_sources.select_sources, choose)
    for seed in range(config.seed, config.seed + config.num_seeds):
        for name, selection in (("selection", chosen), ("all", everything)):
            tune = finetune.Config(
                **common, selection=selection, seed=seed, report_to=config.report_to
            )
            adapter = done.once(f"finetune {name} {seed}", finetune.finetune, tune)
            log.info("%s, seed %d: %s/adapter", name, seed, adapter)
    verified = None
    if config.verify_subsets:
        trial = verify.Config(
            **common, **estimating, num_subsets=config.verify_subsets, seed=config.seed
        )
        verified = done.once("verify", verify.verify, trial)
    return done.once("report", report.report, report.Config(selection=chosen, verify=verified))


def _chosen_target(config: Config, store: GradientStore) -> str:
    """The first target that the person named, or the first one of the store."""
    named = [name for name in config.target or () if name in store.targets]
    target = store.require_target(named[0] if named else None)
    if len(store.targets) > 1:
        log.info(
            "sources are chosen for %s, one of %d targets; for another: gradex select_sources "
            "--target NAME", target, len(store.targets),
        )  # fmt: skip
    return target


def _part(config: Config, stage_config: type, **more: Any) -> Any:
    """The stage's Config with the values that the pipeline's has under the same names."""
    mine = {f.name: getattr(config, f.name) for f in fields(config)}
    names = {f.name for f in fields(stage_config)}
    shared = {name: value for name, value in mine.items() if name in names}
    return stage_config(**shared | {"output_dir": None} | more)


class _Done:
    """What the stages of this pipeline have returned so far, kept on disk."""

    def __init__(self, file: Path):
        self.file = file
        self.paths = read_json(file, "finished stages") if file.exists() else {}

    def once(self, name: str, stage: Callable[[Any], Path], config: Any) -> str:
        if name not in self.paths or not Path(self.paths[name]).exists():
            self.paths[name] = str(stage(config))
            write_json(self.file, self.paths)
        return self.paths[name]


if __name__ == "__main__":
    raise SystemExit(main(pipeline, Config))
