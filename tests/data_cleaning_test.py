"""Each rule on both sides of its threshold, steps that leave their own answers alone, reports that merge."""

import itertools
import json
import pickle
import random
import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data import cleaning, words
from gptjax.data.cleaning import gopher
from gptjax.data.cleaning.repair import is_html
from gptjax.errors import UserError


class Document(NamedTuple):
    text: str
    where: str


def step(spec: str):
    (only,) = cleaning.parse(spec)
    return only


def reason(spec: str, text: str) -> str | None:
    """Why the step removes the text; None: it stays as it is."""
    texts, reasons = step(spec)(text)
    if texts:
        assert texts == [text]
        return None
    (why,) = reasons
    return why


SANGUO = (
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。汉朝自高祖斩白蛇"
    "而起义，一统天下，后来光武中兴，传至献帝，遂分为三国。推其致乱之由，殆始于桓、灵二帝。桓帝禁锢善类，崇信宦官。及"
    "桓帝崩，灵帝即位，大将军窦武、太傅陈蕃共相辅佐。时有宦官曹节等弄权，窦武、陈蕃谋诛之，机事不密，反为所害，中涓自此愈横。"
)
ENGLISH = (
    "It was the best of times, it was the worst of times, and the people who lived in the old town by the river had"
    " learned to be content with what they had. Their houses were built of grey stone that came from the hills, and"
    " every spring the water rose to the doors of the lowest. Nobody complained, for nobody could remember a year"
    " when things had been different from this."
)


# ---- words


def test_two_characters_of_a_script_without_spaces_are_a_word():
    assert words.count_words("one two  three\n") == 3
    assert words.count_words("天下大势") == 2
    assert words.count_words("the 天下 of Romance") == 4
    assert words.count_words("สวัสดี") == 2  # four letters, two of them with a vowel above
    assert words.count_words("안녕 하세요") == 2  # Korean has spaces


def test_a_text_is_spaceless_if_most_letters_are():
    assert words.is_spaceless(SANGUO) and words.is_spaceless("天下a")
    assert not words.is_spaceless("天a") and not words.is_spaceless(ENGLISH) and not words.is_spaceless("Привет, мир é")


@given(st.lists(st.sampled_from(["a", "bc", "风", "月"]), max_size=30), st.integers(1, 4))
def test_windows_are_the_shortest_runs_of_n_words_and_equal_ones_have_equal_hashes(unit, n):
    weight = words.unit_weights(unit)
    size = [0.5 if u in "风月" else 1.0 for u in unit]
    slow = []
    for i in range(len(unit)):
        stops = [j for j in range(i + 1, len(unit) + 1) if sum(size[i:j]) >= n]
        slow += [(i, stops[0])] if stops else []
    first, stop = words.windows(weight, len(unit), n)
    assert list(zip(first.tolist(), stop.tolist())) == slow
    number = {u: i for i, u in enumerate(unit)}
    hashes = words.window_hashes(np.array([number[u] for u in unit], np.int64), first, stop)
    for (x, (a, b)), (y, (i, j)) in itertools.combinations(enumerate(slow), 2):
        assert (hashes[x] == hashes[y]) == (unit[a:b] == unit[i:j])


# ---- html, unicode


PAGE = f"""<!DOCTYPE html><html><head><title>The town</title><script>var tracker = 1;</script></head><body>
<nav><a href="/">Home</a> <a href="/shop">Shop</a></nav><article><h1>The town</h1><p>{ENGLISH}</p><p>{ENGLISH[:200]}</p>
</article><footer><a href="/terms">Terms</a></footer></body></html>"""


def test_a_page_becomes_its_text_without_navigation_and_scripts():
    (text,), reasons = step("html")(PAGE)
    assert reasons == {"page": 1} and ENGLISH in text
    assert "tracker" not in text and "Shop" not in text and "Terms" not in text and "<" not in text


def test_an_empty_page_goes_and_text_that_speaks_of_tags_stays():
    assert reason("html", "<html><head><title></title></head><body></body></html>") == "no_text"
    for text in (ENGLISH, "Use <html> and <body> tags.", "<p>a fragment</p>", "<b>x</b> <body>", ""):
        assert not is_html(text) and reason("html", text) is None
    assert is_html("\n<?xml version='1.0'?>\n<html xmlns='x'>") and is_html("<BODY>") and not is_html("<?xml?><rss>")


