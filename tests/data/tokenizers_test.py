"""Every tokenizer gives back the text it was given, counts its bytes, and takes no text for a special token."""

import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from vocabularies import GPT2_FOLDER, MULTILINGUAL, TEXTS, examples, small_json

from gptjax.config.fields import DataConfig
from gptjax.data import tokenizers
from gptjax.data.sources import documents
from gptjax.data.tokenizers import TOKENIZERS, load_tokenizer, save_tokenizer, train_tokenizer
from gptjax.data.tokenizers import sentencepiece as sentencepiece_module
from gptjax.errors import UserError

TEXT = next(documents(DataConfig()))
NASTY = [
    "",
    " ",
    "   two   spaces \n\n\t\r\n  ",
    "a\0b\x01\x7f\x85\u2028",
    "\u2581 a\u2581\u2581b \u2585",
    "<|endoftext|><s></s><unk><pad><0x41>",
    "中文字符，和 emoji \U0001f600\U0001f468\u200d\U0001f469 e\u0301 ﬁ ①\ufeff",
    "\U0010ffff\ue000\ufffd",
]


@pytest.fixture(scope="module")
def sentencepiece():
    return train_tokenizer(DataConfig(tokenizer_vocab_size=700), [TEXT])


@pytest.fixture(scope="module")
def made(sentencepiece, tmp_path_factory):
    """One of each kind."""
    file = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    file.write_text(json.dumps(small_json()))
    characters = "".join(map(chr, (*range(0x3000), *range(0x4E00, 0xA000))))
    return {
        "bytes": tokenizers.from_spec("bytes"),
        "chars": train_tokenizer(DataConfig(tokenizer="chars"), [characters, TEXT]),
        "sentencepiece": sentencepiece,
        "gpt2": tokenizers.from_spec(f"gpt2:{GPT2_FOLDER}"),
        "hf": tokenizers.from_spec(f"hf:{file}"),
    }


def check_lossless(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.shape == (len(ids),)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert (tokenizer.token_bytes[ids] > 0).all()  # so none of them is special


def test_every_kind_is_tested_here(made):
    assert made.keys() == TOKENIZERS.keys()


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=TEXTS)
@examples
def test_any_text_comes_back_and_its_bytes_are_counted(kind, made, text):
    own = train_tokenizer(DataConfig(tokenizer="chars"), [text, TEXT[:99]])
    check_lossless(own if kind == "chars" else made[kind], text)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", [*NASTY, MULTILINGUAL])
def test_texts_that_are_hard_on_tokenizers_come_back(kind, made, text):
    own = train_tokenizer(DataConfig(tokenizer="chars"), [text])
    check_lossless(own if kind == "chars" else made[kind], text)


def test_sentencepiece_learns_words_and_line_ends(sentencepiece):
    assert len(sentencepiece.encode(TEXT)) < 0.55 * len(TEXT)
    assert len(sentencepiece.encode(" the")) == 1 and len(sentencepiece.encode("\n\n")) == 1


def test_a_long_text_encoded_in_chunks_has_the_tokens_of_the_whole(sentencepiece):
    text = TEXT + "   \n" + TEXT[:70_000].replace(" ", "  ")
    whole = sentencepiece._model.encode(text)
    assert len(sentencepiece_module._CHUNK.findall(text)) >= 3
    assert sentencepiece.encode(text).tolist() == whole


def test_a_long_text_without_a_space_comes_back(sentencepiece):
    check_lossless(sentencepiece, "ab中" * 50_000)


def test_the_same_text_gives_the_same_sentencepiece_model(sentencepiece):
    again = train_tokenizer(DataConfig(tokenizer_vocab_size=700), iter([TEXT]))
    assert again.definition == sentencepiece.definition and again.hash == sentencepiece.hash


def test_sentencepiece_trains_on_no_more_than_it_is_allowed(monkeypatch):
    monkeypatch.setattr(DataConfig, "TRAIN_BYTES", 50_000)
    config = DataConfig(tokenizer_vocab_size=400)
    assert train_tokenizer(config, [TEXT]).hash == train_tokenizer(config, [TEXT[:50_000], "zzz" * 1000]).hash


