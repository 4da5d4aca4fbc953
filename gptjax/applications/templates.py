"""Texts with {placeholders}.

A placeholder is a name in braces; every other brace is text, so that JSON can stand in a template as it is. {{name}} is the
text {name}. Values are put in as they are: what a user types is never read as a template.
"""

import re

from gptjax.errors import UserError, did_you_mean

_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")


def placeholders(template: str) -> set[str]:
    return {match[2] for match in _PLACEHOLDER.finditer(template) if match[2]}


def filled(template: str, values: dict[str, str], where: str) -> str:
    """The template with its values. Raises UserError that begins with where: a placeholder has none."""

    def value(match) -> str:
        if match[1]:
            return f"{{{match[1]}}}"
        if match[2] not in values:
            near = did_you_mean(match[2], values)
            raise UserError(f"{where} needs a value for {{{match[2]}}}{near}; give --var={match[2]}=TEXT.")
        return values[match[2]]

    return _PLACEHOLDER.sub(value, template)
