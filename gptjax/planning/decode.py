"""What text from a model costs on a machine that is not here: the engine's own programs, compiled for it ahead of time.

    config, topology -> mesh -> decoding.prefill and decoding.decode, lowered on shapes alone -> compiled
    compiled program -> bytes a token, memory, collectives -> seconds (`roofline.py`)

A token of each row needs every weight and every entry of the cache once: bytes are counted against these. A call of decode
makes decoding.COLUMNS tokens; what it does once, before and after, is shared by them.
"""

import dataclasses
import math
import resource
import time
import typing

import jax
import numpy as np
from flax import nnx

from gptjax import flops
from gptjax.config.fields import MeshConfig
from gptjax.errors import UserError, choose
from gptjax.generation import decoding, engine, sampling
from gptjax.models import placed
from gptjax.models.layers import DTYPES, READING_DTYPES
from gptjax.parallel import numerics, sharding
from gptjax.planning import gpus, hlo, info, plan, roofline, topology

LEAST_LENGTH = 32  # the engine's shortest prompt, and as many new tokens


@dataclasses.dataclass(frozen=True)
class Text:
    """What is made at a time: rows of a prompt and as many new tokens, with greedy or plain sampling."""

    batch: int  # rows
    length: int  # places of a row in the cache: prompt and new tokens
    dtype: str = "bfloat16"  # of the weights: one of READING_DTYPES, as gptjax sample --dtype takes it

    @property
    def prompt_tokens(self) -> int:
        return self.length // 2


class Compiled(typing.NamedTuple):
    """The engine's two programs for a mesh, and the shapes of the state that goes from the first to the second."""

    prefill: typing.Any
    decode: typing.Any
    state: decoding.State


