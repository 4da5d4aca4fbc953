"""Whatever a model of random weights says under a constraint conforms to it, or is cut by its length."""

import functools
import json
import random
import re

import chat_folders
import constrained
import jsonschema
import numpy as np
import pytest
import vocabularies

import gptjax
from gptjax.config.fields import DataConfig
from gptjax.data.tokenizers.base import END_OF_TEXT
from gptjax.data.tokenizers.gpt2 import GPT2Tokenizer
from gptjax.data.tokenizers.huggingface import HuggingFaceTokenizer
from gptjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from gptjax.data.tokenizers.simple import ByteTokenizer, CharTokenizer
from gptjax.errors import UserError
from gptjax.huggingface import importing
from gptjax.serve import constraints

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": ["S", "M", "größer"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "maxItems": 3},
    },
    "required": ["name", "size", "count"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA, "strict": True}}
DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]"
CHOICE = ["yes", "no", 'a "quoted"\n/text/']
LARK = 'start: sum\nsum: NUMBER ("+" NUMBER)+\nNUMBER: /[0-9]{1,3}/'


MAKERS = {
    "bytes": ByteTokenizer,
    "chars": lambda: CharTokenizer(
        "".join(sorted({*map(chr, range(32, 127)), *"\nößéü", *vocabularies.MULTILINGUAL})), has_eot=True
    ),
    "sentencepiece": lambda: SentencePieceTokenizer.train(
        DataConfig(tokenizer_vocab_size=330), [line for line in LINES if line.isascii()] * 9
    ),
    "gpt2": lambda: GPT2Tokenizer.read(str(vocabularies.GPT2_FOLDER)),
    "hf": lambda: HuggingFaceTokenizer.from_definition(json.dumps(vocabularies.small_json()).encode()),
}
LINES = vocabularies.MULTILINGUAL.splitlines()


