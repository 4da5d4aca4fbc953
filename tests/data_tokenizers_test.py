"""Every tokenizer gives back the text it was given, counts its bytes, and takes no text for a special token."""

import random

import numpy as np
import pytest

from gptjax.config import DataConfig
from gptjax.data import tokenizers
from gptjax.data.sources import documents
from gptjax.data.tokenizers import TOKENIZERS, load_tokenizer, save_tokenizer, train_tokenizer
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


def random_text(rng: random.Random) -> str:
    ranges = [(0, 0x80), (0x80, 0x800), (0x300, 0x370), (0x2580, 0x2590), (0x4E00, 0x9FFF), (0x1F600, 0x1F650)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(40)))


def check_lossless(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.shape == (len(ids),)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert (tokenizer.token_bytes[ids] > 0).all()  # so none of them is special


@pytest.mark.parametrize("text", NASTY)
def test_any_text_comes_back_and_its_bytes_are_counted(text, sentencepiece):
    check_lossless(sentencepiece, text)
    check_lossless(train_tokenizer(DataConfig(tokenizer="bytes"), []), text)
    check_lossless(train_tokenizer(DataConfig(tokenizer="chars"), [text]), text)
    check_lossless(train_tokenizer(DataConfig(tokenizer="chars"), [text, TEXT]), text)


def test_random_text_comes_back_and_its_bytes_are_counted(sentencepiece):
    rng = random.Random(0)
    for _ in range(300):
        check_lossless(sentencepiece, random_text(rng))


def test_sentencepiece_learns_words_and_line_ends(sentencepiece):
    assert len(sentencepiece.encode(TEXT)) < 0.55 * len(TEXT)
    assert len(sentencepiece.encode(" the")) == 1 and len(sentencepiece.encode("\n\n")) == 1


def test_a_long_text_encoded_in_chunks_has_the_tokens_of_the_whole(sentencepiece):
    text = TEXT + "   \n" + TEXT[:70_000].replace(" ", "  ")
    whole = sentencepiece._model.encode(text)
    assert len(tokenizers._CHUNK.findall(text)) >= 3
    assert sentencepiece.encode(text).tolist() == whole


def test_a_long_text_without_a_space_comes_back(sentencepiece):
    check_lossless(sentencepiece, "ab中" * 50_000)


def test_the_same_text_gives_the_same_sentencepiece_model(sentencepiece):
    again = train_tokenizer(DataConfig(tokenizer_vocab_size=700), iter([TEXT]))
    assert again.definition == sentencepiece.definition and again.hash == sentencepiece.hash


def test_sentencepiece_trains_on_no_more_than_it_was_allowed():
    config = DataConfig(tokenizer_vocab_size=400, tokenizer_train_bytes=50_000)
    assert train_tokenizer(config, [TEXT]).hash == train_tokenizer(config, [TEXT[:50_000], "zzz" * 1000]).hash


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
def test_invalid_bytes_decode_to_the_replacement_character_and_foreign_ids_raise(kind, sentencepiece):
    tokenizer = sentencepiece if kind == "sentencepiece" else train_tokenizer(DataConfig(tokenizer=kind), ["中\ufffd"])
    if kind != "chars":
        assert tokenizer.decode(tokenizer.encode("中文")[-1:]) == "\ufffd"
        assert tokenizer.decode([tokenizer.eot_id]) == ""
    for foreign in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match=f"token id {foreign} is outside the vocabulary"):
            tokenizer.decode([0, foreign])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_saved_tokenizer_is_loaded_as_it_was(kind, sentencepiece, tmp_path):
    made = sentencepiece if kind == "sentencepiece" else train_tokenizer(DataConfig(tokenizer=kind), [TEXT, "é"])
    save_tokenizer(made, tmp_path / "run")
    loaded = load_tokenizer(str(tmp_path / "run"))
    assert (type(loaded), loaded.hash, loaded.eot_id) == (type(made), made.hash, made.eot_id)
    np.testing.assert_array_equal(loaded.encode(TEXT), made.encode(TEXT))
    np.testing.assert_array_equal(loaded.token_bytes, made.token_bytes)


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


def test_half_a_surrogate_pair_is_refused(sentencepiece):
    for tokenizer in (sentencepiece, train_tokenizer(DataConfig(tokenizer="bytes"), [])):
        with pytest.raises(UserError, match=r"U\+D83D at character 1"):
            tokenizer.encode("a\ud83d")
