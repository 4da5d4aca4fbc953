"""Any number in any field or flag is taken or refused in one line, at once: never a traceback, never a hang."""

import argparse
import dataclasses
import math
import re
import time
import typing

import hypothesis
import pytest
from hypothesis import strategies

from gptjax import cli
from gptjax.config import bounds
from gptjax.config.config_file import from_dict, load_config
from gptjax.config.fields import Config
from gptjax.errors import UserError
from gptjax.generation.settings import Settings

SECTIONS = {field.name: type(field.default) for field in dataclasses.fields(Config)}
KINDS = {
    f"{section}.{name}": kind
    for section, of in SECTIONS.items()
    for name, kind in typing.get_type_hints(of).items()
    if name in {field.name for field in dataclasses.fields(of)}
}
NUMERIC = sorted(key for key, kind in KINDS.items() if "int" in str(kind) or "float" in str(kind))
BASE = {"train": {"steps": 8, "batch_size": 8}, "model": {"vocab_size": 64}}
ENDS = [0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63), 10**400, -(10**5000)]
NUMBERS = strategies.one_of(
    strategies.sampled_from(ENDS),
    strategies.integers(),
    strategies.integers(-(2**70), 2**70),
    strategies.floats(),
    strategies.sampled_from([1e-320, 1e-40, 1e38, 3.5e38, 1e300]),
)
SECONDS = 2.0  # on a busy machine; each takes a millisecond


def one_line(function) -> str | None:
    """What is refused, or None; soon, and in one line of a readable length."""
    began = time.process_time()
    try:
        function()
        said = None
    except UserError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 1000, said
    assert time.process_time() - began < SECONDS
    return said


def with_field(key: str, value) -> dict:
    section, _, name = key.partition(".")
    return BASE | {section: BASE.get(section, {}) | {name: value}}


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(strategies.sampled_from(NUMERIC), NUMBERS)
def test_any_number_in_any_field_is_taken_or_refused_in_one_line(key, value):
    said = one_line(lambda: from_dict(with_field(key, value)))
    if isinstance(value, float) and not math.isfinite(value):
        assert "must be finite" in said or "expected" in said


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    strategies.lists(strategies.tuples(strategies.sampled_from(NUMERIC), NUMBERS), min_size=2, max_size=6)
)
def test_any_numbers_together_are_taken_or_refused_in_one_line(pairs):
    values = {section: dict(fields) for section, fields in BASE.items()}
    for key, value in pairs:
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    one_line(lambda: from_dict(values))


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    strategies.sampled_from(sorted(KINDS)), strategies.one_of(NUMBERS.map(lambda v: _shown(v)), strategies.text())
)
def test_any_text_on_the_command_line_is_taken_or_refused_in_one_line(tmp_path_factory, key, text):
    file = _config_file(tmp_path_factory)
    one_line(lambda: load_config(file, [f"{key}={text}"]))


@pytest.mark.parametrize("text", ["9" * 5000, "x" * 5000, "a\nb"])
def test_any_field_refuses_a_long_text_in_a_line_that_can_be_read(tmp_path_factory, text):
    file = _config_file(tmp_path_factory)
    for key in KINDS:
        one_line(lambda key=key: load_config(file, [f"{key}={text}"]))


def _shown(value) -> str:
    return repr(value) if not isinstance(value, int) or abs(value) < 10**4000 else "9" * 5000


def _config_file(factory) -> str:
    folder = factory.getbasetemp() / "bounds"
    folder.mkdir(exist_ok=True)
    file = folder / "fields.py"
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({BASE!r})\n")
    return str(file)


@pytest.mark.parametrize(
    "key", [key for key in NUMERIC if "float" in str(KINDS[key]) and "dict" not in str(KINDS[key])]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_real_number_has_to_be_finite(key, value, tmp_path_factory):
    assert one_line(lambda: from_dict(with_field(key, value))) == f"{key}={value} must be finite."
    for text in {str(value), str(value).upper()}:
        said = one_line(lambda text=text: load_config(_config_file(tmp_path_factory), [f"{key}={text}"]))
        assert said == f"{key}={text} must be finite."
    section, _, name = key.partition(".")
    with pytest.raises(UserError, match="must be finite"):
        from_dict(BASE).replace(**{section: {name: value}})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.seed=9223372036854775808", "use at most 4294967295 .jax.random.key takes 32 bits"),
        ("train.batch_size=1000000000000", "use at most 2147483647 .counts are int32"),
        ("train.batch_size=100000000", "the tokens of a call,=.* is too large; use at most 2147483647 .8 GB"),
        ("mesh.cpu_devices=1000000", "use at most 1024 .each is a device or process of this one host"),
        ("train.steps=2147483648", "use at most 2147483647"),
        ("train.tokens=1e13", "train.steps and train.tokens are both set"),
        ("optim.eps=1e-50", "is 0 in float32; use 0, or at least 1.1754944e-38"),
        ("optim.peak_lr=1e39", "too large; use at most 3.4028234e.38 .float32 holds no more"),
        ("optim.peak_lr=", "optim.peak_lr= is empty; expected float"),
        (
            "train.steps=" + "9" * 5000,
            r"train.steps=9+ ... \(4,920 more characters\) has too many digits; expected int or None",
        ),
        ("train.batch_size=None", "train.batch_size=None is None; expected int"),
    ],
)
def test_a_number_that_no_machine_holds_is_refused_with_what_bounds_it(override, said, tmp_path_factory):
    assert re.search(said, one_line(lambda: load_config(_config_file(tmp_path_factory), [override])))


