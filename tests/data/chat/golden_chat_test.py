"""Ids and masks of chat formats are those of transformers: golden files (tests/golden/chat/make_chat.py)."""

import json

import numpy as np
import pytest
from places import ROOT

from gptjax.data import tokenizers
from gptjax.data.chat import Conversation, Message, chat_format
from gptjax.data.chat.template import TemplateFormat
from gptjax.errors import UserError

FOLDER = ROOT / "tests" / "golden" / "chat"
GOLDEN = json.loads((FOLDER / "ids.json").read_text())
CONVERSATIONS = [
    Conversation(tuple(Message(**message) for message in messages), f"conversation {i}")
    for i, messages in enumerate(json.loads((FOLDER / "conversations.json").read_text()))
]
TOKENIZERS = {name: tokenizers.from_spec(f"hf:{FOLDER / name}.json") for name in ("gpt", "llama")}
ENDS = [TOKENIZERS["llama"].special[name] for name in ("<|end_of_text|>", "<|begin_of_text|>")]
TOKENIZERS["llama"] = TOKENIZERS["llama"].with_ends(*ENDS)
CASES = [(name, form) for name, forms in GOLDEN.items() for form in forms]


def made(form: str):
    return chat_format(form.replace(":", f":{FOLDER}/"))


@pytest.mark.parametrize("name, form", CASES)
def test_ids_masks_and_prompts_are_those_of_transformers(name, form):
    for conversation, golden in zip(CONVERSATIONS, GOLDEN[name][form], strict=True):
        if golden is None:
            with pytest.raises(UserError, match="^conversation .* has to have six turns at most"):
                made(form).render(conversation, TOKENIZERS[name])
            continue
        rendered = made(form).render(conversation, TOKENIZERS[name])
        assert rendered.token_L.tolist() == golden["ids"], conversation
        assert "".join(map(str, rendered.weight_L.astype(int))) == golden["mask"]
        last = max(i for i, message in enumerate(conversation.messages) if message.role == "assistant")
        prompt_L = made(form).prompt(conversation.messages[:last], TOKENIZERS[name])
        assert prompt_L.tolist() == golden["prompt"]


@pytest.mark.parametrize("name, form", [case for case in CASES if ":" not in case[1]])
def test_a_named_format_and_its_template_are_the_same(name, form):
    named, template = chat_format(form), TemplateFormat(form, chat_format(form).template)
    assert named.stop_ids(TOKENIZERS[name]) == template.stop_ids(TOKENIZERS[name])
    for conversation in CONVERSATIONS:
        ours, of_template = (each.render(conversation, TOKENIZERS[name]) for each in (named, template))
        assert ours.token_L.tolist() == of_template.token_L.tolist()
        assert np.array_equal(ours.weight_L, of_template.weight_L)


@pytest.mark.parametrize("form", ["chatml", "smollm2"])
def test_a_template_without_generation_blocks_has_the_masks_of_one_with_them(form):
    template = chat_format(form).template
    bare = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert bare != template
    for conversation in CONVERSATIONS:
        if (
            form == "smollm2" and conversation.messages[0].role == "assistant"
        ):  # no messages, no system message of its own
            continue
        expected = chat_format(form).render(conversation, TOKENIZERS["gpt"])
        found = TemplateFormat("bare", bare).render(conversation, TOKENIZERS["gpt"])
        assert found.token_L.tolist() == expected.token_L.tolist()
        assert np.array_equal(found.weight_L, expected.weight_L)
