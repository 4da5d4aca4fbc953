import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from places import ROOT
from vocabularies import GPT2_FOLDER, MULTILINGUAL, TEXTS, examples

from gptjax.config.text_kinds import FORMATS
from gptjax.data import tokenizers
from gptjax.data.chat import Conversation, Message, chat_format
from gptjax.data.chat.template import TemplateFormat
from gptjax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_model
from gptjax.errors import UserError

MACROS = ROOT / "tests" / "golden" / "chat" / "macros.jinja"
KINDS = ["bytes", "gpt2", "sentencepiece", "hf"]
NAMES = [
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|end|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
]
NAMES += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPELLED = strategies.sampled_from(
    [*NAMES, *(name[:n] for name in NAMES[:7] for n in (1, 2, 5)), *(n[-3:] for n in NAMES)]
)
HOSTILE = strategies.lists(SPELLED | TEXTS, min_size=1, max_size=4).map("".join)
few = settings(examples, max_examples=25)  # for each format and tokenizer
ROLES = strategies.sampled_from([("user", "assistant"), ("system", "user", "assistant", "user", "assistant")])


@functools.cache
def base_tokenizer(kind: str):
    if kind == "sentencepiece":
        return SentencePieceTokenizer(train_model(MULTILINGUAL.splitlines(), 700))
    spec = {"gpt2": f"gpt2:{GPT2_FOLDER}", "hf": f"hf:{ROOT / 'tests' / 'golden' / 'chat' / 'gpt.json'}"}
    return tokenizers.from_spec(spec.get(kind, kind))


@functools.cache
def format_of(name: str):
    if name.startswith("template of "):
        return TemplateFormat(name, chat_format(name.removeprefix("template of ")).template)
    return chat_format(f"template:{MACROS}" if name == "macros" else name)


def tokenizer_for(kind: str, name: str):
    symbols = format_of(name).symbols
    return base_tokenizer(kind).with_special(symbols)


def conversation(*turns, weight=None) -> Conversation:
    """Turns are (role, content)."""
    return Conversation(tuple(Message(*turn) for turn in turns), "here:1")


def control_ids(token_L, tokenizer) -> list[int]:
    return [i for i in token_L.tolist() if i in tokenizer.special.values()]


@pytest.mark.parametrize("name", [*FORMATS, "template of chatml", "template of llama3", "macros"])
@pytest.mark.parametrize("kind", KINDS)
@given(roles=ROLES, data=strategies.data())
@few
def test_no_text_spells_a_control_token(kind, name, roles, data):
    tokenizer, form = tokenizer_for(kind, name), format_of(name)
    contents = [data.draw(HOSTILE) for _ in roles]
    if name == "macros":  # which writes what follows the last ---, and the system message in JSON
        contents = [content.replace("---", "") for content in contents]
    rendered = form.render(conversation(*zip(roles, contents)), tokenizer)
    harmless = form.render(conversation(*((role, "x") for role in roles)), tokenizer)
    assert control_ids(rendered.token_L, tokenizer) == control_ids(harmless.token_L, tokenizer)


@pytest.mark.parametrize("kind", KINDS)
@given(data=strategies.data())
@examples
def test_contents_come_back_from_between_control_tokens(kind, data):
    tokenizer, form = tokenizer_for(kind, "gptjax"), format_of("gptjax")
    contents = [data.draw(HOSTILE) for _ in range(2)]
    token_L, weight_L = form.render(conversation(("user", contents[0]), ("assistant", contents[1])), tokenizer)
    is_control_L = np.isin(token_L, list(tokenizer.special.values()))
    texts = [tokenizer.decode(part) for part in np.split(token_L, np.flatnonzero(is_control_L))]
    assert [text for text, part in zip(texts, np.split(token_L, np.flatnonzero(is_control_L))) if len(part) > 1] == [
        content for content in contents if content
    ]
    assert token_L[0] == tokenizer.bos_id and weight_L[-1] == 1


@pytest.mark.parametrize("name", [*FORMATS, *(f"template of {name}" for name in FORMATS), "macros"])
@pytest.mark.parametrize("kind", KINDS)
@given(data=strategies.data())
@few
def test_a_prompt_is_a_prefix_of_the_conversation_with_its_answer(kind, name, data):
    tokenizer, form = tokenizer_for(kind, name), format_of(name)
    turns = [(role, data.draw(HOSTILE)) for role in ("user", "assistant", "user", "assistant")]
    whole = form.render(conversation(*turns), tokenizer)
    for answer in (1, 3):
        prompt_L = form.prompt(conversation(*turns[:answer]).messages, tokenizer)
        assert prompt_L.tolist() == whole.token_L[: len(prompt_L)].tolist()
        assert not form.render(conversation(*turns), tokenizer).weight_L[: len(prompt_L)].any() or answer == 3


def test_an_answer_that_begins_with_blank_lines_is_cut_where_the_prompt_ends():
    """Transformers merges "\\n" of the template with those of the answer: the prompt would be no prefix."""
    tokenizer, form = tokenizer_for("hf", "chatml"), format_of("chatml")
    turns = ("user", "a"), ("assistant", "\n\n\nb")
    token_L = form.render(conversation(*turns), tokenizer).token_L
    prompt_L = form.prompt(conversation(turns[0]).messages, tokenizer)
    joined_L = tokenizer.encode("assistant\n\n\n\nb")
    apart_L = np.concatenate([tokenizer.encode("assistant\n"), tokenizer.encode("\n\n\nb")])
    assert joined_L.tolist() != apart_L.tolist()
    assert token_L[len(prompt_L) : -2].tolist() == tokenizer.encode("\n\n\nb").tolist()


