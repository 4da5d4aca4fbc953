"""A server of OpenAI's requests on loopback that says what a test has written down, and keeps what it was asked."""

import contextlib
import http.server
import json
import threading


@contextlib.contextmanager
def serving(*answers, model: str = "written"):
    """(url, requests): each POST gets the next of answers, a dict: the choice of an answer, or with "status" an error. The
    requests are (path, headers, body)."""
    waiting, requests = list(answers), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._send(200, {"data": [{"id": model}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            answer = waiting.pop(0)
            if "status" in answer:
                self._send(answer["status"], answer["body"])
            else:
                self._send(200, answer if "data" in answer else {"choices": [answer]})

        def _send(self, status, value):
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(text: str) -> dict:
    """The choice of a chat's answer."""
    return {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}


def called(name: str, arguments: str) -> dict:
    """The choice of an answer that calls a tool."""
    call = {"id": "call_x", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"message": {"role": "assistant", "content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
