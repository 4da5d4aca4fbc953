"""`gptjax export`: the model of a run in the files of another program."""

import json

from gptjax import start
from gptjax.commands import flags
from gptjax.config import bounds


def add_flags(parser) -> None:
    flags.add_run_flag(parser)
    parser.add_argument(
        "--to",
        action=bounds.AsTyped,
        dest="format",
        required=True,
        metavar="FORMAT",
        help="hf: Hugging Face transformers (an adapter is merged); peft: the adapter alone, for PEFT",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to create")
    flags.add_checkpoint_flags(parser)
    parser.add_argument(
        "--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: the dtype of the checkpoint)"
    )
    parser.add_argument(
        "--max_shard_size", default="5GB", metavar="SIZE", help="largest size of a file (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    start.refuse_several("export")
    start.start_jax()
    flags.check_format("--to", args.format)
    from gptjax.huggingface import exporting
    from gptjax.run import run

    size = exporting.parse_bytes(args.max_shard_size)
    loaded = run.read(args.workdir, args.step, ema=args.ema)
    if args.format == "peft":
        from gptjax.huggingface import peft

        about = peft.export_adapter(loaded, args.out)
        print(
            json.dumps(about, indent=2)
            if args.json
            else f"{args.out}: {about['peft_type']}, {about['tensors']} tensors"
        )
        return
    about = exporting.export_run(loaded, args.out, args.dtype, size)
    if args.json:
        print(json.dumps({"workdir": args.workdir, "step": loaded.step, "out": args.out, **about}, indent=2))
        return
    print(f"{args.out}: step {loaded.step} of {args.workdir} as {about['architecture']}, {about['dtype']}")
    if not about["tokenizer_files"]:
        print(
            f"no tokenizer was written, because transformers has none like {loaded.tokenizer.kind!r};"
            f" encode with gptjax, from {loaded.directory.tokenizer}"
        )
    for note in about["notes"]:
        print(f"note: {note}")
