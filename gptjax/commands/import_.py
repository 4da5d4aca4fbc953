"""`gptjax import`: a run directory of a model that another program wrote."""

import json

from gptjax import start
from gptjax.commands import flags
from gptjax.config import bounds
from gptjax.errors import UserError
from gptjax.huggingface import families


def add_flags(parser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", help=f"what save_pretrained of transformers wrote: {families.titles('or')}"
    )
    parser.add_argument(
        "--from",
        action=bounds.AsTyped,
        dest="format",
        required=True,
        metavar="FORMAT",
        help="hf: Hugging Face transformers; peft: an adapter of PEFT, on the model of --base",
    )
    parser.add_argument("--workdir", required=True, metavar="RUN", help="the run directory to create, local or gs://")
    parser.add_argument(
        "--tokenizer",
        metavar="SPEC",
        help="gpt2:FOLDER, hf:FILE ..., or ids for none (default: the tokenizer in the folder)",
    )
    parser.add_argument(
        "--allow_nonfinite", action="store_true", help="also import weights that contain NaN or infinity"
    )
    parser.add_argument("--base", metavar="RUN", help="peft: the run directory of the model that the adapter is of")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    start.refuse_several("import")
    start.start_jax()
    flags.check_format("--from", args.format)
    if args.format == "peft":
        _import_adapter(args)
        return
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


def _import_adapter(args) -> None:
    if args.base is None:
        raise UserError("--from=peft needs --base=RUN, the run directory of the model that the adapter is of.")
    from gptjax.huggingface import peft

    about = peft.import_adapter(args.folder, args.base, args.workdir)
    if args.json:
        print(json.dumps({"workdir": args.workdir, **about}, indent=2))
        return
    print(f"{args.workdir}: {about['adapter']} on {about['base']}")
    print(f"next:\n  gptjax sample --workdir={args.workdir}")
