"""`gptjax chat`: a conversation in the terminal, with a run or with a server of OpenAI's interface."""

import pathlib
import sys

from gptjax.commands import flags
from gptjax.errors import UserError
from gptjax.generation.settings import OPTIONS

SETTINGS = {
    "max_tokens": (int, "tokens of an answer at most (default: 200; of a server: its own)"),
    "seed": (int, "seed of the answers (default: 0; of a server: its own)"),
}
OF_A_RUN = ("step", "ema", "dtype", "mesh", "chat_format")


def add_flags(parser) -> None:
    flags.add_run_flag(parser, required=False)
    flags.add_checkpoint_flags(parser)
    parser.add_argument(
        "--url", metavar="URL", help="talk to a server, such as http://127.0.0.1:8000/v1, instead of a run"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="with --url: the model that answers (default: the server's first)"
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--recipe", metavar="FILE", help="a recipe that each message is put into, with its settings")
    parser.add_argument(
        "--var",
        action="append",
        metavar="NAME=TEXT",
        help="with --recipe: the text of a {placeholder}; may be repeated",
    )
    parser.add_argument("--tools", action="append", metavar="NAME", help="a tool that answers may call: calculator, or module:function of your own; may be repeated")  # fmt: skip
    parser.add_argument("--load", metavar="FILE", help="go on with a conversation that /save has written")
    parser.add_argument(
        "--chat_format",
        metavar="NAME",
        help="gptjax, chatml, llama3, smollm2 or template:FILE (default: the run's own)",
    )
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or int8 (default: as trained)")
    parser.add_argument(
        "--mesh", metavar="AXES", help="sizes of the mesh axes, such as fsdp=4,tensor=2 (default: one device)"
    )
    for name, (kind, text) in SETTINGS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    for name, option in OPTIONS.items():
        parser.add_argument(f"--{name}", type=option.kind, help=option.help)
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end answers before this string; may be repeated"
    )


def run(args) -> int:
    from gptjax import start
    from gptjax.commands import chat_session

    start.refuse_several("chat")
    given = {name: getattr(args, name) for name in (*SETTINGS, *OPTIONS, "stop") if getattr(args, name) is not None}
    recipe, of_recipe = _recipe(args)
    settings = chat_session.checked_settings(of_recipe | given)  # before a model is looked for
    session = chat_session.Session(_model(args), settings, args.system, recipe)
    if args.tools:
        session.use_tools(args.tools)
    if args.load is not None:
        session.load(args.load)
    if sys.stdin.isatty():
        from gptjax.commands import chat_input

        return session.talk(chat_input.typed_messages(session))
    return session.talk(chat_session.piped_messages(sys.stdin))


def _recipe(args) -> tuple:
    """(what the messages of a conversation become, None without a recipe; its settings). Raises UserError: a recipe that takes
    more than a conversation, values that it has no place for."""
    if args.recipe is None:
        if args.var:
            raise UserError(f"--var={args.var[0]} is of a recipe; add --recipe=FILE, or leave it out.")
        return None, {}
    from gptjax.applications import recipe
    from gptjax.data.chat import Message

    chosen, values = recipe.read(args.recipe), flags.named_texts(args.var or (), "--var")
    recipe.check_is_plain(chosen, "a conversation")
    recipe.apply(chosen, (Message("user", "x"),), values)  # what is wrong with them is said before a model is loaded

    def applied(messages: list[dict]):
        return recipe.apply(chosen, [Message(each["role"], each["content"]) for each in messages], values)[0]

    return applied, chosen.settings


def _model(args):
    """What answers. Raises UserError: none is named, or two."""
    if args.url is not None:
        from gptjax.commands import chat_server

        given = [f"--{name}" for name in ("workdir", *OF_A_RUN) if getattr(args, name) not in (None, False)]
        if given:
            raise UserError(f"{given[0]} is of a run, and --url names a server; give one of them.")
        return chat_server.Server(args.url, args.model)
    if args.workdir is None:
        raise UserError(
            "gptjax chat needs a run directory or a server; give it as in gptjax chat runs/quickstart, or as"
            " --url=http://127.0.0.1:8000/v1."
        )
    if args.model is not None:
        raise UserError("--model is of a server; add --url, or leave it out.")
    from gptjax.commands import chat_run

    local = "://" not in args.workdir
    model = chat_run.LoadedRun(args.workdir, {name: getattr(args, name) for name in OF_A_RUN})
    if local and not (pathlib.Path(args.workdir).expanduser() / "config.json").exists():
        model.wait()  # which says what is wrong with it, before anything is typed
    return model