def plan_text(config, machine: topology.Topology, options: plan.Options, text: Text, mesh=None) -> dict:
    """All that is known of making text on a machine, as plain numbers under the keys of `--json`. mesh: a MeshConfig; None:
    `default_mesh`.

    Raises UserError for what the engine does not make, and for a mesh that fits neither machine nor model.
    """
    config = info.resolved(config)
    _check(config, machine, text)
    mesh = mesh or default_mesh(config.model, machine.num_devices)
    with plan.laying_out(mesh, machine):
        program = placed.of_run(config, mesh, list(machine.devices), text.dtype)
    machine = machine.arrange(program.mesh)
    facts = _facts(config, machine, dict(program.mesh.shape), text)
    options.say(f"compiling prefill and decode for {machine.name}, {machine.num_devices} devices ...")
    cpu_seconds, started = time.process_time(), time.monotonic()
    try:
        compiled = compile_programs(program, text)
    except plan.DoesNotFit as error:
        return facts | _refused(program, text, error)
    facts |= {"compile_seconds": time.monotonic() - started, "compile_cpu_seconds": time.process_time() - cpu_seconds}
    facts |= {"compile_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    facts |= _held(program, compiled, text, machine)
    return facts | _timed(machine, facts, compiled, options)


def default_mesh(model, devices: int) -> MeshConfig:
    """Every weight stays on its device: `tensor` over as many devices as heads, MLP and vocabulary divide over, and copies of
    the model on the rest."""
    sides = (model.n_heads, model.kv_heads, model.ff_size) if model.has_attention else (model.d_model,)
    tensor = math.gcd(devices, *sides, model.padded_vocab_size)
    return MeshConfig(fsdp=1, tensor=tensor, replica=devices // tensor)


def _check(config, machine: topology.Topology, text: Text) -> None:
    """Raises UserError: the engine makes no such text, or there is no compiler or no rate for the machine."""
    choose(dict.fromkeys(READING_DTYPES), text.dtype, "--dtype")
    if not config.data.writes_on:
        raise UserError(f"--decode: a model of data.objective={config.data.objective!r} does not continue texts.")
    most, context = engine.MAX_ROWS, config.model.context_length
    if not 1 <= text.batch <= most or text.batch & (text.batch - 1):
        raise UserError(
            f"--batch={text.batch}: the engine makes 1, 2, 4, ... or {most} rows at a time; use one of these."
        )
    longest = 1 << (context.bit_length() - 1)
    if not LEAST_LENGTH <= text.length <= longest or text.length & (text.length - 1):
        raise UserError(
            f"--length={text.length}: prompt and new tokens of a row are half each, and the engine has programs for powers of"
            f" two; use a power of two from {LEAST_LENGTH} to {longest} (model.context_length={context})."
        )
    if machine.chip is None:
        raise UserError(
            f"--topology={machine.name} has no published rates; measure text on a CPU with gptjax bench --generate."
        )
    if machine.devices is None:
        raise UserError(
            f"--decode is read from compiled programs; {gpus.INSTALL} compiles for --topology={machine.name}."
        )


def _facts(config, machine: topology.Topology, sizes: dict[str, int], text: Text) -> dict:
    return {
        **plan.of_machine(machine),
        "mesh": sizes,
        "dtype": text.dtype,
        "batch_size": text.batch,
        "length": text.length,
        "prompt_tokens": text.prompt_tokens,
        "prefill_flops": prefill_flops(config.model, text),
        "source": "compiled, without the device" if machine.platform == "gpu" else "compiled",
    }


def prefill_flops(model, text: Text) -> float:
    """FLOPs that reading the prompts takes: every matrix for every token, scores and values of what a token sees, and the
    head for the last token of a row."""
    model, counts = dataclasses.replace(model, context_length=text.prompt_tokens), flops.parameters(model)
    mixing = flops.counts_of(model).mixing_flops(model)
    return float(text.batch * (2 * counts.matrices * text.prompt_tokens + mixing + 2 * counts.token_embedding))


def compile_programs(program: placed.Placed, text: Text) -> Compiled:
    """What Engine.run calls for such rows. Raises DoesNotFit."""
    with numerics.on_mesh(program.mesh):
        prefill = plan.compile_lowered(lower_prefill(program, text))
        state = jax.tree.map(_placed, _state(program, text), prefill.output_shardings[0])
        decode = plan.compile_lowered(lower_decode(program, text, state))
    return Compiled(prefill, decode, state)


def lower_prefill(program: placed.Placed, text: Text):
    """The engine's prefill of the prompts, lowered on the mesh in context."""
    return decoding.prefill.lower(_setup(program), _weights(program, text), _prompts(text), **_options(text))


def lower_decode(program: placed.Placed, text: Text, state: decoding.State):
    """The engine's decode of the new tokens from the state after a prefill, in placed shapes."""
    shape, B = jax.ShapeDtypeStruct, text.batch
    rows = [engine.Row(np.zeros(1, np.int32), 0)] * B
    wanted = engine.wanted_of(rows, B)._replace(pad_B=np.zeros(B, np.int32))
    wanted = jax.tree.map(lambda a: shape(a.shape, a.dtype), wanted)
    everywhere = sharding.replicated(program.mesh)
    state = state._replace(
        done_B=shape((B,), np.bool_, sharding=everywhere)
    )  # which the engine makes anew for each call
    arguments = (_setup(program), _weights(program, text), wanted, state, shape((), np.int32), shape((), np.int32))
    return decoding.decode.lower(*arguments, logprobs=None)


def _state(program: placed.Placed, text: Text) -> decoding.State:
    def state(weights, prompts):
        return decoding.prefill(_setup(program), weights, prompts, **_options(text))[0]

    return jax.eval_shape(state, _weights(program, text), _prompts(text))


def _setup(program: placed.Placed) -> decoding.Setup:
    model = nnx.merge(program.graph, program.abstract_params).config
    return decoding.Setup(program.graph, model.dtype, model.vocab_size, sampling.table())


def _options(text: Text) -> dict:
    return {"places": text.length, "of_prompt": False}


def _weights(program: placed.Placed, text: Text) -> decoding.Weights:
    """As gptjax sample --dtype loads them, in placed shapes."""
    dtype = DTYPES[text.dtype] if program.stored is None else None
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), program.abstract_params)
    return decoding.Weights(jax.tree.map(_placed, shapes, program.param_sharding), None)


