"""The study that a newcomer runs first: what it declares, and, slowly, what comes out of it."""

import collections
import json
import os
import subprocess
import sys

import pytest
from places import ROOT

from gptjax.study.declare import declaration
from gptjax.study.lanes import grouping

FILE = "configs/studies/first.py"
MOST_FLOPS = 1.1e12  # what two cores do in about two minutes; the rest of three is starts, compiling and the fit


@pytest.fixture(scope="module")
def planned():
    return declaration.runs(declaration.load(str(ROOT / FILE)), vocab_size=72)


def test_it_is_small_enough_for_three_minutes_and_two_seeds_of_a_shape_share_a_process(planned):
    assert sum(run.factors["budget"] for run in planned) < MOST_FLOPS
    together = grouping.groups({run.name: run.config for run in planned})
    assert len(together) == 15 and {len(names) for names in together} == {2}
    assert all(first.replace("seed0", "seed1") == second for first, second in together)


def test_every_budget_has_five_sizes_and_larger_budgets_have_larger_ones(planned):
    sizes = collections.defaultdict(set)
    for run in planned:
        sizes[run.factors["budget"]].add(run.config.model.d_model)
    windows = [sorted(sizes[budget]) for budget in sorted(sizes)]
    assert [len(window) for window in windows] == [5, 5, 5]
    assert windows == sorted(windows) and windows[0] < windows[1] < windows[2]


@pytest.mark.slow
def test_its_report_has_a_law_of_parabolas_with_minima_inside(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS",)}
    for words in (
        ["run", FILE, f"--out={tmp_path / 'study'}"],
        ["fit", str(tmp_path / "study"), f"--report={tmp_path / 'report'}"],
    ):
        subprocess.run([sys.executable, "-m", "gptjax", "study", *words], cwd=ROOT, env=environment, check=True)
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    law = found["isoflop"]
    low, high = law["interval95"]["a"]
    assert law["refused"] == [] and 0.2 < low < law["a"] < high < 0.75
    sizes = collections.defaultdict(list)
    for point in found["points"]:
        sizes[point["budget"]].append(point["params"])
    for budget, optimum in zip(sorted(sizes), sorted(law["optima"], key=lambda one: one["flops"])):
        assert sorted(set(sizes[budget]))[0] < optimum["params"] < sorted(set(sizes[budget]))[-1]
    assert (tmp_path / "report" / "pictures" / "isoflop.png").stat().st_size > 0
