"""Each rule of each step on both sides of its threshold, in languages with and without spaces."""

import re

import pytest

from gptjax.data.preparing import cleaning
from gptjax.data.preparing.cleaning import gopher
from gptjax.data.sources.markup import begins_as_html


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


# ---- html, unicode


PAGE = f"""<!DOCTYPE html><html><head><title>The town</title><script>var tracker = 1;</script></head><body>
<nav><a href="/">Home</a> <a href="/shop">Shop</a></nav><article><h1>The town</h1><p>{ENGLISH}</p><p>{ENGLISH[:200]}</p>
</article><footer><a href="/terms">Terms</a></footer></body></html>"""


def test_a_page_becomes_its_text_without_navigation_and_scripts():
    (text,), reasons = step("html")(PAGE)
    assert reasons == {"page": 1} and ENGLISH in text
    assert "tracker" not in text and "Shop" not in text and "Terms" not in text and "<" not in text


LINE = "The harbour was quiet in the morning, and the boats lay still on the water."
LAX = {  # html, head and body are optional tags, and browsers ask for none of the order
    "no html": f"<!DOCTYPE html><title>T</title><p>{LINE}</p>",
    "fragment": f"<div class=post><p>{LINE}</p></div>",
    "tag before html": f"<link rel=stylesheet href=a.css><html><body><p>{LINE}</p></body></html>",
    "long comment": f"<!DOCTYPE html><!--{'x' * 2100}--><html><body><p>{LINE}</p></body></html>",
    "comment first": f"<!-- {'a saved page ' * 300}-->\n<body><p>{LINE}</p>",
    "one paragraph": f"<p>{LINE}",
    "text alone": LINE,
}


@pytest.mark.parametrize("name", LAX)
def test_what_a_source_says_is_html_is_not_asked_again_by_its_looks(name):
    page, clean = LAX[name], step("html")
    assert clean(page, is_html=True).texts == [LINE]
    assert clean(page, is_html=False) == ([page], {})
    assert step("html=all")(page).texts == [LINE]
    assert clean(page).texts == [page if name in ("fragment", "one paragraph", "text alone") else LINE]


BEGINS = {
    "\n<?xml version='1.0'?>\n<html xmlns='x'>": True,
    "<BODY>": True,
    "\ufeff<!doctype HTML>": True,
    "<!-- a --> <!-- b --><head/>": True,
    "<meta charset=utf-8>": True,
    "<title>T</title>": True,
    "<style>p {}</style><body>": True,
    "<script>export default {}</script><template>": False,  # a component of Vue
    "<?xml?><rss>": False,
    "<!doctype svg>": False,
    "<!-- a comment without an end <html>": False,
    "<header>": False,
    "<htmlx>": False,
    "A text, then <html>": False,
}


@pytest.mark.parametrize("text", BEGINS)
def test_where_nobody_says_what_a_text_is_its_beginning_does(text):
    assert begins_as_html(text) is BEGINS[text]


def test_an_empty_page_goes_and_text_that_speaks_of_tags_stays():
    assert reason("html", "<html><head><title></title></head><body></body></html>") == "no_text"
    assert step("html")("", is_html=True) == ([], {"no_text": 1})
    for text in (ENGLISH, "Use <html> and <body> tags.", "<p>a fragment</p>", "<b>x</b> <body>", ""):
        assert not begins_as_html(text) and reason("html", text) is None


@pytest.mark.parametrize(
    "broken, mended",
    [
        ("cafÃ© au lait", "café au lait"),
        ("âœ” No problems", "✔ No problems"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("\ufeffstart\x00 of \x1b[36mtext", "start of text"),
        ("e\u0301", "é"),
        ("Â\ufffdaa\r\x80a", "\ufffdaa\n€a"),  # ftfy needs a second round once the line end is mended
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
    assert reason("language=en", ENGLISH[:200] + german * 100) == "found_de"
    parts = (ENGLISH * 2)[:700], german * 500, (ENGLISH * 3)[:720], german * 500, (ENGLISH * 2)[:700]
    assert reason("language=en", "".join(parts)) is None  # only its start, middle and end are read


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
        (LINES[:-1] + "[1[2]]?", LINES, {"citation": 2}),
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
