"""Jinja as Hugging Face's transformers sets it up for chat templates: sandboxed, with loop controls, `{% generation %}`,
raise_exception, strftime_now and a tojson that leaves HTML alone (transformers 5, utils/chat_template_utils.py).

`{% generation %}` puts a mark at its start and one at its end, so that it holds inside of macros and {% set %} too, where
transformers, which counts what was written so far, has other places.
"""

import datetime
import functools
import json
from typing import NamedTuple

from gptjax.config.extras import library
from gptjax.errors import UserError, first_line

_PRIVATE_USE = range(0xE000, 0xF900)
_MARKS = "__marks__"  # the name that a template would have to guess


class Marks(NamedTuple):
    """Characters that stand in no message and no template."""

    opened: str
    closed: str
    parted: str  # see marking.py


def unused_marks(texts: list[str]) -> Marks:
    """Raises UserError: the texts have all characters of the private use area."""
    used = set().union(*texts)
    free = (chr(i) for i in _PRIVATE_USE if chr(i) not in used)
    marks = [mark for mark, _ in zip(free, Marks._fields)]
    if len(marks) < len(Marks._fields):
        raise UserError("the messages use the whole private use area of Unicode, of which a chat template needs three.")
    return Marks(*marks)


def rendered(template: str, marks: Marks, variables: dict) -> tuple[str, list[tuple[int, int]]]:
    """(text, [start, end) of each `{% generation %}` in characters). Raises UserError: what the template raises."""
    check(template, "the chat template")
    try:
        marked = _compiled(template).render(**variables, **{_MARKS: marks})
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # a template's own raise_exception, and whatever its expressions raise
        raise UserError(f"the chat template does not take these messages: {first_line(error)}") from error
    return _without_marks(marked, marks)


def _without_marks(marked: str, marks: Marks) -> tuple[str, list[tuple[int, int]]]:
    parts, spans, starts, length = [], [], [], 0
    for opened in marked.split(marks.opened):
        if parts:
            starts.append(length)
        inside, *others = opened.split(marks.closed)
        parts.append(inside)
        length += len(inside)
        for other in others:
            spans.append((starts.pop(), length))
            parts.append(other)
            length += len(other)
    return "".join(parts), sorted(spans)


def check(template: str, what: str) -> None:
    """Raises UserError: it is no Jinja, or jinja2 is not installed."""
    jinja2 = library("jinja2", "a chat template")
    try:
        _compiled(template)
    except jinja2.TemplateError as error:
        raise UserError(f"{what} is not a Jinja template: {first_line(error)}; correct it.") from error


@functools.lru_cache(maxsize=16)
def _compiled(template: str):
    library("jinja2", "a chat template")
    import jinja2.ext
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment.from_string(template)


def _generation():
    """The extension that knows `{% generation %}`. A class made here, as Jinja is imported when it is used."""
    import jinja2
    from jinja2 import nodes

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            call = self.call_method("marked", [nodes.ContextReference()])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def marked(self, context, caller) -> str:
            marks = context[_MARKS]
            return marks.opened + caller() + marks.closed

    return Generation


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
