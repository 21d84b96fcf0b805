"""OpenAI's protocol, over real sockets."""

import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import pytest

import alula

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from alula.host.serve import application  # noqa: E402

DENSE = Path(str(files("alula.host.bundled"))) / "dense"
PLAIN = ("{% for message in messages %}{{ message.role }}:{{ message.content }}\n{% endfor %}"
         "{% if add_generation_prompt %}assistant:{% endif %}")


class Client:
    def __init__(self, port, key=None):
        self.base, self.key = f"http://127.0.0.1:{port}", key

    def open(self, path, body=None):
        request = urllib.request.Request(self.base + path, json.dumps(body).encode()
                                         if body is not None else None)
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        return urllib.request.urlopen(request, timeout=60)

    def ask(self, path, body=None):
        """Return the status and the JSON."""
        try:
            with self.open(path, body) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def events(self, path, body):
        with self.open(path, {**body, "stream": True}) as answer:
            lines = [line.decode().strip() for line in answer if line.strip()]
        assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def _serving(llm, **options):
    server = uvicorn.Server(uvicorn.Config(application(llm, **options), host="127.0.0.1", port=0,
                                           log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    return server, thread, port


@pytest.fixture(scope="module")
def llm():
    with alula.LLM(alula.compile(DENSE), device="golden", chat_template=PLAIN) as found:
        yield found


@pytest.fixture(scope="module")
def client(llm):
    server, thread, port = _serving(llm)
    yield Client(port)
    server.should_exit = True
    thread.join(10)


def test_completions(client, llm):
    status, found = client.ask("/v1/completions", {
        "model": "dense", "prompt": ["If the", "Note that"], "max_tokens": 40, "temperature": 0})
    expected = llm.generate(["If the", "Note that"], alula.SamplingParams(max_tokens=40))
    assert status == 200 and found["object"] == "text_completion"
    assert [choice["text"] for choice in found["choices"]] == [one.text for one in expected]
    assert [choice["finish_reason"] for choice in found["choices"]] == ["length", "stop"]
    made = sum(len(one.outputs[0].token_ids) for one in expected)
    assert found["usage"]["completion_tokens"] == made
    assert found["usage"]["total_tokens"] == made + found["usage"]["prompt_tokens"]


def test_stream_is_the_whole(client):
    body = {"prompt": "If the", "max_tokens": 12, "seed": 4, "n": 2, "logprobs": 2,
            "stream_options": {"include_usage": True}}
    whole = client.ask("/v1/completions", body)[1]
    events = client.events("/v1/completions", body)
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [event["choices"][0] for event in events[:-1]
               if event["choices"][0]["index"] == choice["index"]]
        assert "".join(event["text"] for event in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert sum([event["logprobs"]["token_logprobs"] for event in own if event["logprobs"]],
                   []) == choice["logprobs"]["token_logprobs"]


def test_chat(client, llm):
    messages = [{"role": "user", "content": [{"type": "text", "text": "A window"}]}]
    body = {"messages": messages, "max_completion_tokens": 9, "temperature": 0, "logprobs": True,
            "top_logprobs": 2}
    status, found = client.ask("/v1/chat/completions", body)
    expected = llm.chat([{"role": "user", "content": "A window"}],
                        alula.SamplingParams(max_tokens=9))[0]
    assert status == 200
    choice = found["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert len(choice["logprobs"]["content"]) == 9
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
    deltas = [event["choices"][0]["delta"] for event in client.events(
        "/v1/chat/completions", body)]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == expected.text


def test_dropped_connection_cancels(client, llm):
    with closing(client.open("/v1/completions", {
            "prompt": "If the", "max_tokens": 900, "ignore_eos": True, "stream": True})) as answer:
        answer.readline()
    before = llm.statistics.new_tokens
    for _ in range(100):
        time.sleep(0.05)
        if not llm._engine.running:
            break
    assert not llm._engine.running and llm.statistics.new_tokens < before + 300


def test_models_and_health(client):
    assert client.ask("/v1/models")[1]["data"][0]["id"] == "dense"
    assert client.ask("/health")[1]["device"] == "golden"


@pytest.mark.parametrize("path, body, status, message", [
    ("completions", {"model": "gpt"}, 404, "model must be dense, not gpt"),
    ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature must be at least 0"),
    ("completions", {"prompt": "a", "max_tokens": 9999}, 400, "prompt and new tokens must be at"),
    ("completions", {"prompt": "a", "echo": True}, 400, "echo must be left out"),
    ("completions", {"prompt": [5000]}, 400, "a token must be below 2048, not 5000"),
    ("completions", {"prompt": {}}, 400, "prompt."),
    ("chat/completions", {}, 400, "messages: Field required"),
    ("chat/completions", {"messages": [{"content": "a"}]}, 400, "a message must have a role"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
     "a message's content must be text"),
    ("chat/completions", {"messages": [], "tool_choice": "required"}, 400, "tool_choice must be"),
    ("chat/completions", {"messages": [], "response_format": {"type": "json_object"}}, 400,
     "response_format must be text"),
])
def test_requests_wrong(client, path, body, status, message):
    found, error = client.ask(f"/v1/{path}", body)
    assert found == status and error["error"]["message"].startswith(message)


def test_api_key(llm):
    server, thread, port = _serving(llm, api_key="secret", name="mine")
    assert Client(port).ask("/v1/models")[0] == 401
    assert Client(port, "wrong").ask("/v1/completions", {"prompt": "a"})[0] == 401
    assert Client(port, "secret").ask("/v1/models")[1]["data"][0]["id"] == "mine"
    server.should_exit = True
    thread.join(10)
