"""`gptjax chat`: with a run through a pipe and on a terminal, with a server, and what its commands do."""

import contextlib
import http.server
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time

import chat_folders
import pytest
from places import ROOT

import gptjax
from gptjax import cli, terminal
from gptjax.applications import recipe
from gptjax.commands import chat_run, chat_server, chat_session, chatting
from gptjax.data.chat import Message, chat_format, from_record
from gptjax.errors import UserError
from gptjax.huggingface import importing

SECONDS = 240
SETTINGS = ["--max_tokens=6", "--seed=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of a model of random weights with ChatML's template."""
    place = tmp_path_factory.mktemp("chat")
    template = chat_format("chatml").template
    importing.import_folder(str(chat_folders.write(place / "folder", None, chat_template=template)), str(place / "run"))
    return place / "run"


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A run whose answers never end by themselves: it says one word."""
    place = tmp_path_factory.mktemp("endless")
    template = chat_format("chatml").template
    importing.import_folder(str(chat_folders.write(place / "folder", 70, chat_template=template)), str(place / "run"))
    assert gptjax.load(place / "run").tokenizer.spelling[70].isalpha()
    return place / "run"


def piped(capsys, monkeypatch, text: str, *words) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return cli.main(["chat", *map(str, words)]), *capsys.readouterr()


def answers_of(run, *questions, system=None, **settings) -> list[str]:
    loaded, history, texts = gptjax.load(run), (), []
    head = () if system is None else (Message("system", system),)
    for question in questions:
        history = (*history, Message("user", question))
        [answer] = loaded.answers(
            [(*head, *history)], loaded.chat_format(), **({"max_tokens": 6, "seed": 2} | settings)
        )
        texts.append(answer.text)
        history = (*history, chatting.said(answer))
    return texts


def test_a_pipe_is_a_message_a_line(run):
    """In a process of its own: answers alone on stdout, and what is wrong on stderr."""
    command = [sys.executable, "-m", "gptjax", "chat", str(run), *SETTINGS, "--system=s"]
    done = subprocess.run(command, input=b"Hello\n/undoo\nA\\\nB\n", capture_output=True, timeout=SECONDS)
    expected = answers_of(run, "Hello", "A\nB", system="s")
    assert done.stdout.decode() == "".join(f"{text}\n" for text in expected)
    assert done.stderr.decode() == "gptjax: /undoo is no command; did you mean 'undo'?\n" and done.returncode == 2


def test_a_conversation_that_is_loaded_goes_on_where_it_was(run, tmp_path, capsys, monkeypatch):
    """It has the tokens that were drawn, so that it says what the one that was never left says."""
    expected = answers_of(run, "Hello", "And then?", "A\nB")
    file = tmp_path / "kept.json"
    lines = f"Hello\nAnd then?\n/save {file}\n"
    code, first, _ = piped(capsys, monkeypatch, lines, run, *SETTINGS)
    kept = json.loads(file.read_text())
    again = piped(capsys, monkeypatch, f"A\\\nB\n/undo\n/save {file}\n", run, f"--load={file}")
    assert (code, first + again[1], again[0]) == (0, "".join(f"{text}\n" for text in expected), 0)
    assert json.loads(file.read_text()) == kept
    answers, encode = kept["messages"][1::2], gptjax.load(run).tokenizer.encode
    assert any(encode(answer["content"]).tolist() != answer["tokens"] for answer in answers), "their text has others"
    record = from_record(kept, "kept")
    assert [message.role for message in record.messages] == ["user", "assistant", "user", "assistant"]


def test_what_is_saved_is_what_is_loaded(tmp_path):
    session = chat_session.Session(Parrot(), {"temperature": 0.5, "stop": ["x"]}, "Be brief.")
    session.use_tools(["calculator"])
    session.say("one")
    session.say("call 1+1")
    session.save(str(tmp_path / "a.json"))
    other = chat_session.Session(Parrot(), {})
    other.load(str(tmp_path / "a.json"))
    assert (other.messages, other.system, other.settings) == (session.messages, session.system, session.settings)
    assert other.tools == session.tools and any("tokens" in message for message in other.messages)
    other.save(str(tmp_path / "b.json"))
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    foreign = chat_session.Session(Parrot("another tokenizer"), {})
    foreign.load(str(tmp_path / "a.json"))
    assert not any("tokens" in message for message in foreign.messages)
    with pytest.raises(UserError, match="there is a .*a.json already; give another name"):
        chat_session.Session(Parrot(), {}).save(str(tmp_path / "a.json"))


class Parrot:
    """Says how many messages it was given, and the last; calls the calculator where that is asked for."""

    is_loading = False

    def __init__(self, tokenizer_hash="its tokenizer"):
        self.tokenizer_hash = tokenizer_hash

    def answer(self, values, tools, settings, attempt, show):
        last = values[-1]["content"]
        message = {"role": "assistant", "content": f"{len(values)} {attempt} {last}", "tokens": [1, 2]}
        if last.startswith("call") and tools:
            function = {"name": "calculator", "arguments": json.dumps({"expression": last.removeprefix("call ")})}
            message |= {"content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
        show(message["content"])
        return chat_run.Answer(message)


def conversation(capsys, *lines) -> tuple[str, str, chat_session.Session]:
    session = chat_session.Session(Parrot(), {})
    session.talk(lines)
    return *capsys.readouterr(), session


def test_commands_change_what_the_model_is_given(capsys):
    output, _, _ = conversation(capsys, "a", "b", "/undo", "c")
    assert output == "1 0 a\n3 0 b\n3 0 c\n"
    output, _, _ = conversation(capsys, "a", "/regenerate", "/regenerate", "b", "/regenerate")
    assert output == "1 0 a\n1 1 a\n1 2 a\n3 0 b\n3 1 b\n"
    output, said, _ = conversation(capsys, "a", "/system Be brief.", "b", "/system none", "/clear", "c")
    assert output == "1 0 a\n4 0 b\n1 0 c\n" and said == "system: Be brief.\nno system message\n"
    output, _, _ = conversation(capsys, "//undo", "  ")
    assert output == "1 0 /undo\n"
    _, said, session = conversation(
        capsys, "/settings temperature=0.5 stop=END", "/settings top_k=3 stop=default", "/settings"
    )
    assert said == "temperature=0.5 stop=['END']\ntemperature=0.5 top_k=3\ntemperature=0.5 top_k=3\n"
    assert session.settings == {"temperature": 0.5, "top_k": 3}
    _, said, _ = conversation(capsys, "/help")
    assert all(f"/{name}" in said for name in chat_session.COMMANDS) and "Ctrl-C" in said


def test_a_tool_is_called_and_its_result_is_answered(capsys):
    output, said, session = conversation(capsys, "/tools calculator", "call 12*3", "/regenerate", "/undo", "call 1/0")
    assert said.splitlines()[1] == '[calculator {"expression": "12*3"}: 36]' and "error: division by zero" in said
    assert output.splitlines()[1] == "3 0 36"
    assert [message["role"] for message in session.messages] == ["user", "assistant", "tool", "assistant"]
    assert session.messages[2] == {"role": "tool", "tool_call_id": "call_1", "content": "error: division by zero"}


@pytest.mark.parametrize(
    "line, message",
    [
        ("/undoo", "/undoo is no command; did you mean 'undo'?"),
        ("/xyz", "/xyz is no command; /help lists them, and // begins a message with a slash."),
        ("/save", "/save needs a FILE, as in /save FILE."),
        ("/undo", "/undo: nothing was said yet."),
        ("/undo all", "/undo takes nothing; leave out 'all'."),
        ("/regenerate", "/regenerate: there is no answer yet; ask something."),
        ("/load /nowhere", "/load /nowhere: [Errno 2] No such file or directory: '/nowhere'; expected a file of /save."),
        ("/settings heat=2", "/settings: 'heat' is not a setting of a conversation; there are: max_tokens, seed"),
        ("/settings temperature=-1", "/settings: temperature=-1.0 is negative"),
        ("/settings temperature=hot", "/settings: temperature='hot'"),
        ("/settings warm", "/settings warm: expected NAME=VALUE"),
        ("/tools hammer", "tools='hammer' is not known; expected one of: calculator."),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_changes_nothing(capsys, line, message):
    output, said, session = conversation(capsys, line)
    assert output == "" and said.startswith(f"gptjax: {message}") and said.count("\n") == 1
    assert (session.messages, session.settings, session.tools) == ([], {}, {})


def test_a_pipe_that_is_no_text_is_one_line(capsys, monkeypatch):
    for command in (["chat", "--url=http://127.0.0.1:9/v1"], ["ask", "--url=http://127.0.0.1:9/v1", "--recipe=configs/recipes/summary.toml"]):  # fmt: skip
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert "no text in utf-8" in said and said.count("\n") == 1


def test_what_a_model_says_moves_no_cursor_and_a_pipe_has_it_as_it_is(capsys, monkeypatch):
    text = "a\x1b[2J\x07\r\x9bb\tc\n\u00e9"
    terminal.say(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    terminal.say(text)
    assert capsys.readouterr().out == "a\\x1b[2J\\x07\\r\\x9bb\tc\n\u00e9"


def test_a_file_that_is_no_conversation_is_refused_whole(tmp_path):
    for content in ("[]", "{", "[" * 100_000, '{"messages": 3}', '{"messages": [{"role": "king", "content": "a"}]}', '{"messages": [{"role": "user"}]}',
                    '{"messages": [{"role": "user", "content": "a", "tokens": "x"}]}', '{"messages": [], "settings": {"a": 1}}'):  # fmt: skip
        (tmp_path / "x.json").write_text(content)
        session = chat_session.Session(Parrot(), {"top_k": 1}, "s")
        session.say("a")
        before = list(session.messages)
        with pytest.raises(UserError, match="^/load .*x.json: .*expected a file of /save"):
            session.load(str(tmp_path / "x.json"))
        assert (session.messages, session.settings, session.system) == (before, {"top_k": 1}, "s")


def test_messages_are_put_into_a_recipe_and_kept_as_they_were_typed(run, tmp_path, capsys, monkeypatch):
    file = tmp_path / "say.toml"
    file.write_text(
        'system = "In {language}."\nuser = "Say: {text}"\n[[examples]]\ntext = "a"\nanswer = "b"\n[settings]\nmax_tokens = 4\n'
    )
    words = [run, f"--recipe={file}", "--var=language=Dutch", "--seed=2", "--system=s"]
    code, out, _ = piped(capsys, monkeypatch, f"Hello\nAgain\n/save {tmp_path / 'saved.json'}\n", *words)
    loaded, history, texts = gptjax.load(run), (Message("system", "s"),), []
    for question in ("Hello", "Again"):
        history = (*history, Message("user", question))
        applied, settings = recipe.apply(recipe.read(file), history, {"language": "Dutch"})
        assert applied[0].content == "In Dutch.\n\ns" and applied[-1].content == f"Say: {question}"
        [answer] = loaded.answers([applied], loaded.chat_format(), seed=2, **settings)
        texts.append(answer.text)
        history = (*history, chatting.said(answer))
    assert code == 0 and out == "".join(f"{text}\n" for text in texts)
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert [each["content"] for each in saved["messages"]] == ["s", "Hello", texts[0], "Again", texts[1]]
    for flags, message in (
        ([f"--recipe={file}"], "needs a value for {language}"),
        (["--var=language=Dutch"], "is of a recipe; add --recipe=FILE"),
        (
            [f"--recipe={ROOT / 'configs' / 'recipes' / 'calculator.toml'}"],
            "has tools, for which a conversation has no",
        ),
    ):
        code, _, said = piped(capsys, monkeypatch, "Hello\n", run, *flags)
        assert code == 2 and message in said and said.count("\n") == 1


# ---- on a terminal


SENT = "\x1b[?2004l"  # pasting is no more marked: what follows is no longer the prompt's


class Terminal:
    """gptjax chat on a terminal of its own; `shown` is all that it has shown."""

    def __init__(self, tmp_path, *words):
        self._controller, terminal = pty.openpty()
        environment = os.environ | {
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "TERM": "xterm",
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        command = [sys.executable, "-m", "gptjax", "chat", *map(str, words)]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        os.close(terminal)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._controller, keys.encode())

    def wait_for(self, text: str) -> None:
        """Until what was shown since the last call has a text, which is then done with."""
        self._read_until(lambda: text in self.shown)
        self.shown = self.shown.partition(text)[2]

    def wait_for_characters(self, count: int) -> None:
        self._read_until(lambda: len(self.shown) >= count)
        self.shown = ""

    def _read_until(self, condition) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.shown
            if select.select([self._controller], [], [], 0.1)[0]:
                try:
                    read = os.read(self._controller, 65536)
                except OSError:  # the other end is closed
                    read = b""
                assert read, f"it ended; shown: {self.shown!r}"
                self.shown += read.decode(errors="replace")

    def end(self) -> int:
        self.type("\x04")
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # what is shown is read, or the process could wait for us
                if select.select([self._controller], [], [], 0.1)[0]:
                    os.read(self._controller, 65536)
        os.close(self._controller)
        return self.process.wait(1)


def test_on_a_terminal_ctrl_c_ends_the_answer_only_and_what_is_typed_is_kept(endless, tmp_path):
    [expected] = answers_of(endless, "first line\nsecond", max_tokens=4)
    terminal = Terminal(tmp_path, endless, "--max_tokens=1000000", "--seed=2")
    try:
        terminal.wait_for("you>")
        terminal.type("Hello\r")
        terminal.wait_for(SENT)
        terminal.wait_for_characters(20)  # of the answer
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("you>")
        terminal.type("/clear\r")
        terminal.wait_for("you>")
        terminal.type("/settings max_tokens=4\r")
        terminal.wait_for("max_tokens=4 seed=2")
        terminal.wait_for("you>")
        terminal.type("first line\\\rsecond\r")
        terminal.wait_for(SENT)
        terminal.wait_for(f"{expected}\r\n")
        terminal.wait_for("you>")
        terminal.type("half a line\x03")  # Ctrl-C at the prompt
        terminal.wait_for("you>")
        assert terminal.end() == 0
    finally:
        terminal.process.kill()
    kept = tmp_path / "state" / "gptjax" / "chat_history"
    assert "+Hello" in kept.read_text() and kept.stat().st_mode & 0o077 == 0


def test_the_prompt_is_there_before_the_weights(tmp_path, run):
    """Of a run without weights the first message is answered by what is wrong."""
    empty = tmp_path / "empty"
    (empty / "tokenizer").mkdir(parents=True)
    for file in (run / "config.json", *(run / "tokenizer").iterdir()):
        (empty / file.relative_to(run)).write_bytes(file.read_bytes())
    terminal = Terminal(tmp_path, empty)
    try:
        terminal.wait_for("you>")
        terminal.type("Hello\r")
        terminal.wait_for("gptjax: ")
        terminal.wait_for("checkpoint")
        terminal.wait_for("you>")
        assert terminal.end() == 0
    finally:
        terminal.process.kill()


# ---- with a server


class Handler(http.server.BaseHTTPRequestHandler):
    """Two models; an answer of what was sent, in server-sent events."""

    asked: list[dict] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._say(200, json.dumps({"data": [{"id": "small", "step": 7, "context_length": 96}, {"id": "large"}]}))

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(asked)
        last = asked["messages"][-1]["content"]
        if last == "bad":
            self._say(
                400,
                json.dumps({"error": {"message": "messages: no, because.", "type": "x", "param": None, "code": None}}),
            )
            return
        events = [{"choices": [{"delta": {"content": piece}}]} for piece in ("ü ", last)]
        if last == "call":
            halves = [
                {"id": "call_9", "function": {"name": "calculator", "arguments": '{"expre'}},
                {"function": {"arguments": 'ssion": "6*7"}'}},
            ]
            events = [{"choices": [{"delta": {"tool_calls": [{"index": 0} | half]}}]} for half in halves]
        if last == "fault":
            events.append({"error": {"message": "the engine failed"}})
        events.append({"choices": [], "usage": {"total_tokens": 3}})
        lines = [": a comment", *(f"data: {json.dumps(event)}" for event in events)]
        self._say(200, "\n\n".join([*lines, *(["data: [DONE]"] if last != "cut" else [])]) + "\n\n")

    def _say(self, code: int, text: str):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture(scope="module")
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_server_answers_instead_of_a_run(url, capsys):
    Handler.asked.clear()
    session = chat_session.Session(chat_server.Server(url, None), {"temperature": 0.5}, "s")
    code = session.talk(
        ["a", "bad", "fault", "cut", "/model", "/model large", "b", "/model tiny", "/settings seed=3", "/regenerate"]
    )
    output, said = capsys.readouterr()
    assert code == 2 and output == "ü a\nü faultü cutü b\nü b\n"
    assert "says 400: messages: no, because." in said and "ended the answer: the engine failed" in said
    assert "went away in the middle" in said and f"small of {url}, step 7, context length 96; also there: large" in said
    assert "has no model 'tiny'; it has: small, large." in said
    first, *_, again = Handler.asked
    assert first["model"] == "small" and first["temperature"] == 0.5 and first["stream"] is True and "seed" not in first
    assert again["model"] == "large" and again["seed"] == 4
    assert [message["content"] for message in again["messages"]] == ["s", "a", "ü a", "b"]  # nothing of what failed


def test_a_server_s_calls_are_answered_here(url, capsys):
    session = chat_session.Session(chat_server.Server(url, "small"), {})
    assert session.talk(["/tools calculator", "call"]) == 0
    assert capsys.readouterr().out == "\nü 42\n"
    assert Handler.asked[-1]["messages"][-1] == {"role": "tool", "tool_call_id": "call_9", "content": "42"}
    assert Handler.asked[-1]["tools"][0]["function"]["parameters"]["required"] == ["expression"]


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "gptjax chat needs a run directory or a server; give it as in gptjax chat runs/quickstart"),
        (["x", "--url=http://a"], "--workdir is of a run, and --url names a server"),
        (["--url=http://a", "--ema"], "--ema is of a run, and --url names a server"),
        (["--url=ftp://a"], "--url=ftp://a: expected an address such as http://127.0.0.1:8000/v1."),
        (["x", "--model=y"], "--model is of a server; add --url, or leave it out."),
        (["x", "--temperature=-1"], "--temperature=-1.0 is negative"),
        (["/nowhere/at/all"], "/nowhere/at/all"),
        (["--url=http://127.0.0.1:9/v1", "--load=/nowhere"], "/load /nowhere: [Errno 2]"),
    ],
)  # fmt: skip
def test_what_names_no_model_is_one_line(capsys, monkeypatch, words, message):
    assert cli.main(["chat", *words]) == 2
    output, said = capsys.readouterr()
    assert output == "" and message in said and said.startswith("gptjax: ") and said.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line(capsys):
    assert chat_session.Session(chat_server.Server("http://127.0.0.1:9/v1", None), {}).talk(["a"]) == 2
    assert (
        "http://127.0.0.1:9/v1 cannot be reached: [Errno 111] Connection refused; start it" in capsys.readouterr().err
    )
