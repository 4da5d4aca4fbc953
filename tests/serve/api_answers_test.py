"""Answers of `gptjax serve` to the openai client: the same as the run's own, in OpenAI's shapes."""

import json
import re

import numpy as np
import pytest
import serving

import gptjax

QUESTION = [{"role": "user", "content": "Where is my order?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def path(folder):
    return serving.write_run(folder / "tiny")


@pytest.fixture(scope="module")
def server(folder, path):
    plain = serving.write_run(folder / "plain", chat=False, seed=1)
    roomy = serving.write_run(folder / "roomy", context=1024)
    with serving.server(
        folder, str(path), f"--workdir=base={plain}", f"--workdir={roomy}", "--slots=4", "--no_warm_up"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.client


@pytest.fixture(scope="module")
def run(path):
    return gptjax.load(path)


def test_an_answer_is_the_run_s_own(client, run):
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=20)
    expected = run.chat(QUESTION, temperature=0, max_tokens=20)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == {"eot": "stop", "length": "length"}[expected.finish_reason]
    assert answer.model == "tiny" and answer.object == "chat.completion" and answer.system_fingerprint == "tiny-step-0"
    prompt_tokens = len(run.chat_format().prompt(gptjax.data.chat.parse_messages(QUESTION, ""), run.tokenizer))
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.total_tokens == prompt_tokens + len(expected.tokens)


def test_a_seed_gives_its_text_again_and_the_next_choice_has_the_next_seed(client, run):
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, seed=7, n=3, max_tokens=12)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [run.chat(QUESTION, seed=seed, max_tokens=12).text for seed in (7, 8, 9)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) == 3


def test_a_seed_that_was_drawn_is_returned(client):
    first, second = (
        client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=12, n=2) for _ in range(2)
    )
    assert first.seed != second.seed
    again = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=12, seed=first.seed + 1)
    assert again.choices[0].message.content == first.choices[1].message.content


def test_without_a_model_the_first_answers(server):
    answer = server.http("POST", "/v1/completions", json={"prompt": "x", "max_tokens": 1}).json()
    assert answer["model"] == "tiny"


def test_a_chat_without_max_tokens_has_the_room_that_is_left(client, run):
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, extra_body={"ignore_eos": True})
    assert answer.usage.total_tokens == run.config.model.context_length
    assert answer.choices[0].finish_reason == "length"


def streamed(client, **fields):
    return list(client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, **fields))


def test_a_stream_has_the_text_of_the_whole_answer(client):
    fields = dict(seed=3, n=2, max_tokens=24)
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, **fields)
    chunks = streamed(client, stream_options={"include_usage": True}, **fields)
    texts, reasons = {0: "", 1: ""}, {}
    for chunk in chunks[:-1]:
        assert chunk.usage is None and chunk.id == chunks[0].id and chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) >= 4, (
        "it comes in pieces"
    )
    assert all(chunk.usage is None for chunk in streamed(client, **fields))


def test_no_character_is_cut_in_a_stream(server, client, run):
    """Of three bytes, which is three tokens here."""
    ids = run.tokenizer.encode("€").tolist()
    bias = {str(i): 100.0 for i in ids[:1]}
    chunks = list(
        client.completions.create(model="tiny", prompt="a", logit_bias=bias, max_tokens=6, stream=True, temperature=0)
    )
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == run.tokenizer.decode(ids[:1] * 6)
    body = {"model": "tiny", "prompt": "a", "regex": "(€|☃)+", "max_tokens": 9, "stream": True, "ignore_eos": False}
    lines = server.http("POST", "/v1/completions", json=body).text.split("\n\n")
    pieces = [json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")]
    assert set("".join(pieces)) <= {"€", "☃"} and "".join(pieces)


def test_log_probabilities_of_an_answer(client, run):
    fields = dict(messages=QUESTION, seed=5, max_tokens=8)
    answer = client.chat.completions.create(model="tiny", logprobs=True, top_logprobs=3, **fields)
    expected = run.chat(QUESTION, seed=5, max_tokens=8, logprobs=True)
    content = answer.choices[0].logprobs.content
    assert [entry.logprob for entry in content] == pytest.approx(expected.logprobs.tolist(), abs=1e-4)
    spelled = b"".join(bytes(entry.bytes) for entry in content if not entry.token.startswith("<|"))
    assert spelled.decode(errors="replace") == answer.choices[0].message.content
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs == sorted(entry.top_logprobs, key=lambda top: -top.logprob)
    chunks = list(client.chat.completions.create(model="tiny", stream=True, logprobs=True, top_logprobs=3, **fields))
    parts = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs]
    assert [entry for part in parts for entry in part] == content


