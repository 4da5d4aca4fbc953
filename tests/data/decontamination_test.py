"""The passages found are those that comparing every run of words finds, and what is left has none."""

import gzip
import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.preparing import cleaning, decontamination, words
from gptjax.errors import UserError


def plain(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalnum())


def slow_spans(texts, n, text, window=0) -> list:
    """Every run of words of text against every run of every evaluation text, as strings."""

    def runs(text):
        unit = [(plain(text[a:b]), a, b) for a, b in words.unit_spans(text) if plain(text[a:b])]
        for i in range(len(unit)):
            weight = 0.0
            for j in range(i, len(unit)):
                weight += 0.5 if words.is_spaceless(unit[j][0]) else 1
                if weight >= n:
                    yield tuple(u[0] for u in unit[i : j + 1]), unit[i][1], unit[j][2]
                    break

    known = {run for evaluation in texts for run, _, _ in runs(evaluation)}
    hit = [False] * len(text)
    edges = set()
    for run, a, b in runs(text):
        if run in known:
            a, b = max(0, a - window), min(len(text), b + window)
            hit[a:b] = [True] * (b - a)
    hit = [False, *hit, False]
    edges = [i - 1 for i in range(1, len(hit)) if hit[i] != hit[i - 1]]
    return list(zip(edges[::2], edges[1::2]))


WORDS = st.lists(st.sampled_from(["a", "B", "c,", "--", "d.e", "风", "月", "\n", "A"]), max_size=40)


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS, st.integers(1, 4), st.integers(0, 9))
def test_passages_are_those_of_comparing_every_run(evaluation, document, n, window):
    texts, text = [" ".join(evaluation), "a B c d e a b"], " ".join(document)
    found = decontamination.Overlaps(texts, n).spans(text, window)
    assert found == slow_spans(texts, n, text, window)


def test_passages_that_touch_are_one():
    assert decontamination.Overlaps(["a", "b"], 1).spans("a -- b", 2) == [(0, 6)]
    assert decontamination.Overlaps(["a", "b"], 1).spans("a -- b", 1) == [(0, 2), (4, 6)]


def evaluation(tmp_path, text=None) -> str:
    (tmp_path / "eval.txt").write_text(text or " ".join(f"word{i}" for i in range(13)))
    return str(tmp_path / "eval.txt")


def step(tmp_path, **parameters):
    listed = "".join(f",{k}={v}" for k, v in parameters.items())
    return cleaning.parse(f"decontaminate(path={evaluation(tmp_path)}{listed})")[0]


FILLER = "".join(f"x{i} " for i in range(1000, 1200))  # 1200 characters


def test_thirteen_words_are_found_in_any_case_and_punctuation_and_twelve_are_not(tmp_path):
    run = [f"word{i}" for i in range(13)]
    clean = step(tmp_path)
    for shared in (" ".join(run), " ".join(run).upper(), ', "'.join(run) + "!", "\n".join(run)):
        left, reasons = clean(FILLER + shared + " " + FILLER)
        assert reasons == {"passage": 1}
        assert left == [FILLER[:-200], (" " + FILLER)[200:]]
    text = FILLER + " ".join(run[:12]) + " " + FILLER
    assert clean(text) == ([text], {})


def test_pieces_of_199_characters_go_and_of_200_stay(tmp_path):
    shared = " ".join(f"word{i}" for i in range(13))
    for extra, left in ((399, 0), (400, 1)):
        text = FILLER[1 : 1 + extra].replace(" ", "_") + " " + shared  # the space belongs to the window
        texts, reasons = step(tmp_path, window=201)(text)
        assert len(texts) == left and reasons == ({"passage": 1} if left else {"in_evaluation_text": 1})
        assert all(len(piece) == 200 for piece in texts)


