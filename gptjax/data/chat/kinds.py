"""The chat format that a config or a run names: a name of text_kinds.FORMATS, or template:FILE.

FILE is a Jinja file, a tokenizer_config.json, or a folder with chat_template.jinja or tokenizer_config.json, such as a
folder of transformers. A run keeps its template in its tokenizer folder, as chat_template.jinja, with the special tokens
that the template names in special_tokens_map.json.
"""

import json

from gptjax.config.text_kinds import FORMATS
from gptjax.data.chat import environment
from gptjax.data.chat.base import Format
from gptjax.data.chat.template import TemplateFormat
from gptjax.errors import UserError, did_you_mean, imported, shorten

_PREFIX = "template:"
TEMPLATE, TOKENS, CONFIG = "chat_template.jinja", "special_tokens_map.json", "tokenizer_config.json"
_VARIABLES = tuple(f"{part}_token" for part in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def chat_format(name: str, key: str = "data.chat") -> Format:
    """Raises UserError: no such format or template. key: the config field or flag that holds the name."""
    if name.startswith(_PREFIX):
        return _of_file(name, key)
    if name not in FORMATS:
        near = did_you_mean(name, FORMATS)
        raise UserError(
            f"{key}={shorten(repr(name), 80)} is not known{near}; expected one of: {', '.join(FORMATS)}, or template:FILE"
            " of a Jinja chat_template."
        )
    entry = FORMATS[name]
    return imported(entry, f"{key}={name!r}") if isinstance(entry, str) else entry


def of_folder(folder) -> TemplateFormat | None:
    """The template of a folder of transformers, or of a tokenizer of ours; None: there is none. Whether it is one is seen
    when it writes something.

    Raises UserError: a file is damaged.
    """
    from etils import epath

    folder = epath.Path(folder).expanduser()
    config = _read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if (folder / TEMPLATE).exists():
        template = _read_text(folder / TEMPLATE)
    else:
        template = default_template(config, str(folder / CONFIG))
    if template is None:
        return None
    tokens = _read_json(folder / TOKENS) if (folder / TOKENS).exists() else {}
    is_said = (folder / TOKENS).exists() or (folder / CONFIG).exists()
    return TemplateFormat(f"{_PREFIX}{folder}", template, _variables(tokens | config) if is_said else None)


def keep(form: Format, folder) -> None:
    """Writes a template into a tokenizer folder, so that a run is whole without the file it came from."""
    if not isinstance(form, TemplateFormat):
        return
    (folder / TEMPLATE).write_bytes(form.template.encode())
    if form.variables is not None:
        (folder / TOKENS).write_text(json.dumps(dict(form.variables), indent=2, ensure_ascii=False) + "\n")


def of_run(name: str | None, tokenizer_folder) -> Format | None:
    """The format that a run was trained with, by its data.chat; of one without, the template that it was imported with.
    None: neither. Raises UserError as chat_format."""
    return of_folder(tokenizer_folder) if name is None else chat_format(kept_name(name, tokenizer_folder))


def kept_name(name: str, tokenizer_folder) -> str:
    """A run's data.chat, but for a template the one that the run keeps: its FILE may be gone, or another by now."""
    is_kept = name.startswith(_PREFIX) and (tokenizer_folder / TEMPLATE).exists()
    return f"{_PREFIX}{tokenizer_folder}" if is_kept else name


def _of_file(name: str, key: str) -> TemplateFormat:
    from etils import epath

    path = epath.Path(name.removeprefix(_PREFIX)).expanduser()
    try:
        if not path.exists():
            raise UserError(
                f"there is no {path}; expected a Jinja file, a tokenizer_config.json, or a folder with one."
            )
        if path.is_dir():
            form = of_folder(path)
        elif path.suffix == ".json":
            config = _read_json(path)
            template = default_template(config, str(path))
            form = None if template is None else TemplateFormat(name, template, _variables(config))
        else:
            form = TemplateFormat(name, _read_text(path))
        if form is None:
            raise UserError(f"{path} has no chat_template; expected one, or {TEMPLATE} in a folder.")
        environment.check(form.template, str(path))
    except UserError as error:
        raise UserError(f"{key}={shorten(repr(name), 200)}: {error}") from error
    return form


def default_template(config: dict, file: str) -> str | None:
    """The default one of several. Raises UserError: chat_template is of another type."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
        if template is None:
            raise UserError(f"{file} has the templates {', '.join(map(str, named))}; expected one named default.")
    if template is not None and not isinstance(template, str):
        raise UserError(f"{file}: chat_template is a {type(template).__name__}; expected a text.")
    return template


def _variables(fields: dict) -> tuple[tuple[str, str], ...]:
    """The special tokens that a file names, by the names that templates have for them."""
    contents = {name: fields.get(name) for name in _VARIABLES}
    contents = {name: each.get("content") if isinstance(each, dict) else each for name, each in contents.items()}
    return tuple((name, each) for name, each in contents.items() if isinstance(each, str))


def _read_json(file) -> dict:
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is not a JSON object: {error}; copy the file again.") from error


def _read_text(file) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}; convert it to UTF-8.") from error
