"""`gptjax study plan|run|status|fit`: how a scaling study is asked for. What each does is in `study/`."""

from gptjax.study import plan_command


def add_flags(parser) -> None:
    commands = parser.add_subparsers(dest="study_command", required=True, metavar="plan|run|status|fit")

    def command(name: str, add, run, help: str) -> None:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run)
        add(sub)

    command(
        "plan", plan_command.add_flags, _plan, "the runs of a study file: sizes, tokens, FLOPs, cost; starts nothing"
    )
    command("run", _add_run_flags, _run, "start the runs of a study file, or go on with them")
    command("status", _add_status_flags, _status, "how far the runs of a study are")
    command("fit", _add_fit_flags, _fit, "scaling laws through the runs of a study, or the points of a CSV file")


def _add_run_flags(parser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a study file, as those in configs/studies/")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the study, local or gs://")


def _add_status_flags(parser) -> None:
    parser.add_argument("out", metavar="DIR", help="the --out of gptjax study run")


def _add_fit_flags(parser) -> None:
    parser.add_argument("points", metavar="DIR|CSV", help="the --out of a study, or params,tokens,flops,loss[,...]")


def _plan(args) -> int:
    return plan_command.run(args)


def _run(args) -> int:
    raise NotImplementedError


def _status(args) -> int:
    raise NotImplementedError


def _fit(args) -> int:
    raise NotImplementedError
