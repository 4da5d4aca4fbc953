"""Memory, traffic and time by arithmetic, against numbers worked out by hand."""

import numpy as np
import pytest
from places import ROOT

from gptjax import flops
from gptjax.config import config_file
from gptjax.config.fields import Config, ModelConfig, OptimConfig, TrainConfig
from gptjax.planning import estimate, plan, plan_docs, topology

ONES = {"replica": 1, "stage": 1, "fsdp": 1, "sequence": 1, "tensor": 1}
# 4 layers of width 1024: 12 D^2 entries of matrices each, and a vocabulary of 1024 x 1024
CONFIG = Config(
    model=ModelConfig(vocab_size=1024, context_length=512, n_layers=4, d_model=1024, n_heads=8, remat="full"),
    optim=OptimConfig(warmup_steps=1),
    train=TrainConfig(steps=1000, batch_size=64, microbatches=2),
)
WEIGHTS = (4 * 12 + 1) * 1024**2  # that multiply activations


def moved(**sizes) -> dict:
    return {(m.kind, m.axis): m for m in estimate.traffic(CONFIG, ONES | sizes)}


def test_one_device_sends_nothing():
    assert moved() == {}


def test_fsdp_gathers_bf16_weights_twice_and_scatters_gradients_once_a_microbatch():
    found = moved(fsdp=8)
    assert found["all-gather", "fsdp"].bytes == 2 * 2 * 2 * WEIGHTS
    assert found["reduce-scatter", "fsdp"].bytes == 2 * 2 * WEIGHTS
    assert all(entry.overlapped for entry in found.values())


def test_tensor_parallelism_gathers_and_scatters_activations_five_times_a_layer_where_one_is_recomputed():
    found = moved(fsdp=2, tensor=4)
    tokens = 64 // 2 // 2 * 512
    assert (
        found["all-gather", "tensor"].bytes == found["reduce-scatter", "tensor"].bytes == 5 * 4 * 2 * tokens * 1024 * 2
    )
    assert found["all-gather", "fsdp"].bytes == moved(fsdp=2)["all-gather", "fsdp"].bytes / 4
    assert not found["all-gather", "tensor"].overlapped


def test_replicas_reduce_their_shards_of_the_gradients():
    total = flops.parameters(CONFIG.model).total
    assert moved(replica=4, fsdp=2)["all-reduce", "replica"].bytes == 2 * total / 2 * 2


def test_each_stage_hands_on_a_part_of_the_batch_in_each_iteration_and_its_gradient_back():
    config = CONFIG.replace(mesh={"pipeline_microbatches": 8, "pipeline_repeats": 2})
    sizes = ONES | {"fsdp": 2, "stage": 2}
    found = {m.axis: m for m in estimate.traffic(config, sizes)}["stage"]
    edges = 2 * 2 * (8 * 2 + 2 - 1)  # there and back, two microbatches of the step
    tokens = 64 // 2 // 2 // 8 * 512
    assert (found.count, found.bytes) == (edges, edges * tokens * 1024 * 2)
    default = {m.axis: m for m in estimate.traffic(CONFIG, sizes)}["stage"]
    assert default.count == 2 * 2 * (2 + 2 - 1)  # as many parts as stages, once round


def test_stages_wait_less_the_more_parts_go_round_and_the_oftener_whatever_is_accumulated():
    circular = CONFIG.replace(mesh={"pipeline_microbatches": 8, "pipeline_repeats": 2})
    for accumulated in (1, 4):
        changed = {"train": {"microbatches": accumulated}}
        assert estimate.bubble(CONFIG.replace(**changed), 4) == 3 / 4
        assert estimate.bubble(circular.replace(**changed), 4) == 3 / 16
        assert estimate.bubble(circular.replace(**changed), 1) == 0


def test_a_pipeline_with_twice_the_bubble_takes_longer_by_it():
    machine, sizes = topology.describe("h100:8x1"), ONES | {"stage": 4, "fsdp": 2}
    steps = []
    for parts in (4, 8):
        config = CONFIG.replace(mesh={"pipeline_microbatches": parts}, model={"context_length": 8192})
        steps.append(estimate.timeline(config, sizes, machine, {"parameters": 0, "optimizer": 0}))
    compute = steps[0]["matmul_seconds"] + steps[0]["memory_seconds"]
    sent = [sum(seconds for moved, _, seconds in line["traffic"] if moved.axis == "stage") for line in steps]
    shorter = steps[0]["step_seconds"] - sent[0] - (steps[1]["step_seconds"] - sent[1])
    assert shorter == pytest.approx(compute * (3 / 4 - 3 / 8))


