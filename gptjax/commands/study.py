"""`gptjax study plan|run|status|fit`: how a scaling study is asked for. What each does is in `study/`."""

from gptjax.commands import study_fit, study_plan
from gptjax.study.running.launching import LAUNCHERS


def add_flags(parser) -> None:
    commands = parser.add_subparsers(dest="study_command", required=True, metavar="plan|run|status|fit")

    def command(name: str, add, run, help: str) -> None:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run, command=f"study {name}")
        add(sub)

    command("plan", study_plan.add_flags, _plan, "the runs of a study file: sizes, tokens, FLOPs, cost; starts nothing")
    command("run", _add_run_flags, _run, "start the runs of a study file, or go on with them")
    command("status", _add_status_flags, _status, "how far the runs of a study are")
    command("fit", study_fit.add_flags, _fit, "scaling laws through the runs of a study, or the points of a CSV file")


def _add_run_flags(parser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a study file, as those in configs/studies/")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the study, local or gs://")
    parser.add_argument("--max_flops", type=float, metavar="C", help="refuse a study of more exact FLOPs")
    parser.add_argument("--launcher", default="local", metavar="NAME", help=" | ".join(LAUNCHERS))
    parser.add_argument(
        "--launcher_flag",
        action="append",
        metavar="FLAG",
        help="for the launcher's script in launch/, as in --launcher_flag=--time=1:00:00; may be repeated",
    )
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="runs at a time (default: 1; on a CPU, as many as it has cores for)"
    )
    parser.add_argument(
        "--batch_runs", default="auto", metavar="auto|off", help="small runs of one shape share a process, here"
    )
    code = parser.add_mutually_exclusive_group()
    code.add_argument(
        "--accept_code", action="store_true", help="take finished runs of other code as they are, for good"
    )
    code.add_argument("--rerun_code", action="store_true", help="run again what was finished by other code")
    parser.add_argument("--dry_run", action="store_true", help="print the commands that would be started now, and stop")


def _add_status_flags(parser) -> None:
    parser.add_argument("out", metavar="DIR", help="the --out of gptjax study run")
    parser.add_argument("--watch", action="store_true", help="show it anew every two seconds, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _plan(args) -> int:
    return study_plan.run(args)


def _run(args) -> int:
    from gptjax.commands import study_run

    return study_run.run(args)


def _status(args) -> int:
    from gptjax.commands import study_run

    return study_run.show_status(args)


def _fit(args) -> int:
    return study_fit.run(args)
