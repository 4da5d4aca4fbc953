"""Recipes run on a tiny model in this process, and on a server that says what a test has written down."""

import dataclasses
import json
import math
import shutil

import jax
import judging
import numpy as np
import openai_server
import pytest
from openai_server import called, said
from places import ROOT

from gptjax.applications import answering, documents, infilling, recipe, retrieval, tools
from gptjax.applications.local import Local
from gptjax.applications.remote import Remote
from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data.chat import Message, chat_format, parse_messages
from gptjax.data.rows.infilling import FillInTheMiddle
from gptjax.errors import UserError
from gptjax.parallel import meshes
from gptjax.run import run
from gptjax.training import program as programs

RECIPES = ROOT / "configs" / "recipes"
FORM = chat_format("gptjax")
DOCUMENT = "A run stops with Ctrl-C.\n\nThe same command goes on from its last checkpoint.\n\nCats sleep."


@pytest.fixture(scope="module")
def model():
    """A Local of a model of bytes that says nonsense, with room for every recipe."""
    words = judging.tokenizer("bytes").with_special((*FORM.symbols, *FillInTheMiddle.symbols))
    shape = dict(context_length=4096, n_layers=1, d_model=16, n_heads=2, dtype="float32", position="rope")
    config = Config(
        model=ModelConfig(vocab_size=words.vocab_size, **shape),
        data=DataConfig(tokenizer="bytes"),
        train=TrainConfig(steps=1, batch_size=8),
    )
    program = programs.build(config, meshes.make_mesh(config, jax.devices()[:1]), "xla")
    directory = dataclasses.make_dataclass("Directory", ["path"])("a run")
    return Local(run.Run(directory, config, words, program, judging.parameters(program, 0), 0), FORM)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return retrieval.build(documents.cut(DOCUMENT, "doc.txt", 60), str(tmp_path_factory.mktemp("index") / "words"))


@pytest.fixture
def shop(tmp_path):
    """A copy of the recipes, whose orders may be changed."""
    return shutil.copytree(RECIPES, tmp_path / "recipes")


def shipped(name: str) -> recipe.Recipe:
    return recipe.read(str(RECIPES / f"{name}.toml"))


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_a_shipped_recipe_runs_to_its_end_on_a_tiny_model(file, model, index):
    one = recipe.read(str(file))
    text = "def f():\n    return <FILL>\n" if one.infill else "How does a run go on?"
    pieces, settings = [], {"max_tokens": 4}
    if one.schema is not None:
        with pytest.raises(UserError, match="gave no object of the schema in 3 answers"):
            answering.answer(model, one, text, settings=settings)
        return
    outcome = answering.answer(model, one, text, settings=settings, index=index, on_text=pieces.append)
    if one.labels:
        assert outcome.text in one.labels and math.isclose(sum(outcome.scores.values()), 1)
    elif not one.tools and not one.equations:
        assert "".join(pieces) == outcome.text
    assert len(outcome.sources) == (0 if one.retrieval is None else 2)
    assert ("it is cut off: max_tokens is reached" in outcome.notes) == (outcome.finish_reason == "length")


def test_a_label_s_score_is_the_log_probability_of_it_and_of_the_end_of_the_turn(model):
    messages = (Message("user", "Good or bad?"),)
    score = model.choose(messages, ("good", "good or bad"))
    for label, value in score.items():
        prompt_L = FORM.prompt(messages, model.run.tokenizer)
        answer_L = [*model.run.tokenizer.encode(label), model.run.tokenizer.special["<|end|>"]]
        logit_LV = np.float64(model.run.logits(np.concatenate([prompt_L, answer_L[:-1]])))
        logit_LV = logit_LV[:, : model.run.tokenizer.vocab_size][len(prompt_L) - 1 :]
        chosen_L = logit_LV[np.arange(len(answer_L)), answer_L]
        assert math.isclose(value, (chosen_L - np.log(np.exp(logit_LV).sum(1))).sum(), abs_tol=1e-3)


def test_calibration_subtracts_what_the_model_says_of_no_text(model):
    one = dataclasses.replace(shipped("sentiment"), examples=())
    raw = model.choose(recipe.apply(one, (Message("user", "Fine."),))[0], one.labels)
    blank = model.choose(recipe.apply(one, (Message("user", "N/A"),))[0], one.labels)
    odds = math.log(np.divide(*answering.answer(model, one, "Fine.").scores.values()))
    differences = [raw[label] - blank[label] for label in one.labels]
    assert math.isclose(odds, differences[0] - differences[1], abs_tol=1e-3) and abs(odds) > 1e-3


