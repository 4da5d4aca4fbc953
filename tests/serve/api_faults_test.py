"""Clients that go, come too many, or have no key; an engine that fails; a server that is told to stop, or to swap."""

import asyncio
import json
import re
import signal
import threading

import httpx
import openai
import pytest
import runs
import serving

from gptjax.errors import ENGINE_FAILED

SECRET = "my-deepest-secret"
QUESTION = [{"role": "user", "content": SECRET}]
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def path(folder):
    return serving.write_run(folder / "tiny", context=2048)


@pytest.fixture(scope="module")
def server(folder, path):
    with serving.server(folder, str(path), "--slots=2", "--queue=4", key=serving.KEY) as running:
        yield running


def test_a_client_that_goes_frees_its_slot(server):
    """Of a stream, and of one that waits for the whole."""
    stream = server.client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, extra_body=ENDLESS)
    for _ in range(4):
        next(stream)
    assert server.gauge("gptjax_running") == 1
    stream.close()
    server.wait_until(lambda: server.gauge("gptjax_running") == 0)
    assert server.gauge("gptjax_made_tokens_total") < 1500, "it ended with its client, and not with its context"
    body = {"prompt": "x", "max_tokens": 1500} | ENDLESS
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.5, headers={"X-Api-Key": serving.KEY})
    server.wait_until(lambda: server.gauge("gptjax_running") == 0)
    log = [line for line in server.said().splitlines() if "/v1/completions 499" in line]
    assert log, "the line of a client that went says so"


def test_after_200_requests_that_are_given_up_the_next_is_answered(server):
    async def give_up():
        client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), headers={"X-Api-Key": serving.KEY})

        async def one(i):
            body = {"prompt": f"{i}", "max_tokens": 1900} | ENDLESS
            try:
                return (await client.post(f"{server.url}/v1/completions", json=body, timeout=0.5)).status_code
            except httpx.TimeoutException:
                return None

        codes = await asyncio.gather(*(one(i) for i in range(200)))
        await client.aclose()
        return codes

    codes = asyncio.run(give_up())
    assert set(codes) <= {None, 503} and codes.count(None) >= 6
    before = server.gauge("gptjax_made_tokens_total")
    answer = server.client.completions.create(model="tiny", prompt="x", max_tokens=3, extra_body=ENDLESS)
    assert answer.usage.completion_tokens == 3
    assert server.gauge("gptjax_made_tokens_total") - before < 1900, "not one of the others was finished first"
    server.wait_until(lambda: server.gauge("gptjax_running") + server.gauge("gptjax_waiting") == 0)


def test_overload_is_503_and_what_was_taken_is_answered(server):
    async def ask():
        client = server.async_client

        async def one(i):
            try:
                made = await client.completions.create(model="tiny", prompt=f"{i}", max_tokens=30, extra_body=ENDLESS)
                return made.usage.completion_tokens
            except openai.InternalServerError as error:
                assert error.status_code == 503 and error.response.headers["Retry-After"]
                return error.code

        return await asyncio.gather(*(one(i) for i in range(30)))

    answers = asyncio.run(ask())
    assert set(answers) == {30, "overloaded"} and answers.count(30) >= 4


def test_who_has_no_key_is_told_so_and_health_needs_none(server):
    for headers in (
        {},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": f"Basic {serving.KEY}"},
        {"X-Api-Key": "é"},
    ):
        sent = {name: value.encode() for name, value in headers.items()}
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"}, headers=sent)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/v1/models").status_code == httpx.get(f"{server.url}/metrics").status_code == 401
    for headers in ({"Authorization": f"Bearer {serving.KEY}"}, {"X-Api-Key": serving.KEY}):
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    assert httpx.get(f"{server.url}/health").json() == {"status": "ready", "models": {"tiny": "ready"}}


def test_a_newer_step_takes_over_without_dropping_a_stream(server, path):
    """The text of a stream that began before is that of the old step to its end."""
    fields = dict(model="tiny", messages=QUESTION, temperature=0, max_tokens=300, extra_body=ENDLESS)
    before = server.client.chat.completions.create(**fields)
    stream = server.client.chat.completions.create(**fields, stream=True)
    first = [next(stream) for _ in range(3)]
    serving.add_step(path, 5, seed=9)
    answer = server.http("POST", "/v1/models/reload", json={"model": "tiny"}).json()
    assert answer["models"][0]["step"] == 5 and answer["models"][0]["swapped"]
    after = server.client.chat.completions.create(**fields)
    assert after.system_fingerprint == "tiny-step-5"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in [*first, *stream])
    assert text == before.choices[0].message.content != after.choices[0].message.content
    back = server.http("POST", "/v1/models/reload", json={"model": "tiny", "step": 0}).json()
    assert back["models"][0]["step"] == 0
    assert (
        server.client.chat.completions.create(**fields).choices[0].message.content == before.choices[0].message.content
    )
    assert server.http("POST", "/v1/models/reload", json={"model": "tiny", "step": 3}).status_code == 400
    server.process.send_signal(signal.SIGHUP)
    server.wait_until(lambda: server.client.models.retrieve("tiny").step == 5)


