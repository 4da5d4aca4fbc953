import re

import pytest
from etils import epath
from places import ROOT

from gptjax.storage import writing


@pytest.fixture
def file(tmp_path):
    return epath.Path(tmp_path) / "a.json"


def test_a_file_is_replaced_by_text_or_bytes_and_nothing_else_is_left(file):
    writing.replace_whole(file, "older and longer\n")
    writing.replace_whole(file, "new\n")
    assert file.read_bytes() == b"new\n"
    writing.replace_whole(file, b"\0\xff")
    assert file.read_bytes() == b"\0\xff" and [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_a_write_that_fails_leaves_the_file_that_was_there(file):
    writing.replace_whole(file, "old")
    with pytest.raises(UnicodeEncodeError):
        writing.replace_whole(file, "half \ud800")
    assert file.read_text() == "old"


def test_the_next_write_takes_over_what_a_killed_one_left(file):
    writing.partial(file).write_text("torn and longer than what follows")
    writing.replace_whole(file, "whole")
    assert file.read_text() == "whole" and not writing.partial(file).exists()


def test_nothing_else_of_gptjax_writes_a_file_beside_and_moves_it():
    written = [file for file in (ROOT / "gptjax").rglob("*.py") if re.search(r"\.partial[\"']", file.read_text())]
    assert {str(file.relative_to(ROOT)) for file in written} <= {
        "gptjax/storage/writing.py",
        "gptjax/commands/study_run.py",
    }
