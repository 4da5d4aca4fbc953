"""`gptjax plan`: the real step compiled for a slice that is not here, its table, its JSON, and what it refuses."""

import json
import os
import re
import types

import jax
import pytest
from places import ROOT

from gptjax import cli
from gptjax.commands import plan as plan_command
from gptjax.config.fields import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.planning import hlo, plan, plan_table, topology

pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

CONFIGS = ROOT / "configs"
KEYS = (
    "topology num_chips mesh fits hbm_bytes peak_bytes bytes flops_per_step collectives step_seconds"
    " tokens_per_second mfu chip_hours compile_seconds"
).split()
CONFIG = Config(
    model=ModelConfig(vocab_size=1200, context_length=256, n_layers=4, d_model=512, n_heads=4, remat="full"),
    optim=OptimConfig(warmup_steps=1),
    train=TrainConfig(steps=1000, batch_size=16, microbatches=2, vocab_chunks=2, log_every=1000),
    mesh=MeshConfig(fsdp=2, tensor=2),
)


@pytest.fixture(scope="module")
def facts():
    """The plan of a small model on four v5e chips: 2 heads of 128, and twice as wide as its text is long."""
    config = CONFIG.replace(model=dict(n_layers=2, d_model=256, n_heads=2, context_length=128))
    return plan.plan(config, topology.describe("v5e:2x2"), plan.Options(price=1.2, say=lambda line: None))


def test_json_has_the_promised_keys_and_is_json(facts):
    read = json.loads(plan.to_json(facts))
    assert set(KEYS) <= set(read)
    assert {"kind", "axis", "count", "bytes", "link", "overlapped"} <= set(read["collectives"][0])
    assert read["num_chips"] == 4 and read["mesh"]["tensor"] == 2 and read["fits"] is True


def test_the_parts_of_the_memory_are_the_peak_and_hold_the_state(facts):
    parts = facts["bytes"]
    assert sum(parts.values()) == facts["peak_bytes"] < facts["hbm_bytes"] == 16 * 2**30
    assert parts["optimizer"] == 2 * parts["parameters"] + 4  # Adam's moments and its count
    assert 0.3 < facts["estimated_peak_bytes"] / facts["peak_bytes"] < 1.5


def test_temporaries_that_do_not_live_at_once_are_shown_and_are_not_in_the_peak():
    gib = 2**30
    facts = on_gpu() | {"bytes": {"temporaries": 2 * gib}, "all_temporaries_bytes": 3 * gib}
    assert "2.00 GiB at the peak, 3.00 GiB allocated to all\n" in plan_table.table(facts)
    assert "allocated" not in plan_table.table(facts | {"all_temporaries_bytes": 2 * gib})


def test_the_peak_of_a_program_is_libtpus_and_of_a_cpus_the_sum():
    """GPT-2 small, batch 280 on v5e:2x2, in MiB: libtpu accepted it with a peak of 14,797."""
    sizes = dict(argument_size=370, output_size=366, alias_size=366, generated_code_size=24)
    sizes |= dict(temp_size=16_940, peak_memory=14_797)
    memory = types.SimpleNamespace(**{f"{name}_in_bytes": size for name, size in sizes.items()})
    parts = plan._held(memory, 122, 244, peak_is_known=True)
    assert parts == dict(parameters=122, optimizer=244, other_arguments=4, temporaries=14_427, program=24)
    assert sum(plan._held(memory, 122, 244, peak_is_known=False).values()) == 370 + 16_940 + 24
    memory.temp_size_in_bytes = 14_061  # and the state counted twice in the peak
    assert plan._held(memory, 122, 244, peak_is_known=True)["temporaries"] == 14_061


def test_the_compilers_flops_are_the_analytic_ones_and_what_the_kernel_adds(facts):
    analytic = facts["flops_per_step"] + facts["recomputed_flops_per_step"]
    assert 1.0 < facts["compiled_flops_per_step"] / analytic < 1.12


