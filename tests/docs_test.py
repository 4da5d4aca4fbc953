"""The site of docs/: what is generated says everything that the code has, every page is in the navigation, links lead
somewhere, what is quoted from the screen is what the code prints. `mkdocs build --strict`, which .ci/run calls, checks the
rest."""

import ast
import dataclasses
import errno
import functools
import os
import pathlib
import re
import shlex
import sys

import pytest
import yaml
from places import ROOT

from gptjax import cli, errors
from gptjax.config.fields import Config

sys.path.insert(0, str(ROOT / "docs"))
import generate_reference  # noqa: E402  isort: skip

DOCS = ROOT / "docs"
WRITTEN = {str(file.relative_to(DOCS)): file.read_text() for file in DOCS.rglob("*.md")}
GENERATED = generate_reference.pages()
FIELDS = [(section.name, field) for section in dataclasses.fields(Config) for field in dataclasses.fields(section.type)]


def _navigation() -> list[str]:
    def paths(node):
        if isinstance(node, str):
            return [node]
        values = node.values() if isinstance(node, dict) else node
        return [path for value in values for path in paths(value)]

    return paths(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def _section(page: str, heading: str) -> str:
    """What stands below "## heading", to the next heading of its level."""
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_is_in_the_reference_with_its_help(command):
    section = _section(GENERATED["reference/commands.md"], f"gptjax {command}")
    assert f"usage: gptjax {command} [-h]" in section and cli.COMMANDS[command][1].split()[0] in section


def test_actions_below_a_command_are_in_the_reference_with_their_flags():
    fit = _section(GENERATED["reference/commands.md"], "gptjax study").partition("### gptjax study fit")[2]
    assert "--bootstrap N" in fit and "### gptjax study run" not in fit


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda value: getattr(value, "name", value))
def test_a_config_field_is_in_the_reference_with_default_and_meaning(section, field):
    meaning = re.sub(r"[|{}]", r"\\\g<0>", field.metadata["meaning"])
    rows = [
        line
        for line in _section(GENERATED["reference/fields.md"], section).splitlines()
        if f"| `{field.name}` |" in line
    ]
    assert len(rows) == 1 and f"| {meaning} | `{field.default!r}` |" in rows[0]


def test_every_kind_says_what_it_is():
    rows = [line for line in GENERATED["reference/kinds.md"].splitlines() if line.startswith("| `")]
    assert "| `muon` |" in GENERATED["reference/kinds.md"]
    assert not [row for row in rows if len(row.split("|")[2].strip()) < 4]


def test_every_exit_code_is_explained():
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    assert codes < set(generate_reference.EXIT_CODES) and all(
        f"| `{code}` |" in GENERATED["reference/exit_codes.md"] for code in codes
    )


def test_every_room_is_in_the_map_of_the_code():
    rooms = {file.parent.name for file in (ROOT / "gptjax").glob("*/__init__.py")}
    assert "training" in rooms and not [
        room for room in rooms if f"\n## {room}/\n" not in GENERATED["reference/code.md"]
    ]


def test_every_page_is_in_the_navigation_once():
    assert sorted(_navigation()) == sorted({**WRITTEN, **GENERATED})


