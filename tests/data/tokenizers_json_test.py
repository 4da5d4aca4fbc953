"""tokenizer.json is judged by what it gives: absent fields, normalizers, bytes without a token, and the two-file form."""

import copy
import functools
import json
import sys

import numpy as np
import pytest
from hypothesis import given, strategies
from vocabularies import GPT2_FOLDER, MULTILINGUAL, TEXTS, examples, small_json

from gptjax.data import tokenizers
from gptjax.data.tokenizers import byte_level, load_tokenizer, lossless, save_tokenizer
from gptjax.data.tokenizers.byte_level import byte_of_character
from gptjax.errors import UserError

small = functools.cache(small_json)


def read(folder, fields: dict):
    """(ours, the library's) of a tokenizer.json with these fields."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    file.write_text(json.dumps(fields))
    ours = tokenizers.from_spec(f"hf:{file}")
    theirs = Tokenizer.from_file(str(file))
    theirs.encode_special_tokens = True
    return ours, theirs


def changed(**changes) -> dict:
    """small_json with fields (of "model", by model_NAME) replaced."""
    fields = copy.deepcopy(small())
    for name, value in changes.items():
        section, key = (fields["model"], name[6:]) if name.startswith("model_") else (fields, name)
        section[key] = value
    return fields


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
ABSENT = [(None, name) for name in small() if name not in ("model", "pre_tokenizer")]
ABSENT += [("model", name) for name in small()["model"] if name not in ("vocab", "merges")]
ABSENT += [("pre_tokenizer", "use_regex")]
IDENTITIES = {
    "empty": {"type": "Sequence", "normalizers": []},
    "empty in empty": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]},
    "itself": {"type": "Replace", "pattern": {"String": "a"}, "content": "a"},
    "nothing": {"type": "Replace", "pattern": {"String": ""}, "content": ""},
    "strips neither side": {"type": "Strip", "strip_left": False, "strip_right": False},
    "idle Bert": {
        "type": "BertNormalizer",
        "clean_text": False,
        "handle_chinese_chars": False,
        "strip_accents": None,
        "lowercase": False,
    },
}
CHANGES = {f"normalizer {name}": dict(normalizer=value) for name, value in IDENTITIES.items()}
CHANGES |= {
    "merges in strings": dict(model_merges=[" ".join(pair) for pair in small()["model"]["merges"]]),
    "dropout 0": dict(model_dropout=0),
    "dropout 0.0": dict(model_dropout=0.0),
    "unknown token": dict(model_unk_token="<pad>", model_fuse_unk=True),
    "byte fallback": dict(model_byte_fallback=True),
    "merges ignored": dict(model_ignore_merges=True),
    "no affixes": dict(model_continuing_subword_prefix="", model_end_of_word_suffix=""),
    "null flags": dict(model_fuse_unk=None, model_byte_fallback=None, model_ignore_merges=None),
    "in a sequence": dict(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}),
    "whole texts": dict(pre_tokenizer=BYTE_LEVEL | {"use_regex": False}),
    "post-processor": dict(post_processor=BYTE_LEVEL | {"trim_offsets": False}),
}


@given(absent=strategies.sets(strategies.sampled_from(ABSENT)), name=strategies.sampled_from([*CHANGES]), text=TEXTS)
@examples
def test_whatever_the_format_lets_be_absent_or_otherwise_the_ids_are_the_librarys(tmp_path_factory, absent, name, text):
    fields = copy.deepcopy(changed(**CHANGES[name]))
    for section, field in absent:
        (fields if section is None else fields[section]).pop(field, None)
    ours, theirs = read(tmp_path_factory.getbasetemp(), fields)
    assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("section,name", ABSENT)
def test_each_field_that_may_be_absent_may_be_absent_alone(section, name, tmp_path):
    fields = copy.deepcopy(small())
    del (fields if section is None else fields[section])[name]
    ours, theirs = read(tmp_path, fields)
    assert ours.encode(MULTILINGUAL).tolist() == theirs.encode(MULTILINGUAL).ids


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_normalizer_that_does_nothing_by_its_form_costs_nothing(name, tmp_path):
    ours, _ = read(tmp_path, changed(normalizer=IDENTITIES[name]))
    assert lossless.acting(ours.normalizer) == [] and ours._cut is byte_level.GPT2_CUT


def test_a_normalizer_that_makes_the_characters_of_bytes_itself_is_taken(tmp_path):
    fields = changed(normalizer={"type": "ByteLevel"}, pre_tokenizer=None)
    ours, theirs = read(tmp_path, fields)
    assert ours.encode(MULTILINGUAL).tolist() == theirs.encode(MULTILINGUAL).ids


def replace(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


REFUSED = {
    "NFC": ({"type": "NFC"}, r"\(its normalizer is NFC\): 'e\\u0301' comes back as '\\xe9'"),
    "NFKC": ({"type": "NFKC"}, r"'\\xa0' comes back as ' '"),
    "lower case": ({"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}, r"'T' comes back as 't'"),
    "strip": ({"type": "Strip", "strip_left": True, "strip_right": False}, "' ' comes back as ''"),
    "prefix": ({"type": "Prepend", "prepend": "_"}, "' ' comes back as '_ '"),
    "control": ({"type": "Nmt"}, r"'\\r' comes back as ' '"),
    "one character": (replace({"Regex": "\u0416"}, "Zh"), r"'\\u0416' comes back as 'Zh'"),
    "astral": (replace({"Regex": "\U00012345"}, ""), r"'\\U00012345' comes back as ''"),
    "string": (replace({"String": "never before"}, "x"), "'never before' comes back as 'x'"),
    "string by length": (replace({"String": "never"}, "reven"), "'never' comes back as 'reven'"),
    "one of a pair": (
        {"type": "Sequence", "normalizers": [replace({"String": "qqq"}, "zzz"), replace({"String": "zzz"}, "qqq")]},
        "'zzz' comes back as 'qqq'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_normalizer_that_changes_texts_is_refused_with_one_that_it_changes(name, tmp_path):
    normalizer, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, changed(normalizer=normalizer))
    assert "\n" not in str(error.value)


def test_a_replacement_that_no_probe_shows_is_taken_and_the_text_that_shows_it_refused(tmp_path):
    never, _ = read(tmp_path, changed(normalizer=replace({"Regex": "(?!)"}, "x")))
    assert never.decode(never.encode(MULTILINGUAL)) == MULTILINGUAL and never._cut is None
    rare, _ = read(tmp_path, changed(normalizer=replace({"Regex": "q+z{3}"}, "zzzq")))
    assert rare.decode(rare.encode("qzz")) == "qzz"
    with pytest.raises(
        UserError, match="changes this text .its normalizer is Replace.: of 'a qzzz.' it makes 'a zzzq.'"
    ):
        rare.encode("a qzzz.")  # of as many bytes as before


@pytest.mark.parametrize(
    "normalizer", [{"type": "Prepend", "prepend": ""}, {"type": "Precompiled", "precompiled_charsmap": ""}]
)
def test_what_the_library_breaks_down_over_is_one_line(normalizer, tmp_path):
    with pytest.raises(UserError, match="the library tokenizers broke down over") as error:
        read(tmp_path, changed(normalizer=normalizer))
    assert "\n" not in str(error.value)


# ---- bytes


def test_the_bytes_that_need_no_token_are_those_of_no_character():
    every = "".join(text for text in lossless._characters()).encode()
    assert lossless.NEVER == set(range(256)) - set(every)


def without_bytes(missing) -> dict:
    """small_json without the tokens of these bytes, numbered anew; merges that need them are gone."""
    fields = copy.deepcopy(small())
    gone = {c for c, b in byte_of_character().items() if b in missing}
    fields["model"]["merges"] = [p for p in fields["model"]["merges"] if not gone & set(p[0] + p[1])]
    kept = [token for token in fields["model"]["vocab"] if token in ("</s>", "<pad>") or not gone & set(token)]
    fields["model"]["vocab"] = {token: i for i, token in enumerate(kept)}
    return fields


def test_bytes_that_no_utf8_has_need_no_token(tmp_path):
    ours, theirs = read(tmp_path, without_bytes(lossless.NEVER))
    every = "".join(text for text in lossless._characters())[::97]
    for text in (MULTILINGUAL, every):
        assert ours.encode(text).tolist() == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_control_characters_and_empty_planes_may_lack_tokens_and_a_text_with_one_is_refused(tmp_path):
    """As SmolLM2's vocabulary lacks them."""
    ours, theirs = read(tmp_path, without_bytes({0x04, 0x1D, 0xF1, 0xF2}))
    for text in (MULTILINGUAL, "\x05\U0003fffe\U000c0000"):
        assert ours.encode(text).tolist() == theirs.encode(text).ids
    for text in ("a\x04b", "\x1d", "\U00040000"):
        with pytest.raises(UserError, match="changes this text"):
            ours.encode(text)


