"""Programs that two real processes run together, of which one compiles for longer: everyone compiles, then everyone meets."""

import re

import pytest
import runs
from places import ROOT

SLOW_IN_ONE = """
import sys, time
import jax, numpy as np
from jax._src import compiler, distributed as jax_distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from gptjax.hosts import compiling
from gptjax.hosts import compiling, distributed
from gptjax.hosts.coordination import PeerLost

peers = distributed.start()
inner, compiled = compiler.backend_compile_and_load, []

def compile_slowly(*args, **options):
    if peers.index == 1:
        time.sleep(float(sys.argv[1]))
        met = jax_distributed.global_state.client.key_value_dir_get_bytes("cpu:gloo")
        print("in a collective meanwhile:", len(met))
    compiled.append(inner(*args, **options))
    return compiled[-1]

mesh = Mesh(np.array(jax.devices()), ("x",))
place = NamedSharding(mesh, PartitionSpec("x"))
total = compiling.jit(lambda a, power: (a**power).sum(), static_argnames="power")
array = jax.make_array_from_callback((2,), place, lambda at: np.array([3.0, 4.0], np.float32)[at])
compiler.backend_compile_and_load = compile_slowly
try:
    print("total", float(total(array, 2)), float(total(array, 2)), float(total(array, power=1)))
except PeerLost as error:
    print("lost:", error)
    if peers.index == 0:
        time.sleep(4)  # with this process goes the store that the other one reads
print("programs", len(compiled))
compiler.backend_compile_and_load = inner
if peers.index == 0:
    print("alone", float(total(np.float32([1, 2]), 2)))
peers.finish()
"""


# Not from the cache that reruns of the tests share: there would be nothing to compile slowly.
COMPILES = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


def test_a_process_that_has_compiled_waits_in_no_collective_for_one_that_has_not():
    first, second = runs.lines_of_two(SLOW_IN_ONE, "1.5", environments=[COMPILES] * 2)
    for lines in (first, second):
        assert "total 25.0 25.0 7.0" in lines and "programs 2" in lines, lines
    assert "in a collective meanwhile: 0" in second, (
        "while the first program was compiled, the other one has had for long"
    )
    assert "alone 5.0" in first, "what a process runs by itself concerns no other"


@pytest.mark.slow
def test_a_process_that_has_not_compiled_in_time_is_named():
    first, second = runs.lines_of_two(SLOW_IN_ONE, "3", environments=[COMPILES | {"GPTJAX_COMPILE_SECONDS": "1"}] * 2)
    for lines in (first, second):
        [lost] = [line for line in lines if line.startswith("lost: ")]
        assert re.match(r"lost: process 1 \(.*\) has not compiled .* within 1 s; see the log of its host", lost), lost
        assert "give GPTJAX_COMPILE_SECONDS for programs that take longer" in lost


HOOK = """
import importlib.abc, sys

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "gptjax.training.main":
            return None
        sys.meta_path.remove(self)
        import re, time, traceback
        from jax._src import compiler
        inner = compiler.backend_compile_and_load

        def compile(*args, **options):
            program = inner(*args, **options)
            ACT
            return program

        compiler.backend_compile_and_load = compile
        return None

sys.meta_path.insert(0, Hook())
"""
TELL_WHO_MET = r"""
            collective = "(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?[(]"
            if re.search(collective, program.hlo_modules()[0].to_string()):
                met = any(frame.name == "_meet" for frame in traceback.extract_stack())
                print("\nPROGRAM", program.hlo_modules()[0].name, "met" if met else "unmet", flush=True)
"""
TAKE_35_SECONDS = """
            if "train_call" in program.hlo_modules()[0].name:
                print("compiling for long", flush=True)
                time.sleep(35)
"""


def hooked(tmp_path, act: str) -> dict:
    """The environment of a process that does something more whenever it has compiled a program."""
    (tmp_path / "hook").mkdir(exist_ok=True)
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK.replace("            ACT\n", act))
    return {"PYTHONPATH": f"{tmp_path / 'hook'}:{ROOT}"}


SAMPLED = dict(optim=dict(ema_decay=0.9), eval=dict(sample_tokens=4, sample_prompt="abc"))


@pytest.mark.parametrize(
    "ends, more", [((2,), {}), pytest.param((2, 4), SAMPLED, marks=pytest.mark.slow)], ids=["a_start", "all"]
)
def test_no_program_with_collectives_of_a_run_runs_before_all_have_compiled_it(values, tmp_path, ends, more):
    """Training, evaluation, saving; and (slow) evaluation of both kinds of parameters, resuming and sampling."""
    split = runs.changed(
        values, model=dict(n_layers=1), mesh=dict(fsdp=2), checkpoint=dict(every_steps=2),
        eval=dict(every_steps=2, max_tokens=64),
    )  # fmt: skip
    split = runs.changed(split, **more)
    for steps in ends:
        longer = runs.changed(split, train=split["train"] | dict(steps=steps))
        arguments = dict.fromkeys((0, 1), ["--allow_change=train.steps"])
        hook = hooked(tmp_path, TELL_WHO_MET) | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
        with runs.processes(longer, tmp_path / "run", tmp_path, 2, 1, arguments=arguments, **hook) as started:
            for process in started:
                process.ends_with(0)
                lines = [line.split()[1:] for line in process.output().splitlines() if line.startswith("PROGRAM ")]
                assert {name for name, _ in lines} >= {"jit_train_call", "jit_eval_call"}, lines
                assert all(how == "met" for _, how in lines), lines


@pytest.mark.slow  # longer than gloo waits, which is 30 s
def test_two_processes_start_whose_compile_times_differ_by_35_seconds_since_one_has_a_cache(values, tmp_path):
    """jax writes its cache from process 0 alone: the second start finds the step there, and process 1 compiles again."""
    short = runs.changed(values, train=values["train"] | dict(steps=3), eval=dict(every_steps=None, max_tokens=64))
    caches = {index: {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / f"cache{index}")} for index in (0, 1)}
    for name in ("first", "second"):
        if name == "second":
            caches[1] |= hooked(tmp_path, TAKE_35_SECONDS)
        (tmp_path / name).mkdir()
        with runs.processes(short, tmp_path / name / "run", tmp_path, 2, 1, environments=caches) as started:
            for process in started:
                process.ends_with(0)
    assert "compiling for long" in started[1].output()
    assert list((tmp_path / "cache0").glob("*train_call*")) and not list((tmp_path / "cache1").glob("*train_call*"))
    assert runs.losses(tmp_path / "first" / "run") == runs.losses(tmp_path / "second" / "run")
