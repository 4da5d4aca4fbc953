"""Steps leave their own answers alone, are built from specs, and their reports merge whoever counted what."""

import itertools
import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.preparing import cleaning
from gptjax.data.sources import Document
from gptjax.data.sources.markup import begins_as_html
from gptjax.errors import UserError


def step(spec: str):
    (only,) = cleaning.parse(spec)
    return only


ENGLISH = (
    "It was the best of times, it was the worst of times, and the people who lived in the old town by the river had"
    " learned to be content with what they had. Their houses were built of grey stone that came from the hills, and"
    " every spring the water rose to the doors of the lowest. Nobody complained, for nobody could remember a year"
    " when things had been different from this."
)


# ---- all steps


ALL = ["html", "unicode", "length=3", "language=en+zh", "gopher_quality(min_words=3)", "gopher_repetition", "c4(min_sentences=1)", "pii"]  # fmt: skip
PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "Ã©",
            "\r\n",
            "\n\n",
            "\x85",
            "[1",
            "]",
            "[edit]",
            "a@b.cd ",
            "8.8.8.8",
            "+49 30 1234567",
            "...",
            "The end of that is here. ",
        ]
        + ["<html>", "<body>", "<p>", "天下大势。", "&lt;", "4111 1111 1111 1111", "e\u0301", "\ufeff", "•", " # ", "{"]
    ),
)


@pytest.mark.parametrize("spec", ALL)
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES, max_size=12))
def test_a_step_leaves_its_own_answer_as_it_is(spec, pieces):
    for text in step(spec)("".join(pieces)).texts:
        if spec == "html" and begins_as_html(text):
            continue  # the text of a page that shows the source of another
        assert step(spec)(text) == ([text], {})


@pytest.mark.parametrize(
    "spec", ALL + ["c4(min_line_words=off)", "gopher_quality(max_symbols=0.25,stop_words=der+die)"]
)
def test_a_step_is_rebuilt_from_its_spec_and_travels_to_other_processes(spec):
    one = step(spec)
    assert cleaning.parse(cleaning.spec_of(one)) == [one] == [pickle.loads(pickle.dumps(one))]
    assert pickle.loads(pickle.dumps(one))(ENGLISH) == one(ENGLISH)


def test_steps_are_parted_by_commas_outside_brackets():
    steps = cleaning.parse("unicode , length=2:9,c4( min_sentences = 5 ,min_line_words=off),pii")
    assert [cleaning.spec_of(s) for s in steps] == [
        "unicode",
        "length(min_characters=2,max_characters=9)",
        "c4(min_line_words=off,min_sentences=5)",
        "pii",
    ]


BAD = {
    "": "'' is no step; expected name, name=value or name(parameter=value,...)",
    "unicode,,pii": "'' is no step",
    "unicod": "cleaning step='unicod' is not known; did you mean 'unicode'?",
    "gopher": "is not known",
    "c4(min_sentence=3)": "c4(min_sentence=...) is not known; did you mean 'min_sentences'?; it has: min_line_words",
    "c4(min_sentences=three)": "c4(min_sentences=three): expected a whole number or off",
    "c4(min_sentences=-1)": "c4(min_sentences=-1): expected a number from 0",
    "c4(min_sentences)": "c4(min_sentences): expected c4(parameter=value,...)",
    "c4(min_sentences=1,min_sentences=2)": "gives a parameter twice",
    "c4(min_sentences=1": "the brackets do not match",
    "c4)": "the brackets do not match",
    "c4=1:2:3:4": "c4=1:2:3:4 has 4 values; expected at most c4=MIN_LINE_WORDS:MIN_SENTENCES:BAD_WORDS",
    "unicode=NFKC": "unicode=NFKC has 1 values; expected at most unicode=no value",
    "c4(bad_words=/no/such.txt)": "c4(bad_words=/no/such.txt) cannot be read",
    "length": "length has no limit; give one of: min_characters",
    "length=9:2": "min_characters=9 is more than max_characters=2",
    "length=2.5": "length(min_characters=2.5): expected a whole number or off",
    "language": "language names no language; expected e.g. language=en",
    "language=eng": "language='eng' is not known; did you mean 'en'?",
    "language=en:50": "language(probability=50): expected a number from 0 to 1",
    "gopher_quality(max_bullet_lines=90)": "expected a number from 0 to 1",
    "gopher_quality(min_stop_words=9)": "expected a number from 0 to 8",
    "gopher_repetition(max_top_2=nan)": "expected a number or off",
    "pii=emails": "pii='emails' is not known; did you mean 'email'?",
}


@pytest.mark.parametrize("spec", BAD)
def test_a_bad_spec_is_one_line(spec):
    with pytest.raises(UserError) as caught:
        cleaning.parse(spec)
    assert BAD[spec] in str(caught.value) and "\n" not in str(caught.value)


# ---- reports


SPEC = "unicode,length=20,c4(min_sentences=1),pii"


