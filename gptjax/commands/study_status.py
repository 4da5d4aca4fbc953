"""`gptjax study status`: what is known of a study, once or again and again."""

import json

from gptjax.commands.study_run import unreadable
from gptjax.errors import UserError
from gptjax.study.running import status_table
from gptjax.study.running.layout import open_directory


def add_flags(parser) -> None:
    parser.add_argument("out", metavar="DIR", help="the --out folder of gptjax study run")
    parser.add_argument("--watch", action="store_true", help="refresh the table every two seconds, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    """0. Raises UserError: no study was run there."""
    directory = open_directory(args.out)
    if args.watch and args.json:
        raise UserError("--watch and --json cannot be combined; give one of them.")
    if reason := unreadable(directory):
        raise UserError(f"{directory.path} cannot be read here: {reason}.")
    if args.watch:
        return status_table.watch(directory)
    found = status_table.facts(directory)
    print(json.dumps(found, indent=2) if args.json else status_table.table(found))
    return 0
