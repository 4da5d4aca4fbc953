"""Documents that are conversations, in tokens with weights: for the cache, for `gptjax prepare` and for evaluation."""

import hashlib
import typing

from gptjax.config.fields import DataConfig
from gptjax.data.sources.records import Document
from gptjax.data.tokenizers.base import Tokenizer
from gptjax.errors import UserError

if typing.TYPE_CHECKING:  # those who read text need none of it
    from gptjax.data.chat import Format, Rendered


class Renderer:
    """The data.chat of a DataConfig, with the tokenizer that has its control tokens.

    Raises UserError: there is no such format.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self._format = _format(config)
        self.tokenizer = tokenizer.with_special(self._format.symbols)

    def __call__(self, document: Document) -> "Rendered":
        """Raises UserError that begins with document.where: the format cannot write it, or it has no target."""
        rendered = self._format.render(document.conversation, self.tokenizer)
        if not rendered.weight_L[1:].any():
            raise UserError(f"{document.where} has no target, so that nothing is learnt of it; leave it out.")
        return rendered

    def text_bytes(self, rendered: "Rendered") -> int:
        """UTF-8 bytes that its tokens spell; control tokens spell none."""
        return int(self.tokenizer.token_bytes[rendered.token_L].sum())


def identity(config: DataConfig) -> dict:
    """{"chat": {...}}: JSON values that change when the format writes otherwise; {} of text."""
    if config.chat is None:
        return {}
    written = _format(config)
    template = hashlib.sha256(written.template.encode()).hexdigest()
    return {"chat": {"format": config.chat, "symbols": list(written.symbols), "template_sha256": template}}


def _format(config: DataConfig) -> "Format":
    from gptjax.data.chat import chat_format

    return chat_format(config.chat)


def check_same(config: DataConfig, made: dict | None, folder: str) -> None:
    """Raises UserError: data.chat is not what a folder's tokens were made as. made: of its manifest; None: text."""
    wanted = identity(config).get("chat")
    if made == wanted or (made and wanted and made["template_sha256"] == wanted["template_sha256"]):
        return
    is_made_of = "text" if made is None else f"conversations in the format {made['format']!r}"
    mend = "set data.chat=None, or prepare conversations" if made is None else f"set data.chat={made['format']!r}"
    raise UserError(f"{folder} holds {is_made_of}, but data.chat={config.chat!r}; {mend}.")
