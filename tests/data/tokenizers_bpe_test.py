"""GPT-2's BPE and tokenizer.json files give the ids of tiktoken and tokenizers, in chunks as in one, or are refused."""

import base64
import functools
import json
import re
import shutil

import numpy as np
import pytest
import tiktoken
import tiktoken.load
import tiktoken_ext.openai_public
from hypothesis import given
from vocabularies import GPT2_FOLDER, MULTILINGUAL, TEXTS, examples, library_tokenizer, small_json

from gptjax.config.fields import DataConfig
from gptjax.data import tokenizers
from gptjax.data.tokenizers import byte_level
from gptjax.errors import UserError

FILES = [str(GPT2_FOLDER / name) for name in ("vocab.bpe", "encoder.json")]


@functools.cache
def gpt2():
    return tokenizers.from_spec(f"gpt2:{GPT2_FOLDER}")


@functools.cache
def direct_tiktoken():
    """GPT-2 as tiktoken makes it of the files; with the split of text of the released encoder.py, not tiktoken's."""
    return tiktoken.Encoding(
        "direct",
        pat_str=r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        mergeable_ranks=tiktoken.load.data_gym_to_mergeable_bpe_ranks(*FILES),
        special_tokens={"<|endoftext|>": 50256},
    )


@pytest.fixture(scope="module")
def made_hf(tmp_path_factory):
    """made_hf(split): (ours, the library's own)."""
    folder = tmp_path_factory.mktemp("hf")

    @functools.cache
    def make(split: str):
        library = library_tokenizer(split)
        library.save(str(folder / f"{split}.json"))
        library.encode_special_tokens = True
        return tokenizers.from_spec(f"hf:{folder / split}.json"), library

    return make


SPLITS = ("gpt2", "digits", "llama", "qwen", "spaces", "none")


def test_a_multilingual_text_has_the_ids_of_tiktoken_and_of_tokenizers(made_hf):
    ours, library = made_hf("gpt2")
    expected = direct_tiktoken().encode_ordinary(MULTILINGUAL)
    assert len(expected) > 900
    assert gpt2().encode(MULTILINGUAL).tolist() == expected
    assert library.encode(MULTILINGUAL, add_special_tokens=False).ids == expected
    assert ours.encode(MULTILINGUAL).tolist() == expected
    assert ours.spelling[:50257] == gpt2().spelling and ours.eot_id == gpt2().eot_id == 50256


@given(text=TEXTS)
@examples
def test_any_text_has_tiktokens_ids(text):
    assert gpt2().encode(text).tolist() == direct_tiktoken().encode_ordinary(text)


@given(text=TEXTS)
@examples
def test_gpt2_in_chunks_has_the_ids_of_the_whole(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_level, "_CHUNK_CHARACTERS", 1)
        assert gpt2().encode(text).tolist() == direct_tiktoken().encode_ordinary(text)


@pytest.mark.parametrize("split", SPLITS)
@given(text=TEXTS)
@examples
def test_a_tokenizer_json_in_chunks_has_the_ids_of_the_whole(split, made_hf, text):
    ours, library = made_hf(split)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_level, "_CHUNK_CHARACTERS", 1)
        assert ours.encode(text).tolist() == library.encode(text, add_special_tokens=False).ids


def test_texts_are_cut_where_it_is_known_to_be_safe(made_hf, monkeypatch):
    monkeypatch.setattr(byte_level, "_CHUNK_CHARACTERS", 1 << 14)
    cuts = {split: made_hf(split)[0]._cut for split in SPLITS}
    gpt2_cut, llama_cut = byte_level.GPT2_CUT, byte_level.LLAMA_CUT
    assert cuts == {
        "gpt2": gpt2_cut,
        "digits": gpt2_cut,
        "llama": llama_cut,
        "qwen": llama_cut,
        "spaces": None,
        "none": None,
    }
    text = MULTILINGUAL * 40
    for cut in (gpt2_cut, llama_cut):
        parts = byte_level.chunks(text, cut)
        assert "".join(parts) == text and len(parts) > 1
        assert max(map(len, parts)) < 1.1 * byte_level._CHUNK_CHARACTERS


def test_line_ends_stay_with_punctuation_where_a_split_keeps_them_together(made_hf, monkeypatch):
    monkeypatch.setattr(byte_level, "_CHUNK_CHARACTERS", 1 << 14)
    ours, library = made_hf("llama")
    text = "so!\n\n \n中。\n12\n" * 3000
    with_cuts = ours.encode(text)
    assert len(byte_level.chunks(text, ours._cut)) > 1
    np.testing.assert_array_equal(with_cuts, library.encode(text, add_special_tokens=False).ids)
    pieces = [piece for piece, _ in library.pre_tokenizer.pre_tokenize_str(text)]
    assert "!\u010a\u010a" in pieces  # a cut before the line ends would part them


