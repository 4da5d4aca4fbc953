"""The house: rooms in a strict order, a top that a reader takes in at a glance, functions of one screen, a small core.

Imports are read from the files, at any depth of a function. A closure is all that a module reaches through imports; that
of `training.main` is what is loaded with it ("eager"), that of `training.loop` also what its functions import later.
"""

import ast
import functools
import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from places import ROOT

# Each room may import those before it. What stands at the top of the package is a room of its own.
ORDER = """
errors terminal pages storage schedule config hosts parallel flops models hardware start generation data evaluation
checkpoints rundir run optim training posttrain planning huggingface gguf supervisor plot study watch applications diagnostics
tasks serve road commands cli
__main__
""".split()
OUTSIDE = ("tiny_run",)  # a program for the notebooks, which nothing imports
DOORS = ("gptjax",)  # its __init__: names that it imports when they are asked for, and nothing before
TABLES = (
    "config.catalogue",
    "config.text_kinds",
    "training.hooks",
    "training.session",
    "training.losses",
)  # name what stands above them, imported when chosen


def _modules() -> dict[str, pathlib.Path]:
    """Name -> file, of every module and package."""
    files = sorted((ROOT / "gptjax").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return dict(zip(names, files))


MODULES = _modules()
TREES = {name: ast.parse(file.read_text()) for name, file in MODULES.items()}


@functools.cache
def imports(module: str, eager: bool = False) -> frozenset[str]:
    """The modules of gptjax that a module imports; eager: with itself, not later from one of its functions."""
    named = set()
    for node in _run_at_import(TREES[module]) if eager else ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.module:
            full_names = {alias: f"{node.module}.{alias.name}" for alias in node.names}
            named |= {name if name in MODULES else node.module for name in full_names.values()}
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    return frozenset(named & MODULES.keys()) - {module}


def _run_at_import(tree: ast.AST):
    """All nodes but those of functions: also under an `if`, a `try` and in a class."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from _run_at_import(node)


def addresses(module: str) -> set[str]:
    """The modules of gptjax that a module names in strings of their own, such as "gptjax.training.losses:next_token"."""
    texts = {node.value for node in ast.walk(TREES[module]) if isinstance(node, ast.Constant)}
    return {name for text in texts if isinstance(text, str) and (name := text.partition(":")[0]) in MODULES} - {module}


def closure(module: str, eager: bool = False) -> set[str]:
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += imports(name, eager) - {*DOORS}
    return reached


def lines(modules) -> int:
    return sum(len(MODULES[name].read_text().splitlines()) for name in modules)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_rooms_import_downwards_only():
    place = {name: i for i, name in enumerate(ORDER)}
    checked = [name for name in MODULES if room(name) not in (*OUTSIDE, *DOORS)]
    assert {room(name) for name in checked} == set(ORDER), "a room has no place in ORDER, or ORDER a room that is gone"
    upwards = [
        f"{name} -> {other}"
        for name in checked
        for other in imports(name)
        if room(other) not in DOORS and place[room(other)] > place[room(name)]
    ]
    assert not upwards


def test_only_tables_of_what_can_be_chosen_name_a_room_above_them():
    place = {name: i for i, name in enumerate(ORDER)}
    checked = [name for name in MODULES if room(name) not in (*OUTSIDE, *DOORS)]
    upwards = {
        name.removeprefix("gptjax.")
        for name in checked
        for other in addresses(name)
        if room(other) not in DOORS and place[room(other)] > place[room(name)]
    }
    assert upwards == {*TABLES}


def test_imports_are_absolute():
    """Those of the tests above see no others."""
    relative = [name for name, tree in TREES.items() for node in ast.walk(tree) if getattr(node, "level", 0)]
    assert not relative


def test_no_files_import_each_other_in_a_circle():
    behind = {name: closure(name) for name in MODULES if name not in DOORS}
    circles = {f"{name} and {other}" for name in behind for other in imports(name) - {*DOORS} if name in behind[other]}
    assert not circles


def test_few_files_stand_at_the_top():
    assert len(list((ROOT / "gptjax").glob("*.py"))) <= 12


def test_a_function_fits_on_a_screen():
    long = [
        f"{name}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60
    ]
    assert not long


README = (ROOT / "README.md").read_text()
PACKAGES = [name for name, file in MODULES.items() if file.name == "__init__.py"]


def test_a_package_is_its_map_and_loads_no_jax():
    code = f"import sys; {'; '.join(f'import {name}' for name in PACKAGES)}; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "False\n"
    undescribed = [name for name in PACKAGES if not ast.get_docstring(TREES[name])]
    assert not undescribed


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "gptjax"])
def test_a_room_s_docstring_names_its_files(package):
    """And its inner rooms, each as a word of its own."""
    words = set(re.findall(r"\w+", ast.get_docstring(TREES[package])))
    inside = {name.rpartition(".")[2] for name in MODULES if name.rpartition(".")[0] == package}
    assert not sorted(inside - words)


def test_the_loop_is_read_in_an_afternoon():
    reached = closure("gptjax.training.loop")
    assert len(reached) <= 10 and lines(reached) <= 1500, f"{len(reached)} modules, {lines(reached)} lines"


def test_the_way_of_a_batch_is_as_short_as_the_readme_says():
    way = {
        f"gptjax.{name}"
        for name in ("training.feed", "training.loop", "training.step", "training.losses", "models.gpt")
    }
    assert "fewer than 1,100 lines" in " ".join(README.split()) and lines(way) < 1100
    assert all(f"`{name.removeprefix('gptjax.').replace('.', '/')}.py`" in README for name in way)


def test_the_readme_is_read_in_ten_minutes():
    assert len(README.splitlines()) <= 120


def test_training_loads_half_of_the_package_at_most():
    reached = closure("gptjax.training.main", eager=True)
    assert len(reached) <= 64 and lines(reached) <= 10700, f"{len(reached)} modules, {lines(reached)} lines"


def _addresses() -> set[str]:
    """What README, docs, notebooks and golden files name, and what launchers start."""
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests" / "golden").rglob("*.py")]
    texts += (ROOT / "notebooks").glob("*.ipynb")
    named = {name for file in texts for name in re.findall(r"(?<![\w./:-])gptjax(?:\.[a-z_]\w*)+", file.read_text())}
    scripts = [file.read_text() for file in (ROOT / "launch").iterdir() if file.is_file()]
    return named | {name for text in scripts for name in re.findall(r"-m (gptjax(?:\.\w+)*)", text)}


@pytest.mark.parametrize(
    "address", sorted({*_addresses(), "gptjax.plot", "gptjax.supervisor", "gptjax.study.batched", "gptjax.tiny_run"})
)
def test_an_address_that_people_type_is_there(address):
    """As a module, or as a name of one."""
    parts = address.split(".")
    for n in range(len(parts), 0, -1):
        if (name := ".".join(parts[:n])) in MODULES:
            thing = importlib.import_module(name)
            for attribute in parts[n:]:
                thing = getattr(thing, attribute)
            return
    raise AssertionError(f"{address} is none of gptjax's modules")


def test_a_file_that_the_documents_name_is_there():
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        path
        for file in texts
        for path in re.findall(r"`((?:gptjax|tests|configs|launch|docs)/[\w/.]+)`", file.read_text())
    }
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]