def test_a_stage_keeps_the_activations_of_its_own_layers_also_where_it_works_on_nothing():
    config = CONFIG.replace(model={"remat": "none"})
    held = estimate.memory(config, ONES | {"stage": 2}, params=0, optimizer=0)
    half = flops.activation_bytes(config.replace(model={"n_layers": 2}), ONES)
    assert held["activations"] == half * 3 / 2 > 0  # two parts, three iterations


def held_by(kernel: str, remat: str, **sizes) -> dict:
    config = CONFIG.replace(model={"remat": remat}, train={"batch_size": 8, "microbatches": 1})
    return estimate.memory(config, ONES | sizes, 0, 0, kernel)


def test_cudnn_makes_its_output_again_where_another_kernel_would_keep_it():
    """8 rows of 512 tokens, 4 layers: bfloat16 outputs of 8 heads of 128, and a float32 log-sum for each."""
    spared = held_by("splash", "attention")["activations"] - held_by("cudnn", "attention")["activations"]
    assert spared == 8 * 512 * 4 * 8 * (2 * 128 + 4)
    assert held_by("splash", "none")["activations"] == held_by("cudnn", "none")["activations"]
    assert held_by("splash", "attention")["attention"] == 0
    assert held_by("cudnn", "none")["attention"] == 8 * 512 * 1024 * 4, "the workspace"
    config = CONFIG.replace(model={"remat": "attention"})
    again = [estimate.step_flops(config, kernel)["recomputed"] for kernel in ("splash", "cudnn")]
    assert again[1] - again[0] == 64 * 4 * 1024 * 4 * 512 * 513 / 2


def test_xla_s_attention_holds_the_scores_of_all_blocks_of_queries_and_the_keys_that_each_sees():
    pairs = 128 * (128 + 256 + 384 + 512)  # 4 blocks of 128 queries
    scores = 8 * 8 * pairs * estimate.SCORE_BYTES
    keys = 2 * 8 * 512 * 1024 * 2  # of one layer, once
    assert held_by("xla", "none")["attention"] == scores + 4 * keys * 1.5
    assert held_by("xla", "full")["attention"] == scores + keys * 1.5
    chunks = 5 * 128**2  # of 128 tokens on 2 devices: 3 of the device's own, 2 for the other one
    assert held_by("xla", "none", sequence=2)["attention"] == 8 * 8 * chunks * estimate.SCORE_BYTES


def test_a_step_whose_scores_go_through_memory_takes_longer_by_them():
    machine, held = topology.describe("h100:8x1"), {"parameters": 0, "optimizer": 0}
    config = CONFIG.replace(model={"remat": "none"})
    steps = [estimate.timeline(config, ONES | {"fsdp": 8}, machine, held, kernel=k) for k in ("cudnn", "xla")]
    pairs = 2 * 4 * 4 * 8 * 128 * (128 + 256 + 384 + 512)  # 2 microbatches of 4 rows, 4 layers, 8 heads
    longer = steps[1]["memory_seconds"] - steps[0]["memory_seconds"]
    assert longer == pytest.approx(pairs * estimate.SCORE_TRAFFIC / 3350e9)


def rows_for_gpus() -> list[list[str]]:
    """(config, topology, mesh, remat, microbatches, GiB) of each row of docs/plans.md."""
    section = plan_docs._sections((ROOT / "docs" / "plans.md").read_text())["GPUs"]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in section if line.startswith("| gpt")]
    return [[*row[:2], *row[3:7]] for row in rows]