def test_a_long_text_has_tiktokens_ids(made_hf, monkeypatch):
    monkeypatch.setattr(byte_level, "_CHUNK_CHARACTERS", 1 << 14)
    text = MULTILINGUAL * 40 + "x" * 50_000 + " " * 50_000
    expected = np.array(direct_tiktoken().encode_ordinary(text))
    np.testing.assert_array_equal(gpt2().encode(text), expected)
    np.testing.assert_array_equal(made_hf("gpt2")[0].encode(text), expected)


# Files of GPT-2's vocabulary


def test_one_vocabulary_has_one_hash_whatever_files_it_is_read_from(tmp_path):
    (tmp_path / "gpt2.tiktoken").write_bytes(gpt2().definition)
    for name, file in zip(("merges.txt", "vocab.json"), FILES):
        shutil.copy(file, tmp_path / name)
    for path in (tmp_path, tmp_path / "gpt2.tiktoken"):
        config = tokenizers.with_spec(DataConfig(), f"gpt2:{path}")
        assert tokenizers.train_tokenizer(config, []).hash == gpt2().hash
        assert tokenizers.tokenizer_settings(config) == tokenizers.tokenizer_settings(DataConfig(tokenizer="gpt2"))


def test_by_name_the_vocabulary_is_that_of_tiktokens_cache_and_its_absence_is_explained(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    with pytest.raises(UserError, match="could not be downloaded .*; give its path, a folder with encoder.json"):
        tokenizers.from_spec("gpt2")
    for file in FILES:
        name = file.rsplit("/", 1)[1]
        [address] = [c for c in tiktoken_ext.openai_public.gpt2.__code__.co_consts if str(c).endswith(name)]
        shutil.copy(file, tmp_path / hashlib.sha1(address.encode()).hexdigest())
    assert tokenizers.from_spec("gpt2").hash == gpt2().hash


def test_end_of_text_takes_the_number_that_p50k_base_leaves_out(tmp_path):
    ranks = {bytes([b]): b for b in range(256)} | {b" the": 257, b"th": 256 + 2}
    lines = [base64.b64encode(token) + b" %d\n" % i for token, i in ranks.items()]
    (tmp_path / "p.tiktoken").write_bytes(b"".join(lines))
    tokenizer = tokenizers.from_spec(f"gpt2:{tmp_path}/p.tiktoken")
    assert (tokenizer.eot_id, tokenizer.vocab_size) == (256, 259)
    assert tokenizer.encode("th").tolist() == [258] and tokenizer.decode([257]) == " the"


BYTES = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))


