"""A conversation in the terminal: its messages, and the commands that begin with a slash.

Messages are kept in OpenAI's form. What /save writes is a record that `gptjax train` learns from.
"""

import json
import pathlib
import sys

from gptjax import terminal
from gptjax.errors import UserError, did_you_mean, first_line, shorten
from gptjax.generation.settings import OPTIONS, Settings
from gptjax.storage import writing

SETTABLE = ("max_tokens", "seed", "stop", *OPTIONS)
ROUNDS = 8  # of calls before an answer has to be one
ROLES = ("user", "assistant", "tool")


def checked_settings(chosen: dict) -> dict:
    """chosen in its types. Raises UserError: a setting is none, or out of range."""
    for name in chosen:
        if name not in SETTABLE:
            near = did_you_mean(name, SETTABLE)
            raise UserError(f"{name!r} is not a setting of a conversation{near}; there are: {', '.join(SETTABLE)}.")
    checked = Settings(**chosen)
    return {name: list(checked.stop) if name == "stop" else getattr(checked, name) for name in chosen}


def piped_messages(lines):
    """Messages of a file or pipe, a line each; a line that ends in a backslash goes on in the next. Raises UserError: it is no
    text."""
    message = ""
    for line in _decoded(lines):
        message += line.rstrip("\n")
        if message.endswith("\\"):
            message = message[:-1] + "\n"
            continue
        yield message
        message = ""
    if message:
        yield message


def _decoded(lines):
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is no text in {error.encoding}: {error.reason}; convert it.") from None


