"""Every field of a config: that it says what it is, that something reads it, and what a change of it does."""

import ast
import dataclasses
import functools
import pathlib
import types

import pytest

import gptjax
from gptjax.config import changes
from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig

SECTIONS = {section.name: section.type for section in dataclasses.fields(Config)}
FIELDS = {f"{name}.{field.name}": field for name, kind in SECTIONS.items() for field in dataclasses.fields(kind)}
JUDGES = {"checks.py", "bounds.py", "changes.py", "rl_checks.py"}  # look at values, and do nothing with them
# What a section is called where a function is given it alone, beside its own name.
CALLED = {name: {name, "config"} for name in ("model", "data", "optim", "eval")}
CALLED |= {"mesh": {"mesh", "mesh_config"}, "train": {"train"}, "checkpoint": {"checkpoint", "keep"}}
CALLED["data"] |= {"settings"}
CALLED["rl"] = {"rl"}
AXES = {*MeshConfig.AXES, *(f"dcn_{axis}" for axis in MeshConfig.DCN_AXES)}  # read one after the other


@functools.cache
def reads() -> set[tuple[str, str]]:
    """(section, field) of all that gptjax reads: config.train.steps, train.steps and self._train.steps are ("train",
    "steps"); getattr(mesh_config, axis) is ("mesh_config", "*")."""
    found = set()
    files = [file for file in pathlib.Path(gptjax.__file__).parent.rglob("*.py") if file.name not in JUDGES]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add((last_name(node.value), node.attr))
        elif isinstance(node, ast.Call) and last_name(node.func) == "getattr":
            found.add((last_name(node.args[0]), "*"))
    return found


def last_name(node) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr.lstrip("_")
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("key", FIELDS)
def test_a_field_has_a_type_a_default_and_one_line_that_says_what_it_is(key):
    field, meaning = FIELDS[key], FIELDS[key].metadata["meaning"]
    assert isinstance(field.type, type | types.UnionType | types.GenericAlias)
    assert field.default is not dataclasses.MISSING
    assert len(meaning) >= 10 and "\n" not in meaning and not meaning.endswith(".")
    assert field.metadata["changes"] in changes.WORDS


@pytest.mark.parametrize("key", FIELDS)
def test_something_reads_a_field(key):
    section, _, name = key.partition(".")
    names = {name, "*"} if section == "mesh" and name in AXES else {name}
    assert any((called, each) in reads() for called in CALLED[section] for each in names)


def test_a_field_that_nothing_reads_is_found():
    assert not any((called, "rope_thetas") in reads() for called in CALLED["model"])


def test_a_config_is_shown_as_what_differs_from_the_defaults_and_can_be_typed_back():
    config = Config(model=ModelConfig(n_layers=2), train=TrainConfig(steps=10))
    assert repr(config) == "Config(model=ModelConfig(n_layers=2), train=TrainConfig(steps=10))"
    names = {kind.__name__: kind for kind in (Config, ModelConfig, TrainConfig)}
    assert eval(repr(config), names) == config
