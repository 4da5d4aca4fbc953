"""The command line: `gptjax COMMAND --flag=value`. Commands import what they need when they run.

A mistake of the user's (UserError) ends in one line and exit code 2, never in a traceback; a disk or network that fails
in one line and exit code 74.
"""

import argparse
import json
import math
import os
import sys

from gptjax import start
from gptjax.commands import comparison, evaluation, exchange
from gptjax.commands import coordcheck as coordcheck_command
from gptjax.commands import data as data_command
from gptjax.commands import prepare as prepare_command
from gptjax.commands import sample as sample_command
from gptjax.commands import study as study_command
from gptjax.commands import tokenizer as tokenizer_command
from gptjax.commands import verify as verify_command
from gptjax.config import bounds
from gptjax.errors import SAVE_FAILED, USER_ERROR, UserError, of_the_machine

WRONG_PATH = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
CONFIG_HELP = "a config file; change a field with --config.SECTION.FIELD=VALUE, as in --config.optim.peak_lr=3e-4"


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    parser = _parser()
    argv = sys.argv[1:] if argv is None else argv
    args, rest = parser.parse_known_args(argv)
    try:
        changes = overrides(rest, accepts=hasattr(args, "config"), command=args.command)
        if vars(args).get("separator") == []:  # as argparse of Python 3.11 reads --separator=--
            args.separator = "--"
        bounds.check_flags(vars(args))
        args.overrides = changes
        return args.run(args) or 0
    except UserError as error:
        said = str(error)
        for flag, typed in args.typed.items():
            said = said.replace(flag, typed)
        print(f"gptjax: {said}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gptjax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a path of the user's that is wrong; or a disk or network that fails, for a while maybe
        print(f"gptjax: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return USER_ERROR if isinstance(error, WRONG_PATH) else SAVE_FAILED
    except Exception as error:
        if (line := of_the_machine(error)) is None:
            raise
        print(f"gptjax: {line}", file=sys.stderr)
        return USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptjax", description="Pretrain GPTs in JAX, and use what comes out.", allow_abbrev=False
    )
    parser.set_defaults(typed={})  # {a flag as errors name it: as it was typed}
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    train = command("train", _train, "train a config, or go on with the run in --workdir")
    add_train_flags(train)

    info = command("info", _info, "parameters, FLOPs and memory of a config, without running it")
    info.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    info.add_argument(
        "--devices", type=int, metavar="N", help="devices to lay the mesh over (default: the fewest it fits)"
    )
    info.add_argument("--json", action="store_true", help="machine-readable")

    plan = command("plan", _plan, "compile a config for a machine that is not here: memory, collectives, time, cost")
    _add_plan_flags(plan)

    evaluate = command("eval", _eval, "loss, perplexity and bits per byte of a run on its held-out text, or on others")
    evaluation.add_flags(evaluate)

    compare = command("compare", _compare, "two runs on the same text: the difference, its error, and a p-value")
    comparison.add_flags(compare)

    sample = command("sample", _sample, "text from a run")
    sample.add_argument("--workdir", required=True, metavar="DIR")
    _add_checkpoint_flags(sample)
    sample_command.add_flags(sample)

    verify = command("verify", _verify, "whether a run's checkpoints and files are as they were written")
    verify_command.add_flags(verify)

    prepare = command(
        "prepare", prepare_command.run, "make a folder of token shards from text: clean, deduplicate, tokenise"
    )
    prepare_command.add_flags(prepare)

    data = command(
        "data", data_command.run, "the text of any step of a run, what it reads in numbers, or its checksums"
    )
    data_command.add_flags(data, CONFIG_HELP)

    tokenizer = command("tokenizer", tokenizer_command.run, "train a tokenizer, or show what one is and does")
    tokenizer_command.add_flags(tokenizer)

    imports = command("import", _import, "make a run directory of a model of Hugging Face's transformers")
    exchange.add_import_flags(imports)

    exports = command("export", _export, "write a run's model as Hugging Face's transformers reads it")
    exchange.add_export_flags(exports)

    study = command("study", None, "scaling studies: many runs from one file, and the laws through them")
    study_command.add_flags(study)

    parity = command("parity", _parity, "show that a config, in miniature, trains the same on every mesh of 8 devices")
    parity.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    parity.add_argument("--steps", type=int, default=3, help="optimizer steps after which parameters are compared")
    parity.add_argument("--json", action="store_true", help="machine-readable")

    coordcheck = command(
        "coordcheck", _coordcheck, "whether training changes activations alike at every width or depth"
    )
    coordcheck_command.add_flags(coordcheck, CONFIG_HELP)

    bench = command("bench", _bench, "compile time, tokens/s, MFU and memory of training and decoding a config")
    bench.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    bench.add_argument("--seconds", type=float, default=20.0, help="to measure each for")
    bench.add_argument("--data", action="store_true", help="instead: rates of the loader, and of encoding its text")
    bench.add_argument(
        "--tokenizer", action="append", metavar="SPEC", help="with --data: encode with this one (default: the text's)"
    )
    bench.add_argument(
        "--generate", action="store_true", help="instead: tokens/s of text, beside Hugging Face's generate"
    )
    bench.add_argument(
        "--batched",
        type=int,
        metavar="R",
        help="instead: tokens/s of R such runs in one process, and one after another",
    )
    bench.add_argument("--json", action="store_true", help="machine-readable")
    return parser


def add_train_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """What `gptjax train` takes beside changes of the config; a launcher, which knows what is missing, requires none."""
    parser.add_argument("--config", required=required, metavar="FILE", help=CONFIG_HELP)
    parser.add_argument("--workdir", required=required, metavar="DIR", help="the run directory, local or gs://")
    parser.add_argument("--executable", metavar="FILE", help="a train step compiled by gptjax plan --save_executable")
    parser.add_argument(
        "--allow_change", default="", metavar="KEYS", help="config keys, comma-separated, that may differ on resume"
    )
    parser.add_argument(
        "--branch_from", metavar="RUN_DIR", help="begin with a checkpoint of this run instead of step 0"
    )
    parser.add_argument("--branch_step", metavar="N", help="the step of that checkpoint")


def _add_plan_flags(plan) -> None:
    plan.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    plan.add_argument(
        "--topology", required=True, metavar="NAME", help="v5p:8x8x8, v5e:8x8, h100:8x16 (GPUs a host x hosts), cpu:8"
    )
    plan.add_argument("--num_slices", type=int, default=1, metavar="N", help="TPU slices, joined by DCN")
    plan.add_argument("--mesh", metavar="AXES", help="such as fsdp=64,tensor=8; axes left out are 1")
    plan.add_argument("--batch", type=int, metavar="N", help="train.batch_size, in sequences")
    plan.add_argument("--microbatches", type=int, metavar="N", help="train.microbatches")
    plan.add_argument("--remat", metavar="NAME", help="model.remat")
    plan.add_argument("--search", action="store_true", help="try meshes, microbatches and remat; list the best")
    plan.add_argument("--search_compiles", type=int, default=3, metavar="N", help="of the best are compiled")
    plan.add_argument("--price", type=float, metavar="USD", help="of a chip for an hour")
    plan.add_argument(
        "--matmul_fraction", type=float, default=1.0, metavar="F", help="of the published peak that matmuls reach"
    )
    plan.add_argument("--save_executable", metavar="FILE", help="for gptjax train --executable=FILE")
    plan.add_argument("--row", action="store_true", help="print a row of docs/plans.md only")
    plan.add_argument("--json", action="store_true", help="machine-readable")


def _add_checkpoint_flags(parser) -> None:
    parser.add_argument("--step", type=int, default=None, help="of the checkpoint (default: the newest)")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")


def overrides(rest: list[str], accepts: bool, command: str) -> list[str]:
    """["optim.peak_lr=3e-4"] from ["--config.optim.peak_lr=3e-4"]; the value may also follow as a word of its own.

    Raises UserError for any other word.
    """
    changes, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not accepts or not word.startswith("--config."):
            raise UserError(f"unknown argument {word!r} of gptjax {command}; see gptjax {command} --help.")
        if "=" not in word and words and not words[0].startswith("--"):
            word = f"{word}={words.pop(0)}"
        changes.append(word.removeprefix("--config."))
    return changes


def _load_config(args):
    from gptjax.config import config_file

    return config_file.load_config(args.config, args.overrides)


def _train(args) -> int:
    config = _load_config(args)
    start.start_jax(config)
    from gptjax.hosts import distributed
    from gptjax.training import branching
    from gptjax.training import main as train

    allowed = tuple(filter(None, args.allow_change.split(",")))
    origin = branching.asked(args.branch_from, args.branch_step)
    return train.train(config, args.workdir, allowed, args.executable, origin, distributed.start)


def _info(args) -> None:
    config = _load_config(args)
    if args.devices is not None and args.devices < 1:
        raise UserError(f"--devices={args.devices} is too small; use at least 1.")
    from gptjax.planning import info

    facts = info.info(config, args.devices)
    print(json.dumps(facts, indent=2) if args.json else info.table(facts))


def _check_plan_flags(args) -> None:
    if args.num_slices < 1 or not 0 < args.matmul_fraction <= 1:
        raise UserError("--num_slices is at least 1 and --matmul_fraction a fraction of the peak, such as 0.7.")
    if args.price is not None and not 0 <= args.price < math.inf:
        raise UserError(f"--price={args.price:g} is no price; give US dollars for a chip and hour, such as 4.2.")
    if args.search_compiles < 1:
        raise UserError(f"--search_compiles={args.search_compiles} is too small; use at least 1.")
    if args.row and (args.json or args.search):
        raise UserError(
            f"--row prints a row of one plan, --{'json' if args.json else 'search'} more; give one of the two."
        )


def _plan(args) -> int:
    """0; 1 where the config does not fit."""
    from gptjax.config import config_file
    from gptjax.planning import topology

    _check_plan_flags(args)
    topology.set_environment(args.topology, args.num_slices)  # before JAX is imported
    chosen = config_file.load_config(args.config, args.overrides + config_file.plan_overrides(args))
    start.start_jax(chosen, keep_programs=args.topology.startswith("cpu"))  # a TPU's could not be read back without one
    from gptjax.commands import planning

    return planning.run(chosen, args)


def _eval(args) -> int:
    start.refuse_several("eval")
    start.start_jax(evaluation.config_to_start_with(args))
    return evaluation.run(args)


def _compare(args) -> int:
    start.refuse_several("compare")
    start.start_jax()
    return comparison.run(args)


def _sample(args) -> None:
    start.refuse_several("sample")
    settings = sample_command.settings(args)
    start.start_jax()
    sample_command.run(args, settings)


def _verify(args) -> int:
    """On the CPU, whatever else is there: another process may have the accelerator."""
    start.refuse_several("verify")
    os.environ["JAX_PLATFORMS"] = "cpu"
    start.start_jax()
    return verify_command.run(args)


def _import(args) -> None:
    start.refuse_several("import")
    start.start_jax()
    exchange.run_import(args)


def _export(args) -> None:
    start.refuse_several("export")
    start.start_jax()
    exchange.run_export(args)


def _parity(args) -> int:
    """Live: a row of the table as each run ends, and how far it is on the terminal's last line."""
    config = _load_config(args)
    if args.steps < 1:
        raise UserError(f"--steps={args.steps} is too small; use at least 1.")
    _start_eight_cpu_devices()
    from gptjax import terminal
    from gptjax.diagnostics import miniature, parity

    progress = terminal.Progress(sys.stderr if args.json else sys.stdout)

    def report(outcome, done: int, total: int) -> None:
        if outcome is not None and not args.json:
            progress.message(parity.line(outcome))
        if args.json or sys.stdout.isatty():  # elsewhere the rows themselves say how far it is
            progress.update(f"{done} of {total} runs")

    if not args.json:
        for line in (*miniature.differences(config), parity.HEADER):
            progress.message(line)
    outcomes = parity.certify(config, args.steps, report=report)
    progress.close()
    facts = parity.summary(config, args.steps, outcomes)
    print(json.dumps(facts, indent=2) if args.json else parity.verdict(outcomes))
    return 0 if facts["passed"] else 1


def _coordcheck(args) -> int:
    """0 where the parametrisation is flat, 1 where not."""
    config = _load_config(args)
    coordcheck_command.sizes(args)  # wrong ones are said before JAX starts
    start.refuse_several("coordcheck")
    start.start_jax(config)
    return coordcheck_command.run(args, config)


def _start_eight_cpu_devices() -> None:
    """Before JAX starts: eight of them on this machine's CPU, whatever accelerator it has."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's warnings of slow layouts: here only numbers count
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    start.start_jax()


def _bench(args) -> None:
    config = _load_config(args)
    if args.data:
        from gptjax.diagnostics import bench_data

        results = bench_data.bench(config, args.seconds, args.tokenizer or ())
        print(json.dumps(results, indent=2) if args.json else bench_data.table(results))
        return
    if args.tokenizer:
        raise UserError(f"--tokenizer={args.tokenizer[0]} is for gptjax bench --data; give that too.")
    start.start_jax(config)
    if args.generate:
        from gptjax.diagnostics import bench_generation

        results = bench_generation.bench(config, args.seconds)
        print(json.dumps(results, indent=2) if args.json else bench_generation.table(results))
        return
    if args.batched is not None:
        from gptjax.study.lanes import bench as batched_bench

        results = batched_bench.bench(config, args.batched, args.seconds)
        print(json.dumps(results, indent=2) if args.json else batched_bench.table(results))
        return
    from gptjax.diagnostics import bench_training as bench

    results = bench.bench(config, args.seconds)
    print(json.dumps(results, indent=2) if args.json else bench.table(results))


if __name__ == "__main__":
    sys.exit(main())
