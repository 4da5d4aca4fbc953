"""`gptjax bench`: speed, of training and decoding or of what a flag names instead."""

import importlib
import json
import typing

from gptjax import start
from gptjax.commands import flags
from gptjax.errors import UserError


class Timed(typing.NamedTuple):
    """A module whose bench(config, seconds=..., ...) measures and whose table(results) prints it."""

    module: str
    is_chosen: typing.Callable = lambda args: True
    options: typing.Callable = lambda args: {}  # further arguments of bench()
    uses_jax: bool = True


TIMED = (  # the first that the flags choose is measured
    Timed(
        "gptjax.diagnostics.bench_data",
        lambda args: args.data,
        lambda args: {"specs": args.tokenizer or ()},
        uses_jax=False,
    ),
    Timed("gptjax.diagnostics.bench_generation", lambda args: args.generate, lambda args: {"dtype": args.dtype}),
    Timed(
        "gptjax.diagnostics.bench_serve",
        lambda args: args.serve is not None,
        lambda args: {"run": args.serve, "python": args.transformers, "dtype": args.dtype, "clients": args.clients},
        uses_jax=False,
    ),
    Timed("gptjax.diagnostics.bench_sft", lambda args: args.sft, lambda args: {"lora": args.lora}),
    Timed(
        "gptjax.diagnostics.bench_prefs",
        lambda args: args.prefs is not None,
        lambda args: {"kind": args.prefs, "answers": args.answers or 2},
    ),
    Timed("gptjax.diagnostics.bench_rl", lambda args: args.rl, lambda args: {"tunix": args.tunix}),
    Timed("gptjax.study.lanes.bench", lambda args: args.batched is not None, lambda args: {"runs": args.batched}),
    Timed("gptjax.diagnostics.bench_training"),
)


def add_flags(parser) -> None:
    flags.add_config_flag(parser, required=False)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="seconds to measure each for (default: %(default)g)"
    )
    parser.add_argument("--data", action="store_true", help="measure instead: the loader, and the encoding of its text")
    parser.add_argument(
        "--tokenizer",
        action="append",
        metavar="SPEC",
        help="with --data: the tokenizer to encode with (default: that of the text)",
    )
    parser.add_argument(
        "--generate",
        action="store_true",
        help="measure instead: generating text, compared with Hugging Face's generate",
    )
    _add_serve_flags(parser)
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        help="with --serve and --generate: of our weights, such as int8 (default: as trained, and float32)",
    )
    parser.add_argument(
        "--sft",
        action="store_true",
        help="measure instead: fine-tuning on packed conversations, compared with TRL's SFTTrainer",
    )
    parser.add_argument("--lora", action="store_true", help="with --sft: LoRA of rank 8, with TRL's peft")
    parser.add_argument(
        "--prefs",
        choices=("reward", "dpo"),
        help="measure instead: a reward model, or DPO, compared with TRL's trainers",
    )
    parser.add_argument(
        "--answers", type=int, metavar="K", help="with --prefs=reward: answers to a prompt (default: 2)"
    )
    parser.add_argument(
        "--rl", action="store_true", help="measure instead: iterations of GRPO, compared with TRL's GRPOTrainer"
    )
    parser.add_argument("--tunix", metavar="PYTHON", help="with --rl: also tunix, in this Python that has google-tunix")
    parser.add_argument(
        "--batched",
        type=int,
        metavar="R",
        help="measure instead: R such runs in one process, compared with the same runs one after another",
    )
    flags.add_json_flag(parser)


def _add_serve_flags(parser) -> None:
    parser.add_argument(
        "--serve",
        metavar="RUN",
        help="measure instead of a config: gptjax serve with this run, asked by several clients at once",
    )
    parser.add_argument(
        "--clients",
        type=int,
        action="append",
        metavar="N",
        help="with --serve: how many; may be repeated (default: 1, 8, 32)",
    )
    parser.add_argument(
        "--transformers",
        metavar="PYTHON",
        help="with --serve: also transformers serve on the same weights, in this Python that has transformers[serving]",
    )


def run(args) -> None:
    if (args.serve is None) == (args.config is None):
        raise UserError("gptjax bench measures either a config or a server; give --config=FILE, or --serve=RUN.")
    if args.serve is not None and args.overrides:
        raise UserError(f"--config.{args.overrides[0]} is for a config; gptjax bench --serve measures a run as it is.")
    if args.transformers and args.serve is None:
        raise UserError(f"--transformers={args.transformers} is only for gptjax bench --serve; add --serve=RUN.")
    if args.clients and args.serve is None:
        raise UserError(f"--clients={args.clients[0]} is only for gptjax bench --serve; add --serve=RUN.")
    if args.clients and min(args.clients) < 1:
        raise UserError(f"--clients={min(args.clients)} is too small; use at least 1.")
    if args.dtype and args.serve is None and not args.generate:
        raise UserError(f"--dtype={args.dtype} is only for gptjax bench --generate and --serve; add one of them.")
    config = None if args.config is None else flags.load_config(args)
    timed = next(one for one in TIMED if one.is_chosen(args))
    if args.tokenizer and not args.data:
        raise UserError(f"--tokenizer={args.tokenizer[0]} is only for gptjax bench --data; add --data.")
    if args.lora and not args.sft:
        raise UserError("--lora is only for gptjax bench --sft; add --sft.")
    if args.answers is not None and args.prefs is None:
        raise UserError(f"--answers={args.answers} is only for gptjax bench --prefs; add --prefs=reward.")
    if args.tunix and not args.rl:
        raise UserError(f"--tunix={args.tunix} is only for gptjax bench --rl; add --rl.")
    if timed.uses_jax:
        start.start_jax(config)
    module = importlib.import_module(timed.module)
    results = module.bench(config, seconds=args.seconds, **timed.options(args))
    print(json.dumps(results, indent=2) if args.json else module.table(results))