@functools.cache
def tokenizer_of(kind: str):
    return MAKERS[kind]()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A GPT of random weights, with a tokenizer of 700 byte pairs."""
    place = tmp_path_factory.mktemp("constraints")
    importing.import_folder(str(chat_folders.write(place / "folder")), str(place / "run"))
    return gptjax.load(place / "run")


def at_random(tokenizer, constraint, rng, most: int = 400) -> tuple[str, bool]:
    """(text, whether it ended) of a speaker to whom all tokens that are allowed are alike, but for a liking of ends."""
    closing = [i for i, word in enumerate(tokenizer.spelling) if word in (b'"', b"}", b"]")] + [tokenizer.eot_id]
    tokens = []
    for _ in range(most):
        allowed_V = constraint.allowed()
        ends = [i for i in closing if allowed_V[i]]
        token = int(rng.choice(ends if ends and rng.random() < 0.2 else np.flatnonzero(allowed_V)))
        constraint.take(token)
        if token == tokenizer.eot_id:
            return tokenizer.decode(tokens), True
        tokens.append(token)
    return tokenizer.decode(tokens), False


CONFORMS = {
    "json_object": (
        dict(response_format={"type": "json_object"}),
        lambda text: isinstance(json.loads(text), dict),
    ),
    "json_schema": (dict(response_format=FORMAT), lambda text: jsonschema.validate(json.loads(text), SCHEMA) is None),
    "regex": (dict(regex=DATE), lambda text: re.fullmatch(DATE, text)),
    "choice": (dict(choice=CHOICE), lambda text: text in CHOICE),
    "grammar": (dict(grammar=LARK), lambda text: re.fullmatch(r"\d{1,3}(\+\d{1,3})+", text)),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", CONFORMS)
def test_every_text_that_ends_conforms_in_every_kind_of_tokenizer(kind, name):
    tokenizer, (wanted, conforms) = tokenizer_of(kind), CONFORMS[name]
    ended = 0
    for seed in range(6):
        constraint = constraints.of_request(tokenizer, (tokenizer.eot_id,), **wanted)
        text, is_whole = at_random(tokenizer, constraint, np.random.default_rng(seed))
        ended += is_whole
        assert not is_whole or conforms(text), text
    assert ended >= 4


def test_a_model_of_random_weights_says_json_of_the_schema(run):
    prompt_L = run.tokenizer.encode("An order, please:")
    ends = []
    for seed in range(12):
        constraint = constraints.of_request(run.tokenizer, (run.tokenizer.eot_id,), response_format=FORMAT)
        text, how = constrained.say(run, prompt_L, constraint, seed, max_tokens=64)
        ends.append(how)
        if how == "eot":
            jsonschema.validate(json.loads(text), SCHEMA)
        else:
            assert constraint.allowed().any()
    assert ends.count("eot") >= 3, ends
    greedy = constraints.of_request(run.tokenizer, (run.tokenizer.eot_id,), regex=DATE)
    assert re.fullmatch(DATE, constrained.say(run, prompt_L, greedy, 0, max_tokens=32, temperature=0)[0])


def test_the_end_of_a_turn_ends_a_text_too_and_nothing_else_does():
    tokenizer = ByteTokenizer().with_special(("<|end|>", "<|user|>"))
    ends = (tokenizer.special["<|end|>"], tokenizer.special[END_OF_TEXT])
    constraint = constraints.of_request(tokenizer, ends, regex="ab?")
    assert np.flatnonzero(constraint.allowed()).tolist() == [ord("a")]
    constraint.take(ord("a"))
    assert np.flatnonzero(constraint.allowed()).tolist() == [ord("b"), *sorted(ends)] and constraint.may_end
    constraint.take(ends[0])
    assert not constraint.allowed()[ord("b")]


def test_tokens_of_one_spelling_are_allowed_together():
    """A byte and a piece of SentencePiece may spell the same."""
    tokenizer = tokenizer_of("sentencepiece")
    same = [i for i, word in enumerate(tokenizer.spelling) if word == b"e"]
    assert len(same) == 2, "the vocabulary has e as a piece and as a byte"
    constraint = constraints.of_request(tokenizer, (tokenizer.eot_id,), regex="[e-g]x")
    assert constraint.allowed()[same].all()
    vocabulary = constraints.vocabulary_of(tokenizer, (tokenizer.eot_id,))
    for token in same:
        bits = np.packbits(np.arange(32 * (tokenizer.vocab_size // 32 + 1)) == token, bitorder="little").tobytes()
        assert np.flatnonzero(vocabulary.with_twins(bits)).tolist() == same
    for token in same:
        begun = constraints.of_request(tokenizer, (tokenizer.eot_id,), regex="[e-g]x")
        begun.take(token)
        assert tokenizer.spelling[int(np.flatnonzero(begun.allowed())[0])] == b"x"


def test_texts_of_one_request_do_not_share_their_state():
    tokenizer = ByteTokenizer()
    first, second = (constraints.of_request(tokenizer, (256,), choice=["ab", "cd"]) for _ in range(2))
    first.take(ord("a"))
    assert np.flatnonzero(second.allowed()).tolist() == [ord("a"), ord("c")]
    assert np.flatnonzero(first.allowed()).tolist() == [ord("b")]
    assert constraints._matcher.cache_info().hits > 0, "the grammar is compiled once"


def test_a_model_that_likes_spaces_comes_to_an_end():
    """It takes a space or line break wherever it may."""
    tokenizer, rng = ByteTokenizer(), random.Random(0)
    constraint = constraints.of_request(tokenizer, (256,), response_format=FORMAT)
    text = b""
    for _ in range(400):
        allowed = np.flatnonzero(constraint.allowed()).tolist()
        token = next((each for each in (32, 10) if each in allowed), None) or rng.choice(allowed)
        constraint.take(token)
        if token == 256:
            break
        text += bytes([token])
    jsonschema.validate(json.loads(text), SCHEMA)


def schema(**keywords) -> dict:
    return dict(response_format={"type": "json_schema", "json_schema": {"schema": keywords}})


REFUSED = {
    "JSON serializable": schema(type="integer", multipleOf=10**30),
    "regex: at 1": dict(regex="a[b"),
    "look-around": dict(regex="(?=a)b"),
    "regex is ''": dict(regex=""),
    "regex and choice are given together": dict(regex="a", choice=["b"]),
    "choice is []": dict(choice=[]),
    "grammar: at 1(8): unknown name": dict(grammar="start: x"),
    "response_format: 3; expected an object": dict(response_format=3),
    "response_format: type 'yaml'": dict(response_format={"type": "yaml"}),
    "json_schema has no schema": dict(response_format={"type": "json_schema"}),
    "the schema has 'contains', 'uniqueItems', which cannot be kept to": schema(uniqueItems=True, contains={}),
    "Invalid type: strin": schema(type="strin"),
    "the schema has 'not'": schema(**{"not": {}, "x-guidance": {"lenient": True}}),
    "minimum (3) is greater than maximum (1)": schema(type="integer", minimum=3, maximum=1),
    "expected a JSON schema, an object": dict(response_format={"type": "json_schema", "json_schema": {"schema": 3}}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_kept_to_is_a_line_that_names_the_field(message):
    with pytest.raises(UserError) as raised:
        constraints.of_request(ByteTokenizer(), (256,), **REFUSED[message])
    said = str(raised.value)
    assert message in said and said.startswith(tuple(REFUSED[message])) and "\n" not in said


def test_a_long_format_whose_trial_ends_otherwise_than_well_is_refused(monkeypatch, tmp_path):
    killed = tmp_path / "killed.py"
    killed.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(constraints.grammar_trial, "__file__", str(killed))
    with pytest.raises(UserError, match="^choice: it cannot be compiled"):
        constraints.of_request(ByteTokenizer(), (256,), choice=[f"text {i} of a trial" for i in range(500)])


def test_a_long_grammar_is_tried_and_kept_to():
    texts = [f"text number {i}" for i in range(500)]
    constraint = constraints.of_request(ByteTokenizer(), (256,), choice=texts)
    for byte in texts[-1].encode():
        constraint.take(byte)
    assert constraint.may_end


def test_a_vocabulary_that_cannot_say_it_is_a_line_at_the_start_or_where_it_turns_out():
    tokenizer = CharTokenizer("abc", has_eot=True)
    with pytest.raises(UserError, match="^regex: .* has no token for what has to come"):
        constraints.of_request(tokenizer, (3,), regex="xyz")
    constraint = constraints.of_request(tokenizer, (3,), regex="a(b|[bc]x)")
    constraint.take(0)
    constraint.take(2)
    with pytest.raises(UserError, match="has no token for what has to come"):
        constraint.allowed()
    with pytest.raises(UserError, match="has no end-of-text, by which"):
        constraints.of_request(CharTokenizer("abc", has_eot=False), (), regex="a")


def test_nothing_is_constrained_that_does_not_ask_for_it():
    assert constraints.of_request(ByteTokenizer(), (256,)) is None
    assert constraints.of_request(ByteTokenizer(), (256,), response_format={"type": "text"}) is None
