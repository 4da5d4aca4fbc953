"""Loss curves of runs in one picture."""

import shutil

import pytest
from matplotlib import pyplot

from gptjax import plot


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


def test_every_line_of_a_comparison_has_a_name_of_its_own(trained, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(trained, tmp_path / name / "run")
    plot.loss_curves([str(tmp_path / name / "run") for name in ("first", "second")], str(tmp_path / "loss.svg"))
    [axes] = pyplot.gcf().axes
    labels = axes.get_legend_handles_labels()[1]
    assert sorted(label.split(": ")[0] for label in labels) == [
        f"{name}/run, {kind}" for name in ("first", "second") for kind in ("held out", "training")
    ]
    assert (tmp_path / "loss.svg").exists()
    pyplot.close("all")
