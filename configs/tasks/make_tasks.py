"""Makes the tasks of this folder from the text that ships with gptjax; what it writes is checked in.

    python configs/tasks/make_tasks.py

Questions are of The Winter's Tale, which data.val_fraction=0.1 holds out from training on the shipped corpus; examples
for few-shot prompts are of The Tempest. Words to unscramble are of the whole corpus.
"""

import json
import pathlib
import random
import re

HERE = pathlib.Path(__file__).parent
CORPUS = HERE.parent.parent / "gptjax" / "data" / "corpus"
QUESTIONS, EXAMPLES = "winters_tale", "tempest"


def speeches(play: str) -> list[list[str]]:
    """The lines of every speech, stage directions left out."""
    text = re.sub(r"\[[^\]]*\]", "", (CORPUS / f"{play}.txt").read_text())
    found = re.findall(r"\n[A-Z][A-Z ]+\.\n((?:.+\n)+)", text)
    return [[line.strip() for line in speech.splitlines() if line.strip()] for speech in found]


def last_words(play: str, count: int, rng) -> list[dict]:
    """Speeches of two to five lines that end in a word of at least three letters."""
    found = []
    for speech in speeches(play):
        if 2 <= len(speech) <= 5 and re.search(r" ([a-z]{3,})[.?!]$", speech[-1]):
            text, _, word = "\n".join(speech)[:-1].rpartition(" ")
            found.append({"text": text, "word": word})
    return rng.sample(found, min(count, len(found)))


def next_lines(play: str, count: int, rng) -> list[dict]:
    """The beginning of a speech, and which of four lines of the play comes next."""
    long = [speech for speech in speeches(play) if len(speech) >= 4]
    lines = [line for speech in long for line in speech[2:]]
    documents = []
    for speech in rng.sample(long, min(count, len(long))):
        choices = [speech[2], *rng.sample([line for line in lines if line not in speech], 3)]
        rng.shuffle(choices)
        documents.append({"text": "\n".join(speech[:2]), "choices": choices, "label": choices.index(speech[2])})
    return documents


def scenes(play: str, words: int) -> list[dict]:
    """The scenes of a play, each cut to so many words."""
    text = (CORPUS / f"{play}.txt").read_text()
    parts = re.split(r"\nSCENE [IVX]+\. ", text)[1:]
    return [{"text": re.match(rf"(?:\s*\S+){{1,{words}}}", part).group()} for part in parts]


def scrambled(count: int, rng) -> list[dict]:
    """Frequent words of five letters and more, the letters cycled (Brown et al. 2020, section 3.9.2)."""
    text = "".join(path.read_text() for path in sorted(CORPUS.glob("*.txt")))
    frequency = {}
    for word in re.findall(r"\b[a-z]{5,8}\b", text):
        frequency[word] = frequency.get(word, 0) + 1
    words = sorted(frequency, key=lambda word: (-frequency[word], word))[: 2 * count]
    documents = []
    for word in rng.sample(words, count):
        turn = rng.randrange(1, len(word))
        documents.append({"letters": word[turn:] + word[:turn], "word": word})
    return documents


def write(name: str, documents: list[dict]) -> None:
    (HERE / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    print(f"{name}.jsonl: {len(documents)} documents")


def main() -> None:
    rng = random.Random(0)
    write("last_word", last_words(QUESTIONS, 100, rng))
    write("last_word_examples", last_words(EXAMPLES, 40, rng))
    write("next_line", next_lines(QUESTIONS, 100, rng))
    write("next_line_examples", next_lines(EXAMPLES, 40, rng))
    write("scene", scenes(QUESTIONS, 300))
    words = scrambled(160, rng)
    write("unscramble", words[:100])
    write("unscramble_examples", words[100:])


if __name__ == "__main__":
    main()
