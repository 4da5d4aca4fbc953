"""GPUs that are not here: what the compiler is told, how its programs are read, and what it makes of real configs.

Those of the third kind need the extra `gpu-plan`, and run where it is installed: .ci/run installs it.
"""

import numpy as np
import pytest
from places import ROOT

from gptjax import hardware
from gptjax.config import config_file
from gptjax.config.fields import Config, ModelConfig, TrainConfig
from gptjax.planning import collectives, costs, gpus, hlo, plan, plan_table, topology

GIB = 2**30
GPUS = [name for name, chip in hardware.CHIPS.items() if chip.dims == 0]


def test_every_gpu_that_can_be_planned_for_has_a_target_with_its_name_and_rates():
    assert set(gpus.TARGETS) == set(GPUS)
    for family, target in gpus.TARGETS.items():
        chip = hardware.CHIPS[family]
        assert hardware.peak_flops(target.name) == chip.flops_per_second, "its device_kind leads to its rates"
        assert target.bytes_per_second == pytest.approx(chip.hbm_bandwidth, rel=0.005)
        assert chip.hbm_bytes * 0.95 < target.memory_bytes < chip.hbm_bytes * 1.01


def test_the_compiler_is_told_of_as_much_memory_as_leaves_a_run_s_share():
    fields = gpus.TARGETS["h100"].text().split()
    memory = int(fields[fields.index("device_memory_size:") + 1])
    assert memory * gpus.COMPILERS_SHARE == pytest.approx(84942979072 * hardware.GPU_MEMORY_FRACTION)


def test_without_the_compiler_a_plan_is_an_estimate_that_says_how_to_compile():
    facts = plan.plan(small(), topology.describe("a100-40:8"), plan.Options())
    assert facts["compile_seconds"] is None and gpus.INSTALL in plan_table.table(facts)


ATTENTION = """HloModule m, is_scheduled=true

ENTRY %main (q: bf16[2,1024,12,64], k: bf16[2,1024,4,64], v: bf16[2,1024,4,64]) -> bf16[2,1024,12,64] {
  %q = bf16[2,1024,12,64]{3,2,1,0} parameter(0)
  %k = bf16[2,1024,4,64]{3,2,1,0} parameter(1)
  %v = bf16[2,1024,4,64]{3,2,1,0} parameter(2)
  %f = (bf16[2,12,1024,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaTARGET", backend_config={"cudnn_fmha_backend_config": {"mask_type": "MASK", "sliding_window_length": WINDOW}}
  ROOT %out = bf16[2,12,1024,64]{3,1,2,0} get-tuple-element(%f), index=0
}
"""


@pytest.mark.parametrize(
    "target, mask, window, products, blocks",
    [
        ("Softmax", "NO_MASK", 0, 2, 64),
        ("Softmax", "CAUSAL", 0, 2, 36),  # of 8 x 8 blocks of 128: 1 + 2 + ... + 8
        ("SoftmaxBackward", "CAUSAL", 0, 5, 36),
        ("Softmax", "CAUSAL", 256, 2, 1 + 2 + 3 * 6),  # a block of queries sees its own and two before
    ],
)
def test_cudnn_s_attention_costs_the_blocks_that_its_mask_leaves(target, mask, window, products, blocks):
    text = ATTENTION.replace("TARGET", target).replace("MASK", mask).replace("WINDOW", str(window))
    program = hlo.parse(text)
    flops = sum(costs.matmul_flops(program, i, where) for i, where, _ in hlo.walk(program))
    assert flops == products * blocks * 2 * (2 * 12) * 128 * 128 * 64


GATHER = """HloModule m, is_scheduled=true

ENTRY %main (a: bf16[8,16]) -> bf16[64,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %s = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) all-gather-start(%a), replica_groups=[1,8]<=[8], dimensions={0}, backend_config={"collective_backend_config":{"is_sync":SYNC}}
  ROOT %d = bf16[64,16]{1,0} all-gather-done(%s)
}
"""