def test_a_server_that_is_told_to_stop_finishes_30_answers_and_takes_no_more(folder, path):
    """The last test of the server's log, too: no prompt, answer or key is in it."""
    with serving.server(folder, str(path), "--slots=4", "--drain_seconds=200", key=serving.KEY) as running:
        asyncio.run(_stop_in_the_middle(running))
        assert running.ends_with() == 0, running.said()
        said = running.said()
    assert "30 requests are in flight" in said and said.count("/v1/chat/completions 200 ") == 30
    assert SECRET not in said and serving.KEY not in said and "Traceback" not in said
    assert re.search(r"^http://127.0.0.1:\d+  tiny: step \d+, context 2048, \S+ parameters .* 4 slots", said, re.M)


async def _stop_in_the_middle(running) -> None:
    client = running.async_client

    async def one(i):
        tokens = 0
        options = dict(stream=True, max_tokens=60, extra_body=ENDLESS, logprobs=True)
        async for chunk in await client.chat.completions.create(model="tiny", messages=QUESTION, seed=i, **options):
            tokens += len(chunk.choices[0].logprobs.content) if chunk.choices[0].logprobs else 0
        return tokens

    answers = [asyncio.ensure_future(one(i)) for i in range(30)]
    while running.gauge("gptjax_running") + running.gauge("gptjax_waiting") < 30:
        await asyncio.sleep(0.01)
    running.process.send_signal(signal.SIGTERM)
    while (health := await asyncio.to_thread(running.http, "GET", "/health")).status_code == 200:
        await asyncio.sleep(0.01)
    assert health.status_code == 503 and health.json()["error"]["code"] == "draining"
    with pytest.raises(openai.InternalServerError) as refused:
        await client.completions.create(model="tiny", prompt="x")
    assert refused.value.status_code == 503 and refused.value.response.headers["Retry-After"]
    assert await asyncio.gather(*answers) == [60] * 30


FAULTY = """
import os
from gptjax.generation import decoding
working = decoding.decode
def decode(*args, **options):
    if os.path.exists({file!r}):
        raise RuntimeError('the device is gone: {secret}')
    return working(*args, **options)
decoding.decode = decode
"""


def test_an_engine_that_fails_is_told_to_streams_and_recovers_or_ends_the_process(folder, path):
    file = folder / "fault"
    program = FAULTY.format(file=str(file), secret=SECRET)
    with serving.server(folder, str(path), "--slots=2", key=serving.KEY, program=program) as running:
        assert _broken_stream(running, file)[-2:] == ["engine_failed", "[DONE]"]
        file.unlink()
        running.wait_until(lambda: httpx.get(f"{running.url}/health").status_code == 200)
        answer = running.client.completions.create(model="tiny", prompt="x", max_tokens=3, extra_body=ENDLESS)
        assert answer.usage.completion_tokens == 3, "after one fault it recovers"
        healths = set()
        watching = threading.Thread(target=_watch_health, args=(running, healths))
        watching.start()
        file.touch()
        for _ in range(2):
            with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
                running.client.completions.create(model="tiny", prompt="x", max_tokens=30)
        assert running.ends_with() == ENGINE_FAILED, running.said()
        watching.join()
        assert 503 in healths


def _broken_stream(running, file) -> list[str]:
    """The codes of its errors, and the lines that are no JSON."""
    body = {"messages": QUESTION, "stream": True, "max_tokens": 1500} | ENDLESS
    headers = {"X-Api-Key": running.key}
    said = []
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=240) as answer:
        for i, line in enumerate(answer.iter_lines()):
            if i == 6:
                file.touch()
            if line.startswith("data: {") and "error" in (value := json.loads(line[6:])):
                said.append(value["error"]["code"])
            elif line.startswith("data: ["):
                said.append(line[6:])
    return said


def _watch_health(running, healths: set) -> None:
    while True:
        try:
            healths.add(httpx.get(f"{running.url}/health", timeout=10).status_code)
        except httpx.TransportError:
            return


def test_flags_that_cannot_be_are_one_line(path, capsys, tmp_path):
    from gptjax import cli

    empty = tmp_path / "keys"
    empty.write_text("# none\n")
    port = runs.free_port()
    run = f"--workdir={path}"
    for flags, word in [
        ([], "needs a run directory"),
        ([run, "--slots=0"], "--slots=0 is too small"),
        ([run, "--queue=0"], "--queue=0 is too small; use at least 1"),
        ([run, "--port=70000"], "--port=70000 is too large"),
        ([run, "--port=-1"], "--port=-1 is too small"),
        ([run, f"--workdir=tiny={path}"], "two models are named tiny"),
        ([run, "--ssl_certfile=x"], "go together"),
        ([run, f"--api_keys_file={empty}"], "has no key"),
        ([run, f"--api_keys_file={tmp_path / 'none'}"], "cannot be read"),
        ([run, f"--ssl_certfile={empty}", f"--ssl_keyfile={empty}"], "certificate and its key in PEM"),
        ([run, "--api_key="], "is empty"),
        ([run, "--api_key=schlüssel", "--host=0.0.0.0"], "has characters that no header can"),
        ([run, "--allow_host=x", "--host=0.0.0.0", "--api_key=k"], "--allow_host is for a loopback"),
        ([f"--workdir={tmp_path}/nothing"], "nothing"),
        ([run, "--host=192.0.2.1", "--api_key=k"], "--host=192.0.2.1"),
        ([run, f"--adapter=a={path}"], "has no adapter"),
    ]:
        assert cli.main(["serve", f"--port={port}", *flags] if "--port" not in str(flags) else ["serve", *flags]) == 2
        said = capsys.readouterr().err
        assert word in said and said.count("\n") == 1, said
