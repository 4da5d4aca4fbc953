"""The client of OpenAI's interface: addresses, keys, and streams that are not as they should be."""

import contextlib
import socket
import threading

import openai_server
import pytest

from gptjax.applications import client, vectors
from gptjax.applications.remote import Remote
from gptjax.errors import UserError

EVENT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
FINISHED = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
OTHER = b'data: {"choices": [{"index": 1, "delta": {"content": "b"}}]}\n\n'


@contextlib.contextmanager
def answering_once(content: bytes):
    """The address of a server that sends these bytes to whoever asks first, and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(content)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def stream(body: bytes, promised: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (promised, body)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (stream(EVENT, len(EVENT)), "went away in the middle"),
        (stream(EVENT, len(EVENT) + 50), "went away in the middle"),  # half of a chunk
        (stream(EVENT + b"\r\n0\r\n\r\n", len(EVENT)), "went away in the middle"),  # its end without [DONE]
        (stream(OTHER + FINISHED, len(OTHER + FINISHED)), "went away in the middle"),  # one choice of two has finished
        (stream(b"data: <html>\n\n", 14), "sent b'<html>' in the middle of the answer, which is no JSON object"),
        (stream(b"data: [1]\n\n", 11), "sent b'\\[1\\]' in the middle"),
        (stream(b'data: {"error": {"message": "no memory"}}\n\n', 43), "ended the answer: no memory"),
    ],
)  # fmt: skip
def test_a_stream_that_breaks_off_is_an_error_in_one_line(content, said):
    with answering_once(content) as url, client.Client(url).open("/chat/completions", {}) as response:
        with pytest.raises(UserError, match=said):
            list(client.events(response))


def test_a_stream_whose_choices_have_finished_is_whole_without_done():
    with answering_once(stream(EVENT + FINISHED, len(EVENT + FINISHED))) as url:
        with client.Client(url).open("/chat/completions", {}) as response:
            assert len(list(client.events(response))) == 2


@pytest.mark.parametrize("content", [b"garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
def test_what_speaks_no_http_or_half_of_it_is_an_error_in_one_line(content):
    with answering_once(content) as url, pytest.raises(UserError, match="cannot be reached|is --url right?"):
        client.Client(url).ask("/models")


def test_an_answer_of_another_form_is_an_error_in_one_line():
    with openai_server.serving({"message": {}}, {"data": [{"index": 0}]}, {"data": []}) as (url, _):
        remote = Remote(url)
        with pytest.raises(UserError, match="/v1/completions does not answer as OpenAI's interface does"):
            remote.complete("a", {})
        with pytest.raises(UserError, match="/v1/embeddings does not answer as OpenAI's interface does"):
            remote.embed(["a"])
        with pytest.raises(UserError, match="/v1/completions does not answer"):
            remote.complete("a", {})


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("http://a:1", "http://a:1/v1"),
        ("http://a/v1/", "http://a/v1"),
        ("https://a/compatible/v3", "https://a/compatible/v3"),
    ],
)
def test_an_address_without_a_path_is_that_of_version_1(typed, asked):
    assert client.Client(typed).url == asked


def test_the_environment_s_key_is_sent_by_an_index_too(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
    with openai_server.serving({"data": [{"index": 0, "embedding": [3.0, 4.0]}]}) as (url, requests):
        assert vectors.embedder(url)(["a"])[0].tolist() == pytest.approx([0.6, 0.8])
    assert requests[0][1]["Authorization"] == "Bearer of-the-environment"
