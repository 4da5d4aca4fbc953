"""What no server may answer with 200 or 500: each with its status, the field, and the reason, in OpenAI's shape."""

import gzip
import json

import openai
import pytest
import serving

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOO_LARGE = {"type": "json_schema", "json_schema": {"schema": {"multipleOf": 10**30}}}
USER = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    path = serving.write_run(folder / "tiny")
    with serving.server(folder, str(path), "--slots=2", "--queue=6", "--most_megabytes=1", "--no_warm_up") as running:
        yield running
        assert "Traceback" not in running.said() and " 500 " not in running.said()


@pytest.fixture(autouse=True)
def still_answers(server):
    yield
    assert server.http("POST", COMPLETION, json={"prompt": "x", "max_tokens": 1}).status_code == 200


def refused(answer, status: int, *words: str, param=None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and len(error["message"]) < 500
    assert all(word in error["message"] for word in words), error
    if param is not None:
        assert error["param"] == param


BODIES = [
    (b"{", "no JSON"),
    (b"", "no JSON"),
    (b"\xff\xfe", "no JSON"),
    (b"[1]", "array"),
    (b'"x"', "string"),
    (b"null", "null"),
    (b"[" * 100_000, "no JSON"),
    (b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}", "deep"),
    (b'{"prompt": "\\ud800"}', "surrogate"),
    (b'{"prompt": "x", "max_tokens": 1e400}', "max_tokens"),
    (b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}", "no JSON"),
    (b'{"prompt": "x", "temperature": NaN}', "temperature"),
    (b'{"prompt": "x", "temperature": Infinity}', "temperature"),
]


@pytest.mark.parametrize("content,word", BODIES, ids=range(len(BODIES)))
def test_a_body_that_is_none(server, content, word):
    headers = {"Content-Type": "application/json"}
    refused(server.http("POST", COMPLETION, content=content, headers=headers), 400, word)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type(server, kind):
    answer = server.http("POST", CHAT, content=json.dumps(USER), headers={"Content-Type": kind})
    refused(answer, 415, "application/json")


def test_a_body_that_is_packed(server):
    packed = gzip.compress(json.dumps(USER).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refused(server.http("POST", CHAT, content=packed, headers=headers), 415, "gzip")


def test_a_large_body_is_read_as_a_small_one_is(server):
    padding = {"metadata": {"a": "x" * 2**17}}
    assert server.http("POST", CHAT, json=USER | padding).status_code == 200
    refused(server.http("POST", CHAT, json=USER | padding | {"seed": "x"}), 400, "integer", param="seed")
    half = json.dumps(USER | padding | {"user": "\ud800"}).encode()
    refused(server.http("POST", CHAT, content=half, headers={"Content-Type": "application/json"}), 400, "surrogate")


def test_a_request_may_have_as_many_texts_as_are_made_and_wait(server):
    answer = server.http("POST", COMPLETION, json={"prompt": "x", "max_tokens": 1, "n": 8})
    assert answer.status_code == 200 and len(answer.json()["choices"]) == 8


WRONG = [  # (path, fields, status, param, word)
    (CHAT, {"messages": []}, 400, "messages", "at least one"),
    (CHAT, {"messages": None}, 400, "messages", "list"),
    (CHAT, {"messages": "Hello"}, 400, "messages", "list"),
    (CHAT, {"messages": ["Hello"]}, 400, "messages", "[0]"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages", "no content"),
    (CHAT, {"messages": [{"role": "user", "content": ""}]}, 400, "messages", "empty"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "messages", "king"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "out of place"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "image_url"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages", "context"),
    (CHAT, {"max_tokens": 0}, 400, "max_tokens", "1"),
    (CHAT, {"max_tokens": -1}, 400, "max_tokens", "1"),
    (CHAT, {"max_tokens": "5"}, 400, "max_tokens", "integer"),
    (CHAT, {"max_tokens": True}, 400, "max_tokens", "integer"),
    (CHAT, {"max_tokens": 1.5}, 400, "max_tokens", "integer"),
    (CHAT, {"max_tokens": 10**6}, 400, "messages", "context"),
    (CHAT, {"max_tokens": 10**30}, 400, "max_tokens", ""),
    (CHAT, {"temperature": -1}, 400, "temperature", "0"),
    (CHAT, {"temperature": "hot"}, 400, "temperature", "number"),
    (CHAT, {"top_p": 0}, 400, "top_p", "0"),
    (CHAT, {"top_p": 1.5}, 400, "top_p", "1"),
    (CHAT, {"top_k": -2}, 400, "top_k", ""),
    (CHAT, {"n": 0}, 400, "n", "1"),
    (CHAT, {"n": 10**9}, 400, "n", "128"),
    (CHAT, {"n": 100}, 400, "n", "8 at once"),
    (CHAT, {"seed": 2**70}, 400, "seed", ""),
    (CHAT, {"stop": [""]}, 400, "stop", "empty"),
    (CHAT, {"stop": [1]}, 400, "stop", "text"),
    (CHAT, {"stop": ["x"] * 100}, 400, "stop", "at most"),
    (CHAT, {"stop": "x" * 1001}, 400, "stop", "1001 characters"),
    (CHAT, {"response_format": TOO_LARGE}, 400, "response_format", "serializable"),
    (CHAT, {"frequency_penalty": 5}, 400, "frequency_penalty", "2"),
    (CHAT, {"logit_bias": {"99999": 1}}, 400, "logit_bias", "99999"),
    (CHAT, {"logit_bias": {"-1": 1}}, 400, "logit_bias", "token id"),
    (CHAT, {"logit_bias": {"x": 1}}, 400, "logit_bias", "token id"),
    (CHAT, {"logit_bias": {"5": 1000}}, 400, "logit_bias", "1000"),
    (CHAT, {"logit_bias": {"5": "x"}}, 400, "logit_bias", "numbers"),
    (CHAT, {"logit_bias": [5]}, 400, "logit_bias", "object"),
    (CHAT, {"top_logprobs": 3}, 400, "top_logprobs", "logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "20"),
    (CHAT, {"stream_options": {"include_usage": True}}, 400, "stream_options", "stream"),
    (CHAT, {"response_format": {"type": "xml"}}, 400, "response_format", "xml"),
    (CHAT, {"response_format": {"type": "json_schema"}}, 400, "response_format", ""),
    (CHAT, {"response_format": {}}, 400, "response_format", ""),
    (CHAT, {"regex": "("}, 400, "regex", "regex"),
    (CHAT, {"tools": [{}]}, 400, "tools", "tools"),
    (CHAT, {"tool_choice": "required"}, 400, "tool_choice", "tools"),
    (CHAT, {"continue_final_message": True}, 400, "continue_final_message", "assistant"),
    (CHAT, {"chat_template_kwargs": {"x": 1}}, 400, "chat_template_kwargs", "not supported"),
    (CHAT, {"stop_token_ids": [10**6]}, 400, "stop_token_ids", "vocabulary"),
    (CHAT, {"model": 5}, 400, "model", "string"),
    (CHAT, {"model": "gpt-9"}, 404, "model", "gpt-9"),
    (CHAT, {"model": "m" * 100_000}, 404, "model", "mmm"),
    (CHAT, {"model": "tinny"}, 404, "model", "'tiny'"),
    (COMPLETION, {"prompt": []}, 400, "prompt", "empty"),
    (COMPLETION, {"prompt": [[]]}, 400, "prompt", "empty"),
    (COMPLETION, {"prompt": [1, "x"]}, 400, "prompt", "token ids"),
    (COMPLETION, {"prompt": 5}, 400, "prompt", "text"),
    (COMPLETION, {"prompt": [-1]}, 400, "prompt", "token ids"),
    (COMPLETION, {"prompt": [99999]}, 400, "prompt", "vocabulary"),
    (COMPLETION, {"prompt": [2**40]}, 400, "prompt", "token ids"),
    (COMPLETION, {"prompt": [True]}, 400, "prompt", "token ids"),
    (COMPLETION, {"prompt": "x" * 1000}, 400, "prompt", "context"),
    (COMPLETION, {"prompt": "x", "max_tokens": 0}, 400, "max_tokens", "echo"),
    (COMPLETION, {"prompt": "x", "max_tokens": -5}, 400, "max_tokens", "0"),
    (COMPLETION, {"prompt": "x", "logprobs": 21}, 400, "logprobs", "20"),
    (COMPLETION, {"prompt": "x", "logprobs": True}, 400, "logprobs", "integer"),
    (COMPLETION, {"prompt": "x", "n": 3, "best_of": 2}, 400, "best_of", "n=3"),
    (COMPLETION, {"prompt": "x", "best_of": 2, "stream": True}, 400, "best_of", "stream"),
    (COMPLETION, {"prompt": "x", "suffix": "y"}, 400, "suffix", "was not trained to fill a gap"),
    (COMPLETION, {"prompt": ["x"] * 50}, 400, "n", "8 at once"),
    (EMBEDDING, {"input": []}, 400, "input", "empty"),
    (EMBEDDING, {"input": None}, 400, "input", "text"),
    (EMBEDDING, {"input": "x" * 1000}, 400, "input", "context"),
    (EMBEDDING, {"input": "x", "dimensions": 7}, 400, "dimensions", "32"),
    (EMBEDDING, {"input": "x", "encoding_format": "hex"}, 400, "encoding_format", "float"),
    ("/tokenize", {}, 400, "prompt", "one of them"),
    ("/detokenize", {"tokens": [99999]}, 400, "tokens", "vocabulary"),
    ("/detokenize", {}, 400, "tokens", "required"),
    ("/v1/models/reload", {}, 403, None, "key"),
]


@pytest.mark.parametrize("path,fields,status,param,word", WRONG, ids=range(len(WRONG)))
def test_a_field_that_is_wrong(server, path, fields, status, param, word):
    body = (USER if path == CHAT else {}) | fields
    refused(server.http("POST", path, json=body), status, word, param=param)


def test_the_openai_client_raises_what_it_raises_for_its_own_server(server):
    create = server.client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as long:
        create(model="tiny", messages=[{"role": "user", "content": "x" * 5000}])
    assert long.value.code == "context_length_exceeded" and long.value.param == "messages"
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="gpt-9", messages=USER["messages"])
    assert unknown.value.code == "model_not_found"


def test_fields_that_nobody_knows_are_left_alone(server):
    body = USER | {"reasoning_effort": "high", "store": False, "metadata": {"a": "b"}, "user": "me", "logit_bias": None}
    assert server.http("POST", CHAT, json=body).status_code == 200


def test_a_body_that_is_too_large(server):
    large = json.dumps({"prompt": "x" * 2**20}).encode()
    headers = {"Content-Type": "application/json"}
    refused(server.http("POST", COMPLETION, content=large, headers=headers), 413, "bytes")
    refused(server.http("POST", COMPLETION, content=iter([large]), headers=headers), 413, "bytes")


@pytest.mark.parametrize(
    "method,path,status",
    [
        ("GET", "/nothing", 404),
        ("GET", CHAT, 405),
        ("POST", "/health", 405),
        ("GET", "/v1/../../etc/passwd", 404),
        ("GET", "/v1/models/gpt-9", 404),
    ],
)
def test_an_address_that_is_none(server, method, path, status):
    refused(server.http(method, path), status)


def test_a_name_that_is_not_this_machine_s(server):
    refused(server.http("GET", "/v1/models", headers={"Host": "evil.example"}), 403, "--allow_host")
    assert server.http("GET", "/v1/models", headers={"Host": "localhost:1234"}).status_code == 200


@pytest.mark.parametrize(
    "origin,status", [("https://evil.example", 403), ("null", 403), ("http://localhost:3000", 200)]
)
def test_a_page_elsewhere_that_sends_a_form(server, origin, status):
    body = {"prompt": "x", "max_tokens": 1}
    assert server.http("POST", COMPLETION, json=body, headers={"Origin": origin}).status_code == status


def test_a_request_has_an_id_of_its_own_or_the_client_s(server):
    given = server.http("GET", "/health", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"]
    drawn = server.http("GET", "/health", headers={"X-Request-Id": "a b\tc"}).headers["X-Request-Id"]
    assert given == "abc-1" and len(drawn) == 16 and f" {given}\n" in server.said()
