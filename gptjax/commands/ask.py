"""`gptjax ask`: a recipe applied to a text, by a run or a server."""

import dataclasses
import json
import sys

from gptjax import start, terminal
from gptjax.commands import flags
from gptjax.errors import UserError

SETTINGS = (  # instead of the recipe's: name, type
    ("max_tokens", int),
    ("temperature", float),
    ("seed", int),
)


def add_flags(parser) -> None:
    parser.add_argument(
        "text", nargs="?", metavar="TEXT", help="what the recipe is applied to (default: standard input)"
    )
    parser.add_argument(
        "--recipe", required=True, metavar="FILE", help="a recipe, such as configs/recipes/summary.toml"
    )
    parser.add_argument("--workdir", metavar="RUN", help="the run that answers")
    parser.add_argument(
        "--url", metavar="ADDRESS", help="a server that answers instead, such as http://127.0.0.1:8000/v1"
    )
    parser.add_argument("--model", metavar="NAME", help="with --url: one of the server's models (default: its first)")
    parser.add_argument("--api_key", metavar="KEY", help="with --url: the server's key (default: OPENAI_API_KEY)")
    parser.add_argument(
        "--var", action="append", metavar="NAME=TEXT", help="the text of a {placeholder} of the recipe; may be repeated"
    )
    parser.add_argument(
        "--index", metavar="DIR", help="a folder of `gptjax index`, for a recipe that answers from documents"
    )
    parser.add_argument("--filters", metavar="FILE", help="filters of the text and of the answer (docs/filters.md)")
    for name, kind in SETTINGS:
        parser.add_argument(f"--{name}", type=kind, help="as of `gptjax sample` (default: the recipe's)")
    parser.add_argument("--chat_format", metavar="NAME", help="as of `gptjax sample --chat` (default: the run's own)")
    flags.add_checkpoint_flags(parser)
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or int8, as of `gptjax sample`")
    flags.add_json_flag(parser, "print the outcome as JSON: answer, notes, labels, calls, sources")


def run(args) -> None:
    from gptjax.applications import recipe

    _check(args)
    chosen = recipe.read(args.recipe)
    values = flags.named_texts(args.var or (), "--var")
    recipe.all_values(chosen, values)  # a wrong name is said before a model is loaded
    if chosen.retrieval is not None and args.index is None and "index" not in chosen.retrieval:
        raise UserError(
            f"{args.recipe} answers from documents; make an index with `gptjax index` and give --index=DIR."
        )
    text = _text(args)
    guard = _guard(args)
    settings = {name: getattr(args, name) for name, _ in SETTINGS if getattr(args, name) is not None}
    start.start_jax()
    from gptjax.applications import answering, retrieval

    text = guard.checked_input(text)
    where = args.index or (chosen.retrieval or {}).get("index")
    index = retrieval.load(where) if chosen.retrieval is not None else None
    model = _model(args)
    shown = [False]

    def on_text(piece: str) -> None:
        shown[0] = True
        terminal.say(guard.feed(piece))

    on_text = None if args.json else on_text
    outcome = answering.answer(model, chosen, text, values, settings=settings, index=index, on_text=on_text)
    if not shown[0]:
        text = guard.feed(outcome.text) + guard.end()
        outcome = dataclasses.replace(outcome, text=text, value=outcome.value if text == outcome.text else None)
    _show(outcome, args.json, guard.end() if shown[0] else None)


def _check(args) -> None:
    """Raises UserError: flags that don't go together, or a setting out of range."""
    from gptjax.generation.settings import Settings

    if (args.workdir is None) == (args.url is None):
        raise UserError("gptjax ask needs one of --workdir=RUN, which it loads, and --url=ADDRESS of a server.")
    other = ("model", "api_key") if args.url is None else ("step", "dtype", "chat_format")
    for name in other:
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is for --{'url' if args.url is None else 'workdir'}; leave it out.")
    Settings(**{name: getattr(args, name) for name, _ in SETTINGS if getattr(args, name) is not None})


def _text(args) -> str:
    """Raises UserError: there is none."""
    if args.text is None and sys.stdin.isatty():
        raise UserError("gptjax ask has no text; give it as a word in quotes, or by standard input.")
    try:
        text = sys.stdin.read() if args.text is None else args.text
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is no text in {error.encoding}: {error.reason}; convert it.") from None
    if not text.strip():
        raise UserError("the text is empty; give what the recipe is to be applied to.")
    return text


def _guard(args):
    from gptjax.serve.filters import Filters

    return _Guard(Filters.of([] if args.filters is None else [args.filters]))


class _Guard:
    """Filters around one question."""

    def __init__(self, filters):
        self._filters, self._output = filters, filters.output()

    def checked_input(self, text: str) -> str:
        """The text as the filters let it through. Raises UserError: they refuse it."""
        verdict = self._filters.check_input([{"role": "user", "content": text}])
        if verdict.refusal is not None:
            raise UserError(f"the filters refuse the text ({', '.join(verdict.rules)}): {verdict.refusal}")
        return verdict.messages[0]["content"]

    def feed(self, text: str) -> str:
        return self._output.feed(text)

    def end(self) -> str:
        """What was held back, or what is said instead."""
        last = self._output.end()
        return last if isinstance(last, str) else last.text


def _model(args):
    if args.url is not None:
        from gptjax.applications.remote import Remote

        return Remote(args.url, args.model, args.api_key)
    from gptjax.applications.local import Local
    from gptjax.run import run

    loaded = run.read(args.workdir, args.step, dtype=args.dtype, ema=args.ema)
    return Local(loaded, None if args.chat_format is None else loaded.chat_format(args.chat_format))


def _show(outcome, as_json: bool, rest: str | None) -> None:
    """rest: the end of an answer that was printed as it came; None: nothing of it was."""
    if as_json:
        fields = dataclasses.asdict(outcome) | {"sources": [one._asdict() for one in outcome.sources]}
        print(json.dumps(fields, ensure_ascii=False))
        return
    terminal.say(f"{outcome.text if rest is None else rest}\n")
    for label, share in (outcome.scores or {}).items():
        print(f"  {share:6.1%}  {label}")
    for name, arguments, result in outcome.calls:
        print(f"called: {name} {arguments} -> {result}", file=sys.stderr)
    for i, one in enumerate(outcome.sources, start=1):
        print(f"{'cited' if i in outcome.cited else 'shown'}: [{i}] {one.place}", file=sys.stderr)
    for note in outcome.notes:
        print(f"note: {note}", file=sys.stderr)
