"""A conversation with a run, and what is shared by `gptjax sample --chat`, which is one, and `gptjax chat`."""

import contextlib
import signal
import sys

from gptjax import terminal
from gptjax.data.chat import Message

_SHOWN = "you> "


def question(text: str, system: str | None) -> tuple[Message, ...]:
    """A user's message, after a system message if there is one."""
    return (*_system(system), Message("user", text))


def converse(run, form, system: str | None, settings: dict) -> None:
    """Reads a message a line and streams the answer to all so far, until Ctrl-D. Ctrl-C ends an answer, and no more.

    The model sees its own answers in the tokens that it drew: their text might be encoded in others.

    Messages that the context has no more room for are forgotten from the oldest on, which is said on stderr.
    """
    form.stop_ids(run.tokenizer)  # a tokenizer without the format's control tokens is said before anything is typed
    print("a message a line; Ctrl-C ends an answer, Ctrl-D the conversation", file=sys.stderr)
    history = ()
    while (line := _read_line()) is not None:
        if not line.strip():
            continue
        history = (*history, Message("user", line))
        history = history[forgotten(run, form, _system(system), history) :]
        if not history:
            continue
        with interrupts() as interrupted:
            callback = lambda _, piece: _print(piece) if not interrupted else False  # noqa: B023, E731
            [answer] = run.answers([(*_system(system), *history)], form, callback, **settings)
        print()
        history = (*history, said(answer))


def said(answer) -> Message:
    """An answer (generation.text.Completion) as a message."""
    return Message("assistant", answer.text, tokens=drawn_tokens(answer))


def drawn_tokens(answer) -> tuple[int, ...] | None:
    """The tokens of an answer; None: up to a stop string its text alone counts, as its last token may reach into that."""
    return None if answer.finish_reason == "stop" else tuple(answer.tokens.tolist())


def _read_line() -> str | None:
    """None: the end of the conversation."""
    while True:
        try:
            return input(_SHOWN)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:  # there is no answer to end
            print()


def forgotten(run, form, system: tuple[Message, ...], history: tuple[Message, ...]) -> int:
    """How many of the oldest messages the context has no room for: whole exchanges, and all if the last alone is too long.
    Says so on stderr."""
    context, left = run.config.model.context_length, history
    while left and len(form.prompt((*system, *left), run.tokenizer)) >= context:
        left = left[1:]
        while left and left[0].role != "user":
            left = left[1:]
    count = len(history) - len(left)
    if not left:
        print(f"too long for the context of {context} tokens: the conversation begins anew", file=sys.stderr)
    elif count:
        print(f"the first {count} messages are forgotten: the context is full", file=sys.stderr)
    return count


def _system(system: str | None) -> tuple[Message, ...]:
    return () if system is None else (Message("system", system),)


def _print(piece: str) -> bool:
    terminal.say(piece)
    return True


@contextlib.contextmanager
def interrupts():
    """A list that Ctrl-C puts something in, instead of raising KeyboardInterrupt."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
