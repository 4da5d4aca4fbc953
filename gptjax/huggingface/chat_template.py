"""The chat_template of a folder of transformers: kept at import, and written at export from the format of a run."""

import json

from gptjax.data.chat import kinds
from gptjax.data.chat.base import Format
from gptjax.data.tokenizers import library_json
from gptjax.data.tokenizers.base import Tokenizer
from gptjax.errors import UserError


def keep(source, tokenizer_folder) -> list[str]:
    """Copies the template of a folder of transformers beside a tokenizer, if it has one. Returns notes."""
    try:
        template = kinds.of_folder(source)
    except UserError as error:
        return [f"the chat template is not read: {error}"]
    if template is not None:
        kinds.keep(template, tokenizer_folder)
    return []


def written(form: Format | None, tokenizer: Tokenizer, files: dict[str, bytes]) -> dict[str, bytes]:
    """files of a tokenizer, with the template with which apply_chat_template gives the ids of form; as they are where
    there is no form, no tokenizer, or that template already."""
    if form is None or kinds.CONFIG not in files:
        return files
    config, template = json.loads(files[kinds.CONFIG]), form.jinja(tokenizer)
    if kinds.default_template(config, kinds.CONFIG) == template:
        return files
    if config.pop("chat_template", None) is not None:  # of the model that was trained further
        files = files | {kinds.CONFIG: library_json.dumped(config)}
    return files | {kinds.TEMPLATE: template.encode()}
