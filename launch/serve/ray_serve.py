"""`gptjax serve` under Ray Serve: replicas on the nodes of a Ray cluster, behind its proxy.

    GPTJAX_RUN=gs://BUCKET/runs/chat GPTJAX_KEYS=keys.txt serve run launch.serve.ray_serve:app

from the top of the checkout. GPTJAX_FLAGS has further flags of `gptjax serve`, quoted as in a shell; GPTJAX_REPLICAS and
GPTJAX_RESOURCES, as in '{"TPU": 4}' or '{"num_gpus": 1}', what a replica is given. Each replica holds the application of
gptjax itself, so that streams, refusals and metrics are those of one `gptjax serve`.
"""

import json
import os
import shlex

from ray import serve


def arguments(environment) -> list[str]:
    """The words of `gptjax serve` that a replica's environment asks for."""
    keys = environment.get("GPTJAX_KEYS")
    return [
        "--host=0.0.0.0",  # the proxy's nodes ask by names of their own
        f"--workdir={environment['GPTJAX_RUN']}",
        *([f"--api_keys_file={keys}"] if keys else []),
        *shlex.split(environment.get("GPTJAX_FLAGS", "")),
    ]


def application():
    """The ASGI application of one replica, with its models loaded."""
    from gptjax import cli
    from gptjax.commands import serve as command

    return command.application(cli.parser({"serve"}).parse_args(["serve", *arguments(os.environ)]))


def options(environment) -> dict:
    """Of the deployment."""
    resources = json.loads(environment.get("GPTJAX_RESOURCES", "{}"))
    actor = {name: resources.pop(name) for name in ("num_gpus", "num_cpus") if name in resources}
    return {
        "num_replicas": int(environment.get("GPTJAX_REPLICAS", "1")),
        "ray_actor_options": actor | ({"resources": resources} if resources else {}),
        "max_ongoing_requests": 1024,  # gptjax has a queue of its own, and says 503 where it is full
    }


@serve.deployment(**options(os.environ))
@serve.ingress(application)
class Gptjax:
    """Nothing of its own: all requests go to the application."""


app = Gptjax.bind()
