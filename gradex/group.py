"""Make each cluster of rows a source, or split the sources into groups that go well together.

    python -m gradex.group --num_clusters 100 --source cot
    python -m gradex.group --sources --num_groups 4

Clusters are of rows whose gradients point the same way. They become the sources of a new store,
whose gradients are copied, and of a folder of tasks, so that all later stages take them like any
others: a data set without task names can be selected from. With --sources, whole sources are put
together by the estimates of subsets that hold them; each group has a selection of its own.
"""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from gradex import runs
from gradex.arguments import EstimatorArguments, SubsetArguments, TrustArguments, keep
from gradex.config import main, option, require_left_out, require_positive
from gradex.data.clusters import cut
from gradex.data.recorded import load_data, require_same_data
from gradex.data.sources import Sources
from gradex.data.subsets import find_subsets, membership
from gradex.data.task_folder import write_task_folder
from gradex.errors import GradexError, unknown
from gradex.estimators import estimator_of, with_calibration
from gradex.estimators.protocol import Estimates
from gradex.gradients.across_points import all_points
from gradex.gradients.description import fingerprint
from gradex.gradients.regroup import regroup
from gradex.gradients.store import GradientStore, open_store
from gradex.records import write_json
from gradex.reporting.grouped import write_affinity, write_clusters
from gradex.reporting.heatmaps import groups_map, save
from gradex.selection.affinity import affinity, group_sources, require_possible
from gradex.selection.choice import Choice, Selection, make_selection
from gradex.selection.groups import write_groups
from gradex.selection.row_clusters import Clusters, Method, cluster_rows, share_out

GRADIENTS = Path("gradients")
CLUSTERS, ROWS_A_CLUSTER = 100, 10  # where no number is said: so many, or one for so many rows
MOST_COMPARED = 5000  # rows of a source, up to which every row is compared with every other
OF_ROWS = ("num_clusters", "source", "method")
OF_BOTH = ("store", "seed", "output_dir", "sources", "trust_remote_code", "allow_pickle")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrustArguments, SubsetArguments, EstimatorArguments):
    num_clusters: int | None = option(
        None, "clusters to make, shared out among the sources by their rows; default: 100, or one "
        "for every 10 rows where these are fewer than 1000"
    )  # fmt: skip
    source: list[str] | None = option(None, "sources to cut into clusters; default: all")
    method: Literal["auto", "agglomerative", "kmeans"] = option(
        "auto", "agglomerative: average linkage, compares all pairs of rows; kmeans: mini-batches, "
        "for large sources; auto: agglomerative up to 5000 rows of a source"
    )  # fmt: skip
    sources: bool = option(False, "group whole sources, by estimates")
    num_groups: int | None = option(
        None, "with --sources: groups to make; default: as many as are well apart, at most 8"
    )
    target: list[str] | None = option(
        None, "with --sources: targets whose estimates count; default: all of the store"
    )
    output_dir: str | None = option(None, "the run's folder; default: runs/group/UTC-TIME")

    def __post_init__(self):
        EstimatorArguments.__post_init__(self)
        SubsetArguments.__post_init__(self)
        require_positive(self, "num_clusters", "num_groups")
        if self.sources:
            why = "is for clusters of rows; leave it out, or leave out --sources"
            require_left_out(self, OF_ROWS, why)
        else:
            named = [field.name for field in fields(self)]
            of_sources = [name for name in named if name not in OF_ROWS + OF_BOTH]
            why = "is for groups of sources; leave it out, or say --sources"
            require_left_out(self, of_sources, why)


def group(config: Config) -> Path:
    """Returns the run folder: clusters with their tasks and where their store is, or groups."""
    store = open_store(config.store)
    config = replace(config, store=str(store.path))
    return _group_sources(config, store) if config.sources else _cluster_rows(config, store)


# Clusters of rows.


def _cluster_rows(config: Config, store: GradientStore) -> Path:
    settings = store.recorded_settings() | keep(asdict(config), TrustArguments)
    sources = load_data(settings)
    require_same_data(sources, store.data_hashes(), where=str(store.path))
    shares = _shares(config, store)
    config = replace(config, num_clusters=sum(shares.values()))
    inputs = store.data_hashes()
    with runs.start("group", config, output_dir=config.output_dir, inputs=inputs) as run:
        clusters = _clusters(config, store, shares)
        cut_up, of = cut(sources, {name: found.rows for name, found in clusters.items()})
        write_task_folder(run.part / "tasks", cut_up)
        write_clusters(run.part, list(clusters.values()), cut_up, of)
        made = _store(store, cut_up, of, tasks=run.path / "tasks")
        write_json(run.part / "store.json", {"store": str(made.path)})
    log.info(
        "%d clusters of %d sources; next: gradex select_sources --store %s --target %s",
        len(of), len(clusters), made.path, shlex.quote(made.targets[0]),
    )  # fmt: skip
    return run.path


