"""A source and a tokenizer are written in one word alike in configs, overrides and the flags of commands."""

import dataclasses

import pytest
import runs

from gptjax import cli
from gptjax.config.config_file import load_config
from gptjax.config.fields import DataConfig
from gptjax.config.values import from_dict
from gptjax.data import sources, tokenizers
from gptjax.data.tokens.store import prepare
from gptjax.errors import UserError

TEXT = "the cat sat on the mat\n" * 400


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Holds book.txt, lines.jsonl and a saved tokenizer; is where the test stands."""
    (tmp_path / "book.txt").write_text(TEXT)
    (tmp_path / "lines.jsonl").write_text('{"text": "a line"}\n' * 50)
    made = tokenizers.train_tokenizer(DataConfig(tokenizer="chars"), [TEXT])
    tokenizers.save_tokenizer(made, tmp_path / "saved")
    (tmp_path / "base.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict(dict(\n"
        "        train=dict(steps=1), data=dict(source='text', path='book.txt', tokenizer='gpt2', tokenizer_path='x')))\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data(*overrides: str, file: str = "base.py") -> DataConfig:
    return load_config(file, overrides).data


@pytest.mark.parametrize(
    "spec", ["bytes", "chars", "gpt2:FOLDER", "hf:a.json", "sentencepiece:m.model", "saved", "./saved"]
)
def test_a_tokenizer_of_a_config_is_written_as_prepare_takes_it(folder, spec):
    ours = data("data.tokenizer_path=None", f"data.tokenizer={spec}")
    kind, colon, path = spec.partition(":")
    folder_given = kind not in tokenizers.TOKENIZERS
    assert ours.tokenizer == (None if folder_given else kind)
    assert ours.tokenizer_path == (spec if folder_given else path or None)
    in_file = from_dict(dict(train=dict(steps=1), data=dict(tokenizer=spec))).data
    assert (in_file.tokenizer, in_file.tokenizer_path) == (ours.tokenizer, ours.tokenizer_path)


def test_an_override_of_a_tokenizer_replaces_the_path_of_the_one_before(folder):
    assert data("data.tokenizer=saved").tokenizer_path == "saved"
    assert data("data.tokenizer=hf:a.json").tokenizer_path == "a.json"


def test_the_tokenizer_of_a_folder_is_the_one_that_prepare_would_use(folder):
    ours = prepare(dataclasses.replace(data("data.tokenizer=saved"), cache_dir=str(folder / "cache"))).tokenizer
    assert ours.hash == tokenizers.from_spec("saved").hash == tokenizers.load_tokenizer(folder / "saved").hash


@pytest.mark.parametrize(
    "spec", ["corpus", "text:book.txt", "jsonl:*.jsonl", "prepared:shards", "tfds:lm1b@test", "hf:a/b/c@validation"]
)
def test_a_source_of_a_config_is_written_as_prepare_takes_it(folder, spec):
    wanted = sources.from_spec(spec, DataConfig())
    names = ("source", "path", "tfds_name", "tfds_split", "hf_split")
    given = [from_dict(dict(train=dict(steps=1), data=dict(source=spec))).data]
    given += [data(f"data.source={spec}")] if ":" in spec else []  # of a kind alone the path of the file stays
    given += [data("data.source=corpus", f"data.path={spec}")] if ":" in spec else []
    for one in given:
        assert [getattr(one, name) for name in names] == [getattr(wanted, name) for name in names]


def test_a_path_alone_says_its_kind_wherever_it_is_written(folder):
    for given in (data("data.source=lines.jsonl"), data("data.source=corpus", "data.path=lines.jsonl")):
        assert sources.source_name(given) == sources.from_spec("lines.jsonl", DataConfig()).source == "jsonl"
        assert list(sources.documents(given)) == ["a line"] * 50


def test_both_spellings_of_a_run_are_one_config_so_that_either_resumes_it(folder):
    one = data("data.source=jsonl:lines.jsonl", "data.tokenizer=chars:saved")
    other = data("data.source=jsonl", "data.path=lines.jsonl", "data.tokenizer=chars", "data.tokenizer_path=saved")
    assert one == other


@pytest.mark.parametrize(
    "fields, said",
    [
        (
            dict(source="text:book.txt", path="other.txt"),
            "data.source='text:book.txt' says it all, and data.path='other.txt'",
        ),
        (dict(tokenizer="hf:a.json", tokenizer_path="b.json"), "data.tokenizer='hf:a.json' says it all, and"),
        (dict(source="text:"), "source 'text:': expected text:PATH."),
    ],
)
def test_two_that_differ_or_half_of_one_are_refused(folder, fields, said):
    with pytest.raises(UserError) as error:
        from_dict(dict(train=dict(steps=1), data=fields))
    assert said in str(error.value)


@pytest.mark.parametrize(
    "override, said",
    [
        (
            "data.tokenizer=sentencpiece",
            "is not known; did you mean 'sentencepiece'?; expected one of: bytes, chars, gpt2[:PATH], hf:PATH",
        ),
        (
            "data.tokenizer=./nowhere",
            "the tokenizer './nowhere' is neither a kind nor a folder that a tokenizer was saved in",
        ),
        ("data.source=txt:book.txt", "source 'txt:book.txt': 'txt' is no kind; did you mean 'text'?"),
        ("data.source=jsnl", "data.source='jsnl' is not known; did you mean 'jsonl'?"),
    ],
)
def test_what_is_neither_a_kind_nor_a_path_is_a_line_with_the_nearest(folder, override, said, capsys):
    assert cli.main(["data", "--config=base.py", "--config.data.tokenizer_path=None", f"--config.{override}"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def trained(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spelling")
    short = runs.changed(values, data=dict(tokenizer="bytes"), train=dict(steps=1, profile_steps=None))
    assert cli.main(["train", runs.write_config(short, folder / "fields.py"), f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    "command", ["verify", "data --step=1", "sample --max_tokens=1 --prompt=a", "eval --max_tokens=64"]
)
def test_a_run_is_a_word_of_its_own_or_workdir(trained, command, capsys):
    name, *flags = command.split()
    assert cli.main([name, f"--workdir={trained}", *flags]) == 0
    by_flag = capsys.readouterr().out
    assert cli.main([name, str(trained), *flags]) == 0
    assert capsys.readouterr().out == by_flag


def test_a_run_that_is_given_twice_or_not_at_all_is_said_so(trained, capsys):
    assert cli.main(["eval", str(trained), "--workdir=other"]) == 2
    assert "are both given; give the run directory once" in capsys.readouterr().err
    assert cli.main(["eval"]) == 2
    assert "gptjax eval needs a run directory; give it as in gptjax eval runs/quickstart" in capsys.readouterr().err
    assert cli.main(["eval", "nowhere"]) == 2
    assert "--workdir" not in capsys.readouterr().err, "as it was typed"


def test_the_value_of_an_override_is_no_run(folder, capsys):
    assert cli.main(["data", "--config=base.py", "--config.data.tokenizer", "saved", "--step=1"]) == 0
    assert "the cat sat" in capsys.readouterr().out
