"""Which kinds of source, objective, tokenizer and chat format there are: where each stands, and what a config may ask of it.

Tables of names alone: a kind is imported when it is chosen. To add one, write its class and name it here:

    source       a data.sources.records.Source
    objective    a subclass of data.rows.objectives.Objective
    tokenizer    a subclass of data.tokenizers.base.Tokenizer
    format       a data.chat.base.Format

in a module of its own; "module:name" is its address.
"""

import dataclasses

from gptjax.errors import imported


@dataclasses.dataclass(frozen=True)
class Source:
    """code: the address of a Source, None for tokens, which are no text. needs: the field of DataConfig that names the text,
    None where nothing does; example: what to put there, for messages. split: the field for the part of a data set.
    endings: of the names of its files; packed: whether these may also be those of packed files (.gz, .zst ...).
    records: whether its documents have fields, so that they may be conversations (data.chat)."""

    code: str | None
    needs: str | None = "path"
    example: str = "a file, folder or glob"
    split: str | None = None
    endings: tuple[str, ...] = ()
    packed: bool = False
    records: bool = False


SOURCES = {
    "corpus": Source("gptjax.data.sources.text:CORPUS", needs=None),  # ships with gptjax
    "text": Source("gptjax.data.sources.text:TEXT", endings=(".txt",), packed=True),
    "jsonl": Source("gptjax.data.sources.jsonl:JSONL", endings=(".jsonl",), packed=True, records=True),
    "parquet": Source("gptjax.data.sources.columns:PARQUET", endings=(".parquet",), records=True),
    "arrayrecord": Source(
        "gptjax.data.sources.arrays:ARRAYRECORD", endings=(".arrayrecord", ".array_record"), records=True
    ),
    "warc": Source("gptjax.data.sources.warc:WARC", endings=(".warc", ".wet"), packed=True),
    "prepared": Source(None, records=True),  # a folder of gptjax prepare
    "tfds": Source("gptjax.data.sources.arrays:TFDS", "tfds_name", "such as 'lm1b'", "tfds_split"),
    "hf": Source("gptjax.data.sources.columns:HF", "path", "a name such as 'wikitext'", "hf_split", records=True),
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """code: the address of its class. sees_ahead: whether some tokens are seen by earlier ones too (a batch has prefix_BL).
    writes_on: whether a model learns what follows a text, and not only what is missing in it. predicts_in_place: whether a
    token is predicted at its own position instead of the one before (a batch has target_BL)."""

    code: str
    sees_ahead: bool = False
    writes_on: bool = True
    predicts_in_place: bool = False


NEXT_TOKEN = Objective("gptjax.data.rows.objectives:NextToken")
OBJECTIVES = {
    "next_token": NEXT_TOKEN,
    "fim": Objective("gptjax.data.rows.infilling:FillInTheMiddle"),
    "prefix_lm": Objective("gptjax.data.rows.denoising:PrefixLM", sees_ahead=True),
    "masked_lm": Objective(
        "gptjax.data.rows.denoising:MaskedLM", sees_ahead=True, writes_on=False, predicts_in_place=True
    ),
    "span_corruption": Objective("gptjax.data.rows.spans:SpanCorruption", sees_ahead=True, writes_on=False),
}


class Classes(dict):
    """Name -> class, or its address, which is imported when it is asked for."""

    def __getitem__(self, name: str):
        entry = super().__getitem__(name)
        return imported(entry, f"tokenizer {name!r}") if isinstance(entry, str) else entry


TOKENIZERS = Classes(
    bytes="gptjax.data.tokenizers.simple:ByteTokenizer",
    chars="gptjax.data.tokenizers.simple:CharTokenizer",
    sentencepiece="gptjax.data.tokenizers.sentencepiece:SentencePieceTokenizer",
    gpt2="gptjax.data.tokenizers.gpt2:GPT2Tokenizer",
    hf="gptjax.data.tokenizers.huggingface:HuggingFaceTokenizer",
)

FORMATS = {  # of conversations; beside these there is template:FILE, of a Jinja chat_template
    "gptjax": "gptjax.data.chat.formats:GPTJAX",
    "chatml": "gptjax.data.chat.formats:CHATML",
    "llama3": "gptjax.data.chat.formats:LLAMA3",
    "smollm2": "gptjax.data.chat.formats:SMOLLM2",
}

PREFERENCES = {  # data.preferences: what the records say of answers
    "compared": "of several answers to a prompt which are better: pairs, rankings, scores",
    "judged": "of one answer whether it is good: a thumb up or down",
}


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows that are no running text. open: the address of a function (config, alive) -> their store; evaluation: the module
    that judges a model by them; ready: of a function (run, {name: held-out rows}) that readies them for a run without a
    head, if any."""

    open: str
    evaluation: str
    ready: str | None = None


EXAMPLES = {  # by the field of DataConfig that asks for them
    "task": Examples("gptjax.data.examples.store:open_examples", "gptjax.evaluation.labelled"),
    "preferences": Examples(
        "gptjax.data.pairs.store:open_pairs",
        "gptjax.evaluation.preferred",
        ready="gptjax.posttrain.preference_rows:ready_for_evaluation",
    ),
}

CHAT_LOSSES = {  # data.chat_loss, which tokens of a conversation are targets: functions of their weights
    "assistant": "gptjax.data.rows.conversations:assistant",
    "last": "gptjax.data.rows.conversations:last_answer",
    "all": "gptjax.data.rows.conversations:every_token",
}