def _shares(config: Config, store: GradientStore) -> dict[str, int]:
    """How many clusters each source is cut into."""
    names = list(dict.fromkeys(config.source or store.sources))
    for name in names:
        if name not in store.sources:
            raise unknown("source", name, store.sources, "--source")
    rows = [len(store.table("train", name)) for name in names]
    count = config.num_clusters or max(len(names), min(CLUSTERS, sum(rows) // ROWS_A_CLUSTER))
    if not len(names) <= count <= sum(rows):
        raise GradexError(
            f"--num_clusters: found {count}, expected at least one for each of the {len(names)} "
            f"sources (--source names fewer), and at most one for each of their {sum(rows)} rows"
        )
    return dict(zip(names, share_out(count, rows), strict=True))


def _clusters(config: Config, store: GradientStore, shares: dict[str, int]) -> dict[str, Clusters]:
    points = all_points(store)
    found = {}
    for name, count in shares.items():
        rows = len(store.table("train", name))
        method = _method(config, rows)
        found[name] = cluster_rows(points, name, count, method=method, seed=config.seed)
        sizes = np.bincount(found[name].label)
        log.info(
            "%s: %d clusters of %d to %d rows (%s, %d of %d rows have a direction)",
            name, len(sizes), sizes.min(), sizes.max(), method, sizes.sum(),
            store.plan["train"][name]["rows"],
        )  # fmt: skip
    return found


def _method(config: Config, rows: int) -> Method:
    if config.method != "auto":
        return config.method
    return "agglomerative" if rows <= MOST_COMPARED else "kmeans"


def _store(
    store: GradientStore, sources: Sources, of: dict[str, str], *, tasks: Path
) -> GradientStore:
    """The new store, named after the old one and all that went into it."""
    origin = store.origin
    origin["tasks"] |= {"tasks": [str(tasks)], "target": None}
    made_of = {"space": store.space, "origin": origin, "data": sources.data_hashes()}
    name = f"{store.path.resolve().name}-groups{len(of)}-{fingerprint(made_of)[:8]}"
    return regroup(store, GRADIENTS / name, sources, of=of, origin=origin)


# Groups of sources.


def _group_sources(config: Config, store: GradientStore) -> Path:
    require_possible(config.num_groups, len(store.sources))
    config, calibration = with_calibration(config, store)
    with runs.start("group", config, output_dir=config.output_dir) as run:
        fitted = estimator_of(config, calibration).fit(store, targets=config.target)
        subsets = find_subsets(
            config.subsets, store.sources, count=config.num_subsets, size=config.subset_size,
            seed=config.seed, store=store.path.name,
        )  # fmt: skip
        value = _comparable(fitted.predict(subsets))
        found = affinity(membership(subsets, store.sources), value, store.sources)
        groups = group_sources(found, config.num_groups)
        estimates = fitted.predict([frozenset(names) for names in groups])
        write_groups(run.part, _selections(groups, estimates, store))
        write_affinity(run.part / "affinity.csv", found)
        save(groups_map(found.together, found.sources, groups), run.part / "groups.png")
    for number, names in enumerate(groups):
        log.info("group %d: %s", number, ", ".join(names))
    log.info("next: gradex finetune --ensemble %s", run.path)
    return run.path


def _comparable(estimates: Estimates) -> Float[np.ndarray, "subset target"]:
    """Calibrated losses by their logarithms: a source changes them by a factor."""
    return np.log(estimates.value) if estimates.calibrated else estimates.value


def _selections(
    groups: Sequence[list[str]], estimates: Estimates, store: GradientStore
) -> list[Selection]:
    """A selection for each group, for all the targets alike."""
    targets = dict.fromkeys(estimates.targets, 1.0)
    return [
        make_selection(
            Choice(names, float(value)), store, method="group", targets=targets,
            calibrated=estimates.calibrated,
        )
        for names, value in zip(groups, estimates.value.mean(1), strict=True)
    ]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(group, Config))
