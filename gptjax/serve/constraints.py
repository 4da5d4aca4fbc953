"""What a text has to conform to, as `llguidance` decides it token by token: JSON, a JSON schema, a regular expression, one
of several texts, or a grammar in llguidance's dialect of Lark.

    constraint = of_request(tokenizer, stop_ids, response_format={"type": "json_object"})
    constraint.allowed()    # bool [V]
    constraint.take(token)

The library walks over the bytes that tokens stand for, so that it serves every tokenizer alike. Tokens that spell the same
bytes are allowed together: the library names one of them. Where the text is certain for a while, the tokens are those that the
tokenizer encodes it in.

Between the signs of JSON there is at most one space, or a line break with an indent: a model that is let to writes spaces until
its tokens are used up.
"""

import functools
import json
import subprocess
import sys

import numpy as np

from gptjax.config.extras import library
from gptjax.data.tokenizers import Tokenizer
from gptjax.errors import UserError, shorten
from gptjax.serve import grammar_trial

FORMATS = ("text", "json_object", "json_schema")
SPACES = r"( |\n {0,16})"
TRIED_CHARACTERS = 4000  # of a grammar: longer ones are compiled apart first
_OF_JSON = {"whitespace_pattern": SPACES, "lenient": False}


class Constraint:
    """One text's way through a grammar: a jobs.Constraint."""

    def __init__(self, matcher, vocabulary: "Vocabulary"):
        self._matcher, self._vocabulary = matcher, vocabulary

    def allowed(self) -> np.ndarray:
        """bool [V], of the tokenizer's vocabulary. Raises UserError: no token leads on, and the text may not end here."""
        bits = self._matcher.compute_bitmask()
        self._check()
        return self._vocabulary.with_twins(bits)

    def take(self, token: int) -> None:
        """Raises UserError: the token was not allowed."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def may_end(self) -> bool:
        """Whether the text so far conforms."""
        return self._matcher.is_accepting()

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        error = self._matcher.get_error()
        if error.startswith("NoExtensionBias"):
            raise UserError(
                f"the text cannot go on as its format asks: the tokenizer {self._vocabulary.tokenizer.kind!r} has no token"
                " for what has to come; ask for another format, or use a model whose tokenizer knows every byte."
            )
        raise UserError(f"the format of the text cannot be followed: {_reason(error)}.")


def of_request(
    tokenizer: Tokenizer, eot_ids, response_format=None, regex=None, grammar=None, choice=None
) -> Constraint | None:
    """The constraint of a request; None: it asks for none.

    eot_ids: the tokens that end a text, one at least. response_format: OpenAI's; a schema is always kept to, strict or not.
    regex: of the whole text. grammar: Lark, from `start` on. choice: the texts of which it has to be one.
    Raises UserError that begins with the name of the field: what cannot be kept to, and why.
    """
    grammars = {
        "response_format": _of_format(response_format),
        "regex": _of_text(regex, "regex", "grammar_from_regex"),
        "grammar": _of_text(grammar, "grammar", "grammar_from_lark"),
        "choice": _of_choice(choice),
    }
    wanted = {name: text for name, text in grammars.items() if text is not None}
    if len(wanted) > 1:
        raise UserError(f"{' and '.join(wanted)} are given together; a text can be kept to one of them.")
    for name, text in wanted.items():
        return of_grammar(tokenizer, eot_ids, text, name)
    return None


def of_grammar(tokenizer: Tokenizer, eot_ids, grammar: str, name: str) -> Constraint:
    """grammar: as llguidance writes it. name: of the field it is from. Raises UserError that begins with it."""
    vocabulary = vocabulary_of(tokenizer, tuple(eot_ids))
    try:
        constraint = Constraint(_matcher(vocabulary, grammar).deep_copy(), vocabulary)
        begins = constraint.allowed()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    ends = np.zeros(len(begins), bool)
    ends[list(vocabulary.eot_ids)] = True
    if not begins.any() or (not constraint.may_end and not (begins & ~ends).any()):
        raise UserError(f"{name}: no token of the tokenizer {tokenizer.kind!r} can begin such a text.")
    return constraint


def of_schema(schema, name: str) -> str:
    """The grammar of a JSON schema. Raises UserError: it is no object and no truth value."""
    schema = {True: {}, False: {"enum": []}}[schema] if isinstance(schema, bool) else schema
    if not isinstance(schema, dict):
        raise UserError(f"{name} is {shorten(repr(schema), 80)}; expected a JSON schema, an object.")
    try:
        return _library().LLMatcher.grammar_from_json_schema(as_kept(schema))
    except ValueError as error:  # an integer of more than 64 bits
        raise UserError(f"{name}: {shorten(str(error), 200)}.") from None


def check_schema(schema: dict, name: str) -> None:
    """Raises UserError that begins with name: the schema cannot be kept to."""
    grammar = of_schema(schema, name)
    try:
        _try_apart(grammar)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    error = _library().LLMatcher.validate_grammar(grammar)
    if error:
        raise UserError(f"{name}: {_reason(error)}.")


def as_kept(schema: dict) -> dict:
    """A JSON schema as it is kept to, whatever the settings of llguidance that it came with."""
    return schema | {"x-guidance": _OF_JSON}


def _of_format(value) -> str | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in FORMATS:
        given = f"type {kind!r}" if isinstance(value, dict) else shorten(repr(value), 80)
        raise UserError(f"response_format: {given}; expected an object with a type of: {', '.join(FORMATS)}.")
    if kind == "text":
        return None
    if kind == "json_object":
        return of_schema({"type": "object"}, "response_format")
    inner = value.get("json_schema")
    if not isinstance(inner, dict) or "schema" not in inner:
        raise UserError('response_format: json_schema has no schema; expected {"name": NAME, "schema": SCHEMA}.')
    return of_schema(inner["schema"], "response_format: json_schema.schema")


def _of_text(value, name: str, maker: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise UserError(f"{name} is {shorten(repr(value), 80)}; expected a text that is not empty.")
    return getattr(_library().LLMatcher, maker)(value)


def _of_choice(value) -> str | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) and each for each in value):
        raise UserError(f"choice is {shorten(repr(value), 80)}; expected a list of texts, none of them empty.")
    return _library().LLMatcher.grammar_from_lark(f"start: {' | '.join(map(literal, value))}")


def literal(text: str) -> str:
    """A text as Lark quotes it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _library():
    return library("llguidance", "output of a given format")


