"""Each notebook in a clean kernel, on the small run that the first of them makes; and that what is committed is their output."""

import base64
import io
import re
import sys

import numpy as np
import pytest
import runs
from places import ROOT

from gptjax.config.config_file import from_dict
from gptjax.training import main

nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")
pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
pytest.importorskip("ipykernel", reason="needs the extra `notebooks`")
pytest.importorskip("matplotlib", reason="needs the extra `notebooks`")

sys.path.insert(0, str(ROOT / "notebooks"))

import execute  # noqa: E402

PICTURES = {
    "01_train_and_look.ipynb": 1,
    "02_load_and_generate.ipynb": 1,
    "03_evaluate.ipynb": 1,
    "04_inside_the_model.ipynb": 4,
    "05_finetune.ipynb": 1,
    "06_preferences.ipynb": 4,
}
NAMES = list(PICTURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def executed(request, folder, monkeypatch):
    """A notebook with new outputs. The run that the first makes is there for the others."""
    monkeypatch.delenv("XLA_FLAGS")  # one device, and code as fast as a user's
    return execute.execute(committed(request.param), folder)


def committed(name: str):
    return nbformat.read(execute.HERE / name, as_version=4)


def pictures(notebook) -> list[np.ndarray]:
    from matplotlib.image import imread

    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    encoded = (output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    return [imread(io.BytesIO(base64.b64decode(text))) for text in encoded]


def printed(notebook) -> str:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "".join(output["text"] for output in outputs if output.output_type == "stream")


@pytest.mark.slow
def test_every_cell_of_one_runs_in_a_new_kernel_on_another_run(values, tmp_path, monkeypatch):
    """The notebook that takes least time, on a run of a few steps in the place of the small one."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device
    short = runs.changed(
        values,
        model=dict(context_length=64, n_layers=1),
        data=dict(tokenizer="bytes"),
        train=dict(steps=2),
        checkpoint=dict(keep=1),
    )
    assert main.train(from_dict(short), str(tmp_path / "runs" / "tiny")) == 0
    check_pictures(execute.execute(committed("02_load_and_generate.ipynb"), tmp_path), 1)


@pytest.mark.slow  # trains the small run
@pytest.mark.parametrize("executed", NAMES[:3], indirect=True, ids=NAMES[:3])
def test_every_cell_runs_in_a_new_kernel_and_pictures_come_out(executed):
    check_pictures(executed, 1)


@pytest.mark.slow
@pytest.mark.parametrize("executed", NAMES[3:4], indirect=True, ids=NAMES[3:4])
def test_the_small_run_has_induction_heads_that_the_notebook_finds(executed):
    check_pictures(executed, 4)
    score, even = re.search(
        r"strongest: .*, ([\d.]+) \(an even spread would have ([\d.]+)\)", printed(executed)
    ).groups()
    first, second = re.search(r"loss ([\d.]+) in the first half, ([\d.]+) in the second", printed(executed)).groups()
    assert float(score) > 6 * float(even) and float(second) < float(first) - 0.5


@pytest.mark.slow  # three runs on top of the small one
@pytest.mark.parametrize("executed", NAMES[4:5], indirect=True, ids=NAMES[4:5])
def test_the_small_run_learns_to_answer_keeps_it_with_an_adapter_and_labels_texts(executed):
    check_pictures(executed, 1)
    shares = {name: float(share) for name, share in re.findall(r"(before|after): ([\d.]+) of", printed(executed))}
    assert shares["before"] < 0.05 and shares["after"] > 0.9
    thrice = dict(re.findall(r"(without|with the adapter|merged): ([\d.]+) of thrice", printed(executed)))
    assert float(thrice["without"]) < 0.05 and float(thrice["with the adapter"]) > 0.9
    assert thrice["merged"] == thrice["with the adapter"]
    megabytes = {name: float(size) for name, size in re.findall(r"(sft|lora) +([\d.]+) MB", printed(executed))}
    assert megabytes["lora"] < megabytes["sft"] / 3
    assert int(re.search(r"(\d+) of 200 new lines right", printed(executed)).group(1)) > 180


@pytest.mark.slow  # four runs on top of the small one
@pytest.mark.parametrize("executed", NAMES[5:], indirect=True, ids=NAMES[5:])
def test_the_small_run_learns_from_comparisons_and_from_rewards(executed):
    check_pictures(executed, 4)
    orders = dict(re.findall(r"as (people judged|it is true): ([\d.]+) ", printed(executed)))
    assert 0.8 < float(orders["people judged"]) < float(orders["it is true"]) and float(orders["it is true"]) > 0.95
    shares = {name: float(share) for name, share in re.findall(r"(before|DPO|GRPO): ([\d.]+) of", printed(executed))}
    assert shares["before"] < 0.5 and shares["DPO"] > 0.7 and shares["GRPO"] > 0.7
    best = re.findall(r"best of n by .*: ([\d.]+) .* of one answer, ([\d.]+) ", printed(executed))
    assert len(best) == 2 and all(float(one) < 0.5 and float(sixteen) > 0.8 for one, sixteen in best)


def check_pictures(notebook, number: int) -> None:
    found = pictures(notebook)
    assert len(found) == number
    assert all(picture.std() > 0.02 and min(picture.shape[:2]) > 100 for picture in found), "a blank picture"


def test_these_are_all_notebooks():
    assert execute.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_of_the_committed_source_small_and_without_errors(name):
    notebook = committed(name)
    assert notebook.metadata["gptjax_source"] == execute.source_hash(notebook), "run notebooks/execute.py"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert len(pictures(notebook)) == PICTURES[name]
    assert (execute.HERE / name).stat().st_size < execute.MOST_BYTES
    assert 'RUN = "runs/tiny"' in cells[1].source, "one path to change, at the top"
