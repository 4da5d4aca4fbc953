"""SentencePiece models as tokenizer.json and back: the ids of the library, of SentencePiece, and ours are one."""

import io
import json
import random

import pytest
from vocabularies import MULTILINGUAL

from gptjax.data import tokenizers
from gptjax.data.tokenizers import sentencepiece_json
from gptjax.data.tokenizers import sentencepiece_model as spm
from gptjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from gptjax.errors import UserError
from gptjax.huggingface import vocabulary

LINES = [line for line in MULTILINGUAL.replace("\0", "").splitlines() if line]
WORDS = [word for line in LINES for word in line.split(" ")]
NAMES = ["<s>", "</s>", "<0x41>", "<|endoftext|>", "<unk>", "sym", "aaa", "  ", "\u2581", "é", "中", "\U0001f600"]
SYMBOLS = dict(control_symbols=["<|endoftext|>"], user_defined_symbols=["sym", "中x"])
PREFIX, EXTRA = dict(add_dummy_prefix=True), dict(remove_extra_whitespaces=True)
NFKC = PREFIX | EXTRA | dict(normalization_rule_name="nmt_nfkc")
MODELS = {
    "bpe": dict(),
    "bpe, symbols": SYMBOLS,
    "bpe, prefix": PREFIX,
    "bpe, no extra spaces": PREFIX | EXTRA,
    "bpe, no extra spaces, no prefix": EXTRA,
    "bpe, nfkc": NFKC,
    "bpe, no bytes": PREFIX | dict(byte_fallback=False),
    "unigram": dict(model_type="unigram"),
    "unigram, symbols": SYMBOLS | dict(model_type="unigram"),
    "unigram, prefix": PREFIX | dict(model_type="unigram"),
    "unigram, nfkc": NFKC | dict(model_type="unigram"),
    "unigram, no bytes": PREFIX | dict(model_type="unigram", byte_fallback=False),
}


def texts() -> list[str]:
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(100)]
    spelled = [*"ab <>0x41s/", *NAMES]
    return [
        *LINES,
        *sentences,
        *("".join(rng.choices(spelled, k=rng.randint(1, 25))) for _ in range(500)),
        "",
        " ",
        "\u2581",
    ]


TEXTS = texts()


@pytest.fixture(scope="module")
def trained():
    """trained(name) is a model of MODELS, made once."""
    models = {}

    def of(name: str) -> bytes:
        if name not in models:
            models[name] = train(**MODELS[name])
        return models[name]

    return of


def train(**changes) -> bytes:
    import sentencepiece

    rng, model = random.Random(1), io.BytesIO()
    corpus = LINES * 20 + [" ".join(rng.choices(WORDS, k=12)) for _ in range(200)]
    settings = dict(model_type="bpe", vocab_size=800, byte_fallback=True, normalization_rule_name="identity")
    settings |= dict(remove_extra_whitespaces=False, add_dummy_prefix=False, allow_whitespace_only_pieces=True)
    settings |= dict(character_coverage=0.99, hard_vocab_limit=False, minloglevel=2, num_threads=1) | changes
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=model, **settings)
    return model.getvalue()


def library(definition: bytes):
    from tokenizers import Tokenizer

    made = Tokenizer.from_buffer(definition)
    made.encode_special_tokens = True
    return made


def processor(model: bytes):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


def same(ours: list[int], theirs: list[int], name: str) -> bool:
    """Of the same pieces in another order, which are as likely, unigram models take that which their rounding favours."""
    return ours == theirs or (name.startswith("unigram") and sorted(ours) == sorted(theirs))


@pytest.mark.parametrize("name", MODELS)
def test_a_tokenizer_json_has_the_ids_of_the_model(trained, name):
    model = trained(name)
    made = library(sentencepiece_json.as_tokenizer_json(model, {}))
    gives_back = not any(MODELS[name].get(field) for field in ("add_dummy_prefix", "remove_extra_whitespaces"))
    encode = (
        (lambda text: SentencePieceTokenizer(model).encode(text).tolist()) if gives_back else processor(model).encode
    )
    differing = [
        text for text in TEXTS if not same(encode(text), made.encode(text, add_special_tokens=False).ids, name)
    ]
    assert differing == []
    if gives_back:
        assert all(made.decode(made.encode(text).ids) == text for text in TEXTS)


@pytest.mark.parametrize("name", MODELS)
def test_a_tokenizer_json_comes_back_as_a_model_with_the_same_ids(trained, name):
    model = trained(name)
    again = sentencepiece_json.as_model(sentencepiece_json.as_tokenizer_json(model, {}), "tokenizer.json")
    ours, theirs = processor(again), processor(model)
    assert all(ours.encode(text) == theirs.encode(text) for text in TEXTS)
    if name != "unigram, symbols":  # whose symbols come back as pieces with their score
        assert sentencepiece_json.as_tokenizer_json(again, {}) == sentencepiece_json.as_tokenizer_json(model, {})


