"""Messages as they are typed on a terminal, by `prompt_toolkit`: history, several lines, commands completed by Tab.

Enter sends. Alt-Enter begins a new line, and so does Enter behind a backslash; text that is pasted keeps its lines.
"""

import os
import pathlib
import sys

from gptjax.commands.chat_session import COMMANDS, Session
from gptjax.config.extras import library

SHOWN = "you> "


def typed_messages(session: Session):
    """Until Ctrl-D. Ctrl-C empties the line. What is typed is kept for the arrow keys of the next time, where the home folder
    can be written."""
    library("prompt_toolkit", "gptjax chat on a terminal", otherwise=", or pipe the messages in")
    prompt = _prompt()
    print("/help lists commands; Ctrl-C ends an answer, Ctrl-D the conversation", file=sys.stderr)
    while True:
        try:
            yield prompt.prompt(SHOWN, pre_run=session.model.begin)
        except KeyboardInterrupt:
            continue
        except EOFError:
            break
    if session.model.is_loading:  # in a thread of native code, which Python's way out would break in the middle
        sys.stdout.flush()
        os._exit(0)


def _prompt():
    import prompt_toolkit
    from prompt_toolkit import completion, history

    words = completion.WordCompleter([f"/{name}" for name in COMMANDS], sentence=True)
    return prompt_toolkit.PromptSession(
        history=_history(history),
        multiline=True,
        prompt_continuation="...> ",
        key_bindings=_keys(),
        completer=words,
        complete_while_typing=False,
    )


def _history(history):
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    file = pathlib.Path(state).expanduser() / "gptjax" / "chat_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))  # what people type is theirs alone
    except OSError as error:
        print(f"what is typed is not kept: {error}", file=sys.stderr)
        return history.InMemoryHistory()
    return history.FileHistory(file)


def _keys():
    from prompt_toolkit import key_binding

    keys = key_binding.KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # Enter that was typed while an answer came
    def _(event) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    return keys
