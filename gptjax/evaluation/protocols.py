"""How published numbers on known data sets are made: what is done to the text, and what is counted.

wikitext2, wikitext103, ptb: GPT-2 (Radford et al. 2019, section 3.1) undoes the data sets' own tokenisation ("invertible
de-tokenizers") and divides the text's log-probability by the number of its original tokens, for a perplexity per word
that models of any tokenizer share. Its de-tokenizers were not published; the rules here are those of Megatron-LM's
zero-shot evaluation (Shoeybi et al. 2019), by which others measure GPT-2, and so is the division by one token less than
there are: the first is not predicted. Their quirks are kept (two apostrophes are taken for quotes), for the numbers' sake. Words are counted as Merity et al. 2016 do, with one token for each line's end.

lambada: the last word of each passage, from all before it (Paperno et al. 2016): its accuracy under greedy decoding of
all its tokens, and perplexity per word, as lm-evaluation-harness's lambada_openai has them; and the accuracy of its last
token alone, which is how GPT-2's 45.99% (117M) came about. GPT-2's stop-word filter (section 3.3), whose list was not
published, is not applied.
"""

import dataclasses
import math
import re
import typing

import numpy as np

from gptjax.data import sources
from gptjax.errors import UserError, choose
from gptjax.evaluation.held_out import NORMAL_95
from gptjax.evaluation.texts import Text, source_config, tokenise

_WIKITEXT = (
    (r"s '", "s'"),
    *((rf" @[{mark}]@ ", mark) for mark in "-,."),
    *((rf" [{mark}] ", f"{mark} ") for mark in ":;.!?,"),  # one by one: neighbours share a space
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)
_PTB = (
    (r" '", "'"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" n't", "n't"),
    (r" N ", "1 "),
    (r"\$ 1", "$1"),
    (r"# 1", "#1"),
)
DETOKENIZERS = {"wikitext2": _WIKITEXT, "wikitext103": _WIKITEXT, "ptb": _PTB}
PROTOCOLS = (*DETOKENIZERS, "lambada")


def detokenise(text: str, protocol: str) -> str:
    """A data set's text as it was before it was cut into tokens. The rules are applied in their order."""
    for pattern, replacement in DETOKENIZERS[protocol]:
        text = re.sub(pattern, replacement, text)
    return text


def count_words(text: str) -> int:
    """Words between spaces, and one for the end of each line, as <eos> stands there in WikiText and PTB."""
    return len(text.split()) + text.count("\n")


def detokenised(specs: dict[str, str], tokenizer, config, protocol: str) -> dict[str, Text]:
    """Texts by name, each one document without end-of-text. Raises UserError: text that cannot be read, or none."""
    choose(DETOKENIZERS, protocol, "--protocol")
    found = {}
    for name, spec in specs.items():
        lines = sources.documents(_raw(spec, config, protocol))
        raw = "".join(text if text.endswith("\n") else f"{text}\n" for text in lines)
        tokens = tokenise([detokenise(raw, protocol)], tokenizer, spec, end=False)
        found[name] = Text(tokens, f"all of {spec}, detokenised as {protocol}", count_words(raw))
    return found


def _raw(spec: str, config, protocol: str):
    one = source_config(spec, config)
    if one.source == "prepared":
        raise UserError(f"--protocol={protocol} needs the text itself, but {one.path} holds tokens; give the data set.")
    return one


# ---- LAMBADA


class Passage(typing.NamedTuple):
    context: np.ndarray  # token ids
    word: np.ndarray


@dataclasses.dataclass(frozen=True)
class LastWords:
    accuracy: float  # passages whose last word greedy decoding gives, all its tokens
    accuracy_error: float  # standard error
    last_token_accuracy: float  # of the last token of each word, given those before
    loss: float  # nats per word
    standard_error: float
    perplexity: float  # exp(loss), per word
    passages: int

    @property
    def perplexity_interval(self) -> tuple[float, float]:
        spread = NORMAL_95 * self.standard_error
        return math.exp(self.loss - spread), math.exp(self.loss + spread)

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        low, high = self.perplexity_interval
        return (
            f"accuracy {self.accuracy:.2%} +- {self.accuracy_error:.2%} (last token alone {self.last_token_accuracy:.2%})"
            f"  perplexity/word {self.perplexity:.2f} [{low:.2f}, {high:.2f}]  ({self.passages:,} passages)"
        )


def passages(spec: str, tokenizer, config) -> list[Passage]:
    """Of a file of one passage a line, or of a source of one passage a document.

    Raises UserError: text that cannot be read, a passage of a single word, none at all."""
    one = _raw(spec, config, "lambada")
    documents = sources.documents(one)
    if sources.source_name(one) == "text":
        documents = (line for text in documents for line in text.split("\n"))
    found = [_passage(text.strip(), tokenizer) for text in documents if text.strip()]
    if not found:
        raise UserError(f"{spec} has no passages; expected one a line, or a JSON object with one a line.")
    return found


def _passage(text: str, tokenizer) -> Passage:
    """Context and last word are encoded as one text, and parted after the context's tokens."""
    context, space, _ = text.rpartition(" ")
    if not space:
        raise UserError(f"the passage {text!r} has no word before its last one, to predict it from.")
    context_ids, ids = tokenizer.encode(context), tokenizer.encode(text)
    return Passage(ids[: len(context_ids)], ids[len(context_ids) :])


def last_words(log_likelihood_P, greedy_P, last_greedy_P) -> LastWords:
    """Of each passage: nats of its last word's log-probability, whether all its tokens are the likeliest, and its last."""
    loss_P, correct_P = -np.float64(log_likelihood_P), np.float64(greedy_P)
    count = len(loss_P)

    def error(value_P) -> float:
        return float(value_P.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan

    loss = float(loss_P.mean())
    return LastWords(
        accuracy=float(correct_P.mean()),
        accuracy_error=error(correct_P),
        last_token_accuracy=float(np.mean(last_greedy_P)),
        loss=loss,
        standard_error=error(loss_P),
        perplexity=float(np.exp(loss)),
        passages=count,
    )
