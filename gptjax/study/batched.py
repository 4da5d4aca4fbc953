"""Runs of a study in one process: `python -m gptjax.study.batched --out=DIR KEY KEY ...`, as `gptjax study run` starts it.

Each run reads DIR/configs/KEY.json and leaves what `gptjax train` would leave, in DIR/runs/KEY. The same command goes
on after a kill. Exit code: 75 if it was stopped, 76 if a run diverged and the rest are done, else 0; that of each run
is in DIR/logs/KEY.exit.json.
"""

import argparse
import os
import sys
import time

from gptjax import errors
from gptjax.errors import UserError
from gptjax.study.running import layout

# XLA's CPU client has so many threads for the parts of one operation. With one, a device is one core's: nothing is handed
# over, a token takes 10% less CPU time, and no number depends on how many cores there are.
THREADS = "PJRT_NPROC"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gptjax.study.batched", allow_abbrev=False)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of a study")
    parser.add_argument(
        "--cpu_devices", type=int, metavar="N", help="devices of a CPU host (default: one for each core)"
    )
    parser.add_argument("keys", nargs="+", metavar="KEY", help="of DIR/configs/KEY.json")
    args = parser.parse_args(argv)
    study, started = layout.open_directory(args.out), time.monotonic()
    keys = list(dict.fromkeys(args.keys))
    codes = dict.fromkeys(keys, 1)  # of a traceback
    try:
        codes = _train(study, keys, args.cpu_devices)
    except UserError as error:
        print(f"gptjax: {error}", file=sys.stderr)
        codes = dict.fromkeys(keys, error.exit_code)
    except KeyboardInterrupt:
        print("gptjax: interrupted", file=sys.stderr)
        codes = dict.fromkeys(keys, 130)
    finally:
        for key, code in codes.items():
            _write_exit(study, key, code, time.monotonic() - started)
    return summary_code(codes)


def summary_code(codes: dict[str, int]) -> int:
    """Of the process, from those of its runs."""
    worst = set(codes.values()) - {0, errors.DIVERGED}
    return min(worst) if worst else max(codes.values())


def _train(study, keys: list[str], cpu_devices: int | None) -> dict[str, int]:
    from gptjax import start
    from gptjax.config import config_file

    start.refuse_several("study.batched")
    configs = {key: config_file.load_config(str(study.config(key))) for key in keys}
    count = min(cpu_devices or len(os.sched_getaffinity(0)), len(keys))
    os.environ.setdefault(THREADS, "1")
    start.start_jax(configs[keys[0]].replace(mesh={"cpu_devices": count}))
    import jax

    from gptjax.study.lanes import together

    return together.train_together(study, configs, jax.devices()[: len(keys)])


def _write_exit(study, key: str, code: int, seconds: float) -> None:
    """Adds to what whoever started this process wrote there: the number of this attempt, if it has begun one."""
    before = layout.read_json(study.exit(key))
    if before.get("code") in (0, errors.DIVERGED):
        return  # it was over before
    attempt = before.get("attempt", 0) + (not before or before.get("code") is not None)
    facts = {"code": code, "time": round(time.time(), 1), "seconds": round(seconds, 1), "attempt": attempt}
    layout.write_json(study.exit(key), facts)


if __name__ == "__main__":
    sys.exit(main())