def test_split_digits_and_symbols_are_as_asked():
    numbers = " ".join(str(n) for n in range(1000, 2000)) + " 2024/2024 "
    lines = list(sentencepiece_module.training_lines([numbers * 3, TEXT[:20_000]], 10**6))
    digits = {}
    for split in (False, True):
        model = sentencepiece_module.train_model(lines, 400, ("<|user|>", "<|end|>"), split_digits=split)
        tokenizer = sentencepiece_module.SentencePieceTokenizer(model)
        assert tokenizer.special.keys() == {"<|endoftext|>", "<|user|>", "<|end|>"}
        check_lossless(tokenizer, "<|user|>12345<|end|> 2024\n1" + MULTILINGUAL)
        digits[split] = max(sum(chr(b).isdigit() for b in spelling) for spelling in tokenizer.spelling)
    assert digits[False] > 1 and digits[True] == 1


@pytest.mark.parametrize("spoiler", ["\u2585", "\0", "\u2581"])
def test_lines_that_sentencepiece_would_drop_are_trained_on(spoiler):
    spoilt = spoiler.join(TEXT[i : i + 200] for i in range(0, 50_000, 200))
    tokenizer = train_tokenizer(DataConfig(tokenizer_vocab_size=400), [spoilt])
    assert len(tokenizer.encode(" the")) == 1
    check_lossless(tokenizer, spoilt)


def test_chinese_fits_a_small_vocabulary():
    rng = random.Random(0)
    text = "".join(chr(0x4E00 + min(int(rng.expovariate(1 / 60)), 5000)) for _ in range(20_000))
    tokenizer = train_tokenizer(DataConfig(tokenizer_vocab_size=600), [text])
    check_lossless(tokenizer, text)
    assert tokenizer.vocab_size == 600


def test_the_largest_vocabulary_named_in_the_error_works():
    text = TEXT[:5000]
    with pytest.raises(UserError, match="too large for this text; use [0-9]+ at most") as error:
        train_tokenizer(DataConfig(tokenizer_vocab_size=30_000), [text])
    largest = int(str(error.value).split("use ")[1].split(" ")[0])
    assert train_tokenizer(DataConfig(tokenizer_vocab_size=largest), [text]).vocab_size == largest


def test_the_smallest_vocabulary_named_in_the_error_works():
    with pytest.raises(UserError, match="use at least [0-9]+") as error:
        train_tokenizer(DataConfig(tokenizer_vocab_size=260), [TEXT])
    smallest = int(str(error.value).split("at least ")[1][:-1])
    assert train_tokenizer(DataConfig(tokenizer_vocab_size=smallest), [TEXT]).vocab_size == smallest


def test_bytes_have_257_entries_the_last_of_which_ends_a_text():
    tokenizer = train_tokenizer(DataConfig(tokenizer="bytes"), [])
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (257, 256)
    assert tokenizer.encode("é").tolist() == [0xC3, 0xA9]
    assert tokenizer.token_bytes.tolist() == [1] * 256 + [0]


def test_chars_of_one_document_have_no_end_of_text():
    tokenizer = train_tokenizer(DataConfig(tokenizer="chars"), ["hello\n"])
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (5, None)
    assert tokenizer.encode("hell\n").tolist() == [2, 1, 3, 3, 0]


def test_chars_of_two_documents_have_an_end_of_text():
    tokenizer = train_tokenizer(DataConfig(tokenizer="chars"), ["hello", "olé"])
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (6, 5)
    assert tokenizer.token_bytes.tolist() == [1, 1, 1, 1, 2, 0]


@pytest.mark.parametrize("text", ["hex", "0", "\U0001f600"])
def test_a_character_that_chars_has_not_seen_is_named(text):
    tokenizer = train_tokenizer(DataConfig(tokenizer="chars"), ["hello"])
    with pytest.raises(UserError, match=rf"the text has '[x0\U0001f600]' \(U\+0*{ord(text[-1]):X}\)"):
        tokenizer.encode(text)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_invalid_bytes_decode_to_the_replacement_character_and_foreign_ids_raise(kind, made):
    tokenizer = made[kind]
    if kind != "chars":  # whose tokens are whole characters
        assert tokenizer.decode(tokenizer.encode("\U00010348")[-1:]) == "\ufffd"
    assert tokenizer.decode([tokenizer.eot_id]) == ""
    for foreign in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match=f"token id {foreign} is outside the vocabulary"):
            tokenizer.decode([0, foreign])


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("added", [(), ("<|fim_prefix|>", "<|mask|>", "<|endoftext|>")])
def test_a_saved_or_pickled_tokenizer_is_loaded_as_it_was(kind, added, made, tmp_path):
    tokenizer = made[kind].with_special(added)
    save_tokenizer(tokenizer, tmp_path / "run")
    for loaded in (load_tokenizer(str(tmp_path / "run")), pickle.loads(pickle.dumps(tokenizer))):
        assert (type(loaded), loaded.hash, loaded.base_hash) == (type(tokenizer), tokenizer.hash, made[kind].hash)
        assert (loaded.special, loaded.eot_id) == (tokenizer.special, tokenizer.eot_id)
        np.testing.assert_array_equal(loaded.encode(TEXT[:5000]), tokenizer.encode(TEXT[:5000]))
        np.testing.assert_array_equal(loaded.token_bytes, tokenizer.token_bytes)


