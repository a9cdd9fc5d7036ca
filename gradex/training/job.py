"""A training that another program is to do: files of rows, and the recipe to follow."""

import math
from dataclasses import dataclass
from pathlib import Path

from gradex.adapters.spec import ALL_LINEAR
from gradex.errors import GradexError
from gradex.models.load import DEMO
from gradex.selection.portions import Kind
from gradex.training.recipe import Recipe


@dataclass(frozen=True)
class RowFile:
    """The rows of a source: a name without special characters, and its file in the folder."""

    word: str
    path: str
    kind: Kind
    n_rows: int


def rows_drawn(recipe: Recipe) -> int:
    """How many rows the training draws in all, on one device."""
    if recipe.batch_size is None:
        raise GradexError(
            "--tokens_per_batch: how many rows such a training draws depends on how long they are, "
            "so that shares of it cannot be written as rows; meta-train with "
            "--per_device_train_batch_size to export them"
        )
    return recipe.max_steps * recipe.batch_size * recipe.accumulate


@dataclass(frozen=True)
class Job:
    """Paths are relative to the folder that the job's files lie in."""

    files: list[RowFile]
    recipe: Recipe
    max_length: int

    @property
    def base(self) -> str:
        """The base model: a hub id, or a folder as every working directory finds it."""
        source = self.recipe.base.source
        return str(Path(source).resolve()) if Path(source).exists() else source

    @property
    def notes(self) -> list[str]:
        """What a person should know who reads the files."""
        demo = self.recipe.base.path == DEMO
        return ["The base model is the toy inside the gradex package."] if demo else []

    @property
    def epochs(self) -> int:
        """Passes over the rows that the steps need."""
        return max(1, math.ceil(rows_drawn(self.recipe) / sum(file.n_rows for file in self.files)))

    @property
    def all_linear(self) -> bool:
        return self.recipe.adapter.targets == (ALL_LINEAR,)

    @property
    def bf16(self) -> bool:
        return self.recipe.precision.startswith("bf16")

    @property
    def fp16(self) -> bool:
        return self.recipe.precision.startswith("16")
