"""Recipes that requests name by `recipe`: what a conversation becomes before it is asked, and the settings of its answer.

A server gives one answer to a request. Recipes whose answer takes more, such as calls of tools, are for `gptjax ask`.
"""

import dataclasses
import re

from gptjax.applications import recipe as recipes
from gptjax.applications.recipe import Recipe
from gptjax.data.chat import parse_messages
from gptjax.errors import UserError, did_you_mean
from gptjax.serve.api import bodies

FORMS = ("labels", "schema")  # that an answer is kept to
OWN_FORMS = ("response_format", "regex", "grammar", "tools")  # a request's


def read(paths) -> dict[str, Recipe]:
    """By the names of their files. Raises UserError: one cannot be read, takes more than an answer, two of a name."""
    found: dict[str, Recipe] = {}
    for path in paths:
        chosen = recipes.read(path)
        recipes.check_is_plain(chosen, "a server's request", FORMS)
        unknown = [name for name in chosen.settings if name not in bodies.ChatBody.model_fields]
        if unknown:
            raise UserError(f"{path}: [settings] has {', '.join(unknown)}, which requests have not; leave it out.")
        if chosen.name in found:
            raise UserError(f"two recipes are named {chosen.name}: {found[chosen.name].path} and {path}; rename one.")
        found[chosen.name] = chosen
    return found


def applied(known: dict[str, Recipe], body: bodies.ChatBody) -> bodies.ChatBody:
    """body with its recipe's conversation, and its settings where the body has none. Raises UserError that begins with the
    field: no such recipe, a value of no placeholder or none for one, a form beside the recipe's."""
    if body.recipe is None:
        if body.recipe_values:
            raise UserError("recipe_values without recipe; name one, or leave them out.")
        return body
    if body.recipe not in known:
        there = f"there are: {', '.join(known)}" if known else "this server has none (--recipe=FILE)"
        raise UserError(f"recipe {body.recipe!r} is not known{did_you_mean(body.recipe, known)}; {there}.")
    chosen = known[body.recipe]
    asked = parse_messages(body.messages, "messages")
    try:  # as errors name it: by the name that clients know
        messages, settings = recipes.apply(dataclasses.replace(chosen, path=body.recipe), asked, body.recipe_values)
    except UserError as error:
        raise UserError(f"recipe_values: {error}") from None
    form = _form(chosen)
    if form and (own := [name for name in OWN_FORMS if getattr(body, name) is not None]):
        raise UserError(f"recipe {body.recipe} gives the answer a form; leave out {own[0]}.")
    if body.max_completion_tokens is not None:
        settings.pop("max_tokens", None)
    settings = {name: value for name, value in settings.items() if getattr(body, name) is None}
    shown = [{"role": message.role, "content": message.content} for message in messages]
    return body.model_copy(update={**settings, **form, "messages": shown})


def _form(chosen: Recipe) -> dict:
    """Of a body, for the labels or the schema of a recipe."""
    if chosen.labels:
        return {"regex": "|".join(map(re.escape, chosen.labels))}
    if chosen.schema is not None:
        schema = {"name": "answer", "schema": chosen.schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {}