@pytest.mark.parametrize("name", [*FORMATS, *(f"template of {name}" for name in FORMATS)])
def test_targets_are_the_answer_and_its_end_token_with_the_weight_of_the_message(name):
    tokenizer, form = tokenizer_for("bytes", name), format_of(name)
    turns = [
        Message("user", "ab"),
        Message("assistant", "cd", 0.5),
        Message("user", "e"),
        Message("assistant", "f", 0.0),
    ]
    turns += [Message("user", "g"), Message("assistant", "hi")]
    token_L, weight_L = form.render(Conversation(tuple(turns), "here:1"), tokenizer)
    end_id = form.stop_ids(tokenizer)[0]
    assert token_L[weight_L == 0.5].tolist() == [*b"cd", end_id]
    assert token_L[weight_L == 1].tolist() == [*b"hi", end_id]
    assert set(weight_L.tolist()) == {0, 0.5, 1}


def test_a_token_across_the_end_of_an_answer_has_the_answer_s_weight():
    """As transformers' mask, which has every token that overlaps a span."""
    template = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}\n\n{% endfor %}"
    template = template.replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}", 1)
    template = template.replace("{% endgeneration %}", "{% endgeneration %}{% else %}{{ m.content }}{% endif %}")
    form, tokenizer = TemplateFormat("plain", template), base_tokenizer("hf")
    assert len(tokenizer.encode("\n\n")) == 1
    token_L, weight_L = form.render(conversation(("user", "a"), ("assistant", "b\n")), tokenizer)
    first = token_L.tolist().index(tokenizer.encode("b")[0], int(np.flatnonzero(weight_L)[0]))
    assert weight_L[first : first + 2].tolist() == [1, 1] and weight_L[:first].sum() == 0
    assert tokenizer.decode(token_L[first + 1 : first + 2]) == "\n\n"


def test_control_tokens_that_take_in_spaces_do_so_as_in_their_library(tmp_path):
    """Oracle: `tokenizers` reads the whole text, in which no message spells a control token."""
    from tokenizers import Tokenizer

    fields = json.loads((ROOT / "tests" / "golden" / "chat" / "gpt.json").read_text())
    for token in fields["added_tokens"]:
        token["lstrip"], token["rstrip"] = token["content"] == "<|im_end|>", token["content"] != "<|endoftext|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    tokenizer, library = tokenizers.from_spec(f"hf:{tmp_path}"), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for turns in ((("user", " a \n"), ("assistant", "  b  ")), (("user", " \n "), ("assistant", "\tb\n\n"))):
        for name in ("chatml", "gptjax"):
            rendered = format_of(name).render(conversation(*turns), tokenizer)
            opening = {"chatml": "", "gptjax": "<|endoftext|>"}[name]
            turn = {"chatml": "<|im_start|>{}\n{}<|im_end|>\n", "gptjax": "<|{}|>{}<|end|>"}[name]
            text = opening + "".join(turn.format(role, content) for role, content in turns)
            assert rendered.token_L.tolist() == library.encode(text, add_special_tokens=False).ids


def test_smollm2_has_its_system_message_where_there_is_none():
    tokenizer, form = tokenizer_for("bytes", "smollm2"), format_of("smollm2")
    text = tokenizer.decode(form.prompt(conversation(("user", "Hi")).messages, tokenizer), special=True)
    assert (
        text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM") and text.count("system") == 1
    )
    given = form.prompt(conversation(("system", ""), ("user", "Hi")).messages, tokenizer)
    assert tokenizer.decode(given, special=True).startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user")


def test_a_tokenizer_without_the_control_tokens_is_refused():
    message = "^the tokenizer 'bytes' has no control token <.im_start.>, which the chat format 'chatml' writes; use a"
    with pytest.raises(UserError, match=message):
        format_of("chatml").render(conversation(("user", "a"), ("assistant", "b")), base_tokenizer("bytes"))
    with pytest.raises(UserError, match="no control token <.end.>"):
        format_of("gptjax").stop_ids(base_tokenizer("bytes"))


def test_an_unknown_format_is_refused_with_those_there_are():
    with pytest.raises(
        UserError, match="^data.chat='chatlm' is not known; did you mean 'chatml'.; expected one of: gptjax"
    ):
        chat_format("chatlm")


@pytest.mark.parametrize("name", [*FORMATS, "template of chatml", "template of llama3", "macros"])
def test_an_answer_that_was_drawn_keeps_its_tokens_in_later_prompts(name):
    """Letter by letter, as a model may draw what the tokenizer would write in fewer tokens."""
    form, tokenizer = format_of(name), tokenizer_for("gpt2", name)
    drawn = tuple(int(i) for letter in "hello" for i in tokenizer.encode(letter))
    assert len(tokenizer.encode("hello")) < len(drawn)
    asked, again = (Message("user", "Hi"),), Message("user", "And?")
    anew = form.prompt((*asked, Message("assistant", "hello"), again), tokenizer).tolist()
    kept = form.prompt((*asked, Message("assistant", "hello", tokens=drawn), again), tokenizer).tolist()
    start = len(form.prompt(asked, tokenizer))
    assert kept[: start + len(drawn)] == [*anew[:start], *drawn]
    assert kept[start + len(drawn) :] == anew[start + len(tokenizer.encode("hello")) :]