def test_a_run_s_tokenizer_with_symbols_of_its_own_leaves_and_comes_back(trained, tmp_path):
    ours = SentencePieceTokenizer(trained("bpe, symbols")).with_special(["<|user|>", "<|end|>"])
    files = vocabulary.files(ours, context_length=64)
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    made = library(files["tokenizer.json"])
    assert made.token_to_id("<|user|>") == ours.special["<|user|>"] and made.get_vocab_size() == ours.vocab_size
    assert made.token_to_id("<|endoftext|>") == ours.eot_id
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<|endoftext|>"
    again, notes = vocabulary.read(tmp_path)
    assert (again.kind, notes, again.special["<|user|>"]) == ("sentencepiece", [], ours.special["<|user|>"])
    of_spec = tokenizers.from_spec(f"sentencepiece:{tmp_path / 'tokenizer.json'}")
    for text in TEXTS:
        assert made.encode(text).ids == again.encode(text).tolist() == ours.encode(text).tolist()
        assert of_spec.encode(text).tolist() == ours.encode(text).tolist()


def test_a_prefix_is_left_out_of_a_run_and_named(trained, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(sentencepiece_json.as_tokenizer_json(trained("bpe, prefix"), {}))
    ours, notes = vocabulary.read(tmp_path)
    assert notes == ["tokenizer.json puts a space before texts; it is not: a text has the tokens of its own, no more"]
    theirs = processor(trained("bpe, prefix"))
    for text in LINES[:8]:
        assert ours.encode(f" {text}").tolist() == theirs.encode(text) and ours.decode(ours.encode(text)) == text
    with pytest.raises(UserError, match="tokenizer.json changes the text it encodes"):
        tokenizers.from_spec(f"sentencepiece:{tmp_path / 'tokenizer.json'}")


# ---- what cannot be said


def pieces_with(trained, **changes) -> bytes:
    """The model "bpe" with its pieces changed by their type: {type: function of pieces}."""
    pieces = spm.pieces(spm.parsed(trained("bpe")))
    return spm.written(changes["of"](pieces), changes.get("kind", spm.BPE), **changes.get("normalizer", {}))


REFUSED = {
    "unused": (
        lambda pieces: [*pieces, spm.Piece("zz", 0.0, spm.UNUSED)],
        {},
        r"pieces that are not used \(\['zz'\]\)",
    ),
    "same score": (
        lambda pieces: [*pieces, spm.Piece("qz", -3.0, spm.NORMAL)],
        {},
        "two of its pieces have the same score",
    ),
    "bytes": (lambda pieces: [piece for piece in pieces if piece.text != "<0x41>"], {}, "pieces for 255 of 256 bytes"),
    "words": (lambda pieces: pieces, dict(kind=3), "it is a model of words or of characters"),
    "symbols": (
        lambda pieces: [*pieces, spm.Piece("sym", 0.0, spm.USER_DEFINED)],
        dict(normalizer=dict(add_dummy_prefix=True)),
        r"user-defined symbols \(\['sym'\]\) and changes texts before them",
    ),
    "characters": (
        lambda pieces: [*pieces, spm.Piece("\u16a0x", -1.0, spm.NORMAL)],
        dict(kind=spm.UNIGRAM),
        "has a character without a piece",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_tokenizer_json_cannot_say_is_refused_by_name(trained, name):
    change, rest, message = REFUSED[name]
    with pytest.raises(UserError, match=f"cannot be written as a tokenizer.json: .*{message}"):
        sentencepiece_json.as_tokenizer_json(pieces_with(trained, of=change, **rest), {})


BACK = {
    "normalizer": (
        lambda fields: fields | {"normalizer": {"type": "Lowercase"}},
        "changes texts by {'type': 'Lowercase'}",
    ),
    "split": (
        lambda fields: fields | {"pre_tokenizer": {"type": "Whitespace"}},
        "splits texts by Whitespace, which SentencePiece does not",
    ),
    "merges": (
        lambda fields: fields | {"model": fields["model"] | {"merges": fields["model"]["merges"][1:]}},
        "otherwise than by a score for each piece",
    ),
    "order": (
        lambda fields: fields | {"model": fields["model"] | {"merges": _last_first(fields["model"]["merges"])}},
        "an order that changes with their parts",
    ),
    "no merges": (lambda fields: fields | {"model": {"type": "BPE", "vocab": {"a": 0}}}, "is not a tokenizer.json of"),
}


def _last_first(merges: list) -> list:
    """One parting of a piece that has several, before all others."""
    products = ["".join(pair) for pair in merges]
    i = next(i for i in range(len(merges) - 1, 0, -1) if products[i] == products[i - 1])
    return [merges[i], *merges[:i], *merges[i + 1 :]]


@pytest.mark.parametrize("name", BACK)
def test_what_a_model_cannot_say_is_refused_by_name(trained, name):
    change, message = BACK[name]
    fields = json.loads(sentencepiece_json.as_tokenizer_json(trained("bpe"), {}))
    with pytest.raises(UserError, match=message):
        sentencepiece_json.as_model(json.dumps(change(fields)).encode(), "tokenizer.json")