@pytest.mark.parametrize("byte", [0x00, 0x41, 0xC2, 0xF4])
def test_a_byte_without_token_is_named(byte, tmp_path):
    with pytest.raises(UserError, match=f"has no token for byte 0x{byte:02X}; expected one for each that UTF-8 has"):
        read(tmp_path, without_bytes({byte, 0xFF}))


def test_a_tiktoken_file_without_bytes_that_no_utf8_has_is_read(tmp_path):
    import base64

    spelled = [bytes([b]) for b in range(256) if b not in lossless.NEVER] + [b"th", b" th"]
    lines = b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(spelled))
    (tmp_path / "x.tiktoken").write_bytes(lines)
    tokenizer = tokenizers.from_spec(f"gpt2:{tmp_path}/x.tiktoken")
    assert tokenizer.decode(tokenizer.encode(MULTILINGUAL)) == MULTILINGUAL and tokenizer.eot_id == len(spelled)


# ---- ids


def test_added_tokens_have_the_ids_that_the_library_gives_them_whatever_the_file_says(tmp_path):
    new = small()["added_tokens"][0] | {"id": 500, "content": "[X]"}
    plain = small()["added_tokens"][0] | {"id": 999, "content": "  \t", "special": False}
    ours, theirs = read(tmp_path, changed(added_tokens=[*small()["added_tokens"], new, plain]))
    assert ours.special["[X]"] == theirs.token_to_id("[X]") == 300
    assert ours.encode("a  \tb").tolist() == theirs.encode("a  \tb").ids and 301 in ours.encode("a  \tb")
    assert ours.decode(ours.encode("a  \tb")) == "a  \tb" and ours.vocab_size == theirs.get_vocab_size()


