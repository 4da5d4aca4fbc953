"""A recipe: what a model is asked to do with a text, as a TOML file.

    description = "A sentence for people who choose one."
    system = "You translate into {language}."
    user = "Translate: {text}"              # {text}: what is typed; others are given by --var, or below
    prompt = "..."                          # instead of user: a text that is continued, for models without a chat format
    [values]                                # of placeholders, where no other is given
    language = "French"
    [[examples]]                            # turns shown before: the user's from the template, the assistant's from answer
    text = "Good morning."
    answer = "Bonjour."                     # before it call and result, of a tool
    [settings]                              # as the flags of `gptjax sample` are called
    temperature = 0.0

and one of these, where the answer is more than a text:

    labels = ["positive", "negative"]       # one of them is chosen by its log-probability
    calibration = "N/A"                     # each label's log-probability for this text is subtracted
    tools = ["order_status"]                # functions of tools.TOOLS, or "module:function"
    equations = true                        # sums in the answer are checked
    [retrieval]                             # {sources} are passages of an index, which the answer has to cite
    passages = 3
    [schema]                                # JSON Schema of the object that the answer has to be
    [infill]                                # the text has a gap: what is between its two sides is asked for
    gap = "<FILL>"

A recipe is applied to a conversation (`apply`): that of a terminal, or of a server's request.
"""

import dataclasses
import pathlib
import tomllib

from gptjax.applications import templates
from gptjax.data.chat import Message, calls
from gptjax.errors import UserError, did_you_mean, first_line
from gptjax.generation.settings import Settings

