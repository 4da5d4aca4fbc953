"""`gptjax serve --filter --recipe`, and gaps that are filled in. What the filters look for is made up."""

import json

import numpy as np
import pytest
import serving

import gptjax
from gptjax import cli
from gptjax.applications import infilling, recipe
from gptjax.data.chat import Message
from gptjax.data.rows.infilling import FillInTheMiddle

FILTERS = """
refusal = "Not here."
[[rules]]
name = "hidden"
at = "both"
action = "redact"
patterns = ["flurb(?:le)?"]
[[rules]]
name = "grommet"
at = "both"
action = "refuse"
patterns = ["grommet"]
"""
RECIPE = """
system = "You say {what}."
user = "Say: {text}"
[[examples]]
text = "one"
answer = "two"
[settings]
max_tokens = 7
temperature = 0.0
"""
QUESTION = [{"role": "user", "content": "Where is it?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("screening")
    (place / "filters.toml").write_text(FILTERS)
    (place / "say.toml").write_text(RECIPE)
    (place / "choice.toml").write_text('user = "Which? {text}"\nlabels = ["a b", "c.d"]\n')
    (place / "form.toml").write_text(
        'user = "{text}"\n[schema]\ntype = "object"\nadditionalProperties = false\nrequired = ["n"]\n[schema.properties.n]\nenum = [1, 2]\n'
    )
    return place


@pytest.fixture(scope="module")
def server(folder):
    serving.write_run(folder / "tiny", context=2048)
    serving.write_run(folder / "gaps", chat=False, symbols=FillInTheMiddle.symbols)
    files = [f"--recipe={folder / name}.toml" for name in ("say", "choice", "form")]
    flags = [str(folder / "tiny"), f"--workdir={folder / 'gaps'}", f"--filter={folder / 'filters.toml'}", *files]
    with serving.server(folder, *flags, "--slots=4", "--no_warm_up") as running:
        yield running


def chat(server, stream: bool = False, messages=QUESTION, **fields) -> tuple[str, str]:
    """(text, finish_reason) of an answer."""
    extra = {name: fields.pop(name) for name in ("regex", "recipe", "recipe_values", "ignore_eos") if name in fields}
    create = server.client.chat.completions.create
    answer = create(model="tiny", messages=messages, extra_body=extra, stream=stream, **{"temperature": 0} | fields)
    if not stream:
        return answer.choices[0].message.content, answer.choices[0].finish_reason
    choices = [chunk.choices[0] for chunk in answer]
    return "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason


def acted(server) -> dict[str, int]:
    """gptjax_filter_total of "place rule"."""
    places, rules = ("input", "output"), {"hidden": "redact", "grommet": "refuse"}
    return {
        f"{place} {rule}": server.gauge(f'gptjax_filter_total{{place="{place}",rule="{rule}",action="{action}"}}')
        for place in places
        for rule, action in rules.items()
    }


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_filter_finds_in_an_answer_goes_out_replaced_or_ends_it(server, stream):
    before = acted(server)
    assert chat(server, stream, regex="a flurble, a flurb") == ("a [hidden], a [hidden]", "stop")
    assert chat(server, stream, regex="a grommet here") == ("a Not here.", "content_filter")
    after = acted(server)
    assert after == before | {name: before[name] + 1 for name in ("output hidden", "output grommet")}


def test_an_answer_that_is_refused_is_made_no_further(server):
    before = server.gauge("gptjax_made_tokens_total")
    assert chat(server, True, regex="grommet(x){1500}") == ("Not here.", "content_filter")
    server.wait_until(lambda: server.gauge("gptjax_running") == 0)
    assert server.gauge("gptjax_made_tokens_total") - before < 1000


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_refused_goes_to_no_model(server, stream):
    before, made = acted(server), server.gauge("gptjax_made_tokens_total")
    messages = [{"role": "user", "content": [{"type": "text", "text": "A grommet?"}]}]
    assert chat(server, stream, messages) == ("Not here.", "content_filter")
    assert acted(server)["input grommet"] == before["input grommet"] + 1
    texts = server.client.completions.create(model="tiny", prompt=["x", "a grommet"], max_tokens=3)
    assert [(each.text, each.finish_reason) for each in texts.choices] == [("Not here.", "content_filter")] * 2
    assert server.gauge("gptjax_made_tokens_total") == made


def test_a_model_is_shown_what_a_filter_has_replaced(server):
    asked, shown = ([{"role": "user", "content": text}] for text in ("A flurble", "A [hidden]"))
    fields = {"max_tokens": 8, "ignore_eos": True}
    assert chat(server, messages=asked, **fields) == chat(server, messages=shown, **fields)
    texts = server.client.completions.create(model="tiny", prompt="A flurb", max_tokens=1, echo=True)
    assert texts.choices[0].text.startswith("A [hidden]")


def test_what_filters_cannot_do_is_refused(server):
    ids = gptjax.load(server.log.parent / "tiny").tokenizer.encode("a flurb").tolist()
    for path, fields, param in [
        ("chat/completions", {"messages": QUESTION, "logprobs": True}, "logprobs"),
        ("completions", {"prompt": "x", "logprobs": 1}, "logprobs"),
        ("completions", {"prompt": ids}, "prompt"),
    ]:
        answer = server.http("POST", f"/v1/{path}", json=fields)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
        assert "filters" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_recipe_that_a_request_names_is_applied_to_its_conversation(server, folder, stream):
    applied, settings = recipe.apply(recipe.read(folder / "say.toml"), [Message("user", "Hm?")], {"what": "little"})
    expected = gptjax.load(folder / "tiny").chat(applied, **settings)
    asked = [{"role": "user", "content": "Hm?"}]
    named = {"recipe": "say", "recipe_values": {"what": "little"}}
    made = chat(server, stream, asked, **named, temperature=None)
    assert made[0] == expected.text and made != chat(server, stream, asked, max_tokens=7)
    assert len(chat(server, stream, asked, **named, max_tokens=2, ignore_eos=True)[0]) <= 2


def test_labels_and_schemas_of_recipes_are_kept_to(server):
    assert chat(server, recipe="choice")[0] in ("a b", "c.d")
    assert json.loads(chat(server, recipe="form")[0]) in ({"n": 1}, {"n": 2})


@pytest.mark.parametrize(
    "fields,param,word",
    [
        ({"recipe": "sa"}, "recipe", "did you mean 'say'"),
        ({"recipe": "say"}, "recipe_values", "what"),
        ({"recipe": "say", "recipe_values": {"whta": "x"}}, "recipe_values", "say has no placeholder {whta}"),
        ({"recipe_values": {"what": "x"}}, "recipe_values", "without recipe"),
        ({"recipe": "choice", "regex": "x"}, "recipe", "leave out regex"),
    ],
)
def test_recipes_that_cannot_be(server, fields, param, word):
    answer = server.http("POST", "/v1/chat/completions", json={"messages": QUESTION} | fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert word in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content,word",
    [
        ('user = "{text}"\nequations = true', "has equations, for which a server's request has no place"),
        ('prompt = "{text}"', "has prompt"),
        ('user = "{text}"\nnothing = 1', "has a key 'nothing'"),
    ],
)
def test_recipes_that_a_server_cannot_have_are_one_line(folder, tmp_path, capsys, content, word):
    (tmp_path / "own.toml").write_text(content)
    assert cli.main(["serve", str(folder / "tiny"), "--port=0", f"--recipe={tmp_path / 'own.toml'}"]) == 2
    assert word in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_filters_that_cannot_be_read_are_one_line(folder, tmp_path, capsys):
    assert cli.main(["serve", str(folder / "tiny"), "--port=0", f"--filter={tmp_path / 'none.toml'}"]) == 2
    assert "none.toml cannot be read" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_a_suffix_is_what_follows_the_gap(server, folder):
    run = gptjax.load(folder / "gaps")
    ids = infilling.prompt_ids(run.tokenizer, "def f(", "return x")
    [expected] = run.generate([np.asarray(ids)], max_tokens=9, temperature=0)
    fields = {"model": "gaps", "prompt": "def f(", "temperature": 0, "max_tokens": 9}
    answer = server.client.completions.create(**fields, suffix="return x")
    assert answer.choices[0].text == expected.text and answer.usage.prompt_tokens == len(ids)
    assert answer.choices[0].text != server.client.completions.create(**fields).choices[0].text
    for wrong, param in [({"prompt": [1, 2]}, "suffix"), ({"echo": True}, "echo"), ({"model": "tiny"}, "suffix")]:
        refused = server.http("POST", "/v1/completions", json=fields | {"suffix": "x"} | wrong)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param