def _prompts(text: Text) -> decoding.Prompts:
    shape, B = jax.ShapeDtypeStruct, text.batch
    token_BL, count_B = shape((B, text.prompt_tokens), np.int32), shape((B,), np.int32)
    return decoding.Prompts(token_BL, count_B, count_B, shape((B,), np.bool_), None)


def _placed(leaf, place):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _held(program: placed.Placed, compiled: Compiled, text: Text, machine: topology.Topology) -> dict:
    """Bytes on a device, and what a token of each row needs of them."""
    weights = _weights(program, text).params
    cache = compiled.state.cache
    held = {"weights": _size(weights), "cache": _size(cache)}
    memories = [each.memory_analysis() for each in (compiled.prefill, compiled.decode)]
    arguments = max(m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes for m in memories)
    parts = held | {
        "other_arguments": arguments - sum(held.values()),  # logits, and the padding of tiles
        "temporaries": max(plan.temporaries(m, machine.platform == "tpu") for m in memories),
        "program": sum(m.generated_code_size_in_bytes for m in memories),
    }
    looked_up = {name: weights[name] for name in ("token_embedding", "position_embedding") if name in weights}
    if "head" not in weights:
        looked_up.pop("token_embedding")  # it is the head too
    return {
        "bytes": parts,
        "peak_bytes": sum(parts.values()),
        "fits": sum(parts.values()) <= machine.usable_bytes,
        "needed_bytes_per_token": sum(held.values()) - _size(looked_up),
    }


def _size(tree) -> int:
    return sharding.bytes_on_one_device(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))


def _timed(machine: topology.Topology, facts: dict, compiled: Compiled, options: plan.Options) -> dict:
    """Bytes, collectives and the roofline of a token of each row, and of the prompts."""
    chip, sizes, tokens = machine.chip, facts["mesh"], decoding.COLUMNS
    texts = {name: hlo.parse(getattr(compiled, name).as_text()) for name in ("prefill", "decode")}

    def play(name: str, **loops) -> roofline.Timeline:
        return roofline.play(texts[name], machine, sizes, options.matmul_fraction, **loops)

    prefill = play("prefill", branch=min)
    call = play("decode", calls_loop=tokens, branch=min)  # the fastest branches: those of options that no row uses
    cuts = play("decode", calls_loop=tokens, branch=max)
    once = play("decode", calls_loop=0, branch=min)
    seconds = call.seconds / tokens
    rate = facts["batch_size"] / seconds
    peak = chip.flops_per_second * machine.num_chips
    hours = None if options.price is None else options.price * machine.num_chips / 3600
    return {
        "hbm_bytes_per_token": call.hbm_bytes / tokens,
        "bytes_ratio": call.hbm_bytes / tokens / facts["needed_bytes_per_token"],
        "hbm_bytes_per_call": once.hbm_bytes,
        "token_seconds": seconds,
        **{name: getattr(call, name) / tokens for name in plan.ROOFLINE_KEYS},
        "cut_seconds": (cuts.seconds - call.seconds) / tokens,
        "tokens_per_second": rate,
        "tokens_per_second_per_chip": rate / machine.num_chips,
        "usd_per_million_tokens": None if hours is None else hours / rate * 1e6,
        "prefill_seconds": prefill.seconds,
        "prefill_mfu": facts["prefill_flops"] / prefill.seconds / peak,
        "collectives": plan.sent(call, tokens),
        "prefill_collectives": plan.sent(prefill, 1),
        "assumption": roofline.ASSUMPTION.format(options.matmul_fraction),
    }


def _refused(program: placed.Placed, text: Text, error: plan.DoesNotFit) -> dict:
    """Where XLA refuses a program there is nothing to read but how much it wanted."""
    weights = _size(_weights(program, text).params)
    parts = {"weights": weights, "temporaries": error.used - (0 if error.temporaries_only else weights)}
    refused = {"bytes": parts, "peak_bytes": sum(parts.values()), "fits": False, "compile_seconds": None}
    return refused | {"token_seconds": None, "source": "refused by the compiler"}
