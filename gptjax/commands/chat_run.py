"""A run that answers in `gptjax chat`. It is loaded while the first message is typed."""

import threading
from typing import NamedTuple

from gptjax.data.chat import Message, calls
from gptjax.data.chat.conversation import with_tools


class Answer(NamedTuple):
    message: dict  # in OpenAI's form; "tokens" of it as a run drew them
    is_cut: bool = False  # by Ctrl-C
    forgotten: int = 0  # of the oldest messages that it was given


class LoadedRun:
    """flags: of the command, by name."""

    def __init__(self, workdir: str, flags: dict):
        self._workdir, self._flags = workdir, flags
        self._run = self._form = self._error = None
        self._thread = None

    def begin(self) -> None:
        """Begins to load it, once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._load, daemon=True)
            self._thread.start()

    @property
    def is_loading(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self, interrupted=()) -> bool:
        """Until it is loaded, or something is in `interrupted`: False. Raises what went wrong."""
        self.begin()
        while self._thread.is_alive():
            self._thread.join(0.05)
            if interrupted:
                return False
        if self._error is not None:
            raise self._error
        return True

    def about(self) -> str:
        """Which weights answer, in one line."""
        self.wait()
        run = self._run
        return (
            f"{run.directory.path}, step {run.step}{' (averaged)' if run.item == 'ema' else ''}: a context of"
            f" {run.config.model.context_length} tokens, the chat format {self._form.name}"
        )

    def at(self, name: str) -> "LoadedRun":
        """Another run, with the same flags but for the step."""
        other = LoadedRun(name, self._flags | {"step": None})
        other.wait()
        return other

    @property
    def tokenizer_hash(self) -> str | None:
        """Tokens of answers are those of this tokenizer."""
        self.wait()
        return self._run.tokenizer.hash

    def answer(self, values: list[dict], tools: list[dict], settings: dict, attempt: int, show) -> Answer | None:
        """The answer to messages, which is shown as it comes. None: Ctrl-C came before there was anything to show."""
        from gptjax.commands import chatting
        from gptjax.serve import tool_calls

        with chatting.interrupts() as interrupted:
            if not self.wait(interrupted):
                return None
            use = tool_calls.of_request(tools)
            system, history = _messages(values, tools)
            forgotten = chatting.forgotten(self._run, self._form, system, history)
            if forgotten == len(history):
                return Answer({}, forgotten=forgotten)
            reader, text = None if use is None else use.reader(), []

            def hear(parts) -> None:
                text.extend(part for part in parts if isinstance(part, str))
                show("".join(part for part in parts if isinstance(part, str)))

            def callback(_, piece: str) -> bool:
                hear([piece] if reader is None else reader.feed(piece))
                return not interrupted

            chosen = settings | {"seed": (settings.get("seed", 0) + attempt) % 2**32}
            [made] = self._run.answers([(*system, *history[forgotten:])], self._form, callback, **chosen)
        message = {"role": "assistant", "content": made.text}
        if reader is not None:
            hear(reader.end())
            message["content"] = "".join(text)
            if reader.calls:
                message["tool_calls"] = [call.as_openai() for call in reader.calls]
        if (tokens := chatting.drawn_tokens(made)) is not None:
            message["tokens"] = list(tokens)
        return Answer(message, made.finish_reason == "cancelled", forgotten)

    def _load(self) -> None:
        try:
            from gptjax import start

            start.start_jax()
            from gptjax.config import config_file
            from gptjax.run import run

            flags = self._flags
            mesh = None if flags["mesh"] is None else config_file.parse_mesh(flags["mesh"])
            loaded = run.read(self._workdir, flags["step"], dtype=flags["dtype"], mesh=mesh, ema=flags["ema"])
            self._form = loaded.chat_format(flags["chat_format"])
            self._form.stop_ids(loaded.tokenizer)  # raises where the tokenizer lacks the format's control tokens
            self._run = loaded
        except BaseException as error:
            self._error = error


def _messages(values: list[dict], tools: list[dict]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(the system message, the others), answers with the tokens that were drawn. A model may have said nothing at all."""
    messages = tuple(
        Message(
            value["role"],
            calls.content_with(value["content"] or "", value.get("tool_calls"), "the conversation"),
            tokens=tuple(value["tokens"]) if "tokens" in value else None,
        )
        for value in values
    )
    messages = with_tools(messages, calls.checked_tools(tools, "the conversation"))
    n = int(messages[0].role == "system")
    return messages[:n], messages[n:]
