"""What XLA makes of two real models for every kind of chip that is not here: GPT-2 small, and GPT-3 1.3B with two layers.

A compiler takes a minute for a TPU and ten seconds for a GPU, so the default suite leaves these tests out: .ci/run has
them. The memory of a program belongs to one version of its compiler. To record that of the versions installed here:

    PYTHONPATH=tests/support python tests/planning/compiled_test.py
"""

import functools
import importlib.metadata
import json
import pathlib
import sys

import pytest
from places import ROOT

from gptjax import flops
from gptjax.config import config_file
from gptjax.planning import gpus, plan, topology

RECORDED = pathlib.Path(__file__).with_name("compiled.json")  # {compiler: {program: bytes of a device at the peak}}
GPT2 = (
    "gpt2_small",
    {  # without attention dropout, which most kernels do not have
        "model": {"attention_dropout": 0.0},
        "train": {"batch_size": 32, "microbatches": 1},
    },
)
DROPPING = "gpt2_small", {"train": {"batch_size": 32, "microbatches": 1}}
GPT3 = "gpt3_1_3b", {"model": {"n_layers": 2}, "train": {"batch_size": 32}}
FSDP, TENSOR = {"fsdp": -1}, {"fsdp": 2, "tensor": 2}
PROGRAMS = {
    "GPT-2 on h100": (*GPT2, "h100:4", FSDP),
    "GPT-2 on h100, dropout": (*DROPPING, "h100:4", FSDP),
    "GPT-3 on h100": (*GPT3, "h100:4", FSDP),
    "GPT-3 on h100, tensor": (*GPT3, "h100:4", TENSOR),
    "GPT-3 on v4": (*GPT3, "v4:2x2x1", FSDP),
    "GPT-2 on v5e": (*GPT2, "v5e:2x2", FSDP),
    "GPT-3 on v5p": (*GPT3, "v5p:2x2x1", FSDP),
    "GPT-2 on v6e": (*GPT2, "v6e:2x2", FSDP),
    "GPT-3 on tpu7x": (*GPT3, "tpu7x:2x2x1", FSDP),
}
# Over fsdp weights are gathered and their gradients scattered, over tensor activations are gathered before matmuls and
# scattered after them. What is reduced whole are sums of vectors. XLA:TPU makes parts of gathers permutations.
KINDS = {"gpu": {"all-gather", "reduce-scatter", "all-reduce"}}
KINDS["tpu"] = KINDS["gpu"] | {"collective-permute", "all-to-all"}
# The part of the gradients' bytes (in bfloat16) that may be reduced whole over fsdp, where a scatter would do. XLA:GPU does
# so with the gradient of positions under tensor; XLA:TPU with that of embeddings, which is a scatter-add, of q, k and v,
# and for v4 of the head, in float32.
REDUCED_WHOLE = {"gpu": 0.03, "tpu": 1.1}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache"),
]


def config_of(name: str):
    config_name, changes, _, mesh = PROGRAMS[name]
    return config_file.load_config(str(ROOT / "configs" / f"{config_name}.py")).replace(**changes, mesh=mesh)


@functools.cache
def facts(name: str) -> dict:
    """The plan of one of PROGRAMS."""
    return plan.plan(config_of(name), topology.describe(PROGRAMS[name][2]), plan.Options(say=lambda line: None))


def platform(name: str) -> str:
    return "gpu" if "h100" in PROGRAMS[name][2] else "tpu"


def compiler(name: str) -> str:
    """What decides how much memory a program takes."""
    packages = ("jax", "jax-cuda13-pjrt" if platform(name) == "gpu" else "libtpu")
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


@pytest.fixture
def no_compiler_for_gpus():
    """In place of conftest's: here GPUs are compiled for wherever that can be done."""


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in PROGRAMS])
def program(request) -> str:
    """The name of one of PROGRAMS that can be compiled here."""
    if platform(request.param) == "gpu" and (package := gpus.missing()):
        pytest.skip(f"{package} is not installed: {gpus.INSTALL}")
    return request.param


def test_no_scores_of_all_heads_and_no_whole_logits_are_in_a_program(program):
    checks = facts(program)["checks"]
    kernel = "triton" if "dropout" in program else {"gpu": "cudnn", "tpu": "splash"}[platform(program)]
    assert facts(program)["kernel"] == kernel and checks["kernels"] >= 2, "forward and backward"
    assert checks["scores"] is checks["whole_logits"] is None


def test_a_program_sends_what_its_mesh_is_for_and_gradients_are_scattered(program):
    found, config = facts(program), config_of(program)
    sent = {}  # bytes by axis and kind
    for entry in found["collectives"]:
        assert entry["kind"] in KINDS[platform(program)], entry
        of_axis = sent.setdefault(entry["axis"], {})
        of_axis[entry["kind"]] = of_axis.get(entry["kind"], 0) + entry["bytes"]
    assert set(sent) - {"fsdp+tensor"} == {axis for axis, size in found["mesh"].items() if size > 1}
    sizes, gradients = found["mesh"], 2 * flops.parameters(config.model).total  # bfloat16
    activations = 4 * config.train.batch_size // sizes["fsdp"] * config.model.context_length * config.model.d_model
    allowed = {
        "fsdp": REDUCED_WHOLE[platform(program)] * gradients / sizes["tensor"],
        "tensor": 1.01 * activations,  # once in float32: the gradient of the head's input
        "fsdp+tensor": 1e6,
    }
    for axis, of_axis in sent.items():
        assert of_axis.get("all-reduce", 0) < allowed[axis], axis
        if axis != "fsdp+tensor":
            assert {"all-gather", "reduce-scatter"} <= set(of_axis), axis


def test_a_program_takes_the_memory_that_was_recorded_of_its_compiler(program):
    recorded = json.loads(RECORDED.read_text()).get(compiler(program), {}).get(program)
    if recorded is None:
        pytest.skip(f"not recorded of {compiler(program)}: see the first lines of {__file__}")
    assert facts(program)["peak_bytes"] == pytest.approx(recorded, rel=0.02)


def record() -> None:
    """Writes the memory of every program that can be compiled here."""
    for name in PROGRAMS:
        if platform(name) == "gpu" and gpus.missing():
            continue
        known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        known.setdefault(compiler(name), {})[name] = int(facts(name)["peak_bytes"])
        RECORDED.write_text(json.dumps(known, indent=2) + "\n")
        print(f"{name}: {facts(name)['peak_bytes'] / 2**30:.3f} GiB", file=sys.stderr)


if __name__ == "__main__":
    record()