TEXT = "text"  # the placeholder of what is typed
SOURCES = "sources"  # of the passages that were found
KINDS = {  # key of a file: the TOML type of its value
    "description": str,
    "system": str,
    "user": str,
    "prompt": str,
    "values": dict,
    "examples": list,
    "settings": dict,
    "labels": list,
    "calibration": str,
    "tools": list,
    "data": dict,
    "equations": bool,
    "retrieval": dict,
    "schema": dict,
    "infill": dict,
}
SHAPES = ("labels", "tools", "retrieval", "schema", "infill")  # a recipe has one of them at most
INNER = {"retrieval": {"index": str, "passages": int}, "infill": {"gap": str}}
_NAMES = {str: "a text", dict: "a table", list: "a list", bool: "true or false", int: "a whole number"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The keys of its file, checked; None or empty where a key is not there."""

    path: str
    description: str = ""
    system: str | None = None
    user: str | None = None
    prompt: str | None = None
    values: dict = dataclasses.field(default_factory=dict)
    examples: tuple[dict, ...] = ()
    settings: dict = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    calibration: str | None = None
    tools: tuple[str, ...] = ()
    data: dict = dataclasses.field(default_factory=dict)  # what tools are about: {name: file, made absolute}
    equations: bool = False
    retrieval: dict | None = None
    schema: dict | None = None
    infill: dict | None = None

    @property
    def name(self) -> str:
        return pathlib.Path(self.path).stem

    @property
    def placeholders(self) -> set[str]:
        return set().union(*(templates.placeholders(one) for one in (self.system, self.user, self.prompt) if one))

    @property
    def is_chat(self) -> bool:
        """Whether it asks a model of conversations; otherwise a text is continued."""
        return self.prompt is None and self.infill is None


def read(path: str) -> Recipe:
    """The recipe in a file. Raises UserError that begins with its path: it cannot be read, or a key is wrong."""
    try:
        table = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--recipe={path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML: {first_line(error)}.") from error
    _check_kinds(table, KINDS, path)
    for key, kinds in INNER.items():
        _check_kinds(table.get(key, {}), kinds, f"{path}: [{key}]")
    folder = pathlib.Path(path).resolve().parent
    table["data"] = {name: str(folder / file) for name, file in table.get("data", {}).items()}
    if "index" in table.get("retrieval", {}):
        table["retrieval"]["index"] = str(folder / table["retrieval"]["index"])
    for key in ("examples", "labels", "tools"):
        table[key] = tuple(table.get(key, ()))
    recipe = Recipe(path=path, **table)
    _check(recipe)
    return recipe


def _check_kinds(table: dict, kinds: dict, where: str) -> None:
    for key, value in table.items():
        if key not in kinds:
            raise UserError(f"{where} has a key {key!r}{did_you_mean(key, kinds)}; a recipe has: {', '.join(kinds)}.")
        if type(value) is not kinds[key]:
            raise UserError(f"{where}: {key} is {type(value).__name__}; expected {_NAMES[kinds[key]]}.")


def _check(recipe: Recipe) -> None:
    """Raises UserError: keys that don't go together, or a value that is none."""
    path = recipe.path
    ways = [key for key in ("user", "prompt", "infill") if getattr(recipe, key) is not None]
    _require(
        len(ways) == 1, f"{path} has {' and '.join(ways) or 'none of them'}; expected one of user, prompt, infill."
    )
    shapes = [key for key in SHAPES if getattr(recipe, key)]
    _require(len(shapes) <= 1, f"{path} has {' and '.join(shapes)}; a recipe has one of {', '.join(SHAPES)} at most.")
    if not recipe.is_chat:
        chat_only = [
            key for key in ("system", "examples", "labels", "tools", "retrieval", "schema") if getattr(recipe, key)
        ]
        _require(not chat_only, f"{path}: {', '.join(chat_only)} is for conversations; use user instead of {ways[0]}.")
    else:
        _require(
            TEXT in templates.placeholders(recipe.user), f"{path}: user has no {{text}}, where what is typed goes."
        )
    _require(
        not recipe.labels or (len(set(recipe.labels)) == len(recipe.labels) > 1 and all(map(_is_text, recipe.labels))),
        f"{path}: labels={list(recipe.labels)}; expected at least two texts, each another.",
    )
    _require(recipe.calibration is None or recipe.labels, f"{path}: calibration is of labels; give labels too.")
    _require(
        recipe.retrieval is None or SOURCES in recipe.placeholders,
        f"{path}: [retrieval] finds passages that no template shows; write {{sources}} into user or system.",
    )
    count = (recipe.retrieval or {}).get("passages", 3)
    _require(count >= 1, f"{path}: passages={count} is too small; use at least 1.")
    _require(recipe.infill is None or recipe.infill.get("gap"), f"{path}: [infill] has no gap, the text of a gap.")
    for values in (recipe.values, *recipe.examples):
        _require(
            isinstance(values, dict) and all(_is_text(value) for value in values.values()),
            f"{path}: [values] and [[examples]] hold texts that are not empty; one is not.",
        )
    _check_examples(recipe)
    several = [
        name for name in ("num_beams", "num_return_sequences", "length_penalty", "logprobs") if name in recipe.settings
    ]
    _require(
        not several,
        f"{path}: [settings] has {', '.join(several)}; a recipe gives one text, and streams it: leave it out.",
    )
    try:
        Settings(**recipe.settings)
    except UserError as error:
        raise UserError(f"{path}: [settings]: {error}") from None


def _check_examples(recipe: Recipe) -> None:
    for i, example in enumerate(recipe.examples, start=1):
        where = f"{recipe.path}: example {i}"
        _require("answer" in example, f"{where} has no answer, what the assistant says.")
        _require(
            ("call" in example) == ("result" in example), f"{where} has one of call and result; give both, or none."
        )
        is_call = "call" not in example or isinstance((calls.parsed(example["call"]) or ("", None))[1], dict)
        _require(is_call, f'{where}: its call is none; expected {{"name": NAME, "arguments": {{...}}}}, as JSON.')
        _require(recipe.tools or "call" not in example, f"{where} has a call, and the recipe no tools.")
        _require(not recipe.labels or example["answer"] in recipe.labels, f"{where}: its answer is none of the labels.")
        templates.filled(recipe.user, {SOURCES: "", **recipe.values, **example}, where)


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


def apply(recipe: Recipe, messages, values: dict[str, str] | None = None) -> tuple[tuple[Message, ...], dict]:
    """(the conversation that the model is asked, settings of the recipe), of a conversation as a user sees it.

    Every user's message is put into the template, as that of the examples is; a system message stands behind the recipe's.
    values: of placeholders but {text}. Raises UserError: a value is missing or of no placeholder, the recipe is no chat.
    """
    if not recipe.is_chat:
        raise UserError(f"{recipe.path} continues a text; it is not for conversations.")
    values = all_values(recipe, values or {})
    messages = tuple(messages)
    given = messages[0].content if messages and messages[0].role == "system" else None
    system = None if recipe.system is None else templates.filled(recipe.system, values, recipe.path)
    system = "\n\n".join(text for text in (system, given) if text)
    applied = [Message("system", system)] if system else []
    for example in recipe.examples:
        applied += _shown(example, recipe, values)
    for message in messages[given is not None :]:
        if message.role == "user":
            text = templates.filled(recipe.user, {**values, TEXT: message.content}, recipe.path)
            message = message._replace(content=text)
        applied.append(message)
    return tuple(applied), dict(recipe.settings)


def check_is_plain(recipe: Recipe, who: str, forms: tuple[str, ...] = ()) -> None:
    """Raises UserError: it takes more than one answer to a conversation. forms: keys that are no hindrance all the same."""
    keys = ("prompt", "infill", *SHAPES[:-1], "equations")
    more = [key for key in keys if key not in forms and getattr(recipe, key)]
    if more:
        raise UserError(f"{recipe.path} has {', '.join(more)}, for which {who} has no place; use `gptjax ask`.")


def _shown(example: dict, recipe: Recipe, values: dict) -> list[Message]:
    """The turns of an example."""
    text = templates.filled(recipe.user, {**values, SOURCES: "", **example}, recipe.path)
    called = []
    if "call" in example:
        called = [
            Message("assistant", calls.written(*calls.parsed(example["call"]))),
            Message("tool", example["result"]),
        ]
    return [Message("user", text), *called, Message("assistant", example["answer"])]


def all_values(recipe: Recipe, values: dict[str, str]) -> dict[str, str]:
    """Those of the file, and those given instead. Raises UserError: one of no placeholder, whose typing error would go unseen."""
    for name in values:
        if name == TEXT or name not in recipe.placeholders:
            others = sorted(recipe.placeholders - {TEXT, SOURCES}) or ["none"]
            raise UserError(f"{recipe.path} has no placeholder {{{name}}}; it has: {', '.join(others)}.")
    return {**recipe.values, **values}
