"""A conversation on the terminal, of `gptjax sample --chat`."""

import contextlib
import signal
import sys

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
        history = _fitting(run, form, system, (*history, Message("user", line)))
        if not history:
            continue
        with _interrupts() as interrupted:
            callback = lambda _, piece: _print(piece) if not interrupted else False  # noqa: B023, E731
            [answer] = run.answers([(*_system(system), *history)], form, callback, **settings)
        print()
        history = (*history, said(answer))


def said(answer) -> Message:
    """An answer (generation.text.Completion) as a message. Up to a stop string it is its text alone, as the last token may
    reach into what was stopped at."""
    tokens = None if answer.finish_reason == "stop" else tuple(answer.tokens.tolist())
    return Message("assistant", answer.text, tokens=tokens)


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


def _fitting(run, form, system: str | None, history: tuple[Message, ...]) -> tuple[Message, ...]:
    """history without its oldest messages, as far as the context asks for it; empty if the last alone is too long."""
    context, before = run.config.model.context_length, len(history)
    while history and len(form.prompt((*_system(system), *history), run.tokenizer)) >= context:
        history = history[2:]
    if not history:
        print(f"too long for the context of {context} tokens: the conversation begins anew", file=sys.stderr)
    elif len(history) < before:
        print(f"the first {before - len(history)} messages are forgotten: the context is full", file=sys.stderr)
    return history


def _system(system: str | None) -> tuple[Message, ...]:
    return () if system is None else (Message("system", system),)


def _print(piece: str) -> bool:
    print(piece, end="", flush=True)
    return True


@contextlib.contextmanager
def _interrupts():
    """A list that Ctrl-C puts something in, instead of raising KeyboardInterrupt."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
