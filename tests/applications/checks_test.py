"""What is checked in an answer: sums, citations, objects."""

import pytest

from gptjax.applications import citations, equations, fields
from gptjax.errors import UserError


@pytest.mark.parametrize(
    ("text", "value", "is_right"),
    [
        ("12 * 3 = 36", "36", True),
        ("12 x 3 = 35", "36", False),
        ("(2 + 3) × 4 = 20", "20", True),
        ("10 ÷ 4 = 2.5", "2.5", True),
        ("2 / 3 = 0.67", "0.666666666667", True),
        ("2 / 3 = 0.66", "0.666666666667", False),
        ("7 / 2 = 3", "3.5", False),
        ("1,000 - 1 = 999", "999", True),
        ("3 − 5 = −2", "-2", True),
        ("2 ** 10 = 1024", "1024", True),
    ],
)
def test_a_sum_is_compared_with_its_value(text, value, is_right):
    assert equations.sums(f"So {text}, he said.") == [equations.Sum(text, value, is_right, len(f"So {text}"))]


def test_each_wrong_sum_is_marked_once_where_it_stands():
    assert (
        equations.marked("2 * 2 = 5\n2 * 2 = 5, 1 + 1 = 2") == "2 * 2 = 5 [wrong: 4]\n2 * 2 = 5 [wrong: 4], 1 + 1 = 2"
    )


@pytest.mark.parametrize("text", ["x = 3", "page 12", "1 / 0 = 0", "a1 + 2 = 3", "12 = 12"])
def test_what_is_no_sum_is_left_alone(text):
    assert equations.sums(text) == [] and equations.marked(text) == text


@pytest.mark.parametrize(
    ("text", "sources", "unknown"),
    [
        ("A [1], B [3, 2], C [1].", (1, 3, 2), ()),
        ("A [4].", (), (4,)),
        ("A [0] [2;9]", (2,), (0, 9)),
        ("[x] (1) 1", (), ()),
    ],
)
def test_citations_are_those_of_sources_that_were_shown_and_others(text, sources, unknown):
    found = citations.cited(text, 3)
    assert found == (sources, unknown) and found.is_good == (bool(sources) and not unknown)


def test_the_first_object_of_an_answer_is_taken_wherever_it_stands():
    assert fields.object_in('Sure {not it}: {"a": {"b": "}"}} {"c": 1}') == {"a": {"b": "}"}}
    for text in ("no object", "{", '["a"]', '{"a": }'):
        with pytest.raises(UserError, match="holds no JSON object"):
            fields.object_in(text)


def test_a_schema_that_is_none_is_refused_before_anything_is_asked():
    with pytest.raises(UserError, match="it: .schema. is no JSON Schema"):
        fields.check_schema({"type": "nothing"}, "it")
