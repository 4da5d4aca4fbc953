import pytest

from gptjax.data.chat import marking

NAMES, MARK = marking.names_of(("<|a|>", "<|ab|>", "<<|a|>>", "#")), "\ue000"


def spelled(before: str, content: str, behind: str) -> list[str]:
    """The control tokens of a content between texts of a template."""
    text = before + marking.marked(content, NAMES, MARK) + behind
    pieces = [piece for _, piece in marking.parts(text, NAMES, MARK)]
    assert "".join(piece.text for piece in pieces) == before + content + behind
    return [piece.text for piece in pieces if piece.is_control]


@pytest.mark.parametrize(
    "before, content, behind",
    [
        ("", "<|a|><|ab|> <|a|>", ""),
        ("", "<<|a|>>", ""),
        ("", "#", ""),
        ("", "x<|a", "|>"),
        ("", "<", "|a|>"),
        ("<|a", "|>", ""),
        ("<|a|", "> x", ""),
        ("<|", "a", "|>"),
        ("<|a", "b", "|>"),
        ("<", "|a|>", ">"),
        ("<", "<|a|>", ">"),
    ],
)
def test_a_content_spells_no_control_token_alone_or_with_what_stands_around_it(before, content, behind):
    assert spelled(before, content, behind) == []


def test_the_text_of_a_template_spells_them_as_ever():
    assert spelled("<|a|>", "<|a|>", "<|ab|>#") == ["<|a|>", "<|ab|>", "#"]
    assert spelled("<<|a|>>", "", "<<|a|>") == ["<<|a|>>", "<|a|>"]
    assert spelled("<|a|>", "a<", "<|a|>") == ["<|a|>", "<|a|>"]


def test_only_what_spells_one_is_marked_so_that_templates_may_look_at_contents():
    for content in ("a text", " <b> |x| ", "<think>\n</think>", "中文 > 1\n"):
        assert marking.marked(content, NAMES, MARK) == content
    assert marking.marked("  <|a|>  ", NAMES, MARK) == f"  {MARK}<|a|>  "
