"""Make a workspace: the folders that the stages read and write, with the embedded demo in it.

    gradex init my_workspace && cd my_workspace && gradex pipeline

A clone of the project is a workspace already.
"""

from dataclasses import dataclass
from pathlib import Path

from gradex.config import main, option
from gradex.data.demo import write_world
from gradex.errors import GradexError

FOLDERS = {
    "gradients": "One folder a gradient store, made by `gradex project`.",
    "sampled_tasks": "One text file a collection of subsets: a subset a line, source names "
    "separated by spaces.",
}


@dataclass(frozen=True)
class Config:
    FIRST_WORD = "dir"

    dir: str = option(".", "the workspace to make; `gradex init DIR` says the same")


def init(config: Config) -> Path:
    """Returns the workspace."""
    root = Path(config.dir)
    for name in ("tasks/demo", "data/demo"):
        if (root / name).exists():
            raise GradexError(f"{root / name}: exists already; name another folder")
    write_world(root)
    for name, what in FOLDERS.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        readme = folder / "README.md"
        if not readme.exists():
            readme.write_text(f"{what}\n", encoding="utf-8")
    return root


if __name__ == "__main__":
    raise SystemExit(main(init, Config))