# ---- compiled once


class Vocabulary:
    """A tokenizer as the library reads it, and the ids that spell the same bytes."""

    def __init__(self, tokenizer: Tokenizer, eot_ids: tuple[int, ...]):
        self.tokenizer, self.eot_ids = tokenizer, eot_ids
        spelled = _library().TokenizerWrapper(_Spelled(tokenizer, eot_ids))
        self.library = _library().LLTokenizer(spelled, eos_token=list(eot_ids), n_vocab=tokenizer.vocab_size)
        first_of = {}
        twin_of = [first_of.setdefault(word, i) if word else i for i, word in enumerate(tokenizer.spelling)]
        self._first_V = np.array(twin_of)
        self._twins = np.flatnonzero(self._first_V != np.arange(len(twin_of)))

    def with_twins(self, bits: bytes) -> np.ndarray:
        """bool [V] of the library's mask, true for all tokens of a spelling if it is for one."""
        allowed_V = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: len(self._first_V)].astype(bool)
        np.logical_or.at(allowed_V, self._first_V[self._twins], allowed_V[self._twins])
        allowed_V[self._twins] = allowed_V[self._first_V[self._twins]]
        return allowed_V


class _Spelled:
    """What llguidance's TokenizerWrapper asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eot_ids: tuple[int, ...]):
        self._tokenizer = tokenizer
        self.tokens = tokenizer.spelling
        self.special_token_ids = sorted({*tokenizer.special.values(), *eot_ids})
        self.eos_token_id = eot_ids[0]

    def __call__(self, text: bytes) -> list[int]:
        try:
            return self._tokenizer.encode(text.decode()).tolist()
        except UserError:  # a character that it lacks; the library then finds no token, which Constraint says
            return []


@functools.lru_cache(maxsize=8)
def vocabulary_of(tokenizer: Tokenizer, eot_ids: tuple[int, ...]) -> Vocabulary:
    """Raises UserError: nothing could end a text."""
    if not eot_ids:
        raise UserError(
            f"the tokenizer {tokenizer.kind!r} has no end-of-text, by which a text of a given format ends; leave the format"
            " out, or use a model that has one."
        )
    return Vocabulary(tokenizer, eot_ids)


@functools.lru_cache(maxsize=64)
def _matcher(vocabulary: Vocabulary, grammar: str):
    """The matcher at the start of a text; each text takes a copy. Raises UserError: the library does not take the grammar."""
    _try_apart(grammar)
    limits = _library().LLParserLimits(verbose_errors=False)  # no text of a request in a message
    matcher = _library().LLMatcher(vocabulary.library, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise UserError(f"{_reason(matcher.get_error())}.")
    return matcher


@functools.lru_cache(maxsize=64)
def _try_apart(grammar: str) -> None:
    """Raises UserError: to compile a long grammar ends the process that does, or takes it too long."""
    if len(grammar) <= TRIED_CHARACTERS:
        return
    command = [sys.executable, "-P", grammar_trial.__file__]
    ended = subprocess.run(command, input=grammar.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if ended.returncode:
        raise UserError(
            f"it cannot be compiled within {grammar_trial.CPU_SECONDS} seconds and a few gigabytes; ask for a simpler format."
        )


def _reason(error: str) -> str:
    """The library's message as one line, with the way out where it names keywords that it has not."""
    keywords = error.removeprefix("Unimplemented keys: ") if error.startswith("Unimplemented keys: ") else None
    if keywords is not None:
        names = ", ".join(map(repr, json.loads(keywords.splitlines()[0])))
        return f"the schema has {names}, which cannot be kept to while a text is made; leave it out"
    return shorten(error.partition("<non-verbose/>")[0].rstrip(" .\n"), 300)
