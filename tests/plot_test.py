"""`python -m gptjax.plot`: pictures for screens and papers, of runs in any state."""

import json
import sys

import pytest

from gptjax import plot
from gptjax.config import config_file
from gptjax.rundir import run_directory

pytest.importorskip("matplotlib", reason="needs the extra `notebooks`")


@pytest.fixture
def runs_of_two(values, tmp_path):
    """Two runs, evaluated at a step that was not logged, and one of them with a loss that is no number."""
    config = config_file.from_dict(values | {"train": {"steps": 8, "batch_size": 16}}).with_vocabulary(65)
    for name, losses in (("first", [3.0, 2.5]), ("second", [3.5, "nan"])):
        directory = run_directory.open_run(str(tmp_path / name))
        directory.path.mkdir()
        directory.write_config(config)
        rows = [dict(kind="train", step=step, loss=loss, tokens=256 * step) for step, loss in zip((4, 8), losses)]
        rows.append(dict(kind="eval", step=6, loss=losses[1], standard_error=losses[1]))
        directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(tmp_path / name) for name in ("first", "second")]


def run(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["gptjax.plot", *words])
    return plot.main()


@pytest.mark.parametrize(
    "paths,names",
    [
        (["/runs/a", "/runs/b"], ["a", "b"]),
        (["/first/run", "/second/run"], ["first/run", "second/run"]),
        (["/x/first/run", "/x/second/run", "/x/other"], ["first/run", "second/run", "x/other"]),
        (["/runs/a", "/runs/a"], ["a", "a"]),
        (["/a", "/b/a"], ["/a", "b/a"]),
    ],
)
def test_runs_are_called_by_as_little_of_their_paths_as_tells_them_apart(paths, names):
    assert plot.names_apart(paths) == names


@pytest.mark.parametrize("kind, begins", [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_picture_is_of_the_kind_that_its_name_ends_in(runs_of_two, tmp_path, kind, begins, monkeypatch):
    files = [tmp_path / f"{name}.{kind}" for name in ("once", "again")]
    for file in files:
        assert run(monkeypatch, *runs_of_two, f"--out={file}") == 0
    assert files[0].read_bytes().startswith(begins) and files[0].read_bytes() == files[1].read_bytes()


def test_every_line_of_several_runs_has_a_name_of_its_own(runs_of_two, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plot, "_save", lambda figure, out: figures.append(figure))
    plot.loss_curves(runs_of_two, str(tmp_path / "x.svg"))
    [axes] = figures[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "first, training", "second, training", "first, held out: 2.500", "second, held out: nan"]  # fmt: skip
    assert list(axes.containers[0].lines[0].get_xdata()) == [6 * 256], "where the run was, though no row says so"


def test_what_cannot_be_drawn_is_a_line(runs_of_two, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *runs_of_two, "--out=loss.gif") == 2
    assert "--out=loss.gif: expected a name that ends in .png, .svg, .pdf." in capsys.readouterr().err
    (tmp_path / "first" / "metrics.jsonl").write_text("")
    assert run(monkeypatch, runs_of_two[0], f"--out={tmp_path / 'loss.svg'}") == 2
    assert "has logged no step yet" in capsys.readouterr().err