def test_the_attention_kernel_is_in_the_program_and_no_scores_or_whole_logits_are(facts):
    found = facts["checks"]
    assert facts["kernel"] == "splash" and found["kernels"] == 4  # forward, recomputed, two of the backward pass
    assert found["scores"] is None and found["whole_logits"] is None
    assert found["logits"] == "f32[4,128,320]"  # rows of a microbatch, tokens, a chunk's share of the vocabulary


def test_activations_are_reduced_over_tensor_for_each_layer_and_microbatch(facts):
    reduced = [e for e in facts["collectives"] if e["axis"] == "tensor" and e["kind"] != "collective-permute"]
    assert sum(entry["count"] for entry in reduced) >= 4 * 2 * 2
    assert all(entry["link"] == "ICI" for entry in facts["collectives"])


def test_pace_and_cost_follow_from_the_step(facts):
    assert facts["tokens_per_second"] == pytest.approx(16 * 128 / facts["step_seconds"])
    assert facts["chip_hours"] == pytest.approx(1000 * facts["step_seconds"] * 4 / 3600)
    assert facts["cost_usd"] == pytest.approx(1.2 * facts["chip_hours"])
    parts = ("matmul_seconds", "memory_seconds", "exposed_seconds", "copy_seconds")
    assert sum(facts[name] for name in parts) == pytest.approx(facts["step_seconds"])
    assert 0 < facts["mfu"] < 1


def test_the_table_says_what_a_pipeline_s_waiting_stages_cost(facts):
    assert "pipeline_microbatches" not in plan_table.table(facts)
    text = plan_table.table(facts | {"pipeline_bubble": 0.5})
    assert "1.50 times the FLOPs" in text and "mesh.pipeline_microbatches makes it less" in text
    mesh = {"stage": 2, "fsdp": 4, "tensor": 1, "pipeline_microbatches": 4}
    config = CONFIG.replace(mesh=mesh, train={"batch_size": 32})
    assert plan.plan(config, topology.describe("h100:8"), plan.Options())["pipeline_bubble"] == 1 / 4


def test_the_table_names_the_assumption_the_kernel_and_the_room(facts):
    text = plan_table.table(facts)
    for part in ("matmuls at 100% of the published peak", "splash kernel", "no T x T tensor", "fits,", "$"):
        assert part in text
    assert plan_table.row("small", facts).count("|") == plan_table.heading().splitlines()[0].count("|")


def test_scores_of_all_heads_and_whole_logits_are_found():
    text = (
        "HloModule m\n\nENTRY %main (a: f32[1]) -> f32[1] {\n  %a = f32[4,2,256,256]{3,2,1,0} parameter(0)\n"
        "  ROOT %b = f32[1024,640]{1,0} custom-call(%a)\n}\n"
    )
    config = CONFIG.replace(model={"d_model": 256})
    found = plan.checks(config, {"replica": 1, "fsdp": 2, "sequence": 1, "tensor": 2}, "splash", hlo.parse(text))
    assert found["scores"] == "f32[4,2,256,256]" and found["whole_logits"] == "f32[1024,640]"
    assert found["kernels"] == 0