def test_log_probabilities_of_prompt_and_text_in_the_shape_of_completions(client, run):
    fields = dict(model="tiny", prompt="abcdé", echo=True, logprobs=2, temperature=0, seed=0)
    scored = client.completions.create(max_tokens=4, **fields).choices[0]
    [expected] = run.generate("abcdé", temperature=0, max_tokens=4, logprobs=True)
    parts = scored.logprobs
    assert scored.text == str(expected)
    assert parts.token_logprobs == pytest.approx([*expected.prompt_logprobs, *expected.logprobs], abs=1e-4)
    assert parts.tokens[:6] == ["a", "b", "c", "d", "bytes:\\xc3", "bytes:\\xa9"]
    assert parts.text_offset[:6] == [0, 1, 2, 3, 4, 4] and parts.text_offset == sorted(parts.text_offset)
    for token, logprob, top in zip(parts.tokens, parts.token_logprobs, parts.top_logprobs):
        assert top[token] == logprob and len(top) in (2, 3)
    alone = client.completions.create(max_tokens=0, **fields).choices[0]
    assert alone.text == "abcdé" and alone.logprobs.token_logprobs == pytest.approx(parts.token_logprobs[:6], abs=1e-5)
    of_ids = client.completions.create(max_tokens=0, **fields | {"prompt": run.tokenizer.encode("abc").tolist()})
    assert of_ids.choices[0].logprobs.token_logprobs[0] is None, "nothing stands before the first of ids"
    whole = list(client.completions.create(max_tokens=4, stream=True, **fields))
    logprobs = [x for chunk in whole if chunk.choices[0].logprobs for x in chunk.choices[0].logprobs.token_logprobs]
    assert logprobs == parts.token_logprobs and "".join(chunk.choices[0].text for chunk in whole) == scored.text


def test_a_prompt_that_is_scored_ends_with_one_token_also_where_that_is_the_end(folder, server, client, run):
    """lm-evaluation-harness leaves out the last: were there none, the last of the prompt would be left out."""
    bias = {str(run.tokenizer.eot_id): 100.0}
    fields = dict(model="tiny", prompt="abc", echo=True, max_tokens=1, logit_bias=bias, temperature=0)
    scored = client.completions.create(logprobs=1, **fields).choices[0]
    assert len(scored.logprobs.tokens) == 4 and scored.finish_reason == "stop" and scored.text == "abc"
    assert client.completions.create(**fields).choices[0].text == "abc"


def test_several_prompts_and_choices_come_in_order(client, run):
    ids = [run.tokenizer.encode(text).tolist() for text in ("abc", "xyz")]
    answer = client.completions.create(model="tiny", prompt=ids, n=2, seed=4, max_tokens=6)
    expected = [
        run.generate(np.array(each, np.int32), seed=4 + 2 * i, num_return_sequences=2, max_tokens=6)
        for i, each in enumerate(ids)
    ]
    assert [choice.text for choice in answer.choices] == [each.text for pair in expected for each in pair]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 6
    texts = client.completions.create(model="tiny", prompt=["abc", "xyz"], temperature=0, max_tokens=4)
    assert [c.text for c in texts.choices] == [
        c.text for c in run.generate(["abc", "xyz"], temperature=0, max_tokens=4)
    ]


def test_the_best_of_several_are_the_likeliest(client, run):
    drawn = run.generate("abc", seed=1, num_return_sequences=5, max_tokens=6, logprobs=True)
    best = sorted(drawn, key=lambda text: -np.mean(text.logprobs))[:2]
    answer = client.completions.create(model="tiny", prompt="abc", seed=1, n=2, best_of=5, max_tokens=6)
    assert [choice.text for choice in answer.choices] == [text.text for text in best]
    assert answer.usage.completion_tokens == sum(len(text.tokens) for text in drawn)


@pytest.mark.parametrize(
    "fields",
    [
        dict(top_p=0.5),
        dict(frequency_penalty=1.5, presence_penalty=0.5),
        dict(extra_body=dict(top_k=3, min_p=0.05, repetition_penalty=1.3)),
    ],
)
def test_settings_mean_what_they_mean_to_the_run(client, run, fields):
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, seed=2, max_tokens=12, **fields)
    settings = {name: value for name, value in fields.items() if name != "extra_body"} | fields.get("extra_body", {})
    assert answer.choices[0].message.content == run.chat(QUESTION, seed=2, max_tokens=12, **settings).text


def test_texts_end_at_stop_strings_and_stop_tokens(client, run):
    [whole] = run.generate("abc", temperature=0, max_tokens=20)
    stop, token = whole.text[5:7], int(whole.tokens[6])
    cut = client.completions.create(model="tiny", prompt="abc", temperature=0, max_tokens=20, stop=[stop, "never"])
    assert cut.choices[0].text == whole.text[: whole.text.index(stop)] and cut.choices[0].finish_reason == "stop"
    extra = {"stop_token_ids": [token]}
    cut = client.completions.create(model="tiny", prompt="abc", temperature=0, max_tokens=20, extra_body=extra)
    first = whole.tokens.tolist().index(token)
    assert cut.choices[0].text == run.tokenizer.decode(whole.tokens[:first]) and cut.choices[0].finish_reason == "stop"


def test_a_last_message_of_the_assistant_is_gone_on_with(client, run):
    messages = [*QUESTION, {"role": "assistant", "content": "It is"}]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=8, extra_body={"continue_final_message": True}
    )
    form, parse = run.chat_format(), gptjax.data.chat.parse_messages
    prompt = np.concatenate([form.prompt(parse(QUESTION, ""), run.tokenizer), run.tokenizer.encode("It is")])
    [expected] = run.generate(prompt, temperature=0, max_tokens=8)
    assert answer.choices[0].message.content == expected.text[: len(answer.choices[0].message.content)] != ""


