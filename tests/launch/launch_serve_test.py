"""Several servers behind Debian's nginx, with the shipped file; and what the files for GKE and Ray ask for."""

import ast
import asyncio
import contextlib
import re
import shutil
import signal
import subprocess

import httpx
import openai
import pytest
import runs
import serving
import yaml
from places import ROOT

from gptjax import cli

FILES = ROOT / "launch" / "serve"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@contextlib.contextmanager
def nginx(folder, ports: list[str]):
    """Its URL, with the shipped file, whose three ports are others."""
    port = runs.free_port()
    text = (FILES / "nginx.conf").read_text()
    for shipped, chosen in zip(("8001", "8002", "8000"), (*ports, port)):
        assert text.count(f"127.0.0.1:{shipped}") == 1
        text = text.replace(f"127.0.0.1:{shipped}", f"127.0.0.1:{chosen}")
    (folder / "nginx.conf").write_text(text)
    with (folder / "nginx.log").open("w") as log:
        process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        running = serving.Running(process, folder / "nginx.log", url)
        running.wait_until(lambda: _answers(url))
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health").status_code == 200
    return False


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx)")
def test_two_servers_behind_nginx_are_one_and_one_may_stop(tmp_path):
    path = serving.write_run(tmp_path / "tiny", context=512)
    flags = str(path), "--slots=2", "--no_warm_up"
    with serving.server(tmp_path, *flags) as first, serving.server(tmp_path, *flags) as second:
        ports = [re.search(r":(\d+)$", each.url)[1] for each in (first, second)]
        with nginx(tmp_path, ports) as url:
            texts = asyncio.run(_ask_many(url, first))
            assert len(set(texts)) == 1, "it is the same whoever answers"
            served = [each.said().count("/v1/completions 200 ") for each in (first, second)]
            assert sum(served) == len(texts) and min(served) > 0


async def _ask_many(url: str, leaving) -> list[str]:
    """Texts of 12 requests, half of them asked after a server was told to stop, while it finishes what it has."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=serving.SECONDS)

    async def one():
        options = dict(temperature=0, max_tokens=100, stream=True, extra_body={"ignore_eos": True})
        chunks = [chunk async for chunk in await client.completions.create(model="tiny", prompt="x", **options)]
        return "".join(chunk.choices[0].text for chunk in chunks)

    early = [asyncio.ensure_future(one()) for _ in range(6)]
    while leaving.gauge("gptjax_running") == 0:
        await asyncio.sleep(0.01)
    leaving.process.send_signal(signal.SIGTERM)
    late = [one() for _ in range(6)]
    return await asyncio.gather(*early, *late)


def test_the_gke_file_starts_a_server_that_is_asked_and_stopped_as_it_expects():
    deployment, service = yaml.safe_load_all((FILES / "gke.yaml").read_text())
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    assert container["command"] == ["gptjax", "serve"]
    args = cli.parser({"serve"}).parse_args(["serve", *container["args"]])
    port = args.port
    assert [container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness")] == [
        {"path": "/health", "port": port}
    ] * 2
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > args.drain_seconds + pause
    assert args.api_keys_file.startswith(container["volumeMounts"][0]["mountPath"])
    assert service["spec"]["ports"][0]["targetPort"] == port and args.host == "0.0.0.0"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels


def test_the_ray_file_starts_the_server_s_application_with_its_flags():
    """Its functions, which need no Ray; the rest of it is what Ray calls."""
    tree = ast.parse((FILES / "ray_serve.py").read_text())
    kept = [
        node
        for node in tree.body
        if isinstance(node, ast.Import) or getattr(node, "name", None) in ("arguments", "options")
    ]
    names = {}
    exec(compile(ast.Module(kept, []), "ray_serve.py", "exec"), names)
    environment = {
        "GPTJAX_RUN": "gs://b/runs/chat",
        "GPTJAX_KEYS": "keys.txt",
        "GPTJAX_FLAGS": "--slots=32 --dtype=int8",
    }
    args = cli.parser({"serve"}).parse_args(["serve", *names["arguments"](environment)])
    assert (args.workdir, args.slots, args.dtype, args.api_keys_file) == (["gs://b/runs/chat"], 32, "int8", "keys.txt")
    resources = names["options"]({"GPTJAX_RESOURCES": '{"num_cpus": 4, "TPU": 4}', "GPTJAX_REPLICAS": "3"})
    assert resources["ray_actor_options"] == {"num_cpus": 4, "resources": {"TPU": 4}} and resources["num_replicas"] == 3


@pytest.mark.slow
def test_the_ray_file_answers_under_ray(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="pip install 'ray[serve]'")
    serve = pytest.importorskip("ray.serve")
    path = serving.write_run(tmp_path / "tiny")
    monkeypatch.setenv("GPTJAX_RUN", str(path))
    monkeypatch.setenv("GPTJAX_FLAGS", "--slots=2")
    monkeypatch.syspath_prepend(str(ROOT))
    from launch.serve import ray_serve

    try:
        serve.run(ray_serve.app, name="gptjax")
        answer = httpx.post("http://127.0.0.1:8000/v1/completions", json={"prompt": "x", "max_tokens": 3}, timeout=240)
        assert answer.json()["choices"][0]["text"] is not None
    finally:
        serve.shutdown()
        ray.shutdown()
