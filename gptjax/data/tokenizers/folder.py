"""A tokenizer on disk: tokenizer.json says what it is, tokenizer.model is its definition. Local or gs://."""

import json

from gptjax.config.text_kinds import TOKENIZERS, Classes
from gptjax.data.tokenizers.base import Tokenizer, definition_hash, rebuilt
from gptjax.errors import UserError, choose
from gptjax.storage import folder_kinds

IDS = "gptjax.data.tokenizers.simple:IdTokenizer"  # a folder may also hold the one that is of no text
FILES = ("tokenizer.json", "tokenizer.model")


def save_tokenizer(tokenizer: Tokenizer, folder) -> None:
    """Writes tokenizer.json (kind, hashes, sizes, special symbols) and tokenizer.model (the definition)."""
    from etils import epath

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer.definition)
    (folder / "tokenizer.json").write_text(json.dumps(_summary(tokenizer), indent=2, ensure_ascii=False) + "\n")


def _summary(tokenizer: Tokenizer) -> dict:
    return {
        "kind": tokenizer.kind,
        "hash": tokenizer.hash,
        "base_hash": tokenizer.base_hash,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "special": tokenizer.special,
        "added": list(tokenizer.added),
    } | ({} if tokenizer.ends is None else {"ends": list(tokenizer.ends)})


def load_tokenizer(folder) -> Tokenizer:
    """What save_tokenizer wrote, now or before it wrote special symbols. Raises UserError: files missing or altered."""
    from etils import epath

    folder = epath.Path(folder)
    for name in FILES:
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}, and is {folder_kinds.said(folder)}; expected a folder that a tokenizer was saved"
                " in."
            )
    try:
        summary = json.loads((folder / "tokenizer.json").read_text())
        kind, wanted = str(summary["kind"]), summary.get("base_hash", summary["hash"])
        added = [str(name) for name in summary.get("added", [])]
        ends = None if summary.get("ends") is None else _ends(*summary["ends"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/tokenizer.json was altered: {error!r}; restore the file.") from error
    kind = choose(Classes(TOKENIZERS, ids=IDS), kind, f"{folder}/tokenizer.json: kind")
    definition = (folder / "tokenizer.model").read_bytes()
    if definition_hash(kind.kind, definition) != wanted:
        raise UserError(f"{folder}/tokenizer.model was altered: its hash is not {wanted}; restore the file.")
    tokenizer = rebuilt(kind, definition, ends, added)
    for key, value in _summary(tokenizer).items():
        if key in summary and summary[key] != value:
            raise UserError(
                f"{folder}/tokenizer.json was altered: its {key} is {summary[key]!r}, that of tokenizer.model"
                f" {value!r}; restore the file."
            )
    return tokenizer


def _ends(eot_id, bos_id) -> tuple[int | None, int | None]:
    """Raises TypeError, ValueError: they are no ids."""
    for i in (eot_id, bos_id):
        if i is not None and (type(i) is not int or not 0 <= i < 2**31):
            raise ValueError(f"ends are ids, not {i!r}")
    return eot_id, bos_id


def saved_kind(folder: str) -> str | None:
    """The kind that tokenizer.json of a folder names; None: no tokenizer was saved there (or it is beyond reading)."""
    from etils import epath

    folder = epath.Path(folder).expanduser()
    if not all((folder / name).exists() for name in FILES):
        return None
    try:
        summary = json.loads((folder / "tokenizer.json").read_text())
        return str(summary["kind"]) if "hash" in summary else None
    except (ValueError, KeyError, TypeError):  # a Hugging Face tokenizer.json beside some tokenizer.model, or damaged
        return None


def check_same(tokenizer: Tokenizer, of_run: Tokenizer) -> None:
    """Raises UserError: the tokenizer that the config and text give now is not the one a run was made with."""
    if tokenizer.hash != of_run.hash:
        raise UserError(
            f"the tokenizer is not the run's own: that is {_described(of_run)}, now it is {_described(tokenizer)};"
            " restore the text and the data.tokenizer fields, or use a new --workdir."
        )


def _described(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.kind!r} of {tokenizer.vocab_size} tokens (hash {tokenizer.hash[:12]})"
