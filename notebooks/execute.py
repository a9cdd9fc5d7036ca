"""Run the notebooks from top to bottom; the first cell that fails ends it.

    python notebooks/execute.py            # do they run?
    python notebooks/execute.py --write    # and keep what they show

What is kept says nothing of the machine that ran them: no times, no messages, no versions.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

FOLDER = Path(__file__).parent
LONGEST_CELL = 600  # seconds, for a machine that does other things as well
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(file: Path) -> NotebookNode:
    """The notebook with the outputs of a new kernel, which runs in an empty folder."""
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # The kernel talks through files, not through ports, and keeps no history at home.
        os.environ |= {"IPYTHONDIR": folder, "JUPYTER_RUNTIME_DIR": folder}
        kernel = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
        place = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=LONGEST_CELL, config=kernel, resources=place)
        return client.execute()


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """Only what is the same wherever it runs: no messages on stderr, no metadata of the run."""
    for place, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"cell-{place:02}", NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the outputs in the files")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    arguments = parser.parse_args()
    for file in arguments.notebooks:
        began = time.monotonic()
        notebook = executed(file)
        print(f"{file.name}: {time.monotonic() - began:.0f} seconds", flush=True)
        if arguments.write:
            nbformat.write(cleaned(notebook), file)


if __name__ == "__main__":
    main()