@pytest.mark.parametrize(
    "broken, mended",
    [
        ("cafÃ© au lait", "café au lait"),
        ("âœ” No problems", "✔ No problems"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("\ufeffstart\x00 of \x1b[36mtext", "start of text"),
        ("e\u0301", "é"),
        ("\ud83d\ude00 and \ud83d", "😀 and \ufffd"),
    ],
)
def test_unicode_mends_what_was_decoded_wrongly(broken, mended):
    assert step("unicode")(broken) == ([mended], {"repaired": 1})


def test_unicode_leaves_what_an_author_may_have_meant():
    for text in (
        "“curly” ‘quotes’ …",
        "ﬁne ligature",
        "ＦＵＬＬ　ｗｉｄｔｈ",
        "x² ½ ™",
        "&amp; &lt;b&gt;",
        SANGUO,
        "tab\tnew\n",
    ):
        assert step("unicode")(text) == ([text], {})
    assert reason("unicode", "\x00\x01\x02") == "no_text"


# ---- length, language


def test_length_keeps_its_limits():
    assert [reason("length=3:5", "x" * n) for n in (2, 3, 5, 6)] == [
        "too_few_characters",
        None,
        None,
        "too_many_characters",
    ]
    spec = "length(min_words=2,max_words=3)"
    assert [reason(spec, "ab " * n) for n in (1, 2, 3, 4)] == ["too_few_words", None, None, "too_many_words"]
    assert [reason(spec, "天" * n) for n in (3, 4, 6, 7)] == ["too_few_words", None, None, "too_many_words"]


def test_language_keeps_those_wanted():
    german = "Das ist ein deutscher Text über die Geschichte der Stadt und ihrer Einwohner."
    assert [reason("language=en", text) for text in (ENGLISH, german, SANGUO)] == [None, "found_de", "found_zh"]
    assert [reason("language=en+zh:0.5", text) for text in (ENGLISH, german, SANGUO)] == [None, "found_de", None]
    assert reason("language=en", "12 + 34 = ...") == "no_letters"
    assert reason("language(codes=en,probability=1)", "the la") == "uncertain"


# ---- gopher_quality: 100 words of 4 letters are a text that passes; each rule is then driven over its edge


def text_of(n: int, word: str = "tree") -> str:
    return " ".join(["the", "that", *[word] * (n - 2)])


GOOD = text_of(100)


@pytest.mark.parametrize(
    "text, why",
    [
        (text_of(50), None),
        (text_of(49), "too_few_words"),
        (text_of(100_000), None),
        (text_of(100_001), "too_many_words"),
        ("the of " + "aaa " * 99, "word_length"),  # 302 characters of 101 words
        ("the with " + "aaa " * 98, None),
        ("the to " + "aa " * 98, "word_length"),
        ("the with " + "abcdefghij " * 97 + "abcdefghijklmnopqrstu", None),  # 998 of 100
        ("the with " + "abcdefghij " * 97 + "abcdefghijklmnopqrstuvwxyz", "word_length"),  # 1003
        (GOOD.replace("tree", "#tree", 10), None),
        (GOOD.replace("tree", "#tree", 11), "hash_signs"),
        (GOOD.replace("tree", "tree...", 5).replace("tree ", "tree… ", 5), None),
        (GOOD.replace("tree", "tree...", 6).replace("tree ", "tree… ", 5), "ellipses"),
        (GOOD.replace("tree", "1234", 20), None),
        (GOOD.replace("tree", "1234", 21), "not_alphabetic"),
        (GOOD.replace("that", "The,"), "stop_words"),  # twice the same word
        (GOOD.replace("that", "(With)"), None),
        ("\n".join(["- " + text_of(10)] * 9 + [text_of(10)]), None),
        ("\n".join(["- " + text_of(10)] * 19 + [text_of(10)]), "bullet_lines"),
        ("\n".join([text_of(20) + " …"] * 3 + [text_of(20)] * 7), None),
        ("\n".join([text_of(20) + " …"] * 4 + [text_of(20)] * 6), "ellipsis_lines"),
    ],
)
def test_gopher_quality_on_both_sides_of_each_threshold(text, why):
    assert reason("gopher_quality", text) == why


def test_gopher_quality_judges_chinese_by_characters_and_not_by_english_words():
    assert reason("gopher_quality", SANGUO) is None
    assert reason("gopher_quality", SANGUO[:40]) == "too_few_words"
    assert reason("gopher_quality", SANGUO.replace("，", "，#")) == "hash_signs"
    assert reason("gopher_quality", "天地玄黄 12 " * 30) is None  # 120 characters and 30 numbers: 80%
    assert reason("gopher_quality", "天地玄黄 12 " * 30 + "13") == "not_alphabetic"


def test_gopher_quality_takes_the_stop_words_of_other_languages():
    german = "Das Haus an der alten Brücke und die Menschen " * 8
    assert reason("gopher_quality", german) == "stop_words"
    assert reason("gopher_quality(stop_words=der+und+die)", german) is None
    assert reason("gopher_quality(min_stop_words=off)", german) is None


# ---- gopher_repetition


def distinct(n: int, first: int = 0) -> list[str]:
    return [f"{i:04d}" for i in range(first, first + n)]


@pytest.mark.parametrize(
    "only, text, why",
    [
        ("max_lines", "\n".join(distinct(7) + ["0000"] * 3), None),
        ("max_lines", "\n".join(distinct(6) + ["0000"] * 3), "repeated_lines"),  # 3 of 9
        ("max_line_characters", "\n".join(distinct(8) + ["0000"] * 2), None),
        ("max_line_characters", "\n".join(distinct(7) + ["0000"] * 2), "repeated_line_characters"),
        ("max_paragraphs", "\n\n".join(distinct(7) + ["0000"] * 3), None),
        ("max_paragraphs", "\n\n".join(distinct(6) + ["0000"] * 3), "repeated_paragraphs"),
        ("max_paragraph_characters", "\n \n".join(distinct(8) + ["0000"] * 2), None),
        ("max_paragraph_characters", "\n \n".join(distinct(7) + ["0000"] * 2), "repeated_paragraph_characters"),
    ],
)
def test_repeated_lines_and_paragraphs_on_both_sides(only, text, why):
    names = [name for name in gopher.GopherRepetition.__dataclass_fields__ if name != only]
    spec = f"gopher_repetition({','.join(f'{name}=off' for name in names)})"
    assert reason(spec, text) == why


def test_the_most_frequent_n_gram_counts_its_characters_once():
    assert gopher.Grams("a b c a b d").top(2) == 4 / 6
    assert gopher.Grams("a a a a bb").top(2) == 4 / 6  # three overlapping occurrences cover four characters
    assert gopher.Grams("a b c d").top(2) == 0
    assert gopher.Grams("a b a b ccc ddd ccc ddd").top(2) == 12 / 16  # of equally frequent ones the longest
    assert gopher.Grams("").top(2) == gopher.Grams("").repeated(5) == 0


def test_repeated_n_grams_are_those_behind_the_first():
    text = "a b c d e x a b c d e y"
    assert gopher.Grams(text).repeated(5) == 5 / 12
    assert gopher.Grams(text).repeated(6) == 0


@pytest.mark.parametrize("n, limit", [(5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)])
def test_repeated_n_grams_on_both_sides_of_table_a1(n, limit):
    """n words occur twice in a text of n / limit words or one less; all words have four characters."""
    others = [name for name in gopher.GopherRepetition.__dataclass_fields__ if name != f"max_repeated_{n}"]
    spec = f"gopher_repetition({','.join(f'{name}=off' for name in others)})"
    fits = -(-n * 100 // round(limit * 100))
    for total, why in ((fits, None), (fits - 1, f"repeated_{n}_grams")):
        text = " ".join(distinct(total - n) + distinct(n))
        assert reason(spec, text) == why


@pytest.mark.parametrize("n, limit", [(2, 0.20), (3, 0.18), (4, 0.16)])
def test_top_n_grams_on_both_sides_of_table_a1(n, limit):
    fits = -(-2 * n * 100 // round(limit * 100))
    for total, why in ((fits, None), (fits - 1, f"top_{n}_gram")):
        gram = [chr(97 + i) * 4 for i in range(n)]
        text = " ".join(gram + distinct(total - 2 * n) + gram)
        others = [name for name in gopher.GopherRepetition.__dataclass_fields__ if name != f"max_top_{n}"]
        assert reason(f"gopher_repetition({','.join(f'{name}=off' for name in others)})", text) == why


def test_chinese_prose_is_not_repetitive_and_a_refrain_is():
    assert reason("gopher_repetition", SANGUO) is None and reason("gopher_repetition", ENGLISH) is None
    assert reason("gopher_repetition", "天下大势分久必合" * 6) == "top_2_gram"


# ---- c4


LINES = "The first sentence stands here. The second one is here too! And is there a third?"


@pytest.mark.parametrize(
    "text, left, reasons",
    [
        (LINES, LINES, {}),
        (LINES + "\nHome | About | Contact us | Help", LINES, {"line_unfinished": 1}),
        (LINES + "\nOnly four words here.", LINES, {"line_short": 1}),
        (LINES + "\nThere are five words here.", LINES + "\nThere are five words here.", {}),
        (LINES + "\nPlease enable JavaScript to see this page.", LINES, {"line_javascript": 1}),
        (LINES + "\nBy using this site you accept our Cookie Policy.", LINES, {"line_policy": 1}),
        (LINES + '\n\nHe said "there it is again."', LINES + '\nHe said "there it is again."', {"line_empty": 1}),
        (LINES[:-1] + "[1][citation needed]?", LINES, {"citation": 2}),
        (
            LINES + "\n天下大势分久必合。\n天下大势，分久必合久分。",
            LINES + "\n天下大势，分久必合久分。",
            {"line_short": 1},
        ),
    ],
)
def test_c4_lines(text, left, reasons):
    assert step("c4")(text) == ([left], reasons)


def test_c4_pages():
    assert reason("c4", LINES.replace("! And", " and")) == "too_few_sentences"
    assert reason("c4", LINES + " Lorem Ipsum dolor.") == "lorem_ipsum"
    assert reason("c4", LINES + " if (x) { y }.") == "curly_bracket"
    assert reason("c4", SANGUO) is None
    assert reason("c4", SANGUO[:36]) == "too_few_sentences"
    assert reason("c4(min_sentences=4)", LINES) == "too_few_sentences"


def test_c4_bad_words_are_whole_words_of_the_list_given(tmp_path):
    (tmp_path / "bad.txt").write_text("third\nfirst  sentence\n\n坏话\n")
    spec = f"c4(bad_words={tmp_path}/bad.txt)"
    assert reason(spec, LINES) == "bad_word"
    assert reason(spec, LINES.replace("third", "thirdly")) is None
    assert reason(spec, LINES.replace("third", "tome") + "这是坏话吗？") == "bad_word"


# ---- pii


@pytest.mark.parametrize(
    "text, clean",
    [
        ("Write to jane.doe+x@mail.example.co.uk.", "Write to [EMAIL]."),
        ("<bob_1@a-b.org>, x@y", "<[EMAIL]>, x@y"),
        ("from 81.2.69.142:80 to 192.168.0.1, 127.0.0.1 and 10.1.2.3", "from [IP]:80 to 192.168.0.1, 127.0.0.1 and 10.1.2.3"),
        ("not 256.1.1.1 or 1.2.3.4.5 or v8.8.8.8", "not 256.1.1.1 or 1.2.3.4.5 or v8.8.8.8"),
        ("[2a00:1450:4001:81b::200e]", "[[IP]]"),
        ("2001:db8::1 and std::vector and 10:11:12", "2001:db8::1 and std::vector and 10:11:12"),
        ("call +49 30 1234567, (202) 555-0143 or 202-555-0143", "call [PHONE], [PHONE] or [PHONE]"),
        ("+1.202.555.0143", "[PHONE]"),
        ("1-2-3, 555-0143, 2021-05-06, 1234567890, +5 to +10, 100-200-3000", "1-2-3, 555-0143, 2021-05-06, 1234567890, +5 to +10, 100-200-3000"),
        ("4111 1111 1111 1111 and 4111111111111111", "[CARD] and [CARD]"),
        ("4111 1111 1111 1112 and 4111 1111-1111 1111", "4111 1111 1111 1112 and 4111 1111-1111 1111"),
        ("3782 822463 10005", "[CARD]"),
        ("DE89 3704 0044 0532 0130 00, GB82WEST12345698765432", "[IBAN], [IBAN]"),
        ("+49 30 1234567+49 30 1234567", "[PHONE][PHONE]"),
        ("DE88 3704 0044 0532 0130 00", "DE88 3704 0044 0532 0130 00"),
    ],
)  # fmt: skip
def test_personal_data_is_told_by_form_and_check_digits(text, clean):
    texts, reasons = step("pii")(text)
    assert texts == [clean]
    assert sum(reasons.values()) == len(re.findall(r"\[[A-Z]+\]", clean))
    assert step("pii")(clean) == ([clean], {})


def test_pii_of_chosen_kinds_leaves_the_others():
    text = "a@b.cd 81.2.69.142 (202) 555-0143"
    assert step("pii=email+phone")(text) == (["[EMAIL] 81.2.69.142 [PHONE]"], {"email": 1, "phone": 1})


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
        if spec == "html" and is_html(text):
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
