"""Merge an adapter into its base: a plain model folder, checked against adapter and base.

    python -m gradex.merge
    python -m gradex.merge --adapter runs/finetune/... --output_dir my_model
    python -m gradex.merge --adapter some/adapter --base path/to/model

The folder holds safetensors, tokenizer and generation config, in the dtype of the base's files, and
needs neither gradex nor peft. It is only left where it gives, read back, the same logits.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from gradex import runs
from gradex.adapters.folder import fingerprint
from gradex.adapters.merge import write_merged
from gradex.arguments import TrustArguments
from gradex.config import main, option
from gradex.training.finished import find_finished

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(TrustArguments):
    adapter: str | None = option(
        None, "an adapter's folder, or a run of finetune or meta_train; default: finetune's newest"
    )
    base: str | None = option(
        None, "its base model: a folder, a hub id, or demo; default: the one the adapter names"
    )
    output_dir: str | None = option(None, "the model's folder; default: runs/merge/UTC-TIME")


def merge(config: Config) -> Path:
    """Returns the model's folder."""
    found = find_finished(config.adapter, base=config.base, trust=config)
    config = replace(config, adapter=str(found.adapter), base=found.base.path)
    inputs = fingerprint(found.adapter)
    with runs.start("merge", config, output_dir=config.output_dir, inputs=inputs) as run:
        with run.whole_or_nothing():
            agreement = write_merged(found.base, found.adapter, run.part)
    log.info("%s merged into %s, in %s: %s", found.adapter, found.base.path, found.base.dtype,
             agreement.sentence())  # fmt: skip
    return run.path


if __name__ == "__main__":
    raise SystemExit(main(merge, Config))
