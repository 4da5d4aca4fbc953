"""notebooks/sft_registry.py: what it makes of each package, and which conversations are held out. Nothing is fetched."""

import importlib
import json
import struct
import sys

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def registry():
    sys.path.insert(0, str(ROOT / "notebooks"))
    try:
        yield importlib.import_module("sft_registry")
    finally:
        sys.path.remove(str(ROOT / "notebooks"))


def texts(conversations) -> list[list[str]]:
    return [[message["content"] for message in messages] for _, messages in conversations]


def talk(*said: tuple[str, str]) -> bytes:
    messages = [[{"sender": who, "text": text}] for who, text in said]
    return json.dumps({"1": {"messages": messages}}).encode()


def test_what_one_person_writes_in_a_row_is_one_message_and_the_last_word_is_the_assistants(registry):
    content = talk(("a", "Hi"), ("a", "there"), ("b", "Hello"), ("a", "Bye"))
    (_, messages), *_ = registry.small_talk([("dataset.json", content)])
    assert messages == [{"role": "user", "content": "Hi\nthere"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize("text", ["write to ann@example.org", "call 555 123 4567", "see https://example.org"])
def test_dialogues_with_an_address_or_a_number_are_left_out(registry, text):
    assert not list(registry.small_talk([("dataset.json", talk(("a", "Hi"), ("b", text)))]))


def test_categories_with_wildcards_or_markup_are_left_out_and_files_that_are_no_xml_are_read(registry):
    content = b"""<aiml> & <category><pattern>WHAT IS AI</pattern> <template>A branch
    of science.</template></category>
    <category><pattern>WHAT IS *</pattern><template>No.</template></category>
    <category><pattern>WHO ARE YOU</pattern><template>I am <bot name="name"/></template></category>"""
    assert texts(registry.robot_answers([("a.aiml", content)])) == [["What is ai", "A branch of science."]]


def test_sections_of_the_faq_that_ask_are_read_without_their_line_breaks(registry):
    body = "1.1. What is\n    a FAQ?\n\n    Answers\n    to questions.\n\n    Many.\n\n1.2. Links\n\n    None.\n"
    chinese = "1.1.\u00a0什么是池\n    目录？\n\n\u00a0\u00a0\u00a0 一个\n    目录。\n"
    assert texts(registry.frequent_questions([("a", body.encode())])) == [
        ["What is a FAQ?", "Answers to questions.\n\nMany."]
    ]
    assert texts(registry.frequent_questions([("a", chinese.encode())])) == [["什么是池目录？", "一个目录。"]]


def catalogue(pairs: dict[str, str]) -> bytes:
    """A .mo file."""
    originals, translated, body, at = b"", b"", b"", 28 + 16 * len(pairs)
    for table in (list(pairs), list(pairs.values())):
        places = b""
        for text in table:
            data = text.encode()
            places += struct.pack("<2I", len(data), at + len(body))
            body += data + b"\0"
        originals, translated = (places, translated) if table == list(pairs) else (originals, places)
    head = b"\xde\x12\x04\x95" + struct.pack("<6I", 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + originals + translated + body


def test_translations_go_both_ways_without_placeholders_and_menu_keys(registry):
    pairs = {
        "": "meta",
        "menu\x04~Save the file": "保存文件(~S)",
        "Page %1 of": "第 %1 页",
        "Untranslated text": "Text",
    }
    assert texts(registry.translations([("a.mo", catalogue(pairs))])) == [
        ["Translate into Chinese: Save the file", "保存文件"],
        ["翻译成英文：保存文件", "Save the file"],
    ]


def test_the_same_numbers_or_words_are_never_both_trained_on_and_asked(registry, tmp_path):
    for task in registry.EXERCISES:
        made = registry.exercises(task)
        assert made == registry.exercises(task) and len({m[0]["content"] for _, m in made}) == len(made)
        counts = registry.write_source(tmp_path, task, made)
        held_out = {key for key, _ in made if registry.is_held_out(key)}
        assert counts["held_out"] == sum(key in held_out for key, _ in made) > 0
        train = (tmp_path / "train" / f"{task}.jsonl").read_text().splitlines()
        asked = {messages[0]["content"] for key, messages in made if key in held_out}
        assert len(train) == counts["train"] and not asked & {
            json.loads(line)["messages"][0]["content"] for line in train
        }


def test_arithmetic_is_right_in_both_languages(registry):
    import re

    for _, (question, answer) in registry.exercises("arithmetic"):
        a, b = map(int, re.findall(r"\d+", question["content"]))
        assert int(answer["content"]) == (a - b if "-" in question["content"] or "减" in question["content"] else a + b)


def test_a_source_without_a_conversation_is_an_error(registry, tmp_path):
    with pytest.raises(ValueError, match="no conversation"):
        registry.write_source(tmp_path, "empty", [])
