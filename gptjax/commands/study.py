"""`gptjax study plan|run|status|fit`: how a scaling study is asked for. What each does is in `study/`."""

from gptjax.commands import study_fit, study_plan, study_run, study_status

ACTIONS = {  # name: (module, what it is for)
    "plan": (study_plan, "the runs of a study file: sizes, tokens, FLOPs, cost; starts nothing"),
    "run": (study_run, "start the runs of a study file, or continue them"),
    "status": (study_status, "show the progress of a study's runs"),
    "fit": (study_fit, "fit scaling laws to the runs of a study, or to the points of a CSV file"),
}


def add_flags(parser) -> None:
    actions = parser.add_subparsers(dest="study_command", required=True, metavar="plan|run|status|fit")
    for name, (module, help) in ACTIONS.items():
        action = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        action.set_defaults(act=module.run, command=f"study {name}")
        module.add_flags(action)


def run(args) -> int | None:
    return args.act(args)