def test_a_folder_written_before_there_were_special_symbols_is_loaded(sentencepiece, tmp_path):
    save_tokenizer(sentencepiece, tmp_path)
    summary = json.loads((tmp_path / "tokenizer.json").read_text())
    old = {name: summary[name] for name in ("kind", "hash", "vocab_size", "eot_id")}
    (tmp_path / "tokenizer.json").write_text(json.dumps(old))
    assert load_tokenizer(tmp_path).hash == sentencepiece.hash


# Special symbols


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_added_symbols_get_the_last_ids_and_leave_every_text_its_tokens(kind, made):
    tokenizer = made[kind]
    n = len(tokenizer.token_bytes)
    other = tokenizer.with_special(["<|user|>", "<|endoftext|>", "<|mine|>", "<|user|>"])
    assert other.special == tokenizer.special | {"<|user|>": n, "<|mine|>": n + 1}
    assert (other.vocab_size, other.eot_id, tokenizer.vocab_size) == (n + 2, tokenizer.eot_id, n)
    assert len(other.token_bytes) == n + 2 and other.token_bytes[n:].tolist() == [0, 0]
    text = "<|user|> hi <|mine|><|endoftext|>"
    np.testing.assert_array_equal(other.encode(text), tokenizer.encode(text))
    ids = [n, *other.encode("hi"), n + 1, other.eot_id]
    assert (other.decode(ids), other.decode(ids, special=True)) == ("hi", "<|user|>hi<|mine|><|endoftext|>")


def test_added_symbols_change_the_hash_by_their_names_and_order_but_not_the_base_hash(sentencepiece):
    variants = [(), ("<|a|>",), ("<|b|>",), ("<|a|>", "<|b|>"), ("<|b|>", "<|a|>")]
    changed = [sentencepiece.with_special(names) for names in variants]
    assert len({t.hash for t in changed}) == len(variants) and {t.base_hash for t in changed} == {sentencepiece.hash}
    in_two_steps = sentencepiece.with_special(["<|a|>"]).with_special(["<|b|>"])
    assert in_two_steps.hash == changed[3].hash and in_two_steps.special == changed[3].special
    assert sentencepiece.with_special(["<|endoftext|>"]) is sentencepiece


def test_symbols_are_named_by_sets_or_singly():
    chat, fim = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>"), ("prefix", "middle", "suffix")
    expected = (*chat, "<|mine|>", *(f"<|fim_{part}|>" for part in fim))
    assert tokenizers.parse_symbols("chat,<|mine|>,fim,<|user|>") == expected
    assert tokenizers.parse_symbols("") == ()
    with pytest.raises(UserError, match="'caht' is no set of special symbols; did you mean 'chat'"):
        tokenizers.parse_symbols("caht")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_batch_has_the_tokens_of_each_text_on_any_number_of_threads(kind, made):
    texts = [TEXT[i : i + 700] for i in range(0, 7000, 700)] + ["", "x"]
    for threads in (1, 3):
        got = made[kind].encode_batch(texts, threads)
        assert [ids.tolist() for ids in got] == [made[kind].encode(text).tolist() for text in texts]


# Files and specs


