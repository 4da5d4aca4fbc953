"""What MFU is a fraction of, alike for training and for gptjax bench."""

import pytest
import runs

from gptjax import flops, hardware
from gptjax.config.values import from_dict
from gptjax.diagnostics import bench_training
from gptjax.rundir import run_directory
from gptjax.training import recorder, report, session

SPEED = {"tokens_per_second": 1000.0, "seconds_left": 60.0}
NUMBERS = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def config(values):
    return from_dict(runs.changed(values, data=dict(tokenizer="bytes"), model=dict(vocab_size=512)))


@pytest.mark.slow
def test_on_a_cpu_there_is_no_mfu_and_it_is_said_why(config, tmp_path):
    prepared = session.prepare(config)
    assert prepared.peak_flops is None and prepared.mfu(1e9) is None
    assert "MFU        not shown: no peak is published for a CPU" in report.header(
        prepared, run_directory.open_run(tmp_path), False
    )
    assert "MFU" not in recorder.progress_line(1, 2, NUMBERS, SPEED)

    results = bench_training.bench(config, seconds=0.0)
    assert results["train"]["mfu"] is None and results["train"]["tokens_per_second"] > 0
    first, *others = bench_training.table(results).splitlines()
    assert first.endswith("MFU not shown: no peak is published for a CPU") and not [o for o in others if "MFU" in o]


def test_of_a_device_with_a_published_peak_training_and_bench_show_the_same_fraction(config, tmp_path, monkeypatch):
    monkeypatch.setitem(hardware.OTHER_TPUS, "cpu", hardware.Peak(2e12, 2**30))
    prepared = session.prepare(config)
    per_token = flops.flops_per_token(prepared.config.model)["6n_attn_full"]
    assert prepared.mfu(1e6) == pytest.approx(1e6 * per_token / (2e12 * prepared.program.mesh.size))
    [line] = [
        line for line in report.header(prepared, run_directory.open_run(tmp_path), False) if line.startswith("MFU")
    ]
    assert line == "MFU        of 2 TFLOP/s per device (published for cpu); FLOPs: 6N + attention, as in the PaLM paper"
    assert "MFU 25.0%" in recorder.progress_line(1, 2, NUMBERS, SPEED | {"mfu": 0.25})

    results = bench_training.bench(config, seconds=0.0)
    train = results["train"]
    assert train["mfu"] == pytest.approx(prepared.mfu(train["tokens_per_second"]))
    assert f"MFU {train['mfu']:.1%}" in bench_training.table(results)