def _commands(page: str) -> list[str]:
    """Command lines of gptjax in the shell blocks of a page; those with "..." are no whole ones."""
    shells = re.findall(r"^```sh\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(shells).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"(\w+=\S+ )*gptjax ", line) and "..." not in line]


def _unknown_words(command: str) -> list[str]:
    """Words of a command line that gptjax would refuse: flags there are not, and fields that no config has."""
    words = shlex.split(command.partition("gptjax ")[2], comments=True)
    try:
        _, rest = cli.parser({words[0]}).parse_known_args(words)
    except (SystemExit, errors.UserError):
        return words
    keys = {f"--config.{section}.{field.name}" for section, field in FIELDS}
    return [word for word in rest if word.partition("=")[0] not in keys and not word.startswith("$")]


WRONG_ON_PURPOSE = {"--config.optim.peak_rl=3e-4"}  # its error message is shown
PAGES_WITH_COMMANDS = [path for path in sorted(WRITTEN) if _commands(WRITTEN[path])]


@pytest.mark.parametrize("path", PAGES_WITH_COMMANDS)
def test_commands_on_a_page_have_flags_and_fields_that_there_are(path):
    assert not [command for command in _commands(WRITTEN[path]) if {*_unknown_words(command)} - WRONG_ON_PURPOSE]


def test_a_command_that_gptjax_would_refuse_is_found():
    assert _unknown_words("gptjax train --config=FILE --workdir=DIR --config.optim.peak_lr=1 $S") == []
    assert _unknown_words("JAX_PLATFORMS=cpu gptjax info --config=FILE --config.optim.peak_rl=1  # no field")
    assert _unknown_words("gptjax train --config=FILE --outdir=DIR")


def _broken_links(path: str, text: str, pages) -> list[str]:
    """Relative links of a page that lead to no page, nor to a file of the repository."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    relative = [target for target in targets if target and not re.match(r"[a-z]+:", target)]
    folder = (DOCS / path).parent
    return [
        target
        for target in relative
        if not (folder / target).exists()
        and pathlib.Path(folder / target).resolve().relative_to(DOCS).as_posix() not in pages
    ]


@pytest.mark.parametrize("path", sorted(WRITTEN))
def test_relative_links_of_a_page_lead_somewhere(path):
    assert not _broken_links(path, WRITTEN[path], GENERATED)


def test_a_broken_link_is_found():
    text = "[a](data.md#rows) [b](reference/fields.md) [c](nowhere.md) [d](https://jax.dev)\n```\n[e](code)\n```\n"
    assert _broken_links("index.md", text, GENERATED) == ["nowhere.md"]


LEFT_OPEN = re.compile(r"\n|{[^{}]*}")  # where a string ends a line, or has a place for str.format


@functools.cache
def _words_of_the_code() -> list[str]:
    """What its strings and the constant parts of its f-strings say, line by line, the longest first. Single short words are
    left out: they are in every sentence."""
    trees = [ast.parse(file.read_text()) for room in ("gptjax", "launch") for file in (ROOT / room).rglob("*.py")]
    strings = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    lines = {line.strip(" .") for string in strings if isinstance(string, str) for line in LEFT_OPEN.split(string)}
    return sorted((line for line in lines if " " in line or len(line) > 6), key=len, reverse=True)


def _words_of_nobody(quoted: str) -> list[str]:
    """Stretches of three words or more that are in no string of the code. "..." stands for words that are left out."""
    rest = quoted.removeprefix("gptjax: ").replace("...", "|").replace(os.strerror(errno.ENOSPC), "|")
    for words in _words_of_the_code():
        rest = rest.replace(words, "|")
    return re.findall(r"(?<!\w)[A-Za-z][a-z']+(?:[,;]? [a-z][a-z']+){2,}", rest)


OF_OTHERS = re.compile(r"gptjax (ask|sample|data)|launch/")  # they print words of a model, of a text, of other programs
TABLES_OF_ERRORS = ("What goes wrong, in one line", "What to do when a fit is refused")


def _quoted_from_the_screen(page: str) -> list[str]:
    """Lines of text blocks below commands of gptjax, all errors, and what tables of errors quote."""
    lines, command = re.findall("^gptjax: .*", page, flags=re.MULTILINE), ""
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE):
        if language != "text":
            command = block if language == "sh" and not OF_OTHERS.search(block) else ""
        elif "gptjax " in command:
            lines += block.splitlines()
    rows = [row for heading in TABLES_OF_ERRORS for row in _section(page, heading).splitlines() if row.startswith("|")]
    return list(dict.fromkeys(lines + [quoted for row in rows for quoted in row.split("`")[1::2]]))


QUOTED = {path: _quoted_from_the_screen(page) for path, page in WRITTEN.items()}
QUOTED["../launch/README.md"] = _quoted_from_the_screen((ROOT / "launch/README.md").read_text())


@pytest.mark.parametrize("path", [path for path in QUOTED if QUOTED[path]])
def test_words_that_a_page_quotes_from_the_screen_are_words_of_the_code(path):
    unknown = {line: _words_of_nobody(line) for line in QUOTED[path]}
    assert not {line: words for line, words in unknown.items() if words}


def test_a_quoted_line_that_the_code_no_longer_prints_is_found():
    page = "```sh\ngptjax verify --workdir=DIR\n```\n\n```text\nthe newest checkpoint that counts is of step 4\n```\n"
    page += "```text\ngptjax: no checkpoint yet, alas and alack\n```\n"
    assert [_words_of_nobody(line) != [] for line in _quoted_from_the_screen(page)] == [True, True]
    assert not _words_of_nobody(
        "these are not as they were written: 600; the newest valid checkpoint is that of step 400"
    )
