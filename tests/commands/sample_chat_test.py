import json
import os
import pty
import re
import signal
import subprocess
import sys

import chat_folders
import numpy as np
import pytest
from places import ROOT

import gptjax
from gptjax import cli
from gptjax.commands import chatting
from gptjax.data.chat import Message, chat_format
from gptjax.errors import UserError
from gptjax.huggingface import importing

CHATML = chat_format("chatml").template
SPECIAL = {"<|endoftext|>": 700, "<|im_start|>": 701, "<|im_end|>": 702}
GOLDEN = ROOT / "tests" / "golden" / "checkpoints" / "schema2"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """imported(always) -> a run directory of a model with ChatML's template."""
    place = tmp_path_factory.mktemp("chat")

    def make(always: int | None = None):
        run = place / f"run_{always}"
        if not run.exists():
            folder = chat_folders.write(place / f"folder_{always}", always, chat_template=CHATML)
            importing.import_folder(str(folder), str(run))
        return run

    return make


def sample(capsys, run, *flags):
    code = cli.main(["sample", f"--workdir={run}", *flags])
    return code, *capsys.readouterr()


def test_an_answer_is_what_the_model_says_after_the_prompt_of_the_format(imported):
    run = gptjax.load(imported())
    settings = dict(max_tokens=12, seed=3)
    answer = run.chat([{"role": "system", "content": "s"}, {"role": "user", "content": "Hello"}], **settings)
    messages = (Message("system", "s"), Message("user", "Hello"))
    prompt_L = chat_format("chatml").prompt(messages, run.tokenizer)
    [expected] = run.generate(prompt_L, **settings)
    assert answer.text == expected.text and answer.tokens.tolist() == expected.tokens.tolist()
    assert (
        answer.prompt == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert run.chat("Hello", **settings).prompt.startswith("<|im_start|>user\nHello<|im_end|>")


@pytest.mark.parametrize("always", ["<|im_end|>", "<|endoftext|>"])
@pytest.mark.parametrize("settings", [dict(), dict(num_beams=2), dict(stop="x")])
def test_an_answer_ends_at_the_end_of_a_turn_or_of_the_text(imported, always, settings):
    answer = gptjax.load(imported(SPECIAL[always])).chat("Hello", max_tokens=5, **({"temperature": 0} | settings))
    assert (answer.text, answer.finish_reason, len(answer.tokens)) == ("", "eot", 0)
    [text] = gptjax.load(imported(SPECIAL["<|im_end|>"])).generate("Hello", max_tokens=3, temperature=0)
    assert text.finish_reason == "length"  # outside of conversations it is no end


def test_rows_that_end_at_one_token_and_at_two_are_made_together(imported):
    from gptjax.generation.engine import Row
    from gptjax.generation.settings import Settings

    engine = gptjax.load(imported(702)).engine
    rows = [
        Row(np.array([1, 2], np.int32), 0, Settings(max_tokens=4, temperature=0), 700, ends) for ends in ((), (702,))
    ]
    engine.run(rows)
    assert [row.finished for row in rows] == ["length", "eot"] and [len(row.new) for row in rows] == [4, 0]


def test_prompts_of_the_command_are_users_messages(imported, capsys):
    run = gptjax.load(imported())
    flags = ("--chat", "--system=s", "--max_tokens=8", "--seed=5")
    code, output, _ = sample(capsys, imported(), *flags, "--prompt=Hello")
    answer = run.chat([{"role": "system", "content": "s"}, {"role": "user", "content": "Hello"}], max_tokens=8, seed=5)
    assert code == 0 and output == answer.text + "\n"
    assert sample(capsys, imported(), *flags, "--prompt=Hello", "--stream")[1] == output
    code, output, _ = sample(capsys, imported(), *flags, "--prompt=Hello", "--prompt=Bye", "--json")
    rows = [json.loads(line) for line in output.splitlines()]
    assert rows[0]["text"] == answer.text and rows[1]["prompt"].count("<|im_start|>user\nBye") == 1


def test_another_format_may_be_asked_for(imported, tmp_path):
    run = gptjax.load(imported())
    assert run.chat("Hi", chat_format="smollm2", max_tokens=1).prompt.startswith(
        "<|im_start|>system\nYou are a helpful"
    )
    assert run.chat("Hi", chat_format="gptjax", max_tokens=1).prompt == "<|endoftext|><|user|>Hi<|end|><|assistant|>"


@pytest.mark.parametrize(
    "run, flags, message",
    [
        (None, ["--chat", "--prompt=a", "--chat_format=chatlm"], "--chat_format='chatlm' is not known; did you mean 'chatml'"),
        (None, ["--chat", "--prompt=a", "--chat_format=llama3"], "has no control token <|start_header_id|>"),
        (None, ["--chat"], "--chat has no message to answer; give --prompt or --prompts_file, or run it on a terminal."),
        (None, ["--chat", "--prompt="], "--prompt is empty, and --chat answers a message; give it a text."),
        (None, ["--system=a", "--prompt=b"], "--system is for conversations; add --chat."),
        (None, ["--chat_format=chatml", "--prompt=b"], "--chat_format is for conversations; add --chat."),
        (GOLDEN, ["--chat", "--prompt=a"], "was trained on no conversations and has no chat template; give --chat_format"),
        (None, ["--chat", f"--prompt={'word ' * 200}"], "tokens, which leave no room for an answer in a context of 96"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_line(imported, capsys, run, flags, message):
    code, output, said = sample(capsys, run or imported(), *flags)
    assert code == 2 and output == "" and message in said and said.count("\n") == 1


def test_run_chat_names_its_arguments(imported):
    run = gptjax.load(imported())
    with pytest.raises(UserError, match="^run.chat: message 1 .user. is empty"):
        run.chat([{"role": "user", "content": ""}])
    with pytest.raises(UserError, match="^chat_format='chatlm' is not known"):
        run.chat("Hi", chat_format="chatlm")
    with pytest.raises(UserError, match="^num_return_sequences=2, but run.chat returns one answer"):
        run.chat("Hi", num_return_sequences=2)


def test_a_conversation_on_a_terminal_keeps_what_was_said(imported):
    """Two messages, then Ctrl-D."""
    controller, terminal = pty.openpty()
    words = ["sample", f"--workdir={imported()}", "--chat", "--max_tokens=6", "--seed=2"]
    command = [sys.executable, "-m", "gptjax", *words]
    process = subprocess.Popen(command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    os.close(terminal)
    os.write(controller, b"Hello\n\nAnd then?\n\x04")
    output, said = (text.decode() for text in process.communicate(timeout=240))
    os.close(controller)
    assert process.returncode == 0, said
    run, history, answers = gptjax.load(imported()), (), []
    for question in ("Hello", "And then?"):
        history = (*history, Message("user", question))
        [answer] = run.answers([history], run.chat_format(), max_tokens=6, seed=2)
        answers.append(answer.text)
        history = (*history, chatting.said(answer))  # whose text has other tokens than it was drawn in
    assert re.sub("you> ", "", output) == f"{answers[0]}\n{answers[1]}\n\n"
    drawn = history[1]
    assert drawn.tokens and list(drawn.tokens) != run.tokenizer.encode(drawn.content).tolist()
    assert "Ctrl-D" in said


def test_ctrl_c_ends_an_answer_and_not_the_conversation(imported):
    controller, terminal = pty.openpty()
    words = ["sample", f"--workdir={imported()}", "--chat", "--max_tokens=1000000", "--seed=2"]
    command = [sys.executable, "-m", "gptjax", *words]
    process = subprocess.Popen(command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    os.close(terminal)
    os.write(controller, b"Hello\n")
    shown = process.stdout.read(len("you> ") + 1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    os.write(controller, b"\x04")
    output, said = (text.decode(errors="replace") for text in process.communicate(timeout=240))
    os.close(controller)
    assert process.returncode == 0 and shown.startswith(b"you> ") and output.endswith("\nyou> \n"), said