def test_a_run_in_tokens_of_too_many_steps_is_refused():
    values = {"train": {"tokens": 2**50, "batch_size": 1}, "model": {"vocab_size": 64, "context_length": 1}}
    assert "which int32 does not count" in one_line(lambda: from_dict(values))


def test_a_ramp_of_too_many_sizes_is_refused():
    ramp = dict(batch_ramp_start=1, batch_ramp_increment=1, batch_ramp_tokens=2**40, batch_size=2**20)
    assert "each of which is compiled" in one_line(lambda: from_dict(BASE | {"train": BASE["train"] | ramp}))


def test_every_bound_is_of_a_field_or_flag_and_says_why():
    assert bounds.FIELDS.keys() <= set(NUMERIC)
    assert bounds.FLAGS.keys() <= _flags(int).keys() | _flags(float).keys() | {"max_tokens"}
    for limit, why in [*bounds.FIELDS.values(), *bounds.FLAGS.values()]:
        assert limit > 1 and len(why) > 10


def _flags(kind) -> dict[str, list[str]]:
    """{name: the words of a command} of every flag of a type."""
    found, waiting = {}, [(cli.parser(), [])]
    while waiting:
        parser, words = waiting.pop()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [(sub, [*words, name]) for name, sub in action.choices.items()]
            elif action.type is kind:
                found[action.dest] = words
    return found


@pytest.mark.parametrize(
    ("kind", "values"), [(int, [2**31, 10**40, 10**400]), (float, ["nan", "inf", "-inf", "1e999"])]
)
def test_every_flag_that_takes_a_number_has_a_bound_and_is_finite(kind, values, capsys, monkeypatch):
    for name, words in _flags(kind).items():
        for value in values:
            if isinstance(value, int) and value <= bounds.FLAGS.get(name, bounds.COUNTED)[0]:
                continue
            said = one_line(lambda name=name, value=value: bounds.check_flags({name: kind(value)}))
            assert said and ("too large" in said or "must be finite" in said), (words, name, value)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sample", "--workdir=X", "--temperature=nan"], "--temperature=nan must be finite."),
        (["sample", "--workdir=X", "--max_tokens=1000000000"], "--max_tokens=1000000000 is too large; use at most 16777216"),
        (["bench", "--config=configs/quickstart.py", "--seconds=inf"], "--seconds=inf must be finite."),
        (["prepare", "--source=corpus", "--tokenizer=bytes", "--out=X", "--workers=100000"], "--workers=100000 is too large"),
        (["prepare", "--source=corpus", "--tokenizer=bytes", "--out=X", "--val_fraction=nan"], "--val_fraction=nan must"),
        (["sample", "--workdir="], "--workdir= is empty; give a value, or leave the flag out."),
        (["verify", "--workdir=X", f"--step={'9' * 5000}"], "is not a step; give a number, or all."),
        (["verify", "--workdir=X", "--step=²"], "--step=² is not a step; give a number, or all."),
        (["train", "--config=configs/quickstart.py", "--workdir=X", "--branch_from=Y", "--branch_step=²"], "is no step of"),
        (["eval", "--workdir=tests/golden/checkpoints/schema2", "--step=²"], "--step=²: expected a number, all or best."),
    ],
)  # fmt: skip
def test_a_flag_that_cannot_be_is_one_line(command, said, capsys):
    assert cli.main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line and len(line) < 6000


def test_settings_of_a_text_are_checked_in_python_too():
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "length_penalty"):
        with pytest.raises(UserError, match=f"--{name}=nan must be finite"):
            Settings(**{name: math.nan})
    with pytest.raises(UserError, match="--num_beams=1000000 is too large"):
        Settings(num_beams=10**6)
    with pytest.raises(UserError, match="--seed=4294967296 is too large"):
        Settings(seed=(1, 2**32))