# ---- two files


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """(folder of vocab.json and merges.txt, the library's tokenizer) of a vocabulary with its special tokens first."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("own")
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        [MULTILINGUAL] * 3, vocab_size=400, special_tokens=["<s>", "</s>", "<mask>"], show_progress=False
    )
    made.save_model(str(folder))
    return folder, made


@given(text=TEXTS)
@examples
def test_the_two_files_of_a_vocabulary_of_ones_own_give_the_ids_of_the_library(own, text):
    folder, library = own
    ours = from_folder(str(folder))
    library._tokenizer.encode_special_tokens = True
    assert ours.encode(text).tolist() == library.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


@functools.cache
def from_folder(folder: str):
    return tokenizers.from_spec(f"hf:{folder}")


def test_special_tokens_of_two_files_are_those_that_no_merge_makes(own, tmp_path):
    folder, _ = own
    ours = from_folder(str(folder))
    assert ours.special == {"<s>": 0, "</s>": 1, "<mask>": 2, "<|endoftext|>": 1} and ours.vocab_size == 400
    assert not {0, 1, 2} & set(ours.encode("<s></s><mask>").tolist())
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": 401, "[SEP]": 400}')
    assert tokenizers.from_spec(f"hf:{tmp_path}").special == ours.special | {"[SEP]": 400, "[PAD]": 401}
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": 402}')
    with pytest.raises(UserError, match="vocab.json and added_tokens.json do not number their tokens from 0 on"):
        tokenizers.from_spec(f"hf:{tmp_path}")


def test_gpt2s_own_files_are_read_by_both_kinds_with_the_same_ids():
    as_hf, as_gpt2 = (tokenizers.from_spec(f"{kind}:{GPT2_FOLDER}") for kind in ("hf", "gpt2"))
    np.testing.assert_array_equal(as_hf.encode(MULTILINGUAL), as_gpt2.encode(MULTILINGUAL))
    assert as_hf.spelling == as_gpt2.spelling and as_hf.special == as_gpt2.special


def test_gpt2_names_the_kind_that_reads_another_numbering(own):
    with pytest.raises(
        UserError, match="they are not numbered as GPT-2's are: give hf:.* for a vocabulary of your own"
    ):
        tokenizers.from_spec(f"gpt2:{own[0]}")


@pytest.mark.parametrize(
    "name,damage,message",
    [
        ("vocab.json", lambda data: data[:50], "vocab.json is not numbered tokens"),
        ("vocab.json", lambda data: b"[]", "vocab.json is not numbered tokens"),
        ("vocab.json", lambda data: data.replace(b'"</s>":1', b'"</s>":"1"'), "gives '</s>' the number '1'"),
        ("vocab.json", lambda data: data.replace(b'"</s>":1', b'"</s>":2'), "do not number their tokens from 0 on"),
        ("merges.txt", lambda data: data + b"zq zq\n", "line [0-9]+: 'zq zq' has 'zq', which vocab.json lacks"),
        ("merges.txt", lambda data: data + b"abc\n", "line [0-9]+: 'abc' is not two tokens"),
    ],
)
def test_damaged_files_are_named(name, damage, message, own, tmp_path):
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((own[0] / file).read_bytes())
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        tokenizers.from_spec(f"hf:{tmp_path}")
    assert "\n" not in str(error.value)


# ---- ends, and the library's absence


def test_ends_are_saved_pickled_and_part_of_the_hash(tmp_path):
    import pickle

    tokenizer, _ = read(tmp_path, small())
    other = tokenizer.with_ends(1, 305)
    assert (other.eot_id, other.bos_id, other.vocab_size) == (1, 305, 306)
    assert other.special == {"</s>": 0, "<pad>": 1, "<|startoftext|>": 305, "<|endoftext|>": 1}
    assert (tokenizer.eot_id, tokenizer.bos_id, tokenizer.vocab_size) == (0, 0, 300)
    variants = [
        tokenizer,
        other,
        tokenizer.with_ends(1, None),
        tokenizer.with_ends(None, None),
        other.with_special(["<|a|>"]),
    ]
    assert len({each.hash for each in variants}) == 5 and len({each.base_hash for each in variants}) == 1
    for i, each in enumerate(variants):
        save_tokenizer(each, tmp_path / str(i))
        for loaded in (load_tokenizer(tmp_path / str(i)), pickle.loads(pickle.dumps(each))):
            assert (loaded.hash, loaded.special, loaded.spelling) == (each.hash, each.special, each.spelling)
            assert (loaded.eot_id, loaded.bos_id) == (each.eot_id, each.bos_id)
    summary = json.loads((tmp_path / "1" / "tokenizer.json").read_text())
    (tmp_path / "1" / "tokenizer.json").write_text(json.dumps(summary | {"ends": [0, 1]}))
    with pytest.raises(UserError, match="tokenizer.json was altered"):
        load_tokenizer(tmp_path / "1")


def test_an_end_that_a_file_did_not_have_goes_when_another_is_named(tmp_path):
    pad = [token for token in small()["added_tokens"] if token["content"] == "<pad>"]
    tokenizer, _ = read(tmp_path, changed(added_tokens=pad))
    assert (tokenizer.eot_id, tokenizer.vocab_size) == (300, 301)
    other = tokenizer.with_ends(1, 1)
    assert (other.eot_id, other.vocab_size, other.special) == (1, 300, {"<pad>": 1, "<|endoftext|>": 1})
    assert tokenizer.invented_eot and not other.invented_eot


def test_without_the_library_a_line_says_what_to_install(tmp_path, monkeypatch):
    tokenizer, _ = read(tmp_path, small())
    save_tokenizer(tokenizer, tmp_path / "run")
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # import raises ImportError
    for load in (
        lambda: load_tokenizer(tmp_path / "run"),
        lambda: tokenizers.from_spec(f"hf:{tmp_path}/tokenizer.json"),
    ):
        with pytest.raises(UserError, match=r"needs tokenizers; pip install 'gptjax\[data\]'"):
            load()
