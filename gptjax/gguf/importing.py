"""A GGUF file as a run directory: parameters in float32, config and tokenizer, at step 0."""

import json

from gptjax.gguf import architectures, container, vocabulary
from gptjax.huggingface import families, importing
from gptjax.parallel import numerics

TEMPLATE, SPECIAL_TOKENS = "chat_template.jinja", "special_tokens_map.json"  # as transformers names them
_PARTS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
}  # transformers' names of tokens -> llama.cpp's
_READ = ("architecture", "alignment")  # of the entries general.*; the others say whose model it is


@numerics.settings()
def import_file(path: str, workdir: str, tokenizer: str | None = None, allow_nonfinite: bool = False) -> dict:
    """Writes a run directory at workdir, and says what it is, with notes on what is not as one might think. tokenizer: a
    SPEC, or "ids"; None: the file's own. allow_nonfinite: take weights that are NaN or infinite.

    Raises UserError: another kind of model, a damaged file, a workdir that holds something.
    """
    directory = importing.new_run(workdir)
    with container.Reader(path) as reader:
        architecture = architectures.architecture_of(reader.metadata, reader.where)
        values, unread = architectures.values_of(architecture, reader)
        family = families.family_of(values, reader.where)
        shape = family.config_in(values, reader.where)
        chosen, notes = importing.choose_tokenizer(
            lambda: vocabulary.read(reader.metadata, reader.where),
            f"{reader.where} has no {vocabulary.PREFIX}tokens",
            shape,
            tokenizer,
            _ends(reader.metadata) if tokenizer is None else {},
            vocabulary.ENDS,
        )
        if tokenizer is None and not vocabulary.begins(reader.metadata):
            chosen = chosen.with_ends(chosen.eot_id, None)
        notes += [f"{architectures.listed(unread)} not read, which gptjax has no equal for"] if unread else []
        theirs = architectures.AsTransformers(reader, architectures.Names(architecture, values))
        params, dtype, shape, more = importing.read_params(theirs, family, shape, allow_nonfinite)
        stored = sorted({tensor.type.name for tensor in reader.tensors.values()})
    origin = {"from": "gguf", "file": str(reader.where), "architecture": architecture.name, "dtype": dtype}
    origin |= {"stored_as": stored, "general": _general(reader.metadata)}
    beside = _conversations(reader.metadata) if tokenizer is None else {}
    importing.write_run(directory, shape, params, chosen, origin, beside)
    return origin | importing.described(shape, chosen, [*notes, *more])


def _ends(metadata: dict) -> dict[str, dict]:
    """What ends.find asks."""
    ((source, eos, bos),) = vocabulary.ENDS
    named = {eos: metadata.get(eos), bos: metadata.get(bos)}
    return {source: named}


def _general(metadata: dict) -> dict:
    """What the file says of itself that is text: name, licence, size."""
    names = [name for name in metadata if name.startswith("general.") and name.removeprefix("general.") not in _READ]
    return {name.removeprefix("general."): metadata[name] for name in names if isinstance(metadata[name], str)}


def _conversations(metadata: dict) -> dict[str, str]:
    """{file beside the tokenizer: text}: the chat template, and the special tokens that it may name."""
    template, tokens = metadata.get(vocabulary.CHAT_TEMPLATE), metadata.get(f"{vocabulary.PREFIX}tokens", [])
    if not isinstance(template, str):
        return {}
    ids = {f"{ours}_token": metadata.get(f"{vocabulary.PREFIX}{theirs}_token_id") for ours, theirs in _PARTS.items()}
    named = {name: tokens[i] for name, i in ids.items() if type(i) is int and i < len(tokens)}
    return {TEMPLATE: template, SPECIAL_TOKENS: json.dumps(named, indent=2, ensure_ascii=False) + "\n"}