@pytest.mark.parametrize("passages, gone", [(9, False), (10, True)])
def test_ten_pieces_stay_and_eleven_remove_the_document(tmp_path, passages, gone):
    shared = " ".join(f"word{i}" for i in range(13)) + " "
    texts, reasons = step(tmp_path)(FILLER + (shared + FILLER) * passages)
    assert len(texts) == (0 if gone else passages + 1)
    assert reasons == ({"too_many_pieces": 1} if gone else {"passage": passages})


def test_what_is_left_is_clean(tmp_path):
    shared = " ".join(f"word{i}" for i in range(13)) + " "
    clean = step(tmp_path)
    for piece in clean(FILLER + shared + FILLER + shared * 2 + FILLER).texts:
        assert clean(piece) == ([piece], {})


def test_chinese_is_found_by_26_characters(tmp_path):
    poem = "白日依山尽黄河入海流欲穷千里目更上一层楼床前明月光疑"
    assert len(poem) == 26
    overlaps = decontamination.Overlaps([poem], 13)
    assert overlaps.spans("前" * 9 + poem + "后") == [(9, 35)]
    assert overlaps.spans("前" * 9 + poem[:5] + "，" + poem[5:]) == [(9, 36)]
    assert overlaps.spans("前" * 9 + poem[:25]) == []


def test_texts_of_files_and_of_all_strings_of_a_line_count(tmp_path):
    record = {"q": "one two", "choices": ["three", {"text": "four"}], "label": 3}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n\n" + json.dumps("five") + "\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'["six"]'))
    (tmp_path / "c.txt").write_text("seven")
    (tmp_path / "d.txt.xz").write_bytes(lzma.compress(b"eight"))
    (tmp_path / "e.jsonl").write_text('{"n": ' + "9" * 5000 + ', "q": ' + "[" * 900 + '"nine"' + "]" * 900 + "}")
    expected = ["one two\nthree\nfour", "five", "six", "seven", "eight", "nine"]
    assert decontamination.load_texts(str(tmp_path)) == expected
    overlaps = decontamination.Overlaps(decontamination.load_texts(str(tmp_path)), 2)
    assert overlaps.too_short == 5
    assert overlaps.spans("three four five six") == [(0, 10)]


BAD = {
    "": "has no path; expected decontaminate=PATH of evaluation texts",
    "={}/none": "none does not exist; expected a file, a folder or a glob",
    "={}/empty": "is a folder without *.txt or *.jsonl",
    "={}/blank.txt": "holds no text; expected .txt or .jsonl files",
    "={}/short.txt": "holds no text of 13 words, so nothing could be found; give a smaller n",
    "={}/short.txt:x": "decontaminate(n=x): expected a whole number",
    "={}/short.txt:0": "expected n and max_pieces of at least 1",
    "={}/bad.jsonl": "bad.jsonl:2 is not JSON: Expecting value at column 2",
    "={}/latin.txt": "latin.txt cannot be read ('utf-8' codec",
    "={}/cut.jsonl.gz": "cut.jsonl.gz is a damaged or truncated gzip file (it ends too early); fetch it again",
    "={}/flipped.jsonl.gz": "flipped.jsonl.gz is a damaged or truncated gzip file (Error -3",
    "={}/deep.jsonl": "deep.jsonl:1 is not JSON that can be read: it nests too deeply",
    "={}/a.zip": "a.zip is a zip archive; unpack it",
    "(file={}/short.txt)": "decontaminate(file=...) is not known; it has: path, n,",
}


@pytest.mark.parametrize("spec", BAD)
def test_bad_evaluation_texts_are_one_line(tmp_path, spec):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("only five words are here")
    (tmp_path / "bad.jsonl").write_text('"a"\n[\n')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'"a"')[:-9])
    (tmp_path / "flipped.jsonl.gz").write_bytes(gzip.compress(b'"a"')[:10] + b"\xff" * 20)
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError) as caught:
        cleaning.parse("decontaminate" + spec.format(tmp_path))
    assert BAD[spec] in str(caught.value) and "\n" not in str(caught.value)
