"""The chat format that a config or a run names: a name of text_kinds.FORMATS, or template:FILE."""

from gptjax.config.text_kinds import FORMATS
from gptjax.data.chat.base import Format
from gptjax.errors import choose, imported


def chat_format(name: str, key: str = "data.chat") -> Format:
    """Raises UserError: no such format or template. key: the config field or flag that holds the name."""
    return imported(choose(FORMATS, name, key), f"{key}={name!r}")
