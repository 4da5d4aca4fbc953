"""A folder of one kind that is given where one of another is expected is named as what it is, and nobody is told to
remove it."""

import json
import shutil

import pytest
from places import ROOT

from gptjax import cli
from gptjax.errors import USER_ERROR
from gptjax.storage import folder_kinds

GOLDEN = ROOT / "tests" / "golden"
PREPARE = ["prepare", "--source=text:TEXT", "--tokenizer=bytes"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{kind: a folder of it}, some of them made by gptjax."""
    place = tmp_path_factory.mktemp("folders")
    (place / "text.txt").write_text("One two three.\n\nFour five six.\n" * 50)
    run = shutil.copytree(GOLDEN / "checkpoints" / "schema2", place / "run")
    assert cli.main([*_with(PREPARE, TEXT=place / "text.txt"), f"--out={place / 'shards'}"]) == 0
    (place / "unfinished" / "work").mkdir(parents=True)
    (place / "unfinished" / "work" / "settings.json").write_text("{}")
    (place / "study").mkdir()
    (place / "study" / "study.json").write_text(json.dumps({"runs": [], "study": {}}))
    shutil.copytree(run / "tokenizer", place / "tokenizer")
    shutil.copytree(GOLDEN / "hf" / "gpt1_plain", place / "model")
    (place / "thesis").mkdir()
    (place / "thesis" / "thesis.tex").write_text("x")
    begun = place / "begun"
    shutil.copytree(run / "tokenizer", begun / "tokenizer")
    shutil.copy(run / "manifest.json", begun / "manifest.json")
    (place / "empty").mkdir()
    return {
        folder_kinds.RUN: run,
        folder_kinds.BEGUN: begun,
        folder_kinds.SHARDS: place / "shards",
        folder_kinds.UNFINISHED: place / "unfinished",
        folder_kinds.STUDY: place / "study",
        folder_kinds.CHECKPOINT: run / "checkpoints" / "6",
        folder_kinds.CHECKPOINTS: run / "checkpoints",
        folder_kinds.TOKENIZER: place / "tokenizer",
        folder_kinds.MODEL: place / "model",
        folder_kinds.EMPTY: place / "empty",
        folder_kinds.FILE: place / "text.txt",
        folder_kinds.MISSING: place / "nowhere",
        folder_kinds.OTHER: place / "thesis",
    }


def _with(words, **places) -> list[str]:
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    return list(words)


def test_each_kind_is_told_by_what_lies_in_it(folders):
    assert {kind: folder_kinds.kind_of(folder) for kind, folder in folders.items()} == {kind: kind for kind in folders}
    assert folder_kinds.kind_of(GOLDEN / "checkpoints" / "schema1" / "checkpoints" / "6") == folder_kinds.CHECKPOINT


def test_each_kind_has_words_and_only_gptjaxs_own_places(folders):
    for kind in folders.keys() - {folder_kinds.OTHER}:
        assert folder_kinds.said(folders[kind]) == folder_kinds.SAID[kind]
    assert folder_kinds.said(folders[folder_kinds.OTHER]) == "a folder with other files (thesis.tex)"
    assert "remove" not in " ".join(folder_kinds.SAID.values())


OTHER_WORDS = {  # where a command has had its own, which say it too
    folder_kinds.MISSING: ("does not exist", "no such", "there is no", "neither", "nothing", "No such"),
    folder_kinds.EMPTY: ("a folder without files",),
    folder_kinds.OTHER: (
        "neither a kind nor a folder that a tokenizer was saved in",
        "no file's ending says its kind",
    ),
}
COMMANDS = {  # a command with a folder, and the kinds that it takes
    "eval --workdir=DIR": (folder_kinds.RUN,),
    "sample --workdir=DIR": (folder_kinds.RUN,),
    "verify --workdir=DIR": (folder_kinds.RUN, folder_kinds.BEGUN),
    "data --workdir=DIR": (folder_kinds.RUN,),
    "export --to=hf --out=NEW --workdir=DIR": (folder_kinds.RUN,),
    "compare DIR DIR": (folder_kinds.RUN,),
    "eval --workdir=RUN --data=DIR": (folder_kinds.SHARDS, folder_kinds.FILE),
    "train --config=CONFIG --config.data.source=prepared --workdir=NEW --config.data.path=DIR": (folder_kinds.SHARDS,),
    "train --config=CONFIG --workdir=DIR": (
        folder_kinds.RUN, folder_kinds.BEGUN, folder_kinds.EMPTY, folder_kinds.MISSING,
    ),
    "train --config=CONFIG --workdir=NEW --branch_from=DIR --branch_step=6": (folder_kinds.RUN,),
    "prepare --source=text:TEXT --tokenizer=bytes --out=DIR": (
        folder_kinds.SHARDS, folder_kinds.UNFINISHED, folder_kinds.EMPTY, folder_kinds.MISSING,
    ),
    "prepare --source=text:TEXT --tokenizer=DIR --out=NEW": (folder_kinds.TOKENIZER, folder_kinds.SHARDS),
    "import --from=hf DIR --workdir=NEW": (folder_kinds.MODEL,),
    "import --from=hf MODEL --workdir=DIR": (folder_kinds.EMPTY, folder_kinds.MISSING),
    "export --to=hf --workdir=RUN --out=DIR": (folder_kinds.EMPTY, folder_kinds.MISSING),
    "watch DIR": (folder_kinds.RUN, folder_kinds.STUDY),
    "study status DIR": (folder_kinds.STUDY,),
    "study fit DIR": (folder_kinds.STUDY, folder_kinds.FILE),
    "study run STUDYFILE --out=DIR": (folder_kinds.STUDY, folder_kinds.EMPTY, folder_kinds.MISSING),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_another_kind_is_named_and_left_as_it_is(command, folders, tmp_path, capsys):
    config = tmp_path / "fields.py"
    text = folders[folder_kinds.FILE]
    config.write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'model': dict(context_length=16,"
        f" n_layers=1, d_model=8, n_heads=1), 'data': dict(path={str(text)!r}, tokenizer='bytes',"
        f" cache_dir={str(tmp_path / 'cache')!r}), 'train': dict(steps=1, batch_size=8)}})\n"
    )
    places = {"TEXT": text, "RUN": folders[folder_kinds.RUN], "MODEL": folders[folder_kinds.MODEL]}
    places |= {"NEW": tmp_path / "new", "CONFIG": config, "STUDYFILE": "configs/studies/quickstart.py"}
    for kind, folder in folders.items():
        if kind in COMMANDS[command]:
            continue
        before = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
        assert cli.main(_with(command.split(), DIR=folder, **places)) == USER_ERROR, kind
        said = capsys.readouterr().err
        [line] = [line for line in said.splitlines() if line.startswith("gptjax: ")]
        assert str(folder) in line, (kind, line)
        said = (folder_kinds.said(folder).partition(" (")[0], *OTHER_WORDS.get(kind, ()))
        assert any(words in line for words in said), (kind, line)
        assert "remove" not in line or kind == folder_kinds.SHARDS, (kind, line)
        after = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
        assert after == before, kind
        assert not (tmp_path / "new").exists(), kind