def test_the_models_say_what_they_are(client):
    first, second, _ = client.models.list().data
    assert (first.id, first.owned_by, first.step, first.context_length, first.chat) == ("tiny", "gptjax", 0, 128, True)
    assert (second.id, second.chat) == ("base", False)
    assert client.models.retrieve("base") == second


def test_a_model_without_a_chat_format_goes_on_with_texts_alone(client):
    assert client.completions.create(model="base", prompt="x", max_tokens=3).model == "base"
    with pytest.raises(serving.openai.BadRequestError, match="no chat format.*v1/completions"):
        client.chat.completions.create(model="base", messages=QUESTION)


def test_embeddings_are_of_length_one_in_both_encodings(server, client):
    answer = client.embeddings.create(model="tiny", input=["hello", "world", "hello"])  # base64
    vectors = np.array([item.embedding for item in answer.data])
    assert vectors.shape == (3, 32) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-6) and not np.allclose(vectors[0], vectors[1], atol=1e-3)
    plain = server.http("POST", "/v1/embeddings", json={"input": "hello", "encoding_format": "float"}).json()
    assert np.allclose(plain["data"][0]["embedding"], vectors[0], atol=1e-6)
    assert answer.usage.prompt_tokens == 3 * 6


def test_tokens_there_and_back(server, run):
    there = server.http("POST", "/tokenize", json={"prompt": "hé<|user|>"}).json()
    assert there["tokens"] == run.tokenizer.encode("hé<|user|>").tolist() and there["count"] == len(there["tokens"])
    assert there["pieces"][:3] == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    back = server.http("POST", "/detokenize", json={"tokens": there["tokens"]}).json()
    assert back == {"prompt": "hé<|user|>"}
    chat = server.http("POST", "/tokenize", json={"messages": QUESTION}).json()
    form = run.chat_format()
    assert chat["tokens"] == form.prompt(gptjax.data.chat.parse_messages(QUESTION, ""), run.tokenizer).tolist()
    eot = server.http("POST", "/tokenize", json={"prompt": "<|endoftext|>"}).json()
    assert eot["tokens"] == [run.tokenizer.eot_id]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "order_status",
            "description": "Where an order is.",
            "parameters": {"type": "object", "properties": {"id": {"enum": ["a1", "b2"]}}, "required": ["id"]},
        },
    }
]


def test_a_call_that_is_required_comes_whole_and_in_a_stream(client):
    """In a context with room for the tools."""
    options = dict(model="roomy", messages=QUESTION, tools=TOOLS, seed=1, parallel_tool_calls=False)
    fields = options | dict(tool_choice="required")
    answer = client.chat.completions.create(**fields).choices[0]
    [call] = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and not answer.message.content
    assert call.function.name == "order_status" and json.loads(call.function.arguments)["id"] in ("a1", "b2")
    chunks = list(client.chat.completions.create(**fields, stream=True))
    [delta] = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert (delta.function.name, delta.function.arguments) == (call.function.name, call.function.arguments)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    result = [answer.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "shipped"}]
    after = client.chat.completions.create(
        **options | dict(messages=[*QUESTION, *result], tool_choice="none", max_tokens=4)
    )
    assert after.choices[0].message.tool_calls is None


def test_an_answer_that_is_kept_to_a_schema_follows_it(client):
    schema = {
        "type": "object",
        "properties": {"ok": {"enum": [True, False]}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, response_format=form, seed=1)
    assert json.loads(answer.choices[0].message.content)["ok"] in (True, False)
    text = client.completions.create(model="tiny", prompt="x", extra_body={"regex": "(yes|no)"}, max_tokens=5).choices[
        0
    ]
    assert text.text in ("yes", "no") and text.finish_reason == "stop"


def test_the_description_of_the_endpoints_is_one(server):
    document = server.http("GET", "/openapi.json").json()
    assert (
        document["openapi"].startswith("3.1")
        and "messages" in document["components"]["schemas"]["ChatBody"]["required"]
    )
    references = re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', json.dumps(document))
    assert references and set(references) <= document["components"]["schemas"].keys()
    page = server.http("GET", "/docs").text
    assert all(path in page for path in document["paths"]) and "http://" not in page and "https://" not in page


def test_what_was_done_is_counted(server, client):
    before = server.gauge("gptjax_tokens_total")
    answer = client.completions.create(model="base", prompt="count", max_tokens=5, extra_body={"ignore_eos": True})
    assert server.gauge("gptjax_tokens_total") - before == answer.usage.total_tokens
    text = server.http("GET", "/metrics").text
    assert 'gptjax_requests_total{route="/v1/completions",status="200"}' in text
    assert 'gptjax_state{model="tiny",state="ready"} 1.0' in text
    assert 'gptjax_first_token_seconds_count{model="base"}' in text
    prometheus = pytest.importorskip("prometheus_client.parser")
    assert len(list(prometheus.text_string_to_metric_families(text))) > 8
