"""Executes the notebooks, each in a new kernel, and writes them back with small outputs.

    python notebooks/execute.py [NAME.ipynb ...]          in a checkout with `pip install -e '.[notebooks,eval]'`

They run in a temporary folder, where the first makes the small run that all of them look at. Run it after every change to
a notebook: tests/notebooks/notebooks_test.py fails if a notebook was changed since. No notebook may be larger than MOST_BYTES.
"""

import hashlib
import json
import os
import pathlib
import sys
import tempfile
import time

try:
    import nbformat
    from nbclient import NotebookClient
except ModuleNotFoundError as error:
    sys.exit(f"executing notebooks needs {error.name}; pip install 'gptjax[notebooks,eval]'")

HERE = pathlib.Path(__file__).parent
MOST_BYTES = 300_000
KEPT_METADATA = ("kernelspec", "language_info")


def names() -> list[str]:
    return sorted(path.name for path in HERE.glob("*.ipynb"))


def source_hash(notebook) -> str:
    """Of all cells' text: which source outputs belong to."""
    text = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in notebook.cells)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def execute(notebook, folder: pathlib.Path):
    """The notebook with the outputs of a new kernel in folder. Raises CellExecutionError at the first cell that fails."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}  # this checkout, not another that is installed
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return notebook


def strip(notebook, folder: str) -> None:
    """Takes out what says nothing: times, warnings of libraries, the temporary folder's name."""
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            for output in cell.outputs:
                output.get("metadata", {}).clear()
            kept = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = nbformat.from_dict(json.loads(json.dumps(kept).replace(f"{folder}/", "")))
    for name in [name for name in notebook.metadata if name not in KEPT_METADATA]:
        del notebook.metadata[name]
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["gptjax_source"] = source_hash(notebook)


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments or names():
            path, started = HERE / pathlib.Path(name).name, time.monotonic()
            notebook = execute(nbformat.read(path, as_version=4), pathlib.Path(folder))
            strip(notebook, folder)
            text = nbformat.writes(notebook)
            if len(text) > MOST_BYTES:
                sys.exit(f"{name} has {len(text):,} bytes, more than {MOST_BYTES:,}: draw fewer or smaller pictures")
            path.write_text(text + "\n")
            print(f"{path.name}: {time.monotonic() - started:.0f} s, {len(text):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