@pytest.mark.parametrize("name, topology_name, mesh, remat, microbatches, gib", rows_for_gpus())
def test_the_memory_of_a_gpu_is_estimated_within_15_percent_of_what_was_compiled(
    name, topology_name, mesh, remat, microbatches, gib
):
    sizes = {axis: int(size) for axis, size in (part.split("=") for part in mesh.split(" x "))}
    config = config_file.load_config(str(ROOT / "configs" / f"{name}.py"))
    config = config.replace(mesh=sizes, model={"remat": remat}, train={"microbatches": int(microbatches)})
    facts = plan.plan(config, topology.describe(topology_name), plan.Options())
    assert facts["compile_seconds"] is None
    assert facts["peak_bytes"] / 2**30 == pytest.approx(float(gib), rel=0.15)


def test_the_rows_for_gpus_are_those_of_every_size():
    assert len(rows_for_gpus()) == len(plan_docs.TABLES[1].plans) >= 12


def test_recomputed_flops_are_the_forward_pass_less_what_nobody_needs():
    names = ("none", "dots", "mlp", "attention", "full")
    none, dots, mlp, kept, full = (CONFIG.replace(model={"remat": name}) for name in names)
    assert flops.recomputed_flops_per_sequence(none) == 0
    attention = 4 * 1024 * 4 * 512 * 513 // 2
    assert flops.recomputed_flops_per_sequence(dots) == attention
    assert flops.recomputed_flops_per_sequence(full) == attention + 2 * 4 * 8 * 1024**2 * 512  # no MLP output
    assert flops.recomputed_flops_per_sequence(kept) == 2 * 4 * 5 * 1024**2 * 512  # the MLP up and attention's output
    assert flops.recomputed_flops_per_sequence(mlp) == 2 * 4 * 1024**2 * 512  # attention's output
    chunked = none.replace(train={"vocab_chunks": 2})
    assert flops.recomputed_flops_per_sequence(chunked) == 2 * 1024 * 1024 * 512


def test_the_first_group_of_an_axis_holds_the_devices_that_differ_in_it_alone():
    sizes = ONES | {"fsdp": 2, "tensor": 4}
    assert estimate.axis_group(sizes, "fsdp").tolist() == [0, 4]
    assert estimate.axis_group(sizes, "tensor").tolist() == [0, 1, 2, 3]


def test_a_step_on_gpus_is_matmuls_with_gathers_beside_them_and_the_update_after():
    machine = topology.describe("h100:8x1")
    held = {"parameters": 1e9, "optimizer": 2e9}
    line = estimate.timeline(CONFIG, ONES | {"fsdp": 8}, machine, held)
    work = 64 * (flops.train_flops_per_sequence(CONFIG.model) + flops.recomputed_flops_per_sequence(CONFIG))
    assert line["matmul_seconds"] == pytest.approx(work / 8 / 989e12)
    sent = 3 * 2 * 2 * WEIGHTS * 7 / 8 / 450e9
    per_token = 8 * 4 * flops.kept_bytes(CONFIG.model, "none") + 7 * 4 * 1024  # of 4 layers, and of the logits
    beside_matmuls, update = 64 // 8 * 512 * per_token / 3350e9, 2 * 3e9 / 3350e9
    assert line["memory_seconds"] == pytest.approx(beside_matmuls + update)
    assert line["step_seconds"] == pytest.approx(max(line["matmul_seconds"] + beside_matmuls, sent) + update)
    slow = estimate.timeline(CONFIG, ONES | {"fsdp": 8}, machine, held, fraction=0.5)
    assert slow["matmul_seconds"] == pytest.approx(2 * line["matmul_seconds"])


def test_a_run_costs_its_chip_hours():
    run = estimate.whole_run(CONFIG, step_seconds=3.6, num_chips=8, price=2.0)
    assert (run["run_hours"], run["chip_hours"], run["cost_usd"]) == pytest.approx((1.0, 8.0, 16.0))
    assert estimate.whole_run(CONFIG, 3.6, 8, None)["cost_usd"] is None


def test_held_memory_is_named_by_what_it_is_for():
    held = estimate.memory(CONFIG, ONES | {"fsdp": 8}, params=8e6, optimizer=16e6)
    assert held["parameters"] == 8e6 and held["optimizer"] == 16e6
    assert held["gradients"] == 8e6 + 4e6, "the sum in float32, and a microbatch's in bfloat16"
    assert held["gathered"] > 2 * 12 * 1024**2 * 2 and np.isfinite(sum(held.values()))
