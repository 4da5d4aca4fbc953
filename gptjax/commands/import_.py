"""`gptjax import`: a run directory of a model that another program wrote."""

import json

from gptjax import start
from gptjax.commands import flags
from gptjax.config import bounds
from gptjax.errors import UserError
from gptjax.huggingface import families


def add_flags(parser) -> None:
    parser.add_argument(
        "source",
        metavar="DIR|FILE.gguf",
        help=f"what save_pretrained of transformers wrote: {families.titles('or')}; or a GGUF file of llama.cpp",
    )
    parser.add_argument(
        "--from",
        action=bounds.AsTyped,
        dest="format",
        metavar="FORMAT",
        help="hf: Hugging Face transformers; peft: an adapter of PEFT, on the model of --base; gguf: llama.cpp (default: gguf for"
        " a file of this ending, else hf)",
    )
    parser.add_argument("--workdir", required=True, metavar="RUN", help="the run directory to create, local or gs://")
    parser.add_argument(
        "--tokenizer",
        metavar="SPEC",
        help="gpt2:FOLDER, hf:FILE ..., or ids for none (default: the model's own)",
    )
    parser.add_argument(
        "--allow_nonfinite", action="store_true", help="also import weights that contain NaN or infinity"
    )
    parser.add_argument("--base", metavar="RUN", help="peft: the run directory of the model that the adapter is of")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _from_folder(*arguments) -> dict:
    from gptjax.huggingface import importing

    return importing.import_folder(*arguments)


def _from_file(*arguments) -> dict:
    from gptjax.gguf import importing

    return importing.import_file(*arguments)


_IMPORTERS = {"hf": _from_folder, "gguf": _from_file}


def run(args) -> None:
    start.refuse_several("import")
    start.start_jax()
    chosen = args.format or ("gguf" if args.source.endswith(".gguf") else "hf")
    flags.check_format("--from", chosen)
    if chosen == "peft":
        _import_adapter(args)
        return
    if args.base is not None:
        raise UserError(f"--base={args.base} is of --from=peft, and --from={chosen} is given; leave it out.")
    about = _IMPORTERS[chosen](args.source, args.workdir, args.tokenizer, args.allow_nonfinite)
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


def _import_adapter(args) -> None:
    if args.base is None:
        raise UserError("--from=peft needs --base=RUN, the run directory of the model that the adapter is of.")
    from gptjax.huggingface import peft

    about = peft.import_adapter(args.source, args.base, args.workdir)
    if args.json:
        print(json.dumps({"workdir": args.workdir, **about}, indent=2))
        return
    print(f"{args.workdir}: {about['adapter']} on {about['base']}")
    print(f"next:\n  gptjax sample --workdir={args.workdir}")
