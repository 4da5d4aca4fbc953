import json

import pytest
from places import ROOT

from gptjax.data import tokenizers
from gptjax.data.chat import Conversation, Message, chat_format, kinds
from gptjax.data.chat.template import TemplateFormat
from gptjax.errors import UserError

MESSAGES = (Message("user", "q"), Message("assistant", "a"))
CHATML = chat_format("chatml").template
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>\n{% endfor %}"
TOKENIZER = tokenizers.from_spec(f"hf:{ROOT / 'tests' / 'golden' / 'chat' / 'gpt.json'}")


def render(template: str, messages=MESSAGES, variables=None):
    form = TemplateFormat("mine", template, variables)
    return form.render(Conversation(tuple(messages), "f:1"), TOKENIZER)


def text_of(template: str, **options) -> str:
    return TOKENIZER.decode(render(template, **options).token_L, special=True)


BLOCKED = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    "template, message",
    [
        ("{% for m in messages %}", "f:1: the chat template is not a Jinja template: Unexpected end of template"),
        (
            "{{ raise_exception('no tools here') }}",
            "f:1: the chat template does not take these messages: no tools here",
        ),
        (
            "{{ messages[0].nothing + 'x' }}",
            "f:1: the chat template does not take these messages: 'dict object' has no",
        ),
        ("{{ messages.append(1) }}", "f:1: the chat template does not take these messages:"),
        ("{{ ''.__class__.__mro__ }}", "f:1: the chat template does not take these messages: access to attribute"),
        ("{{ messages[0].content }}", "writes what stands before message 2 otherwise when more follow"),
        ("{% generation %}x{% endgeneration %}" + BLOCKED, "has 2 {% generation %} blocks for 1 assistant's messages"),
    ],
)
def test_what_a_template_does_not_write_is_one_line_that_begins_with_the_record(template, message):
    with pytest.raises(UserError) as error:
        render(template)
    said = str(error.value)
    assert said.startswith("f:1: ") and message in said and "\n" not in said


def test_a_template_that_writes_history_otherwise_says_what_to_add():
    """As templates that leave out the reasoning of earlier answers."""
    last_only = PLAIN.replace("{{ m.content }}", "{{ m.content if loop.last else '...' }}")
    last_only += "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    with pytest.raises(UserError, match="put {% generation %} ... {% endgeneration %} around the answer"):
        render(last_only, messages=MESSAGES * 2)


def test_a_template_sees_what_transformers_shows_it():
    assert text_of(BLOCKED + "{{ tools is none }}{{ bos_token is defined }}", variables=()) == "aTrueFalse"
    assert text_of(BLOCKED + "{{ bos_token }}", variables=(("bos_token", "<|im_end|>"),)) == "a<|im_end|>"
    assert text_of(BLOCKED + "{{ eos_token }}") == "a<|endoftext|>"
    assert text_of(BLOCKED + "{{ {'b': '<é>', 'a': [1]} | tojson }}") == 'a{"b": "<é>", "a": [1]}'
    assert text_of(BLOCKED + "{{ {'b': 1} | tojson(indent=2) }}") == 'a{\n  "b": 1\n}'
    assert len(text_of(BLOCKED + "{{ strftime_now('%Y') }}")) == 5


BLOCK = "{% generation %}{{ m.content }}{% endgeneration %}"
IN_MACRO = (
    "{% macro turn(m) %}"
    + BLOCK
    + "{% endmacro %}{% for m in messages %}said: "
    + ("{{ turn(m) if m.role == 'assistant' else m.content }}\n{% endfor %}")
)
IN_SET = (
    "{% for m in messages %}{% set x %}{% if m.role == 'assistant' %}"
    + BLOCK
    + ("{% else %}{{ m.content }}{% endif %}{% endset %}said: {{ x }}\n{% endfor %}")
)


@pytest.mark.parametrize("template", [IN_MACRO, IN_SET], ids=["macro", "set"])
def test_a_block_inside_of_a_macro_or_a_set_counts_where_it_is_written(template):
    token_L, weight_L = render(template, messages=MESSAGES * 2)
    assert TOKENIZER.decode(token_L) == "said: q\nsaid: a\n" * 2
    assert TOKENIZER.decode(token_L[weight_L > 0]) == "aa"


