"""A run and an adapter on it, as two models of one `gptjax serve`; and pages of other origins that ask it."""

import shutil

import pytest
import runs
import serving
from judging import trained_values

from gptjax import cli
from gptjax.run import run

ORIGIN = "https://a.example"


@pytest.fixture(scope="module")
def base(trained, tmp_path_factory):
    return shutil.copytree(trained, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapter(values, base):
    config = runs.changed(
        trained_values(values),
        model=dict(adapter="lora(rank=2, on='all')"),
        optim=dict(peak_lr=0.5, warmup_steps=1),
        train=dict(steps=2, start_from=str(base)),
        checkpoint=dict(every_steps=2),
        eval=dict(every_steps=None),
    )
    workdir = base.with_name("adapter")
    assert cli.main(["train", runs.write_config(config, workdir.with_name("adapter.py")), f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def server(base, adapter):
    flags = [str(base), f"--adapter=tuned={adapter}", f"--cors={ORIGIN}", "--slots=2"]
    with serving.server(base.parent, *flags, key=serving.KEY) as running:
        yield running


def test_an_adapter_answers_by_its_name_and_its_base_as_without_it(server, base, adapter):
    assert [model.id for model in server.client.models.list().data] == ["base", "tuned"]
    fields = {"prompt": "abc ab", "max_tokens": 6, "temperature": 0}
    said = {}
    for name, workdir in (("base", base), ("tuned", adapter)):
        choice = server.client.completions.create(model=name, logprobs=0, **fields).choices[0]
        [expected] = run.load(workdir).generate("abc ab", max_tokens=6, temperature=0, logprobs=True)
        assert choice.text == expected.text
        assert choice.logprobs.token_logprobs == pytest.approx(expected.logprobs.tolist(), abs=1e-4)
        said[name] = choice.logprobs.token_logprobs
    assert said["base"] != pytest.approx(said["tuned"], abs=1e-2)


def test_a_user_sees_that_it_lives_while_it_loads_and_compiles(server, base, adapter):
    lines = [line for line in server.said().splitlines() if line.endswith(" ...")]
    assert lines == [f"loading {base} ...", f"loading {adapter} ...", "compiling base ...", "compiling tuned ..."]


def test_a_page_of_an_origin_that_was_named_may_ask_and_no_other(server):
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    no_key = {"Authorization": ""}  # a browser asks without it
    for origin, status in ((ORIGIN, 200), ("https://b.example", 400)):
        headers = {"Origin": origin} | asks | no_key
        preflight = server.http("OPTIONS", "/v1/chat/completions", headers=headers)
        answer = server.http("GET", "/v1/models", headers={"Origin": origin})
        assert preflight.status_code == status and answer.status_code == 200
        allowed = {each.headers.get("Access-Control-Allow-Origin") for each in (preflight, answer)}
        assert allowed == ({origin} if origin == ORIGIN else {None})
        if origin == ORIGIN:
            assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]
            assert answer.headers["Access-Control-Expose-Headers"] == "X-Request-Id"