def test_a_prompt_of_a_gap_is_what_the_objective_makes_of_the_text(model):
    words, text = model.run.tokenizer, "one two three four"
    objective = FillInTheMiddle(DataConfig(fim_rate=1.0, fim_spm_rate=0.0), words)
    token_BT = words.encode(text)[None]
    row_BT = np.zeros((1, token_BT.shape[1] + 3), np.int32)
    row_BT[:, : token_BT.shape[1]] = token_BT
    [row_T] = objective(
        {"token_BT": row_BT, "weight_BL": np.ones((1, row_BT.shape[1] - 1), np.float32)}, np.uint64([3])
    )["token_BT"]
    assert row_T[0] == words.special["<|fim_prefix|>"]
    middle = row_T.tolist().index(words.special["<|fim_middle|>"])
    suffix = row_T.tolist().index(words.special["<|fim_suffix|>"])
    prompt_L = infilling.prompt_ids(words, words.decode(row_T[1:suffix]), words.decode(row_T[suffix + 1 : middle]))
    start = [] if words.bos_id is None else [words.bos_id]
    assert prompt_L.tolist() == [*start, *row_T[: middle + 1].tolist()]


def test_a_model_without_symbols_for_a_gap_and_a_text_without_one_are_refused(model):
    with pytest.raises(UserError, match="was not trained to fill a gap"):
        infilling.prompt_ids(judging.tokenizer("bytes"), "a", "b")
    for text, count in (("no gap", 0), ("<FILL> and <FILL>", 2)):
        with pytest.raises(UserError, match=f"the text has {count} gaps <FILL>"):
            answering.answer(model, shipped("infill"), text)


def test_a_tool_s_result_is_told_to_the_server_s_model_which_then_answers(shop):
    one = recipe.read(str(shop / "customer_service.toml"))
    with openai_server.serving(called("order_status", '{"order": "#a1001"}'), said("On 12 March.")) as (url, requests):
        outcome = answering.answer(Remote(url, key="secret"), one, "Where is my order A1001?")
    status = "Order A1001 (desk lamp) is shipped; arrives on 12 March."
    assert outcome.text == "On 12 March." and outcome.calls == (("order_status", '{"order": "#a1001"}', status),)
    _, headers, first = requests[0]
    assert headers["Authorization"] == "Bearer secret" and first["model"] == "written" and first["temperature"] == 0
    assert [one["function"]["name"] for one in first["tools"]] == ["order_status", "return_order"]
    asked, call, result = requests[1][2]["messages"][-3:]
    assert asked["role"] == "user" and result["content"] == status and result["role"] == "tool"
    assert (
        call["tool_calls"][0]["function"]["name"] == "order_status"
        and result["tool_call_id"] == call["tool_calls"][0]["id"]
    )


def test_a_return_is_written_into_the_orders_once(shop):
    one = recipe.read(str(shop / "customer_service.toml"))
    arguments = '{"order": "A1002", "reason": "too small"}'
    answers = [called("return_order", arguments), called("return_order", arguments), said("Done.")]
    with openai_server.serving(*answers) as (url, _):
        outcome = answering.answer(Remote(url), one, "I send A1002 back.")
    results = [result for _, _, result in outcome.calls]
    assert results[0].startswith("The return of order A1002") and results[1] == "error: order A1002 is returned already"
    assert json.loads((shop / "orders.json").read_text())["A1002"]["returned"] == "too small"


def test_a_model_that_calls_for_ever_is_stopped_and_that_is_noted(shop):
    one = recipe.read(str(shop / "calculator.toml"))
    with openai_server.serving(*[called("calculator", '{"expression": "1+1"}')] * 5) as (url, requests):
        outcome = answering.answer(Remote(url), one, "1+1?")
    assert len(requests) == 5 and "it called tools to the end, and gave no answer" in outcome.notes


def test_a_call_that_is_begun_and_not_ended_is_noted(shop):
    with openai_server.serving(said('<tool_call>{"name": "calc')) as (url, _):
        outcome = answering.answer(Remote(url), recipe.read(str(shop / "calculator.toml")), "1+1?")
    assert outcome.notes == ("it began a call of a function, and did not end it",) and not outcome.calls


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (tools.Call("calculator", '{"expression": "6*7"}'), "42"),
        (tools.Call("calculator", '{"expression": "6*"}'), "error: '6*' is no arithmetic expression"),
        (
            tools.Call("calculator", '{"expr": "6"}'),
            "error: calculator takes these arguments, as a JSON object: expression",
        ),
        (tools.Call("calculator", "6*7"), "error: calculator takes these arguments, as a JSON object: expression"),
        (tools.Call("calculator", "{"), "error: the arguments are no JSON object"),
        (tools.Call("delete", "{}"), "error: no function 'delete'; there are: calculator"),
    ],
)
def test_a_wrong_call_is_answered_with_what_is_wrong(call, says):
    if call.arguments == "6*7":
        says = "error: the arguments are no JSON object"
    assert tools.result_of(call, tools.of_recipe(shipped("calculator"))) == says


