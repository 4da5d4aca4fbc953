"""A place that cannot be written is one line before the work, and nothing is left where one looked."""

import pytest

from gptjax import cli
from gptjax.errors import UserError
from gptjax.planning import plan_docs
from gptjax.storage import outputs


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper", "/proc/report"):
        with pytest.raises(UserError, match=f"--out={place} cannot be written: .*; use another folder"):
            outputs.check_folder("--out", str(place))
    outputs.check_folder("--out", str(tmp_path / "new" / "folder"))
    outputs.check_folder("--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"


def test_a_file_is_tried_beside_itself_and_kept_as_it_is(tmp_path):
    (tmp_path / "old.png").write_text("kept")
    outputs.check_file("--out", str(tmp_path / "old.png"))
    outputs.check_file("--out", str(tmp_path / "new.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"] and (tmp_path / "old.png").read_text() == "kept"
    with pytest.raises(UserError, match="cannot be written: No such file or directory; use a folder that exists"):
        outputs.check_file("--out", str(tmp_path / "none" / "new.png"))
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        outputs.check_file("--out", str(tmp_path))


def test_folders_to_be_made_are_refused_by_the_name_of_their_flag(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("a few words\n" * 10)
    prepare = ["prepare", f"--source=text:{text}", "--tokenizer=bytes", f"--out={text}/deeper"]
    imported = ["import", "--from=hf", str(tmp_path), f"--workdir={text}/deeper"]
    for command, flag in ((prepare, "--out"), (imported, "--workdir")):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert f"{flag}={text}/deeper cannot be written: Not a directory" in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_commands_that_work_for_minutes_say_so_at_once(tmp_path, capsys):
    place = tmp_path / "none" / "picture.png"
    text = tmp_path / "text.txt"
    text.write_text("a few words\n" * 10)
    coordcheck = ["coordcheck", "--config=configs/quickstart.py", f"--out={place}"]
    tokenizer = ["tokenizer", "train", f"--source=text:{text}", "--vocab_size=400", f"--out={text}/deeper"]
    for command, where in ((coordcheck, place), (tokenizer, f"{text}/deeper")):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert f"--out={where} cannot be written: " in error and len(error.splitlines()) == 1
    assert plan_docs.main([str(place)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not place.parent.exists()
