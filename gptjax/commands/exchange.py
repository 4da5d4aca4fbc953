"""`gptjax import` and `gptjax export`: models from and to other programs' files."""

import json

from gptjax.config import bounds
from gptjax.errors import UserError
from gptjax.huggingface import families

FORMATS = ("hf",)


def add_import_flags(parser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", help=f"what save_pretrained of transformers wrote: {families.titles('or')}"
    )
    parser.add_argument(
        "--from",
        action=bounds.AsTyped,
        dest="format",
        required=True,
        metavar="FORMAT",
        help="hf: Hugging Face transformers",
    )
    parser.add_argument("--workdir", required=True, metavar="RUN", help="the run directory to make, local or gs://")
    parser.add_argument(
        "--tokenizer",
        metavar="SPEC",
        help="gpt2:FOLDER, hf:FILE, ... or ids, to go without (default: the folder's own)",
    )
    parser.add_argument(
        "--allow_nonfinite", action="store_true", help="import weights that hold NaN or infinities, as they are"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")


def add_export_flags(parser) -> None:
    parser.add_argument("--workdir", required=True, metavar="RUN", help="the run directory, local or gs://")
    parser.add_argument(
        "--to",
        action=bounds.AsTyped,
        dest="format",
        required=True,
        metavar="FORMAT",
        help="hf: Hugging Face transformers",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--step", type=int, default=None, help="of the checkpoint (default: the newest)")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: as it is stored)")
    parser.add_argument("--max_shard_size", default="5GB", metavar="SIZE", help="of a file (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run_import(args) -> None:
    _check_format("--from", args.format)
    from gptjax.huggingface import importing

    about = importing.import_folder(args.folder, args.workdir, args.tokenizer, args.allow_nonfinite)
    shape = about.pop("model")
    if args.json:
        print(json.dumps({"workdir": args.workdir, **about}, indent=2))
        return
    end = "texts have no end token" if about["eot_id"] is None else f"texts end at token {about['eot_id']}"
    print(
        f"{args.workdir}: {shape.n_layers} layers, width {shape.d_model}, {shape.n_heads} heads, context"
        f" {shape.context_length}, vocabulary {shape.vocab_size}, {about['dtype']}, tokenizer {about['tokenizer']}, {end}"
    )
    for note in about["notes"]:
        print(f"note: {note}")
    print(f"next:\n  gptjax sample --workdir={args.workdir}\n  gptjax eval --workdir={args.workdir} --data=text:FILE")


def run_export(args) -> None:
    _check_format("--to", args.format)
    from gptjax.huggingface import exporting
    from gptjax.run import run

    size = exporting.parse_bytes(args.max_shard_size)
    loaded = run.load(args.workdir, args.step, ema=args.ema)
    about = exporting.export_run(loaded, args.out, args.dtype, size)
    if args.json:
        print(json.dumps({"workdir": args.workdir, "step": loaded.step, "out": args.out, **about}, indent=2))
        return
    print(f"{args.out}: step {loaded.step} of {args.workdir} as {about['architecture']}, {about['dtype']}")
    if not about["tokenizer_files"]:
        print(
            f"without a tokenizer: transformers has none like {loaded.tokenizer.kind!r};"
            f" encode with gptjax, from {loaded.directory.tokenizer}"
        )
    for note in about["notes"]:
        print(f"note: {note}")


def _check_format(flag: str, given: str) -> None:
    if given not in FORMATS:
        raise UserError(f"{flag}={given} is not known; expected {', '.join(FORMATS)}, Hugging Face's transformers.")