@pytest.mark.parametrize(
    "axis, shape, found",
    [
        ("stage", "[5,2,1,4,256,256]", False),  # inputs of 2 layers of a stage in 5 iterations: 4 rows of 256, wide 256
        ("stage", "[256,5,2,1,4,256]", False),  # the same, as XLA:GPU lays them out
        ("stage", "[2,256,256]", False),  # weights
        ("stage", "[4,8,256,256]", True),  # of 8 heads
        ("stage", "[5,2,4,8,256,256]", True),
        ("sequence", "[4,16,128,256]", False),  # inputs of 4 layers, half a text of each row
        ("sequence", "[16,8,128,256]", True),
    ],
)
def test_stacks_that_are_as_wide_as_the_text_is_long_are_no_scores(axis, shape, found):
    parameter, out = f"  %a = f32{shape}{{0}} parameter(0)\n", "  ROOT %b = f32[1] custom-call(%a)\n"
    program = hlo.parse(f"HloModule m\n\nENTRY %main (a: f32[1]) -> f32[1] {{\n{parameter}{out}}}\n")
    config = CONFIG.replace(model={"d_model": 256, "n_heads": 8}, train={"batch_size": 32})
    config = config.replace(mesh={"pipeline_microbatches": 4, "stage": 2, "tensor": 1})
    sizes = {"replica": 1, "stage": 1, "fsdp": 1, "sequence": 1, "tensor": 1} | {axis: 2}
    assert bool(plan.checks(config, sizes, "splash", program)["scores"]) is found


@pytest.mark.parametrize(
    "message, gib, temporaries_only",
    [
        ("RESOURCE_EXHAUSTED: XLA:TPU: Ran out of memory in memory space hbm. Used 35.5G of 15.75G hbm.", 35.5, False),
        ("RESOURCE_EXHAUSTED: total memory required for HLO temporaries (28.08G) exceeds available HBM", 28.08, True),
    ],
)
def test_the_compilers_refusal_says_how_much_was_wanted(message, gib, temporaries_only):
    refusal = plan._refusal(RuntimeError(message))
    assert refusal.used == pytest.approx(gib * 2**30) and refusal.temporaries_only == temporaries_only


LIBTPU = (  # 0.0.50.1, of a step for v5p with fused gathers
    "FAILED_PRECONDITION: Continuation fusion for AllGather is enabled on platform viperfish (variant: ), but it is not"
    " supported/recommended on platforms other than TPU v5e, and this might lead to many errors including but not"
    " limited to: incorrect results, hang, SDC, etc. Please disable it with xla_tpu_enable_async_collective_fusion=false"
)


def test_another_failure_of_the_compiler_is_one_line_with_all_its_words():
    """The cure comes last. What follows an empty line is a trace or a table."""
    wrapped = LIBTPU.replace(", ", ",\n") + "\n\nstack: 1\n2"
    refusal = plan._refusal(RuntimeError(wrapped))
    assert isinstance(refusal, UserError) and str(refusal) == f"XLA could not compile the step: {LIBTPU}"


def test_a_mesh_that_does_not_fit_model_or_machine_is_refused():
    machine = topology.describe("v5e:2x2")
    with pytest.raises(UserError, match="but there are 4"):
        plan.plan(CONFIG.replace(mesh={"fsdp": 8}), machine, plan.Options())
    with pytest.raises(UserError, match="model.n_heads=6 does not divide over mesh.tensor=4"):
        plan.plan(
            CONFIG.replace(model={"n_heads": 6, "head_dim": 64}, mesh={"fsdp": 1, "tensor": 4}), machine, plan.Options()
        )


def test_a_cpu_topology_is_compiled_and_counted_without_a_roofline():
    facts = plan.plan(CONFIG, topology.describe("cpu:4"), plan.Options(say=lambda line: None))
    assert facts["step_seconds"] is facts["mfu"] is facts["hbm_bytes"] is facts["fits"] is None
    assert facts["bytes"]["temporaries"] == facts["all_temporaries_bytes"] > 0
    assert "no roofline" in plan_table.table(facts)
    reduced = {(e["kind"], e["axis"]) for e in facts["collectives"]}
    assert ("all-reduce", "tensor") in reduced and set(KEYS) <= set(facts)


def on_gpu(**sections) -> dict:
    return plan.plan(
        CONFIG.replace(mesh={"fsdp": -1, "tensor": 1}, **sections), topology.describe("h100:1"), plan.Options()
    )


