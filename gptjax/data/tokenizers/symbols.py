"""The standard names of special symbols, in sets that are asked for by name. End-of-text is in every tokenizer."""

import re

from gptjax.errors import UserError, did_you_mean

SYMBOLS = {
    "task": ("<|start|>", "<|delimiter|>", "<|classify|>"),  # of labelled examples: Radford et al. 2018, section 3.3
    "fim": ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),  # Bavarian et al. 2022
    "chat": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>"),  # whose turn, and its end
}
NAME = re.compile(r"<\|[^|<>\s]+\|>")


def parse_symbols(text: str) -> tuple[str, ...]:
    """The names in "chat,fim,<|mine|>", each once. Raises UserError: neither a set nor a name of the form <|NAME|>."""
    names = []
    for word in filter(None, text.split(",")):
        if word not in SYMBOLS and not NAME.fullmatch(word):
            raise UserError(
                f"{word!r} is no set of special symbols{did_you_mean(word, SYMBOLS)}; expected {', '.join(SYMBOLS)},"
                f" or one of your own written as <|NAME|>."
            )
        names += SYMBOLS.get(word, (word,))
    return tuple(dict.fromkeys(names))
