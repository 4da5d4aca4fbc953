"""`gptjax sample`: text from a run, on the terminal."""

import functools
import json
import sys

from gptjax import start, terminal
from gptjax.commands import best_of, flags
from gptjax.config import bounds
from gptjax.errors import UserError
from gptjax.generation.settings import OPTIONS, Settings

SETTINGS = (  # that are no options of sampling: flag, type, help
    ("max_tokens", int, "tokens to generate (default: 200)"),
    ("num_return_sequences", int, "texts for each prompt (default: 1)"),
    ("num_beams", int, "number of beams; above 1: beam search, without sampling (default: 1)"),
    ("length_penalty", float, "beam search: the log-probability is divided by the length to this power (default: 1)"),
    ("seed", int, "seed of the first text; the next text has the next seed (default: 0)"),
)


def add_flags(parser) -> None:
    flags.add_run_flag(parser)
    flags.add_checkpoint_flags(parser)
    parser.add_argument(
        "--prompt", action="append", help="text to continue; may be repeated (default: the start of a document)"
    )
    parser.add_argument("--prompts_file", metavar="FILE", help="a file with a prompt on each line, instead of --prompt")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="take each prompt for a user's message and answer it; without prompts: a conversation on the terminal",
    )
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system message")
    parser.add_argument(
        "--chat_format",
        metavar="NAME",
        help="with --chat: gptjax, chatml, llama3, smollm2 or template:FILE (default: the run's own)",
    )
    parser.add_argument(
        "--num_samples",
        type=int,
        action=bounds.AsTyped,
        dest="num_return_sequences",
        help="the same as --num_return_sequences",
    )
    for name, kind, text in _flags():
        parser.add_argument(f"--{name}", type=kind, default=None, help=text)
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the text before this string; may be repeated"
    )
    parser.add_argument(
        "--mesh", metavar="AXES", help="sizes of the mesh axes, such as fsdp=4,tensor=2 (default: one device)"
    )
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        help="float32 or bfloat16, of parameters and matmuls; int8, of the weights of the layers (default: as trained)",
    )
    _add_draft_flags(parser)
    parser.add_argument("--stream", action="store_true", help="print the text while it is generated; for one sequence")
    parser.add_argument(
        "--logprobs", action="store_true", help="with --json: also the log-probabilities of prompt and text"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each text")
    parser.add_argument(
        "--best_of",
        metavar="N",
        type=int,
        action=bounds.AsTyped,
        help="with --chat: draw N answers to each prompt and print the best by --reward; with --json as a conversation",
    )
    parser.add_argument("--reward", metavar="NAME", help="with --best_of: a reward of docs/rewards.md, or run:DIR")


def _add_draft_flags(parser) -> None:
    parser.add_argument(
        "--draft",
        metavar="RUN",
        help="guess tokens by a smaller run of the same tokenizer, or by ngram: what followed the same tokens earlier in the"
        " text; texts come faster, from the same distribution",
    )
    parser.add_argument(
        "--draft_tokens",
        metavar="K",
        type=int,
        action=bounds.AsTyped,
        help="with --draft: tokens to guess at a time, at most 15 (default: 4 of a run, 8 of ngram)",
    )


def _flags() -> list[tuple]:
    options = [(name, option.kind, option.help) for name, option in OPTIONS.items()]
    return [SETTINGS[0], *options, *SETTINGS[1:]]


def settings(args) -> dict:
    """What generation's Settings are made of, checked. Raises UserError: one is out of range, or some don't go together."""
    chosen = {name: getattr(args, name) for name, _, _ in _flags() if getattr(args, name) is not None}
    chosen |= {"stop": tuple(args.stop or ()), "logprobs": args.logprobs}
    checked = Settings(**chosen)
    if args.prompt and args.prompts_file:
        raise UserError("--prompt and --prompts_file are both given; use one.")
    if (args.system is not None or args.chat_format is not None) and not args.chat:
        flag = "--system" if args.system is not None else "--chat_format"
        raise UserError(f"{flag} is for conversations; add --chat.")
    if args.chat and any(not prompt.strip() for prompt in args.prompt or ()):
        raise UserError("--prompt is empty, and --chat answers a message; give it a text.")
    if args.chat and not args.prompt and not args.prompts_file:
        _check_talk(args, checked)
    _check_draft(args, checked)
    best_of.check(args)
    if args.logprobs and not args.json:
        raise UserError("--logprobs needs --json; add --json.")
    if args.stream and (
        args.json or checked.num_beams > 1 or checked.num_return_sequences > 1 or len(args.prompt or ()) > 1
    ):
        raise UserError("--stream prints one text: give one --prompt and one sequence, without --num_beams and --json.")
    return chosen


def _check_draft(args, checked: Settings) -> None:
    """Raises UserError: guesses where nothing is guessed."""
    if args.draft_tokens is not None and args.draft is None:
        raise UserError(f"--draft_tokens={args.draft_tokens} is only for --draft; add --draft=ngram, or a run.")
    if args.draft is not None and checked.num_beams > 1:
        raise UserError(
            f"--num_beams={checked.num_beams} has no use for --draft: beam search draws nothing; leave one out."
        )
    if args.draft is not None and (args.best_of is not None or args.chat and not args.prompt and not args.prompts_file):
        raise UserError(
            f"--draft={args.draft} is for --prompt and --prompts_file, without --best_of; leave out one of both."
        )


def _check_talk(args, checked: Settings) -> None:
    """Raises UserError: no conversation on this terminal, or with these settings."""
    if args.json or not sys.stdin.isatty():
        raise UserError("--chat has no message to answer; give --prompt or --prompts_file, or run it on a terminal.")
    if checked.num_beams > 1 or checked.num_return_sequences > 1:
        raise UserError("--chat on a terminal gives one answer at a time; leave out --num_beams and several sequences.")


def run(args) -> None:
    start.refuse_several("sample")
    chosen = settings(args)  # wrong ones are said before JAX starts
    start.start_jax()
    from gptjax.config import config_file
    from gptjax.run import run

    prompts = _prompts(args)
    if args.stream and len(prompts) > 1:
        raise UserError(f"--stream prints one text, but {args.prompts_file} has {len(prompts)} prompts.")
    mesh = None if args.mesh is None else config_file.parse_mesh(args.mesh)
    loaded = run.read(args.workdir, args.step, dtype=args.dtype, mesh=mesh, ema=args.ema)
    draft = {"draft": args.draft, "draft_tokens": args.draft_tokens}
    generate = functools.partial(loaded.generate, **draft)
    if args.chat:
        from gptjax.commands import chatting

        form = loaded.chat_format(args.chat_format)
        if prompts == [None]:
            chatting.converse(loaded, form, args.system, chosen)
            return
        prompts = [chatting.question(prompt, args.system) for prompt in prompts]
        if args.best_of is not None:
            best_of.run(loaded, form, prompts, args, chosen)
            return
        generate = functools.partial(loaded.answers, form=form, **draft)
    if args.stream:
        terminal.say("" if args.chat else prompts[0] or "")
        generate(prompts, callback=lambda _, piece: terminal.say(piece), **chosen)
        print()
        return
    completions = generate(prompts, **chosen)
    for i, completion in enumerate(completions):
        if args.json:
            print(json.dumps(_as_dict(completion, loaded.tokenizer)))
            continue
        if len(completions) > 1:
            print(f"--- sample {i + 1} of {len(completions)}")
        terminal.say(f"{completion.text if args.chat else completion}\n")


def _prompts(args) -> list[str | None]:
    if args.prompts_file is None:
        return args.prompt or [None]
    try:
        lines = (
            sys.stdin.readlines() if args.prompts_file == "-" else open(args.prompts_file, encoding="utf-8").readlines()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts_file={args.prompts_file} cannot be read: {error}.") from error
    prompts = [line.rstrip("\n") for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts_file={args.prompts_file} has no prompt; expected one on each line.")
    return prompts


def _as_dict(completion, tokenizer) -> dict:
    row = {"prompt": completion.prompt, "text": completion.text, "finish_reason": completion.finish_reason}
    row |= {"seed": completion.seed, "tokens": completion.tokens.tolist()}
    if completion.score is not None:
        row["score"] = completion.score
    if completion.logprobs is not None:
        row["logprobs"] = [round(float(x), 6) for x in completion.logprobs]
        row["prompt_logprobs"] = [round(float(x), 6) for x in completion.prompt_logprobs]
    return row