class Session:
    """model: chat_run.LoadedRun or chat_server.Server. settings: of answers, as checked_settings has them. recipe: what the
    model is asked instead of the conversation as it was typed: a function of its messages; None: nothing else."""

    def __init__(self, model, settings: dict, system: str | None = None, recipe=None):
        self._recipe = recipe
        self.model, self.settings, self.system = model, settings, system
        self.messages: list[dict] = []  # without the system message
        self.tools: dict = {}  # {name: function from text to text}
        self._schemas: list[dict] = []
        self._attempt = 0  # how often the last answer was made anew
        self._written: set[pathlib.Path] = set()  # files that may be written again

    def talk(self, messages) -> int:
        """Answers messages and obeys commands until there are none. Returns the exit code: 2 if one went wrong."""
        code = 0
        for text in messages:
            try:
                if text.startswith("/") and not text.startswith("//"):
                    self._obey(text)
                elif text.strip():
                    self.say(text.removeprefix("/") if text.startswith("//") else text)
            except UserError as error:
                print(f"gptjax: {error}", file=sys.stderr)
                code = 0 if sys.stdin.isatty() else 2
        return code

    def say(self, text: str) -> None:
        """A user's message, and its answer on stdout. If there is no answer, the message is taken back."""
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        self._attempt = 0
        self._answer(before)

    def regenerate(self) -> None:
        """The last answer anew, by the next seed."""
        before = list(self.messages)
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        if not self.messages:
            self.messages = before
            raise UserError("/regenerate: there is no answer yet; ask something.")
        self._attempt += 1
        self._answer(before)

    def undo(self) -> None:
        """Takes back the last message of the user's and what followed."""
        if not self.messages:
            raise UserError("/undo: nothing was said yet.")
        while self.messages.pop()["role"] != "user":
            pass

    def use_tools(self, names: list[str]) -> None:
        """These tools from now on, by name or as module:function. Raises UserError: there is no such tool."""
        from gptjax.posttrain import tools

        functions = {name.rpartition(":")[2]: tools.function(name, "tools") for name in names}
        self._schemas = [tools.schema(name, function) for name, function in functions.items()]
        self.tools = functions

    def save(self, file: str) -> None:
        """Raises UserError: it is another's file, or cannot be written."""
        path = pathlib.Path(file).expanduser().resolve()
        if path.exists() and path not in self._written:
            raise UserError(f"/save: there is a {path} already; give another name.")
        has_tokens = any("tokens" in message for message in self.messages)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        content = {"messages": [*system, *self.messages], "settings": self.settings}
        content |= {"tools": self._schemas} if self.tools else {}
        content |= {"tokenizer": self.model.tokenizer_hash} if has_tokens else {}
        writing.replace_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        self._written.add(path)

    def load(self, file: str) -> None:
        """Raises UserError: there is no such file, or another than /save writes."""
        path = pathlib.Path(file).expanduser().resolve()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            messages, settings = content["messages"], checked_settings(content.get("settings", {}))
            names = [tool["function"]["name"] for tool in content.get("tools", [])]
            system, messages = _parted(messages)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"/load {file}: {first_line(error)}; expected a file of /save.") from None
        if "tokenizer" in content and content["tokenizer"] != self.model.tokenizer_hash:
            messages = [{key: value for key, value in each.items() if key != "tokens"} for each in messages]
        self.use_tools(names)
        self.system, self.messages, self.settings, self._attempt = system, messages, settings, 0
        self._written.add(path)

    def _answer(self, before: list[dict]) -> None:
        """Answers the messages; before: what they are if nothing comes of it."""
        try:
            answered = self._rounds()
        except BaseException:
            self.messages = before
            raise
        if not answered:
            self.messages = before

    def _rounds(self) -> bool:
        """An answer, with the calls of tools on its way. False: there was none."""
        for _ in range(ROUNDS):
            asked, shown = self._asked()
            answer = self.model.answer(asked, self._schemas, self.settings, self._attempt, terminal.say)
            if answer is None:
                print(flush=True)
                return False
            if not answer.message:  # not even the last message fits
                self.messages = []
                return True
            print(flush=True)
            del self.messages[: max(0, answer.forgotten - shown)]
            self.messages.append(answer.message)
            called = answer.message.get("tool_calls")
            if not called or answer.is_cut:
                return True
            self.messages += [self._result(call) for call in called]
        raise UserError(f"the answer was not given after {ROUNDS} rounds of calls; /undo, or /tools none.")

    def _asked(self) -> tuple[list[dict], int]:
        """(what the model is asked, how many messages of examples stand before the conversation's)."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        if self._recipe is None:
            return [*system, *self.messages], 0
        applied = self._recipe([*system, *self.messages])
        head = applied[: len(applied) - len(self.messages)]
        texts = [message.content for message in applied[len(head) :]]
        users = [
            each | ({"content": text} if each["role"] == "user" else {}) for each, text in zip(self.messages, texts)
        ]
        examples = sum(message.role != "system" for message in head)
        return [*({"role": message.role, "content": message.content} for message in head), *users], examples

    def _result(self, call: dict) -> dict:
        """The message of a tool that was called, which is said on stderr too."""
        from gptjax.posttrain import tools

        result = tools.result_of(json.dumps({"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}), self.tools)  # fmt: skip
        print(f"[{call['function']['name']} {call['function']['arguments']}: {shorten(result, 200)}]", file=sys.stderr)
        return {"role": "tool", "tool_call_id": call["id"], "content": result}

    def _obey(self, text: str) -> None:
        name, _, rest = text[1:].partition(" ")
        name, rest = name.strip(), rest.strip()
        if name not in COMMANDS:
            near = did_you_mean(name, COMMANDS, "; /help lists them, and // begins a message with a slash.")
            raise UserError(f"/{shorten(name, 40)} is no command{near}")
        function, argument, _ = COMMANDS[name]
        if argument.isalpha() and not rest:
            raise UserError(f"/{name} needs {'a ' + argument}, as in /{name} {argument}.")
        if not argument and rest:
            raise UserError(f"/{name} takes nothing; leave out {shorten(rest, 80)!r}.")
        said = function(self, rest)
        if said:
            print(said, file=sys.stderr)


def _parted(messages: list) -> tuple[str | None, list[dict]]:
    """(the system message, the others). Raises UserError: one is no message."""
    has_system = bool(messages) and messages[0].get("role") == "system"
    system, others = (messages[0]["content"], messages[1:]) if has_system else (None, messages)
    for i, message in enumerate(others, start=1 + has_system):
        tokens = message.get("tokens", [])
        is_one = message.get("role") in ROLES and isinstance(message.get("content"), str)
        if not is_one or not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise UserError(f"message {i} has no role of {', '.join(ROLES)}, or no content")
    return system, others


# ---- commands


def _help(session: Session, rest: str) -> str:
    lines = [(f"/{name} {argument}".rstrip(), text) for name, (_, argument, text) in COMMANDS.items()]
    width = max(len(usage) for usage, _ in lines)
    keys = "Enter sends, Alt-Enter or a backslash before Enter begins a new line; Ctrl-C ends an answer, Ctrl-D leaves"
    return "\n".join([*(f"{usage:{width}}  {text}" for usage, text in lines), keys])


def _system(session: Session, rest: str) -> str:
    if rest:
        session.system = None if rest == "none" else rest
    return "no system message" if session.system is None else f"system: {session.system}"


def _settings(session: Session, rest: str) -> str:
    changed = dict(session.settings)
    for word in rest.split():
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(
                f"/settings {shorten(word, 80)}: expected NAME=VALUE, such as temperature=0.5, or NAME=default."
            )
        changed.pop(name, None) if value == "default" and name in SETTABLE else changed.update({name: _number(value)})
    try:
        session.settings = checked_settings(changed)
    except UserError as error:
        raise UserError(f"/settings: {str(error).replace('--', '')}") from None
    return " ".join(f"{name}={value}" for name, value in session.settings.items()) or "the defaults"


def _number(text: str):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _tools(session: Session, rest: str) -> str:
    if rest:
        session.use_tools([] if rest == "none" else rest.split())
    return f"tools: {', '.join(session.tools) or 'none'}"


def _model(session: Session, rest: str) -> str:
    if rest:
        session.model = session.model.at(rest)
        for message in session.messages:
            message.pop("tokens", None)  # which another tokenizer may have made
    return session.model.about()


def _clear(session: Session, rest: str) -> None:
    session.messages = []


COMMANDS = {  # name: (function, what follows it: in capitals if it has to, what it does)
    "help": (_help, "", "this list"),
    "system": (_system, "[TEXT]", "show the system message, or change it; none: without"),
    "settings": (_settings, "[NAME=VALUE ...]", f"show the settings, or change: {', '.join(SETTABLE)}"),
    "tools": (_tools, "[NAME ...]", "show the tools that answers may call, or change them: calculator; none: without"),
    "model": (_model, "[NAME]", "which weights answer; or another run directory, or model of the server"),
    "regenerate": (lambda session, _: session.regenerate(), "", "the last answer anew"),
    "undo": (lambda session, _: session.undo(), "", "take back your last message, and what followed"),
    "clear": (_clear, "", "begin anew, with the same system message and settings"),
    "save": (lambda session, file: session.save(file), "FILE", "write the conversation, as a record to train on"),
    "load": (lambda session, file: session.load(file), "FILE", "go on with one that /save has written"),
}
