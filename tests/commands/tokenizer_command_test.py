"""`gptjax tokenizer`: what it trains is lossless and as asked, what it shows is true, wrong requests end in a line."""

import contextlib
import io
import json
import re

import pytest
from hypothesis import given
from vocabularies import GPT2_FOLDER, MULTILINGUAL, TEXTS, examples

from gptjax import cli, errors
from gptjax.config.fields import DataConfig
from gptjax.data import tokenizers
from gptjax.data.rows.hashing import is_held_out
from gptjax.data.sources import documents, spread_documents

TRAIN = ["tokenizer", "train", "--source=corpus", "--vocab_size=500", "--train_bytes=100e3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, what was printed)"""
    out = tmp_path_factory.mktemp("tokenizer") / "new" / "folder"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main([*TRAIN, f"--out={out}", "--digits=split", "--special=chat,fim"]) == 0
    return out, printed.getvalue()


def test_a_trained_tokenizer_has_the_symbols_and_digits_that_were_asked_for(trained):
    tokenizer = tokenizers.from_spec(str(trained[0]))
    names = ["<|endoftext|>", *tokenizers.SYMBOLS["chat"], *tokenizers.SYMBOLS["fim"]]
    assert (list(tokenizer.special), tokenizer.vocab_size) == (names, 500)
    assert max(sum(chr(b).isdigit() for b in spelling) for spelling in tokenizer.spelling) == 1
    assert tokenizer.with_special(names) is tokenizer and not tokenizer.added


@given(text=TEXTS)
@examples
def test_a_trained_tokenizer_gives_any_text_back(trained, text):
    tokenizer = tokenizers.load_tokenizer(trained[0])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert not set(ids.tolist()) & set(tokenizer.special.values())


def test_the_result_line_says_what_was_written(trained):
    out, line = trained
    tokenizer = tokenizers.load_tokenizer(out)
    assert sorted(file.name for file in out.iterdir()) == ["tokenizer.json", "tokenizer.model"]
    assert f"{out}: sentencepiece, 500 tokens (9 special)" in line and tokenizer.hash[:12] in line
    printed = float(re.search(r"([\d.]+) bytes per token", line)[1])
    text = next(documents(DataConfig()))[:50_000]
    assert printed == pytest.approx(len(text.encode()) / len(tokenizer.encode(text)), rel=0.05)


def test_training_twice_gives_the_same_files(trained, tmp_path):
    assert (
        cli.main([*TRAIN, f"--out={tmp_path}", "--digits=split", "--special=chat,fim"]) == 0
    )  # an empty folder will do
    for name in ("tokenizer.json", "tokenizer.model"):
        assert (tmp_path / name).read_bytes() == (trained[0] / name).read_bytes()


def test_without_options_it_is_the_tokenizer_that_a_config_trains_on_text_from_all_over_the_source(
    tmp_path, monkeypatch
):
    assert cli.main([*TRAIN, f"--out={tmp_path / 'out'}"]) == 0
    monkeypatch.setattr(DataConfig, "TRAIN_BYTES", 100_000)
    config = DataConfig(tokenizer_vocab_size=500)
    expected = tokenizers.train_tokenizer(config, spread_documents(config))
    assert tokenizers.load_tokenizer(tmp_path / "out").hash == expected.hash


def test_encode_shows_ids_and_pieces_that_make_up_the_text(capsys):
    text = 'Say "hi"  中𝄞\n'
    assert cli.main(["tokenizer", "encode", f"--tokenizer=gpt2:{GPT2_FOLDER}", text, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    tokenizer = tokenizers.from_spec(f"gpt2:{GPT2_FOLDER}")
    assert shown["ids"] == tokenizer.encode(text).tolist()
    assert shown["pieces"] == ["Say", ' "', "hi", '"', " ", " ", "中", "<0xF0><0x9D>", "<0x84>", "<0x9E>", "\n"]
    assert cli.main(["tokenizer", "encode", "--tokenizer=bytes", "ab"]) == 0
    assert capsys.readouterr().out == '97 98\n"a" "b"\n'


def test_info_says_kind_sizes_and_bytes_per_token_of_a_source(trained, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text(MULTILINGUAL)
    assert cli.main(["tokenizer", "info", str(trained[0]), f"--source={file}", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    tokenizer = tokenizers.load_tokenizer(trained[0])
    size = len(MULTILINGUAL.encode())
    assert (facts["kind"], facts["vocab_size"], facts["hash"]) == ("sentencepiece", 500, tokenizer.hash)
    assert facts["sample_bytes"] == size
    assert facts["bytes_per_token"] == pytest.approx(size / len(tokenizer.encode(MULTILINGUAL)), abs=1e-4)
    assert facts["longest_token_bytes"] == max(map(len, tokenizer.spelling))
    assert cli.main(["tokenizer", "info", "bytes"]) == 0
    assert re.search(r"special +<\|endoftext\|> 256\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "words,message",
    [
        (
            [*TRAIN, "--out=FULL"],
            "FULL exists and is not an empty folder: it is a folder with other files .thesis.tex.; name another",
        ),
        ([*TRAIN, "--out=FULL/thesis.tex"], "thesis.tex exists and is not an empty folder"),
        ([*TRAIN, "--out=NEW", "--special=caht"], "'caht' is no set of special symbols; did you mean 'chat'"),
        (
            [*TRAIN, "--out=NEW", "--vocab_size=260", "--special=fim"],
            "--vocab_size=260 is too small: bytes and special symbols alone take 261",
        ),
        ([*TRAIN, "--out=NEW", "--vocab_size=290"], "--vocab_size=290 is too small for the characters of this text"),
        (
            [*TRAIN, "--out=NEW", "--vocab_size=290", "--separator=--"],
            "--vocab_size=290 is too small for the characters",
        ),
        (
            [*TRAIN, "--out=NEW", "--vocab_size=90000"],
            "--vocab_size=90000 is too large for this text; use [0-9]+ at most",
        ),
        ([*TRAIN, "--out=NEW", "--train_bytes=0"], "--train_bytes=0 is too small"),
        ([*TRAIN, "--out=NEW", "--character_coverage=.5"], "--character_coverage=0.5 is out of range; .* .98 to 1"),
        ([*TRAIN, "--out=NEW", "--source=nowhere.txt"], "nowhere.txt"),
        (
            [*TRAIN, "--out=NEW", "--vocabsize=3"],
            "unknown argument '--vocabsize=3' of gptjax tokenizer train; did you mean '--vocab_size'?",
        ),
        (["tokenizer", "encode", "--tokenizer=FULL", "x"], "is neither a kind nor a folder"),
        (["tokenizer", "encode", "--tokenizer=chars", "x"], "'chars' is made from a text"),
        (["tokenizer", "info", "bytes", "--source=nowhere"], "nowhere"),
    ],
)
def test_a_wrong_request_ends_in_one_line_and_writes_nothing(words, message, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("\\begin{document}")
    places = {"FULL": str(tmp_path / "full"), "NEW": str(tmp_path / "new")}
    words = [re.sub("FULL|NEW", lambda found: places[found[0]], word) for word in words]
    assert cli.main(words) == errors.USER_ERROR
    said = capsys.readouterr().err.splitlines()
    assert re.search(message.replace("FULL", places["FULL"]), said[-1])
    assert sum(line.startswith("gptjax: ") for line in said) == 1
    assert [file.name for file in tmp_path.rglob("*")] == ["full", "thesis.tex"]


def test_documents_that_prepare_holds_out_are_not_trained_on(tmp_path):
    texts = [f"{word} " * 50 for word in ("zebra", "okapi", "tapir", "gnu", "yak", "eland", "kudu", "oryx")]
    held = [text.split()[0] for text in texts if is_held_out(text, 0.5)]
    assert 0 < len(held) < len(texts)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    flags = [f"--source={tmp_path / 'a.jsonl'}", "--val_fraction=0.5", "--vocab_size=280", f"--out={tmp_path / 'made'}"]
    assert cli.main(["tokenizer", "train", *flags]) == 0
    kept = "".join(text for text in texts if text.split()[0] not in held)
    longer = [token.decode() for token in tokenizers.load_tokenizer(tmp_path / "made").spelling if len(token) > 1]
    assert len(longer) > 5 and all(token in kept for token in longer)


def test_of_several_sources_each_gives_an_equal_part_of_what_is_trained_on(tmp_path):
    for name in "ab":
        letters = str.maketrans("0123456789", "cdefghijkl")
        (tmp_path / f"{name}.txt").write_text(" ".join(f"{name}{i * i}".translate(letters) for i in range(3000)))
    out = tmp_path / "made"
    sources = [f"--source={tmp_path}/a.txt", f"--source={tmp_path}/b.txt"]
    assert cli.main(["tokenizer", "train", *sources, "--vocab_size=400", "--train_bytes=10e3", f"--out={out}"]) == 0
    spelling = tokenizers.load_tokenizer(out).spelling
    n_a, n_b = (sum(letter in token for token in spelling) for letter in (b"a", b"b"))
    assert n_a > 15 and n_b > 15, (n_a, n_b)
