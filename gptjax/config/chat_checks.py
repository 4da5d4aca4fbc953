"""What a DataConfig of conversations (data.chat) may be: whole documents, apart, with fields, their next token predicted."""

from gptjax.config import text_kinds
from gptjax.errors import UserError, choose, shorten

OVERFLOWS = ("drop", "cut", "refuse")
_NEEDED = {  # field: (value, why)
    "packing": ("best_fit", "keeps each conversation whole, and apart from the others in its row"),
    "val_split": ("document", "holds out whole conversations"),
    "objective": ("next_token", "is what answers are learnt by"),
}


def check(d) -> None:
    """Raises UserError for a field that conversations cannot have, or that has no meaning without them."""
    choose(text_kinds.CHAT_LOSSES, d.chat_loss, "data.chat_loss")
    choose(dict.fromkeys(OVERFLOWS), d.chat_overflow, "data.chat_overflow")
    if d.chat is None:
        _check_unused(d)
        return
    for field, (value, why) in (_NEEDED if d.preferences is None else {}).items():
        if getattr(d, field) != value:
            raise UserError(
                f"data.{field}={shorten(repr(getattr(d, field)), 80)} is not for conversations (data.chat); use {value!r}, which {why}."
            )
    kind = text_kinds.SOURCES.get(d.source)
    if kind is not None and not kind.records and not (d.source == "corpus" and (d.path or d.mixture)):
        raise UserError(
            f"data.chat={shorten(repr(d.chat), 80)} needs conversations, but data.source={d.source!r} is text; use {with_records()}."
        )


def _check_unused(d) -> None:
    for field in ("chat_loss", "chat_overflow"):
        default = type(d).__dataclass_fields__[field].default
        if getattr(d, field) != default:
            raise UserError(
                f"data.{field}={getattr(d, field)!r} is of conversations, but data.chat is None; set data.chat, or leave it out."
            )


def with_records() -> str:
    """The sources that conversations may come from."""
    names = [name for name, kind in text_kinds.SOURCES.items() if kind.records]
    return f"{', '.join(names[:-1])} or {names[-1]}"
