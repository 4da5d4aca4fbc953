"""What is said where something is wrong: one line, as people write."""

import ast
import dataclasses
import pathlib

import pytest

import gptjax
from gptjax import cli
from gptjax.errors import UserError, did_you_mean, make_chosen, shorten

PACKAGE = pathlib.Path(gptjax.__file__).parent


def test_the_nearest_name_ends_a_sentence_by_itself():
    assert did_you_mean("cosin", ["cosine", "linear"], ".") == "; did you mean 'cosine'?"
    assert (did_you_mean("xyz", ["cosine"], "."), did_you_mean("xyz", ["cosine"])) == (".", "")


@dataclasses.dataclass(frozen=True)
class Clipped:
    bound: float | None = 0.2
    rate: float = 1.0


def test_none_is_taken_where_a_parameter_may_be_none_and_nowhere_else():
    assert make_chosen("clipped(bound=None)", {"clipped": Clipped}, "train.loss") == Clipped(bound=None)
    assert make_chosen("clipped(bound=2)", {"clipped": Clipped}, "train.loss") == Clipped(bound=2.0)
    with pytest.raises(UserError, match="rate=None is no float"):
        make_chosen("clipped(rate=None)", {"clipped": Clipped}, "train.loss")


def test_no_message_has_a_full_stop_behind_a_question_mark():
    found = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        nears = {target.id for node in ast.walk(tree) if isinstance(node, ast.Assign) and asks(node.value)
                 for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
        for text in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
            for part, following in zip(text.values, text.values[1:]):
                question = isinstance(part, ast.FormattedValue) and (
                    asks(part.value) or (isinstance(part.value, ast.Name) and part.value.id in nears)
                )
                if question and isinstance(following, ast.Constant) and following.value.startswith("."):
                    found.append(f"{file.name}:{text.lineno}")
        assert "?." not in "".join(c.value for c in ast.walk(tree) if says(c)), file
    assert not found


def asks(node) -> bool:
    """Whether a value is a question that may be empty."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "did_you_mean"


def says(node) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and "did you mean" in node.value


def test_what_a_user_typed_is_shown_as_one_line_whatever_is_in_it():
    assert shorten("a\x1b[31m\nb\tc\0") == "a\\x1b[31m b c\\x00"
    assert shorten("日本 é") == "日本 é"


def test_a_flag_with_two_spellings_is_refused_in_the_one_that_was_typed(tmp_path, capsys):
    for typed in ("--num_samples", "--num_return_sequences"):
        for value, why in (("0", "is too small"), (str(2**40), "is too large")):
            assert cli.main(["sample", f"--workdir={tmp_path}", f"{typed}={value}"]) == 2
            assert f"{typed}={value} {why}" in capsys.readouterr().err
    assert cli.main(["export", f"--workdir={tmp_path}", "--to=", f"--out={tmp_path / 'out'}"]) == 2
    assert "--to= is empty" in capsys.readouterr().err