def test_an_altered_or_missing_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer.json"):
        load_tokenizer(tmp_path)
    save_tokenizer(train_tokenizer(DataConfig(tokenizer="chars"), ["abc"]), tmp_path)
    model = tmp_path / "tokenizer.model"
    model.write_bytes(model.read_bytes().replace(b"abc", b"abd"))
    with pytest.raises(UserError, match="tokenizer.model was altered"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json was altered"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "field,value",
    [("hash", "0" * 64), ("vocab_size", 256), ("eot_id", 3), ("special", {"<|endoftext|>": 0}), ("added", ["<|a|>"])],
)
def test_an_altered_tokenizer_json_is_refused_by_its_field(field, value, tmp_path):
    save_tokenizer(tokenizers.from_spec("bytes"), tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(UserError, match=f"tokenizer.json was altered: its {'hash' if field == 'added' else field} is"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_folder_it_was_saved_in_is_a_spec_and_a_path_of_any_tokenizer(kind, made, tmp_path):
    tokenizer = made[kind].with_special(["<|a|>"])
    save_tokenizer(tokenizer, tmp_path)
    config = tokenizers.with_spec(DataConfig(), str(tmp_path))
    assert config == DataConfig(tokenizer=kind, tokenizer_path=str(tmp_path))
    for same in (config, DataConfig(tokenizer_path=str(tmp_path))):
        assert tokenizers.tokenizer_class(same) is type(tokenizer)
        assert train_tokenizer(same, []).hash == tokenizer.hash
    for spec in (str(tmp_path), f"{kind}:{tmp_path}"):
        assert tokenizers.from_spec(spec).hash == tokenizer.hash
    assert tokenizers.tokenizer_settings(config)["special"] == ["<|a|>"]


def test_a_spec_of_a_kind_to_train_is_for_a_config_alone():
    assert tokenizers.with_spec(DataConfig(), "sentencepiece") == DataConfig(tokenizer="sentencepiece")
    assert tokenizers.with_spec(DataConfig(tokenizer_path="x"), "chars") == DataConfig(tokenizer="chars")


@pytest.mark.parametrize(
    "spec,message",
    [
        ("chars", "'chars' is made from a text; give the folder of one that was saved"),
        ("sentencepiece", "'sentencepiece' is made from a text.* or sentencepiece:PATH"),
        ("hf", "'hf' is read from a file; give the path of a tokenizer.json"),
        ("gtp2", "'gtp2' is neither a kind nor a folder.* did you mean 'gpt2'"),
        ("nowhere/at/all", "is neither a kind nor a folder that a tokenizer was saved in"),
        ("bytes:x", "'bytes' is the same everywhere and is not read from x"),
        ("chars:x", "'chars' is made from a text, not read from x"),
        ("sentencepiece:nowhere.model", "there is no nowhere.model; expected a SentencePiece .model file"),
        ("hf:nowhere", "there is no nowhere; expected a Hugging Face tokenizer.json"),
        ("gpt2:nowhere", "there is no nowhere; expected a folder with encoder.json and vocab.bpe"),
        ("hf:SAVED", "holds a tokenizer of kind 'bytes', not 'hf'; set data.tokenizer='bytes'"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_line(spec, message, tmp_path):
    save_tokenizer(tokenizers.from_spec("bytes"), tmp_path)
    with pytest.raises(UserError, match=message) as error:
        tokenizers.from_spec(spec.replace("SAVED", str(tmp_path)))
    assert "\n" not in str(error.value)


def test_another_tokenizer_than_the_runs_is_refused(made):
    tokenizers.check_same(made["gpt2"], pickle.loads(pickle.dumps(made["gpt2"])))
    for other in (made["hf"], made["gpt2"].with_special(["<|a|>"])):
        with pytest.raises(UserError, match="not the run's own: that is 'gpt2' of 50257 tokens .* restore the text"):
            tokenizers.check_same(other, made["gpt2"])


def test_a_sentencepiece_model_is_loaded_from_a_path(sentencepiece, tmp_path):
    save_tokenizer(sentencepiece, tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        assert train_tokenizer(DataConfig(tokenizer_path=str(path)), []).hash == sentencepiece.hash


def test_a_sentencepiece_model_that_changes_the_text_is_refused(tmp_path):
    import sentencepiece as library

    lines = [TEXT[i : i + 1000] for i in range(0, 50_000, 1000)]
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "foreign"), vocab_size=400, minloglevel=2
    )
    with pytest.raises(UserError, match="foreign.model changes the text it encodes"):
        train_tokenizer(DataConfig(tokenizer_path=str(tmp_path / "foreign.model")), [])


def test_what_is_no_sentencepiece_model_is_refused(tmp_path):
    (tmp_path / "x.model").write_text("hello")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        train_tokenizer(DataConfig(tokenizer_path=str(tmp_path / "x.model")), [])
    with pytest.raises(UserError, match="there is no .*y.model"):
        train_tokenizer(DataConfig(tokenizer_path=str(tmp_path / "y.model")), [])
    with pytest.raises(UserError, match="set data.tokenizer='sentencepiece'"):
        train_tokenizer(DataConfig(tokenizer="bytes", tokenizer_path=str(tmp_path / "x.model")), [])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_half_a_surrogate_pair_is_refused(kind, made):
    with pytest.raises(UserError, match=r"U\+D83D at character 1"):
        made[kind].encode("a\ud83d")