@pytest.mark.parametrize(
    "content,message",
    [
        (b"hello\n", r"x.tiktoken, line 1: b'hello' is not a token in base64 and its rank"),
        (BYTES + b"!!!! 256\n", r"line 257: b'!!!! 256' is not a token in base64"),
        (BYTES[: BYTES.index(b" 255")], "line 256"),
        (BYTES.replace(base64.b64encode(b"A") + b" 65\n", b""), "has no token for byte 65"),
        (BYTES + b"dGg= 300\n", "does not number 257 tokens from 0 on"),
        (BYTES + b"dGg= 17\n", "does not number 257 tokens from 0 on"),
        (BYTES + b"Owo= 256\n", r"has the token ';\\n', which GPT-2's split of text would part.* as cl100k_base"),
        (b"", "has no token for byte 0"),
    ],
)
def test_a_wrong_tiktoken_file_is_refused_with_its_line(content, message, tmp_path):
    file = tmp_path / "x.tiktoken"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        tokenizers.from_spec(f"gpt2:{file}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name,change,message",
    [
        (
            "vocab.bpe",
            lambda data: data[: len(data) // 2],
            "by its place, but None in encoder.json|makes .* tokens, but",
        ),
        ("vocab.bpe", lambda data: data.replace(b"\xc4\xa0 t\n", b""), "'.* a' is token 256 by its place, but 257"),
        ("encoder.json", lambda data: data[:1000], "encoder.json is not the numbered tokens of GPT-2"),
        ("encoder.json", lambda data: b"[1, 2]", "encoder.json is not the numbered tokens of GPT-2"),
        ("encoder.json", lambda data: b'{"\xe4\xb8\xad": 0}', "encoder.json is not the numbered tokens of GPT-2"),
        ("encoder.json", None, "has no encoder.json and vocab.bpe"),
    ],
)
def test_a_wrong_folder_of_gpt2s_files_is_refused_by_file(name, change, message, tmp_path):
    for file in FILES:
        shutil.copy(file, tmp_path)
    file = tmp_path / name
    file.unlink() if change is None else file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        tokenizers.from_spec(f"gpt2:{tmp_path}")
    assert "\n" not in str(error.value)


# Files of Hugging Face's


def written(tmp_path, **fields):
    """small_json with fields (of "model", by model_NAME) replaced, as a file."""
    content = small_json()
    for name, value in fields.items():
        section, key = (content["model"], name[6:]) if name.startswith("model_") else (content, name)
        section[key] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return tokenizers.from_spec(f"hf:{tmp_path}")


def test_templates_truncation_and_padding_of_a_tokenizer_json_are_left_out(tmp_path):
    ids = written(tmp_path).encode(MULTILINGUAL)
    template = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
    template["special_tokens"]["</s>"] = {"id": "</s>", "ids": [0], "tokens": ["</s>"]}
    template["single"] = [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    truncation = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    changed = written(tmp_path, post_processor=template, truncation=truncation)
    np.testing.assert_array_equal(changed.encode(MULTILINGUAL), ids)


def test_end_of_text_is_a_known_name_or_the_id_behind_the_vocabulary(tmp_path):
    tokenizer = written(tmp_path)
    assert tokenizer.special == {"</s>": 0, "<pad>": 1, "<|endoftext|>": 0} and tokenizer.vocab_size == 300
    pad = [token for token in small_json()["added_tokens"] if token["content"] == "<pad>"]
    tokenizer = written(tmp_path, added_tokens=pad)
    assert tokenizer.special == {"<pad>": 1, "<|endoftext|>": 300} and tokenizer.vocab_size == 301
    assert tokenizer.spelling[0] == b"</s>"  # a token like others, then


def test_added_tokens_that_are_not_special_are_text(tmp_path):
    plain = {"id": 300, "content": "  \t", "single_word": False, "lstrip": False, "rstrip": False}
    plain |= {"normalized": False, "special": False}
    tokenizer = written(tmp_path, added_tokens=[*small_json()["added_tokens"], plain])
    ids = tokenizer.encode("a  \tb </s>")
    assert 300 in ids and tokenizer.decode(ids) == "a  \tb </s>" and tokenizer.token_bytes[300] == 3
    with pytest.raises(UserError, match="changes a text it encodes: ' Two' comes back as 'Two'"):  # it swallows spaces
        written(tmp_path, added_tokens=[plain | {"content": "Two", "lstrip": True}])


PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(normalizer={"type": "NFC"}), r"changes a text it encodes \(its normalizer is NFC\)"),
        (dict(normalizer={"type": "Lowercase"}), r"changes a text it encodes \(its normalizer is Lowercase\)"),
        (dict(pre_tokenizer=PREFIXED), "tokenizer.json changes a text it encodes: .* comes back as ' "),
        (
            dict(pre_tokenizer={"type": "WhitespaceSplit"}),
            "tokenizer.json changes a text it encodes: ' ' comes back as ''",
        ),
        (dict(model_dropout=0.1), r"drops merges at random \(dropout=0.1\)"),
        (dict(model_type="WordPiece"), "is a model of type 'WordPiece'; expected byte-level BPE"),
        (
            dict(model_vocab={"a": 0}, model_merges=[]),
            "is not byte-level BPE: it has no token for byte 0x00 and 210 more",
        ),
        (
            dict(model_vocab={"\u2581the": 0}, model_merges=[]),
            "with '\u2581the' it looks like a SentencePiece vocabulary",
        ),
        (dict(model_end_of_word_suffix="</w>"), "marks parts of words .end_of_word_suffix='</w>'."),
        (dict(model_merges=[["q", "zzz"]]), "could not be loaded as a Hugging Face tokenizer"),
        (dict(model=None), "is not a Hugging Face tokenizer.json"),
    ],
)
def test_a_tokenizer_json_that_changes_texts_or_is_of_another_kind_is_refused(fields, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        written(tmp_path, **fields)
    assert "\n" not in str(error.value)


def test_what_is_no_tokenizer_json_is_refused(tmp_path):
    for content in ("hello", "[]", "{}", "[" * 100_000):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match="is not a Hugging Face tokenizer.json"):
            tokenizers.from_spec(f"hf:{tmp_path}")


def test_ids_of_special_tokens_come_from_no_text(made_hf):
    names = "<|endoftext|><|mask|> <|endoftext|>"
    for tokenizer in (gpt2(), made_hf("gpt2")[0], made_hf("llama")[0]):
        ids = tokenizer.encode(names)
        assert not set(ids.tolist()) & set(tokenizer.special.values()) and tokenizer.decode(ids) == names
        assert re.sub("<.*?>", "", tokenizer.decode([*ids, tokenizer.eot_id])) == " "
