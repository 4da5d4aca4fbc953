"""Critical batches of a study's runs, and the law through them, against what they were made from."""

import json

import pytest

from gptjax.optim import noise_scale
from gptjax.study.fits.points import Row
from gptjax.study.results import critical_batch


def write_run(folder, b_simple: float, steps: int = 40, rising: bool = False):
    """Whose noise scale is b_simple over its last quarter, and half of it before."""
    folder.mkdir()
    rows = []
    for step in range(1, steps + 1):
        signal = 2.0 + 0.1 * (step % 2)
        trace = b_simple * signal * (1.0 if step > 0.75 * steps else 0.5)
        noise = {noise_scale.SIGNAL: signal, noise_scale.TRACE: trace}
        rows.append({"kind": "train", "step": step, "tokens": 64 * step, "loss": 3.0, **noise})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_runs_number_is_that_of_its_last_quarter(tmp_path):
    found = critical_batch.at_the_end(write_run(tmp_path / "run", 500.0), 40)
    assert (found["first"], found["last"], found["n_steps"]) == (31, 40, 10)
    assert found["b_simple"] == pytest.approx(500.0) and found["unit"] == "tokens"


def test_a_run_that_did_not_log_it_has_none(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 40, "tokens": 1, "loss": 2.0}) + "\n")
    assert critical_batch.at_the_end(tmp_path, 40) is None and critical_batch.of_runs([], "total") is None


def row(name: str, loss: float, b_simple, **noise) -> Row:
    given = {
        "b_simple": b_simple,
        "standard_error": 10.0,
        "first": 31,
        "last": 40,
        "n_steps": 10,
        "loss": loss,
        "refused": None,
    }
    facts = {"noise_scale": given | noise, "batch_size": 1024}
    return Row(run=name, params={"total": 1e4}, tokens=1e5, flops={"exact": 6e9}, loss=loss, facts=facts)


def test_the_law_through_the_runs_is_the_one_they_were_made_from():
    rows = [row(f"r{loss}", loss, 2e8 * loss ** (-1 / 0.21)) for loss in (2.0, 2.5, 3.0, 4.0)]
    found = critical_batch.of_runs(rows, "total")
    assert found["law"]["scale"] == pytest.approx(2e8) and found["law"]["exponent"] == pytest.approx(1 / 0.21)
    assert found["law"]["standard_error"] < 1e-9 and found["law"]["refused"] == []
    first = found["points"][0]
    low, high = first["interval95"]
    assert (first["run"], first["params"], first["batch_size"]) == ("r2.0", 1e4, 1024)
    assert (high - low, (low + high) / 2) == pytest.approx((39.2, first["noise_scale"]))


def test_runs_whose_number_was_refused_stay_visible_and_make_no_law():
    rows = [row("a", 2.0, 900.0), row("b", 2.2, 700.0), row("c", 2.4, 500.0)]
    rows += [row("d", 2.6, None, standard_error=None, refused="the gradient is not told from its noise")]
    found = critical_batch.of_runs(rows, "total")
    assert found["points"][3]["refused"] and found["points"][3]["interval95"] is None
    assert found["law"] == {"points_used": 3, "refused": ["3 runs have a noise scale, a law needs 4"]}
    assert critical_batch.law(found["points"][:3] + [found["points"][0] | {"noise_scale": -5.0}])["refused"] == [
        "the noise scale of a is -5"
    ]
