"""`gptjax plan --decode`: the engine's own programs compiled for a slice that is not here, what they move, and what is refused."""

import json
import os

import jax
import numpy as np
import pytest
from places import ROOT

from gptjax import cli
from gptjax.config import config_file
from gptjax.config.fields import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.generation import decoding
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import Settings
from gptjax.models import placed
from gptjax.parallel import numerics
from gptjax.planning import decode, decode_table, hlo, plan, roofline, topology

pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

OPTIONS = plan.Options(price=1.2, say=lambda line: None)
TINY = Config(
    model=ModelConfig(vocab_size=1200, context_length=2048, n_layers=6, d_model=1024, n_heads=8),
    optim=OptimConfig(warmup_steps=1),
    train=TrainConfig(steps=1000, batch_size=16, log_every=1000),
)
GPT3_SLICES = {  # config: topology, heads, mesh that serves it
    "gpt3_1_3b": ("v5e:2x2", dict(tensor=4, replica=1)),
    "gpt3_13b": ("v5p:2x2x2", dict(tensor=8, replica=1)),
    "gpt3_175b": ("v5p:4x4x4", dict(tensor=32, replica=2)),
}


@pytest.fixture(scope="module")
def compiled():
    """(facts, programs) of a small model on four v5e chips, two heads each: 16 rows of 2,048 tokens, whose cache has no room
    in a chip's own memory."""
    made = {}
    compile_programs = decode.compile_programs

    def kept(*arguments):
        made["programs"] = compile_programs(*arguments)
        return made["programs"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "compile_programs", kept)
        facts = decode.plan_text(TINY, topology.describe("v5e:2x2"), OPTIONS, decode.Text(16, 2048))
    return facts, made["programs"]


def test_a_token_moves_weights_and_cache_once(compiled):
    facts, _ = compiled
    cache = 2 * 6 * 16 * 2048 * 2 * 128 * 2  # keys and values, layers, rows, places, two heads of 128, bytes
    weights = facts["bytes"]["weights"]
    assert facts["bytes"]["cache"] == cache and facts["needed_bytes_per_token"] == cache + weights - 2 * 2048 * 1024
    assert 0.9 < facts["bytes_ratio"] < 1.15
    assert facts["hbm_bytes_per_call"] < cache, "a copy of the cache would read and write it all"


def test_no_program_copies_the_cache_or_gathers_weights(compiled):
    facts, programs = compiled
    entries = 6 * 2048 * 2 * 16 * 128
    for program in (programs.prefill, programs.decode):
        text = hlo.parse(program.as_text())
        copies = [
            array
            for computation in text.computations.values()
            for instruction in computation.instructions
            for array in instruction.arrays
            if instruction.opcode in ("copy", "copy-start") and np.prod(array.shape) >= entries
        ]
        assert not copies
    largest = max(entry["bytes"] / entry["count"] for entry in facts["collectives"] if entry["count"] >= 1)
    assert largest < 2 * 1024 * 1024, "less than a matrix of a layer"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_token_of_gpt3_s_1_3b_moves_weights_and_cache_once(dtype):
    """A quarter of its layers, of which the program has one in a loop."""
    config = config_file.load_config(str(ROOT / "configs" / "gpt3_1_3b.py"), ["model.n_layers=6"])
    facts = decode.plan_text(config, topology.describe("v5e:2x2"), OPTIONS, decode.Text(32, 2048, dtype))
    assert 0.9 < facts["bytes_ratio"] < 1.15 and facts["fits"]


def test_what_is_planned_is_what_the_engine_runs(make_variant, monkeypatch):
    """To the letter: the programs of two rows on two devices, as the engine lowers them and as the planner does."""
    tiny = make_variant("gpt2", context_length=32)
    config = Config(model=tiny.config, train=TrainConfig(steps=1, batch_size=8, log_every=1))
    program = placed.of_run(config, MeshConfig(fsdp=1, tensor=2), jax.devices()[:2])
    params = jax.device_put(tiny.params, program.param_sharding)
    text, lowered, shapes = decode.Text(2, 32, "float32"), {}, {}
    functions = {"prefill": decoding.prefill, "decode": decoding.decode}
    for name in functions:

        def call(*arguments, name=name, function=functions[name], **options):
            lowered[name] = function.lower(*arguments, **options).as_text()
            state, made = function(*arguments, **options)
            shapes[name] = jax.tree.map(_placed, state)
            return state, made

        monkeypatch.setattr(decoding, name, call)
    with numerics.on_mesh(program.mesh):
        Engine(program.graph, params).run([Row(np.arange(16), seed, Settings(max_tokens=16)) for seed in (1, 2)])
        monkeypatch.undo()
        assert decode.lower_prefill(program, text).as_text() == lowered["prefill"]
        assert decode.lower_decode(program, text, shapes["prefill"]).as_text() == lowered["decode"]


