"""JSON in an answer, checked against a schema (draft 2020-12, by jsonschema)."""

import json
import re

from gptjax.config.extras import library
from gptjax.errors import UserError, first_line, shorten


def check_schema(schema: dict, where: str) -> None:
    """Raises UserError that begins with where: it is none."""
    jsonschema = library("jsonschema", f"{where}: [schema]")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UserError(f"{where}: [schema] is no JSON Schema: {shorten(error.message, 200)}.") from error


def object_in(text: str) -> dict:
    """The first JSON object of a text, which may have words or a code fence around it. Raises UserError: there is none."""
    problem = "there is no { in it"
    for match in re.finditer(r"\{", text):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, match.start())
            return value
        except (ValueError, RecursionError) as error:
            problem = first_line(error) if match.start() == text.index("{") else problem
    raise UserError(f"the answer holds no JSON object ({problem})")


def checked(text: str, schema: dict) -> dict:
    """The object of an answer. Raises UserError, in words that a model can be told: there is none, or it is another."""
    value = object_in(text)
    errors = sorted(library("jsonschema", "a schema").Draft202012Validator(schema).iter_errors(value), key=str)
    if errors:
        place = "".join(f"[{part!r}]" for part in errors[0].absolute_path)
        raise UserError(f"the object{place} is not as asked: {shorten(errors[0].message, 200)}")
    return value
