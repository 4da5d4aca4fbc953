"""`gptjax export`: the model of a run in the files of another program."""

import json

from gptjax import start
from gptjax.commands import flags
from gptjax.config import bounds
from gptjax.errors import UserError


def add_flags(parser) -> None:
    flags.add_run_flag(parser)
    parser.add_argument(
        "--to",
        action=bounds.AsTyped,
        dest="format",
        required=True,
        metavar="FORMAT",
        help="hf: Hugging Face transformers; gguf: llama.cpp (both with an adapter merged); peft: the adapter alone, for PEFT",
    )
    parser.add_argument("--out", required=True, metavar="DIR|FILE", help="the folder, or GGUF file, to create")
    flags.add_checkpoint_flags(parser)
    parser.add_argument(
        "--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: the dtype of the checkpoint)"
    )
    parser.add_argument("--max_shard_size", metavar="SIZE", help="largest size of a file (default: 5GB)")
    parser.add_argument(
        "--type",
        metavar="NAME",
        help="how a GGUF file holds matrices: f32, f16, bf16, q4_0, q4_1 or q8_0 (default: as the checkpoint)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    start.refuse_several("export")
    start.start_jax()
    flags.check_format("--to", args.format)
    _refuse_flags_of_another(args)
    about = _EXPORTERS[args.format](args)
    loaded = about.pop("run")
    if args.json:
        print(json.dumps({"workdir": args.workdir, "step": loaded.step, "out": args.out, **about}, indent=2))
        return
    if args.format == "peft":
        print(f"{args.out}: {about['peft_type']}, {about['tensors']} tensors")
        return
    stored_as = about.get("dtype") or about["type"]
    print(f"{args.out}: step {loaded.step} of {args.workdir} as {about['architecture']}, {stored_as}")
    if about.get("tokenizer_files") == []:
        print(
            f"no tokenizer was written, because transformers has none like {loaded.tokenizer.kind!r};"
            f" encode with gptjax, from {loaded.directory.tokenizer}"
        )
    for note in about["notes"]:
        print(f"note: {note}")


def _refuse_flags_of_another(args) -> None:
    """Raises UserError: a flag that the format has no use for."""
    instead = {"hf": "use --dtype", "gguf": "use --type", "peft": "leave it out"}[args.format]
    for name, format_of_flag in (("dtype", "hf"), ("max_shard_size", "hf"), ("type", "gguf")):
        if getattr(args, name) is not None and args.format != format_of_flag:
            raise UserError(f"--{name} is of --to={format_of_flag}, and --to={args.format} is given; {instead}.")


def _to_folder(args) -> dict:
    from gptjax.huggingface import exporting
    from gptjax.run import run

    size = exporting.parse_bytes(args.max_shard_size or "5GB")
    loaded = run.read(args.workdir, args.step, ema=args.ema)
    return {"run": loaded} | exporting.export_run(loaded, args.out, args.dtype, size)


def _to_file(args) -> dict:
    from gptjax.gguf import exporting
    from gptjax.run import run

    loaded = run.read(args.workdir, args.step, ema=args.ema)
    return {"run": loaded} | exporting.export_run(loaded, args.out, args.type)


def _to_adapter(args) -> dict:
    from gptjax.huggingface import peft
    from gptjax.run import adapters, run

    loaded = run.read(args.workdir, args.step, ema=args.ema)
    adapters.check_nothing_beside(loaded)
    return {"run": loaded} | peft.export_adapter(loaded, args.out)


_EXPORTERS = {"hf": _to_folder, "peft": _to_adapter, "gguf": _to_file}