def _placed(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def test_the_default_mesh_splits_heads_and_copies_the_model_over_the_rest():
    for name, (machine, sizes) in GPT3_SLICES.items():
        model = config_file.load_config(str(ROOT / "configs" / f"{name}.py")).model
        mesh = decode.default_mesh(model, topology.device_count(machine))
        assert {axis: getattr(mesh, axis) for axis in sizes} == sizes and mesh.fsdp == 1


def test_the_prefill_s_flops_are_those_of_its_tokens():
    model = ModelConfig(vocab_size=1000, context_length=256, n_layers=2, d_model=64, n_heads=2)
    matrices, pairs = 2 * 12 * 64 * 64, 64 * 65 / 2
    by_hand = 8 * (2 * matrices * 64 + 2 * 4 * pairs * 64 + 2 * 1000 * 64)
    assert decode.prefill_flops(model, decode.Text(8, 128)) == by_hand


LOOP = """HloModule m, is_scheduled=true

%unfinished (c: (s32[], s32[])) -> pred[] {
  %c = (s32[], s32[]) parameter(0)
  %column = s32[] get-tuple-element(%c), index=0
  %count = s32[] get-tuple-element(%c), index=1
  ROOT %more = pred[] compare(%column, %count), direction=LT
}

%token (c: (s32[], s32[])) -> (s32[], s32[]) {
  %c = (s32[], s32[]) parameter(0)
  %x = f32[1000]{0} custom-call(), custom_call_target="make"
  %y = f32[1000]{0} add(%x, %x)
  ROOT %next = (s32[], s32[]) tuple(%c, %c)
}

ENTRY %main (count: s32[]) -> s32[] {
  %count = s32[] parameter(0)
  %begin = s32[] constant(0)
  %carry = (s32[], s32[]) tuple(%begin, %count)
  %loop = (s32[], s32[]) while(%carry), condition=%unfinished, body=%token
  ROOT %end = s32[] get-tuple-element(%loop), index=0
}
"""


def test_the_loop_of_a_whole_program_runs_as_often_as_is_said_and_is_never_guessed():
    program, machine = hlo.parse(LOOP), topology.describe("v5e:2x2")
    once, often = (roofline.play(program, machine, {"fsdp": 4}, calls_loop=n) for n in (1, 64))
    assert often.hbm_bytes == 64 * once.hbm_bytes == 64 * 4 * (1000 + 3 * 1000)
    with pytest.raises(UserError, match="trip count of the loop loop is not in the compiled program"):
        roofline.play(program, machine, {"fsdp": 4})


def test_rates_and_price_follow_from_the_token(compiled):
    facts, _ = compiled
    assert facts["tokens_per_second"] == pytest.approx(16 / facts["token_seconds"])
    assert facts["tokens_per_second_per_chip"] == pytest.approx(facts["tokens_per_second"] / 4)
    cost = 4 * 1.2 / 3600 / facts["tokens_per_second"] * 1e6
    assert facts["usd_per_million_tokens"] == pytest.approx(cost) and 0 < facts["prefill_mfu"] < 1
    parts = sum(facts[name] for name in plan.ROOFLINE_KEYS)
    assert parts == pytest.approx(facts["token_seconds"]) and facts["cut_seconds"] > 0
    assert facts["fits"] and sum(facts["bytes"].values()) == facts["peak_bytes"]


def test_the_table_the_row_and_the_json_say_it(compiled):
    facts, _ = compiled
    text = decode_table.table(facts)
    for part in (
        "tensor=4, weights in bfloat16",
        "1,024 tokens of prompt and 1,024 new ones",
        "of weights + cache",
        "MFU",
    ):
        assert part in text
    assert decode_table.row("small", facts).count("|") == decode_table.heading().splitlines()[0].count("|")
    assert json.loads(plan.to_json(facts))["bytes_ratio"] == facts["bytes_ratio"]


@pytest.fixture
def command(monkeypatch):
    """cli.main of a plan of the smallest GPT-3, which leaves environment and compilation cache as they were."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    yield lambda *arguments: cli.main(["plan", f"--config={ROOT / 'configs' / 'gpt3_125m.py'}", *arguments])
    jax.config.update("jax_enable_compilation_cache", True)


TPU = "--topology=v5e:2x2"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([TPU, "--decode", "--length=1000"], "use a power of two from 32 to 2048"),
        ([TPU, "--decode", "--length=4096"], "use a power of two from 32 to 2048"),
        ([TPU, "--decode", "--batch=6"], "--batch=6: the engine makes 1, 2, 4, ... or 64 rows at a time"),
        ([TPU, "--decode", "--batch=0"], "--batch=0: the engine makes"),
        ([TPU, "--decode", "--length=0"], "--length=0: prompt and new tokens"),
        ([TPU, "--decode", "--batch=128"], "--batch=128: the engine makes"),
        ([TPU, "--decode", "--dtype=int4"], "--dtype='int4' is not known; did you mean 'int8'"),
        ([TPU, "--decode", "--search"], "--search is of training"),
        ([TPU, "--decode", "--remat=full"], "--remat is of training"),
        ([TPU, "--decode", "--mesh=tensor=3"], "mesh fsdp=1 x tensor=3 is 3 devices, but there are 4"),
        ([TPU, "--length=64"], "--length is of text; give --decode too"),
        ([TPU, "--dtype=int8"], "--dtype is of text; give --decode too"),
        (["--topology=cpu:4", "--decode"], "--topology=cpu:4 has no published rates; measure text on a CPU"),
        (["--topology=h100:8", "--decode"], "pip install 'gptjax[gpu-plan]' compiles for --topology=h100:8"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, command, capsys):
    assert command(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