def documents(n: int = 60) -> list[Document]:
    rng = random.Random(0)
    parts = [
        "The end of that is here.",
        "cafÃ© and some more of it.",
        "menu | home",
        "write to a@b.cd or to c@d.ef now.",
        "{",
        "x",
    ]
    return [Document("\n".join(rng.choices(parts, k=rng.randint(1, 4))), f"f:{i}") for i in range(n)]


def report_of(some: list[Document]) -> dict:
    cleaner = cleaning.Cleaner(cleaning.parse(SPEC), n_samples=3)
    for document in some:
        cleaner(document)
    return json.loads(json.dumps(cleaner.report))


def without_time(report: dict) -> dict:
    return {**report, "steps": [{**s, "seconds": 0} for s in report["steps"]]}


@pytest.mark.parametrize("seed", range(5))
def test_reports_merge_to_that_of_one_worker_in_any_grouping_and_order(seed):
    rng = random.Random(seed)
    whole, some = without_time(report_of(documents())), documents()
    rng.shuffle(some)
    cuts = sorted(rng.sample(range(61), 4))
    reports = [report_of(some[a:b]) for a, b in zip([0, *cuts], [*cuts, 60])]
    rng.shuffle(reports)
    a, b, c, *rest = reports
    merged = cleaning.merge([cleaning.merge([a, cleaning.merge([b, c])]), *rest])
    assert without_time(merged) == without_time(cleaning.merge(reports)) == whole
    assert without_time(cleaning.merge([cleaning.merge([]), merged])) == whole


def test_counts_are_those_of_the_documents():
    cleaner = cleaning.Cleaner(cleaning.parse(SPEC))
    kept = [piece for document in documents() for piece in cleaner(document)]
    steps = cleaner.report["steps"]
    assert steps[0]["documents"] == 60 and steps[-1]["pieces"] == len(kept)
    assert steps[0]["bytes_in"] == sum(len(d.text.encode()) for d in documents())
    assert steps[-1]["bytes_out"] == sum(len(d.text.encode()) for d in kept)
    for one, following in itertools.pairwise(steps):
        assert (following["documents"], following["bytes_in"]) == (one["pieces"], one["bytes_out"])
    for one in steps:
        assert sum(one["reasons"].values()) == one["removed"] == one["documents"] - one["pieces"]
    assert steps[-1]["edits"]["email"] == sum(d.text.count("[EMAIL]") for d in kept) > 0
    assert all(steps[i]["removed"] for i in (1, 2)) and all(steps[i]["changed"] for i in (0, 2, 3))


def test_a_split_document_gives_numbered_pieces(tmp_path):
    (tmp_path / "eval.txt").write_text("one two three")
    steps = cleaning.parse(f"decontaminate(path={tmp_path}/eval.txt,n=3,window=0,min_characters=1),length=3")
    cleaner = cleaning.Cleaner(steps)
    assert cleaner(Document("abc One two, three! defg", "f:1")) == [
        Document("abc ", "f:1 piece 1"),
        Document(" defg", "f:1 piece 2"),
    ]
    first = cleaner.report["steps"][0]
    assert (first["split"], first["changed"], first["removed"], first["pieces"]) == (1, 0, 0, 2)


def test_samples_show_the_difference():
    text = "x" * 5000 + " write to someone@example.org now"
    cleaner = cleaning.Cleaner(cleaning.parse("pii"))
    cleaner(Document(text, "f:1"))
    (sample,) = cleaner.report["steps"][0]["samples"]["email"]
    assert sample["where"] == "f:1" and sample["before"].endswith("to someone@example.org now")
    assert sample["after"].endswith("to [EMAIL] now") and len(sample["before"]) <= 240


def test_the_table_and_the_samples_can_be_read():
    report = cleaning.merge([report_of(documents(30)), report_of(documents(60)[30:])])
    lines = cleaning.table(report).splitlines()
    assert lines[0].split() == ["step", "documents", "removed", "changed", "split", "MB", "in", "MB", "out", "MB/s"]
    assert (
        max(map(len, lines)) < 130 and [line.split()[0] for line in lines if not line.startswith(" ")][1] == "unicode"
    )
    length = report["steps"][1]
    assert "  - too_few_characters" in cleaning.table(report) and f"{length['removed']}" in lines[3]
    shown = cleaning.samples(report)
    assert shown.count("before:") == sum(len(s) for step in report["steps"] for s in step["samples"].values())
    assert "## unicode" in shown and "### email: " in shown and "café" in shown


def test_a_fence_in_a_sample_does_not_end_its_block():
    cleaner = cleaning.Cleaner(cleaning.parse("length=999"))
    cleaner(Document("```\ncode\n```", "f:1"))
    assert "````text\n```\ncode\n```\n````" in cleaning.samples(cleaner.report)


def test_reports_of_different_steps_do_not_merge():
    a, b = (cleaning.Cleaner(cleaning.parse(spec)).report for spec in ("pii", "unicode"))
    with pytest.raises(UserError, match="Reports of different cleaning cannot be merged: pii and unicode"):
        cleaning.merge([a, b])