def test_a_run_is_told_of_tools_and_read_as_it_was_trained(model):
    offered = tools.of_recipe(shipped("calculator"))
    schemas = [tool.schema(name) for name, tool in offered.items()]
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}]
    fields = {"max_tokens": 12, "temperature": 0.0}
    [expected] = model.run.answers([parse_messages(asked, "asked", schemas)], model.form, **fields)
    assert model.reply(parse_messages(asked, "asked"), fields, offered, None).text == expected.text
    [call] = tools.calls_of("<tool_call>calculator(6*7)</tool_call>")
    assert tools.result_of(call, offered) == "42"


def test_calls_written_in_a_turn_are_read_from_it():
    call = tools.Call("return_order", '{"order": "A1", "reason": "</b> \\"x\\""}', "call_0")
    assert tools.calls_of(f"Wait.\n{tools.written(call)}") == [call]
    assert tools.calls_of("<tool_call>nonsense</tool_call>")[0].name == "" and tools.calls_of("none") == []


def test_an_object_that_is_not_of_its_schema_is_asked_for_again_with_the_reason():
    good = {"name": "Jo", "guests": 2, "date": "1 May", "time": "19:00"}
    answers = [
        said("Jo, two guests"),
        said(json.dumps(good | {"guests": "two"})),
        said(f"Here:\n```json\n{json.dumps(good)}\n```"),
    ]
    with openai_server.serving(*answers) as (url, requests):
        outcome = answering.answer(Remote(url), shipped("form"), "Jo, two of us, 1 May at seven")
    assert outcome.value == good and outcome.tries == 3 and json.loads(outcome.text) == good
    assert requests[0][2]["response_format"]["json_schema"]["schema"]["required"] == ["name", "guests", "date", "time"]
    reasons = [body["messages"][-1]["content"] for _, _, body in requests]
    assert "holds no JSON object" in reasons[1] and "['guests'] is not as asked: 'two' is not of type" in reasons[2]


def test_citations_that_no_source_has_are_named(index):
    one = shipped("questions")
    with openai_server.serving(said("Press Ctrl-C [1]. Or not [7]."), said("I think so.")) as (url, requests):
        outcome = answering.answer(Remote(url), one, "How does a run stop?", index=index)
        bare = answering.answer(Remote(url), one, "How does a run stop?", index=index)
    assert outcome.sources[0].text == "A run stops with Ctrl-C." and outcome.cited == (1,)
    assert outcome.notes == ("it cites [7], and no such source was shown",)
    assert "[1] A run stops with Ctrl-C." in requests[0][2]["messages"][-1]["content"]
    assert bare.notes == ("it cites no source: nothing says that it comes from the documents",)


def test_wrong_sums_in_an_answer_are_marked():
    with openai_server.serving(said("7 * 12 = 84, and 84 / 2 = 41.")) as (url, _):
        outcome = answering.answer(Remote(url), shipped("tutoring"), "half of 7 times 12?")
    assert outcome.text == "7 * 12 = 84, and 84 / 2 = 41 [wrong: 42]." and outcome.notes == (
        "2 sums were checked, 1 wrong",
    )


def test_a_server_chooses_a_label_under_a_constraint_and_one_that_knows_none_is_refused():
    with openai_server.serving(said("negative"), said("It is bad.")) as (url, requests):
        outcome = answering.answer(Remote(url), shipped("sentiment"), "Awful.")
        assert outcome.text == "negative" and outcome.scores == {"positive": 0.0, "negative": 1.0}
        assert requests[0][2]["regex"] == "positive|negative"
        with pytest.raises(UserError, match="none of the labels: it does not know `regex`"):
            answering.answer(Remote(url), shipped("sentiment"), "Awful.")


def test_what_a_server_refuses_is_said_in_its_words_and_one_that_is_not_there_too():
    body = {"error": {"message": "the prompt is too long", "type": "invalid_request_error"}}
    with openai_server.serving({"status": 400, "body": body}) as (url, _):
        with pytest.raises(UserError, match="/v1/chat/completions says 400: the prompt is too long"):
            answering.answer(Remote(url), shipped("summary"), "a text")
    with pytest.raises(UserError, match="cannot be reached"):
        Remote(url)
    with pytest.raises(UserError, match="localhost:8000: expected an address"):
        Remote("localhost:8000")
