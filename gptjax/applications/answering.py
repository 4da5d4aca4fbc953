"""A recipe run on a model: from a text to an outcome, in which what can be checked is checked.

    outcome = answer(Local(gptjax.load("runs/chat")), recipe.read("configs/recipes/summary.toml"), "a long text")

What is not as asked is not hidden: a wrong sum is marked, a source that is not there is named, an object that is not of its
schema is asked for again, and then an error.
"""

import dataclasses
import json
import math

from gptjax.applications import citations, equations, fields, infilling, recipe, templates, tools
from gptjax.applications.replies import Model, Reply
from gptjax.data.chat import Message, calls
from gptjax.errors import UserError, first_line

RETRIES = 2  # of an object that is not of its schema


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a recipe gives."""

    text: str  # the answer; of labels the one chosen, of a schema the object as JSON text
    finish_reason: str | None = None
    notes: tuple[str, ...] = ()  # what a reader should know of it, a line each
    scores: dict[str, float] | None = None  # the probability of each label among the labels
    value: dict | None = None  # of a schema
    calls: tuple[tuple[str, str, str], ...] = ()  # of tools: name, arguments, result
    sources: tuple = ()  # retrieval's passages that were shown, the first is [1]
    cited: tuple[int, ...] = ()  # numbers of those that the answer cites
    tries: int = 1  # answers that were asked for


def answer(
    model: Model, chosen: recipe.Recipe, text: str, values=None, *, settings=None, index=None, on_text=None
) -> Outcome:
    """values: of placeholders. settings: instead of the recipe's. index: retrieval.Index, for a recipe that needs one.

    on_text(piece) is called with the answer as it comes, where nothing but its text is asked for. Raises UserError: a value is
    missing, the text is empty, the model cannot do it, an object is not of its schema after all tries."""
    if not text.strip():
        raise UserError("the text is empty; give what the recipe is to be applied to.")
    values, settings = dict(values or {}), {**chosen.settings, **(settings or {})}
    if not chosen.is_chat:
        return _continued(model, chosen, text, values, settings, on_text)
    shown = ()
    if chosen.retrieval is not None:
        if index is None:
            raise UserError(
                f"{chosen.path} answers from documents; make an index with `gptjax index` and give --index=DIR."
            )
        shown = tuple(index.search(text, chosen.retrieval.get("passages", 3)))
        values[recipe.SOURCES] = numbered(shown)
    messages, _ = recipe.apply(chosen, (Message("user", text),), values)
    if chosen.labels:
        return _labelled(model, chosen, messages, values)
    if chosen.schema is not None:
        return _filled_in(model, chosen, messages, settings)
    outcome = _answered(model, chosen, messages, settings, on_text)
    if chosen.retrieval is not None:
        outcome = _with_sources(outcome, shown)
    return _checked_sums(outcome) if chosen.equations else outcome


def numbered(passages) -> str:
    """Passages as a model sees them."""
    return "\n".join(f"[{i}] {' '.join(one.text.split())}" for i, one in enumerate(passages, start=1)) or "(none)"


def _continued(model, chosen, text, values, settings, on_text) -> Outcome:
    if chosen.infill is not None:
        recipe.all_values(chosen, values)
        prefix, suffix = infilling.sides(text, chosen.infill["gap"])
        reply = model.infill(prefix, suffix, settings, on_text)
    else:
        values = recipe.all_values(chosen, values)
        prompt = templates.filled(chosen.prompt, {**values, recipe.TEXT: text}, chosen.path)
        reply = model.complete(prompt, settings, on_text)
    return Outcome(reply.text, reply.finish_reason, _cut_note(reply))


def _answered(model, chosen, messages, settings, on_text) -> Outcome:
    """The answer, after the calls of tools that come before it."""
    offered = tools.of_recipe(chosen)
    streams = None if offered or chosen.equations else on_text
    made: list[tuple[str, str, str]] = []
    for _ in range(tools.MOST_CALLS + 1):
        reply = model.reply(messages, settings, offered, None, streams)
        if not reply.calls:
            break
        results = [tools.result_of(call, offered) for call in reply.calls]
        made += [(call.name, call.arguments, result) for call, result in zip(reply.calls, results)]
        messages = (*messages, _turn(reply), *(Message("tool", result) for result in results))
    notes = _cut_note(reply) + (("it called tools to the end, and gave no answer",) if reply.calls else ())
    if offered and not reply.calls and calls.OPENED in reply.text:
        notes += ("it began a call of a function, and did not end it",)
    elif offered and not made:
        notes += ("it called no function: what it says it has from nowhere",)
    return Outcome(reply.text, reply.finish_reason, notes, calls=tuple(made))


def _turn(reply: Reply) -> Message:
    """A reply as a turn: in the tokens that were drawn, where they are known; a server's calls are written into its text."""
    if reply.calls and not tools.calls_of(reply.text):
        return Message("assistant", "\n".join(filter(None, [reply.text, *map(tools.written, reply.calls)])))
    return (
        Message("assistant", reply.text, tokens=reply.tokens)
        if reply.text.strip()
        else Message("assistant", "(nothing)")
    )


def _labelled(model, chosen, messages, values) -> Outcome:
    score = model.choose(messages, chosen.labels)
    if chosen.calibration is not None and all(map(math.isfinite, score.values())):
        blank, _ = recipe.apply(chosen, (Message("user", chosen.calibration),), values)
        prior = model.choose(blank, chosen.labels)
        score = {label: score[label] - prior[label] for label in chosen.labels}
    largest = max(score.values())
    weight = {label: math.exp(value - largest) for label, value in score.items()}
    share = {label: value / sum(weight.values()) for label, value in weight.items()}
    return Outcome(max(score, key=score.get), "stop", scores=share)


def _filled_in(model, chosen, messages, settings) -> Outcome:
    """The object, asked for again with what was wrong. Raises UserError: the last was wrong too."""
    fields.check_schema(chosen.schema, chosen.path)
    for tries in range(1, RETRIES + 2):
        reply = model.reply(messages, settings, {}, chosen.schema)
        try:
            value = fields.checked(reply.text, chosen.schema)
        except UserError as error:
            problem = first_line(error)
            again = Message("user", f"That is not right: {problem}. Answer with the corrected JSON object only.")
            messages = (*messages, _turn(reply), again)
            continue
        return Outcome(json.dumps(value, ensure_ascii=False), reply.finish_reason, value=value, tries=tries)
    raise UserError(f"{model.title} gave no object of the schema in {tries} answers; of the last: {problem}.")


def _with_sources(outcome: Outcome, shown) -> Outcome:
    cited = citations.cited(outcome.text, len(shown))
    notes = [*outcome.notes]
    if cited.unknown:
        notes.append(f"it cites {', '.join(f'[{n}]' for n in cited.unknown)}, and no such source was shown")
    if not cited.sources:
        notes.append("it cites no source: nothing says that it comes from the documents")
    return dataclasses.replace(outcome, notes=tuple(notes), sources=shown, cited=cited.sources)


def _checked_sums(outcome: Outcome) -> Outcome:
    found = equations.sums(outcome.text)
    wrong = sum(not one.is_right for one in found)
    note = f"{len(found)} sums were checked, {wrong} wrong" if found else "no sum in it could be checked"
    return dataclasses.replace(outcome, text=equations.marked(outcome.text), notes=(*outcome.notes, note))


def _cut_note(reply: Reply) -> tuple[str, ...]:
    return ("it is cut off: max_tokens is reached",) if reply.finish_reason == "length" else ()