def test_a_gpu_fits_what_jax_takes_of_its_memory():
    """Between 95% and all of it: the batch is chosen for a peak of 78 of 80 GiB."""
    few, more = (on_gpu(train={"batch_size": rows})["peak_bytes"] for rows in (2000, 4000))
    rows = 2 * round(1000 + (78 * 2**30 - few) / (more - few) * 1000)
    facts = on_gpu(train={"batch_size": rows})
    assert facts["usable_bytes"] < facts["peak_bytes"] < facts["hbm_bytes"] == 80 * 2**30 and facts["fits"] is False
    text = plan_table.table(facts)
    assert "of 76.00 GiB: DOES NOT FIT" in text and "JAX given 95% of a GPU's memory" in text
    assert on_gpu(train={"batch_size": rows * 9 // 10 // 2 * 2})["fits"] is True


def test_replicas_in_hosts_of_gpus_that_fsdp_joins_talk_over_nvlink():
    """mesh.dcn_fsdp lays fsdp over hosts and every replica's group within one, in the run and so in the plan."""
    config = CONFIG.replace(mesh={"dcn_fsdp": 2, "fsdp": 1, "replica": -1, "tensor": 1})
    facts = plan.plan(config, topology.describe("h100:4x2"), plan.Options())
    assert facts["mesh"]["replica"] == 4 and facts["mesh"]["fsdp"] == 2
    links = {entry["axis"]: entry["link"] for entry in facts["collectives"]}
    assert links == {"replica": "NVLink", "fsdp": "network"}


def test_mfu_is_shown_by_exact_flops_too_where_masked_attention_is_much_of_the_work():
    short, long = on_gpu(), on_gpu(model={"context_length": 8192})
    assert short["mfu"] < 1.1 * short["mfu_exact"] and "by exact FLOPs" not in plan_table.table(short)
    assert long["mfu"] > 1.1 * long["mfu_exact"]
    shown = f"masked attention too, which the kernel skips; {long['mfu_exact']:.1%} by exact FLOPs"
    assert long["kernel"] == "cudnn" and shown in plan_table.table(long)
    assert "skips" not in plan_table.table(on_gpu(model={"context_length": 8192, "attention": "xla"}))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=h100:8"], "compiled for --topology=h100:8 without the device has untuned tiles"),
        (["--topology=h100:8", "--search"], "compiled for --topology=h100:8 without the device has untuned tiles"),
        (["--topology=cpu:4", "--search"], "--save_executable is of one plan, not of --search"),
        (["--topology=cpu:4"], "/step.exe cannot be written here (FileNotFoundError"),
    ],
)
def test_an_executable_that_could_not_be_written_is_refused_before_anything_is_compiled(arguments, message, tmp_path):
    target = tmp_path / "nowhere" / "step.exe"
    args = cli.parser().parse_args(["plan", "--config=small.py", f"--save_executable={target}", *arguments])
    with pytest.raises(UserError, match=re.escape(message)):
        plan_command.print_plan(CONFIG, args)


@pytest.fixture
def command(monkeypatch):
    """cli.main of a plan, which leaves the environment and the compilation cache of this process as they were."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    yield lambda *arguments: cli.main(["plan", *arguments])
    jax.config.update("jax_enable_compilation_cache", True)


def test_a_config_that_is_too_large_exits_1_and_says_by_how_much(command, capsys):
    assert command(f"--config={CONFIGS / 'gpt3_175b.py'}", "--topology=h100:8x1", "--mesh=fsdp=8", "--json") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["fits"] is False and json.loads(printed.out)["compile_seconds"] is None
    assert "more than the 76.00 GiB it may fill; try --search" in printed.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=v5q:8x8"], "nearest: v5p, v5e"),
        (["--topology=v5e:2x2", "--mesh=fsdp"], "expected axes and sizes"),
        (["--topology=v5e:2x2", "--mesh=fdsp=4"], "did you mean 'fsdp'"),
        (["--topology=v5e:2x2", "--num_slices=0"], "--num_slices must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, command, capsys):
    assert command(f"--config={CONFIGS / 'gpt3_125m.py'}", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
