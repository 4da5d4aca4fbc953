"""A seed's numbers under settings of JAX that are not ours: of a notebook, or of the environment."""

import os
import pathlib
import subprocess
import sys

import jax
import judging
import numpy as np
import pytest
import runs

import gptjax
from gptjax.evaluation import scoring
from gptjax.run import inside

OTHERS = {  # beside SETTINGS: what finds mistakes must find none here
    "enable_x64": True,
    "numpy_dtype_promotion": "strict",
    "numpy_rank_promotion": "raise",
    "default_prng_impl": "rbg",
    "threefry_partitionable": False,
    "default_matmul_precision": "highest",
    "debug_nans": True,
    "check_tracer_leaks": True,
}


def of_a_notebook(run) -> dict:
    """What a notebook asks of a run: texts drawn, penalised and of beams, scores, and looks inside."""
    drawn = run.generate(["ab", "c"], max_tokens=4, seed=3, top_k=5, repetition_penalty=1.1, logprobs=True)
    beams = run.generate("ab", max_tokens=3, num_beams=2)
    requests = [scoring.Request([1, 2], [3, 4]), scoring.Request([5], [6])]
    return {
        "texts": [c.tokens.tolist() for c in [*drawn, *beams]],
        "logprobs": drawn[0].logprobs,
        "scores": [s.log_likelihood for s in scoring.score(run.graph, run.params, run.mesh, requests)],
        "loss": run.loss("abcd abc").loss_L,
        "logits": run.logits("abcd"),
        "lens": run.logit_lens("abcd"),
    }


def forget() -> None:
    """Compiled programs, so that settings meet a trace of their own."""
    for function in (inside.logits, inside.token_loss, inside.logit_lens):
        function.clear_cache()


@pytest.fixture(scope="module")
def plain(trained):
    return of_a_notebook(gptjax.load(trained))


@pytest.mark.parametrize("name", runs.default_or_slow(OTHERS, ["enable_x64"]))
def test_a_notebook_with_another_setting_gets_the_same_texts_and_numbers(trained, plain, name):
    forget()
    with getattr(jax, name)(OTHERS[name]):
        found = of_a_notebook(gptjax.load(trained))
        assert getattr(jax.config, f"jax_{name}") == OTHERS[name], "the notebook's own setting is back"
    assert found["texts"] == plain["texts"]
    for what in ("logprobs", "scores", "loss", "logits", "lens"):
        assert np.array_equal(np.array(found[what]), np.array(plain[what]), equal_nan=True), what


COMMANDS = """
import sys
from gptjax import cli
config, workdir, reads = sys.argv[1:]
of_reading = (
    ["sample", f"--workdir={workdir}", "--prompt=ab", "--max_tokens=4", "--num_beams=2"],
    ["eval", f"--workdir={workdir}", "--max_tokens=128", "--stride=8"],
    ["verify", f"--workdir={workdir}"],
)
for words in (
    ["train", config, f"--workdir={workdir}"],
    ["sample", f"--workdir={workdir}", "--prompt=ab", "--max_tokens=4"],
    *(of_reading if reads == "all" else ()),
):
    assert cli.main(words) == 0, words
"""


@pytest.mark.slow
@pytest.mark.parametrize("reads", runs.default_or_slow(["sample", "all"], ["sample"]))
def test_commands_in_an_environment_with_every_other_setting_train_and_say_the_same(trained, values, tmp_path, reads):
    finds = ("check_tracer_leaks",)  # minutes for a training run
    environment = {f"JAX_{name.upper()}": str(value) for name, value in OTHERS.items() if name not in finds}
    sampled = judging.trained_values(values)
    sampled["eval"] |= {"sample_tokens": 5, "sample_prompt": "ab"}
    config = runs.write_config(sampled, tmp_path / "fields.py")
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, config, str(tmp_path / "run"), reads],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert runs.losses(tmp_path / "run") == runs.losses(trained)
    text = gptjax.load(trained).generate("ab", max_tokens=4)[0]
    assert str(text) in done.stdout


def test_every_program_is_run_with_our_settings():
    """Whoever enters a mesh by themselves would be under other settings than ours."""
    package = pathlib.Path(gptjax.__file__).parent
    calls = {f.name for f in package.rglob("*.py") if "set_mesh(" in f.read_text()}
    assert calls == {"numerics.py"}