@pytest.mark.parametrize("sync", ["true", "false"])
def test_a_collective_that_xla_has_marked_synchronous_overlaps_with_nothing(sync):
    [moved] = collectives.listed(hlo.parse(GATHER.replace("SYNC", sync)), {"fsdp": 8})
    assert moved["overlapped"] is (sync == "false") and moved["bytes"] == 64 * 16 * 2


# ---- what the compiler makes of configs


def small(**sections) -> Config:
    model = ModelConfig(context_length=256, n_layers=2, d_model=256, n_heads=4, vocab_size=512)
    config = Config(model=model, train=TrainConfig(steps=9, batch_size=32))
    return config.replace(**({"mesh": {"fsdp": -1}} | sections))


@pytest.mark.parametrize("family", GPUS)
def test_a_small_step_compiles_for_every_gpu_on_hosts_in_their_order(gpu_compiler, family):
    machine = topology.describe(f"{family}:2x2")
    assert [device.coords[1:] for device in machine.devices] == [[0, 0], [0, 1], [1, 0], [1, 1]], "host by host"
    facts = plan.plan(small(mesh={"fsdp": 2, "replica": 2}), machine, plan.Options(say=lambda line: None))
    assert facts["device_kind"] in gpus.TARGETS[family].name and facts["kernel"] == "cudnn" and facts["fits"]
    links = {(entry["axis"], entry["link"]) for entry in facts["collectives"]}
    assert ("fsdp", "NVLink") in links and ("replica", "network") in links
    assert facts["checks"]["scores"] is None and facts["checks"]["kernels"] >= 2, "forward and backward"
    exact = facts["flops_per_step"] + facts["recomputed_flops_per_step"]
    assert facts["compiled_flops_per_step"] == pytest.approx(exact, rel=0.1)
    assert facts["bytes"]["cudnn_workspace"] == 32 / 4 * 256 * 256 * 4


def test_gathers_on_ampere_run_beside_matmuls(gpu_compiler):
    """XLA leaves its latency-hiding scheduler off there: the step asks for it."""
    facts = plan.plan(small(), topology.describe("a100-80:4"), plan.Options(say=lambda line: None))
    moved = {(entry["kind"], entry["overlapped"]): entry["bytes"] for entry in facts["collectives"]}
    for kind in ("all-gather", "reduce-scatter"):
        assert moved.get((kind, True), 0) > 3 * moved.get((kind, False), 0), kind


def test_what_does_not_fit_is_refused_by_us(gpu_compiler):
    config = small(train={"batch_size": 4096}, model={"context_length": 1024, "n_layers": 12})
    facts = plan.plan(config, topology.describe("a100-40:1"), plan.Options(say=lambda line: None))
    assert facts["peak_bytes"] > facts["usable_bytes"] and facts["fits"] is False
    assert "DOES NOT FIT" in plan_table.table(facts)


RECORDED = {  # GiB at the peak on eight H100, by config: of jax 0.10.2 and 0.12
    "gpt3_1_3b": 63.99,
}


@pytest.mark.slow  # a minute of CPU
@pytest.mark.parametrize("name", RECORDED)
def test_a_config_of_the_paper_takes_the_memory_that_was_recorded(gpu_compiler, name):
    config = config_file.load_config(str(ROOT / "configs" / f"{name}.py"))
    facts = plan.plan(config, topology.describe("h100:8"), plan.Options(say=lambda line: None))
    assert facts["peak_bytes"] / GIB == pytest.approx(RECORDED[name], rel=0.02)
    assert facts["checks"]["scores"] is facts["checks"]["whole_logits"] is None
    assert {entry["kind"] for entry in facts["collectives"]} == {"all-gather", "reduce-scatter", "all-reduce"}
    reduced = sum(entry["bytes"] for entry in facts["collectives"] if entry["kind"] == "all-reduce")
    assert reduced < 1e7, "gradients are scattered, not reduced whole"
    assert np.isfinite(facts["step_seconds"])
