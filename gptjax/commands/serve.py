"""`gptjax serve`: runs over HTTP, as OpenAI's clients expect it."""

import os
import sys

from gptjax import start
from gptjax.errors import UserError
from gptjax.serve.addresses import LOOPBACK

SLOTS, QUEUE, DRAIN_SECONDS, PORT, MEGABYTES = 8, 256, 30.0, 8000, 8


def add_flags(parser) -> None:
    parser.add_argument("run_word", nargs="?", metavar="RUN", help="a run directory, local or gs://; NAME=RUN names it")
    parser.add_argument(
        "--workdir", action="append", metavar="[NAME=]RUN", help="the same, or one more; may be repeated"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="NAME=RUN",
        help="a run that trained an adapter on one of them; may be repeated",
    )
    parser.add_argument("--step", metavar="N|best", help="the step of the checkpoint, of one run (default: the newest)")
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")
    parser.add_argument(
        "--dtype", metavar="NAME", help="float32 or bfloat16; int8, of the weights of the layers (default: as trained)"
    )
    parser.add_argument("--mesh", metavar="AXES", help="sizes of the mesh axes, such as tensor=4 (default: one device)")
    parser.add_argument(
        "--chat_format",
        metavar="NAME",
        help="gptjax, chatml, llama3, smollm2 or template:FILE (default: each run's own)",
    )
    _add_engine_flags(parser)
    _add_door_flags(parser)


def _add_engine_flags(parser) -> None:
    parser.add_argument("--slots", type=int, default=SLOTS, help="texts made at once (default: %(default)s)")
    parser.add_argument(
        "--queue", type=int, default=QUEUE, help="texts that may wait, beyond which 503 (default: %(default)s)"
    )
    parser.add_argument("--places", type=int, help="tokens of a prompt and its answer (default: the model's context)")
    parser.add_argument(
        "--no_warm_up", action="store_true", help="compile when the first request comes, not at the start"
    )


def _add_door_flags(parser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="port; 0: a free one (default: %(default)s)")
    parser.add_argument(
        "--api_key", action="append", metavar="KEY", help="that requests have to bring; may be repeated"
    )
    parser.add_argument(
        "--api_keys_file", metavar="FILE", help="a file with a key on each line, which no process list shows"
    )
    parser.add_argument(
        "--cors", action="append", metavar="ORIGIN", help="pages that may ask, such as https://a.example; *: all"
    )
    parser.add_argument(
        "--allow_host", action="append", metavar="NAME", help="with a loopback --host: another name to answer to"
    )
    parser.add_argument(
        "--filter",
        action="append",
        metavar="FILE",
        help="what is kept from models and readers (docs/filters.md); may be repeated",
    )
    parser.add_argument(
        "--recipe",
        action="append",
        metavar="FILE",
        help="a recipe that requests may name (docs/recipes.md); may be repeated",
    )
    parser.add_argument("--feedback", metavar="FILE", help="where votes on answers go, as lines that training reads")
    parser.add_argument(
        "--quality_reference",
        metavar="FILE",
        help="counts of answers to compare with; begun with a week if it is not there",
    )
    parser.add_argument("--ssl_certfile", metavar="FILE", help="certificates, for https")
    parser.add_argument("--ssl_keyfile", metavar="FILE", help="their key")
    parser.add_argument(
        "--drain_seconds",
        type=float,
        default=DRAIN_SECONDS,
        help="that answers may take after SIGTERM or Ctrl-C (default: %(default)g)",
    )
    parser.add_argument(
        "--most_megabytes",
        type=int,
        default=MEGABYTES,
        help="size of a request's body at most, beyond which 413 (default: %(default)s)",
    )


def run(args) -> int:
    """0, or errors.ENGINE_FAILED. Raises UserError."""
    start.refuse_several("serve")
    chosen = _chosen(args)
    from gptjax.serve import starting

    return starting.serve(args, *chosen)


def application(args):
    """The ASGI application alone, with its models loaded, for another server than ours. Raises UserError."""
    chosen = _chosen(args)
    from gptjax.serve import starting

    return starting.application(args, *chosen)


def _chosen(args) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """(runs, adapters, keys), checked before JAX starts."""
    first = [] if args.run_word is None else [args.run_word]
    runs, adapters = named([*first, *(args.workdir or ())]), named(args.adapter or (), "--adapter")
    _check(args, runs)
    keys = _keys(args)
    from gptjax.config import extras

    for package in ("pydantic", "starlette", "uvicorn", "prometheus_client"):
        extras.library(package, "gptjax serve")
    start.start_jax()
    return runs, adapters, keys


def named(words, flag: str = "--workdir") -> dict[str, str]:
    """{name of a model: its directory}, of NAME=RUN or RUN. Raises UserError: a name twice."""
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or "/" in name:  # a path with = in it
            name, path = os.path.basename(os.path.normpath(word)), word
        if not name or not path:
            raise UserError(f"{flag}={word} names nothing; write {flag}=NAME=DIR.")
        if name in found:
            raise UserError(f"two models are named {name}; write {flag}=NAME=DIR to name one otherwise.")
        found[name] = path
    return found


def _check(args, runs: dict) -> None:
    """Raises UserError: flags that are out of range, or do not go together."""
    if not runs:
        raise UserError("gptjax serve needs a run directory; give it as in gptjax serve runs/quickstart.")
    least = {"slots": 1, "queue": 1, "port": 0, "most_megabytes": 1, "places": 2, "drain_seconds": 0}
    for name, value in least.items():
        given = getattr(args, name)
        if given is not None and given < value:
            raise UserError(f"--{name}={given} is too small; use at least {value}.")
    if args.step is not None and len(runs) > 1:
        raise UserError(f"--step={args.step} is of one run, and there are {len(runs)}; serve it alone.")
    if (args.ssl_certfile is None) != (args.ssl_keyfile is None):
        raise UserError("--ssl_certfile and --ssl_keyfile go together; give both.")
    for name in ("ssl_certfile", "ssl_keyfile"):
        path = getattr(args, name)
        if path is not None and not os.path.isfile(path):
            raise UserError(f"--{name}={path}: there is no such file; give one in PEM.")
    if args.ssl_certfile is not None:
        _check_certificate(args.ssl_certfile, args.ssl_keyfile)
    if args.allow_host and args.host not in LOOPBACK:
        raise UserError(f"--allow_host is for a loopback --host: on {args.host} the server answers to any name.")


def _check_certificate(certfile: str, keyfile: str) -> None:
    """Raises UserError: they are none, or not of each other, or a password is needed, which nobody is there to type."""
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password=lambda: "")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"--ssl_certfile={certfile} and --ssl_keyfile={keyfile}: {reason}; give a certificate and its key in PEM, without"
            " a password."
        ) from None


def _keys(args) -> tuple[str, ...]:
    """Raises UserError: a file that cannot be read or has none."""
    keys = list(args.api_key or ())
    if args.api_keys_file is not None:
        try:
            with open(args.api_keys_file, encoding="utf-8-sig") as file:
                lines = [line.strip() for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api_keys_file={args.api_keys_file} cannot be read: {error}.") from None
        keys += [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise UserError(f"--api_keys_file={args.api_keys_file} has no key; expected one on each line.")
    if not all(key.isascii() and key.isprintable() and key and " " not in key for key in keys):
        raise UserError(
            "a key of --api_key or --api_keys_file is empty, or has characters that no header can; use letters and digits."
        )
    if not keys and args.host not in LOOPBACK:
        warning = f"anyone who reaches {args.host} may use the model: there is no --api_key"
        print(f"gptjax: warning: {warning}", file=sys.stderr)
    return tuple(keys)