def test_stop_ids_are_the_control_token_behind_an_answer_and_end_of_text():
    special = TOKENIZER.special
    assert TemplateFormat("mine", CHATML).stop_ids(TOKENIZER) == (special["<|im_end|>"], special["<|endoftext|>"])
    assert TemplateFormat("mine", PLAIN.replace("<|im_end|>", "")).stop_ids(TOKENIZER) == (special["<|endoftext|>"],)


def test_a_template_without_the_answer_is_refused_where_its_end_is_looked_for():
    with pytest.raises(UserError, match="'mine' does not write the text of an answer; write message.content"):
        TemplateFormat("mine", "hello").stop_ids(TOKENIZER)


# ---- files


def ids(form) -> list[int]:
    return form.render(Conversation(MESSAGES, "f:1"), TOKENIZER).token_L.tolist()


def test_a_template_is_read_from_a_file_a_config_or_a_folder(tmp_path):
    (tmp_path / "a.jinja").write_text(CHATML)
    tokens = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "pad_token": None}
    config = tokens | {"chat_template": "{{ bos_token }}" + CHATML}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    of_file, of_config, of_folder = (
        chat_format(f"template:{path}") for path in (tmp_path / "a.jinja", tmp_path / "tokenizer_config.json", tmp_path)
    )
    assert ids(of_file) == ids(chat_format("chatml")) and of_file.symbols == ("<|im_start|>", "<|im_end|>")
    assert ids(of_config) == ids(of_folder) == [TOKENIZER.special["<|im_start|>"], *ids(of_file)]
    assert (
        dict(of_folder.variables) == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        and of_folder.symbols == ()
    )
    (tmp_path / "chat_template.jinja").write_text(CHATML)  # which transformers reads first
    assert ids(chat_format(f"template:{tmp_path}")) == ids(of_file)
    named = config | {"chat_template": [{"name": "tool_use", "template": ""}, {"name": "default", "template": CHATML}]}
    (tmp_path / "named.json").write_text(json.dumps(named))
    assert ids(chat_format(f"template:{tmp_path / 'named.json'}")) == ids(of_file)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.jinja", None, "there is no .*missing.jinja; expected a Jinja file"),
        ("a.json", "{}", "a.json has no chat_template; expected one"),
        ("a.json", "[", "a.json is not a JSON object"),
        ("a.json", '{"chat_template": 3}', "chat_template is a int; expected a text"),
        ("a.json", '{"chat_template": [{"name": "rag", "template": "x"}]}', "has the templates rag; expected one named default"),
        ("a.jinja", "{% if %}", "a.jinja is not a Jinja template"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_read_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"^data.chat='template:.*': .*{message}"):
        chat_format(f"template:{tmp_path / name}")


def test_a_run_keeps_its_template(tmp_path):
    form = TemplateFormat("template:gone.jinja", CHATML, (("bos_token", "<|im_end|>"),))
    kinds.keep(form, tmp_path)
    assert kinds.of_run("template:gone.jinja", tmp_path) == TemplateFormat(
        f"template:{tmp_path}", CHATML, form.variables
    )
    assert kinds.of_run("gptjax", tmp_path) is chat_format("gptjax")
    kinds.keep(chat_format("gptjax"), tmp_path / "no folder")  # there is nothing to keep
    assert kinds.of_run(None, tmp_path / "no folder") is None


def test_ids_are_those_of_transformers_now():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    file = ROOT / "tests" / "golden" / "chat" / "gpt.json"
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(file)))
    messages = [message._asdict() for message in MESSAGES * 2]
    for template in (CHATML, chat_format("smollm2").template):
        found = theirs.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        rendered = render(template, messages=MESSAGES * 2)
        assert rendered.token_L.tolist() == found["input_ids"]
        assert rendered.weight_L.tolist() == found["assistant_masks"]
