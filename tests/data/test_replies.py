"""Language models are asked once for each prompt, here or behind a URL, and what goes wrong is named."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hialign.data import Endpoint, LocalModel
from hialign.data.replies import Replies

Answer = Callable[[dict[str, Any], int], tuple[int, dict[str, str], str]]


def chat(text: str | None) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def echo(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], str]:
    return 200, {}, chat(body["messages"][0]["content"].upper())


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """A server on this machine; ``answer`` (body, number of the request) -> (code, headers, text) can be set."""
    seen = SimpleNamespace(answer=echo, bodies=[], headers=[], paths=[], times=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.bodies.append(body)
            seen.headers.append(dict(self.headers))
            seen.paths.append(self.path)
            seen.times.append(time.monotonic())
            code, headers, text = seen.answer(body, len(seen.bodies))
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    seen.url = f"http://127.0.0.1:{web.server_port}/v1"
    yield seen
    web.shutdown()
    thread.join()
    web.server_close()


def test_an_endpoint_is_asked_as_openai_s_and_replies_come_in_order(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "secret")
    prompts = [f"prompt {i}" for i in range(9)]
    ask = Endpoint(server.url + "/", "m", key_env="OUR_KEY", workers=3, temperature=0.5, max_tokens=7)
    assert list(ask(prompts)) == [prompt.upper() for prompt in prompts]
    assert set(server.paths) == {"/v1/chat/completions"}
    assert server.headers[0]["Authorization"] == "Bearer secret"
    first = next(body for body in server.bodies if body["messages"][0]["content"] == "prompt 0")
    assert first == {
        "model": "m",
        "messages": [{"role": "user", "content": "prompt 0"}],
        "temperature": 0.5,
        "max_tokens": 7,
    }


def test_a_busy_server_is_asked_again_until_it_answers(server: SimpleNamespace) -> None:
    codes = {1: 429, 2: 503}
    server.answer = lambda body, n: (codes.get(n, 200), {"Retry-After": "0"}, chat("done"))
    assert list(Endpoint(server.url, "m", wait=60)(["x"])) == ["done"]  # Retry-After counts, not the wait
    assert len(server.bodies) == 3


def test_a_server_that_stays_busy_is_an_error_that_says_what_to_do(server: SimpleNamespace) -> None:
    server.answer = lambda body, n: (500, {}, "out of memory")
    told = r"no reply after 3 tries, the last: 500 .*out of memory; start the server"
    with pytest.raises(ValueError, match=told):
        list(Endpoint(server.url, "m", wait=0, retries=2)(["x"]))
    assert len(server.bodies) == 3


def test_a_server_that_refuses_is_an_error_at_once(server: SimpleNamespace) -> None:
    server.answer = lambda body, n: (401, {}, "no such key")
    with pytest.raises(ValueError, match=r"answered 401 .*no such key; see to model, key_env"):
        list(Endpoint(server.url, "m", wait=0)(["x"]))
    assert len(server.bodies) == 1


def test_a_server_that_answers_too_late_or_not_at_all_is_named(server: SimpleNamespace) -> None:
    def late(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], str]:
        time.sleep(0.3)
        return 200, {}, chat("late")

    server.answer = late
    with pytest.raises(ValueError, match=r"after 2 tries, the last: TimeoutError"):
        list(Endpoint(server.url, "m", timeout=0.05, wait=0, retries=1)(["x"]))
    with pytest.raises(ValueError, match=r"after 1 tries, the last: .*refused"):
        list(Endpoint("http://127.0.0.1:9/v1", "m", wait=0, retries=0)(["x"]))


def test_something_else_than_a_chat_completion_is_named(server: SimpleNamespace) -> None:
    server.answer = lambda body, n: (200, {}, "<html>hello</html>")
    with pytest.raises(ValueError, match="answered '<html>hello</html>', wanted"):
        list(Endpoint(server.url, "m", wait=0)(["x"]))
    server.answer = lambda body, n: (200, {}, chat(None))
    assert list(Endpoint(server.url, "m")(["x"])) == [""]


def test_no_more_requests_a_minute_are_sent_than_allowed(server: SimpleNamespace) -> None:
    list(Endpoint(server.url, "m", workers=4, per_minute=60 * 20)(["a", "b", "c", "d"]))
    gaps = [later - earlier for earlier, later in zip(sorted(server.times), sorted(server.times)[1:], strict=False)]
    assert sum(gaps) >= 3 * 0.05 * 0.8  # sent 1/20 s apart; what lies between sending and seeing may shrink a gap


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "localhost:8000"}, "url: got 'localhost:8000', wanted http"),
        ({"workers": 0}, "workers: got 0, wanted at least 1"),
        ({"timeout": 0}, "timeout: got 0, wanted a number above 0"),
        ({"per_minute": 0}, "per_minute: got 0"),
        ({"key_env": "HIALIGN_NO_SUCH_KEY"}, "key_env: the environment variable HIALIGN_NO_SUCH_KEY is not set"),
    ],
)
def test_an_endpoint_s_settings_that_make_no_sense_are_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Endpoint(**{"url": "http://localhost/v1", "model": "m", **settings})


class Counting:
    """Echoes, counts, and breaks off before the prompt ``die``."""

    name = "counting"
    at_once = 2

    def __init__(self, die: str = "") -> None:
        self.asked: list[str] = []
        self.die = die

    def __call__(self, prompts: Sequence[str]) -> Iterator[str]:
        for prompt in prompts:
            if prompt == self.die:
                raise KeyboardInterrupt
            self.asked.append(prompt)
            yield prompt.upper()


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    file, prompts = tmp_path / "replies.jsonl", ["a", "b", "c", "d", "e"]
    with pytest.raises(KeyboardInterrupt):
        list(Replies(file).get(Counting(die="d"), prompts))
    with file.open("a") as out:
        out.write('{"key": "half a li')  # as a kill leaves it
    rest = Counting()
    assert list(Replies(file).get(rest, prompts)) == ["A", "B", "C", "D", "E"]
    assert rest.asked == ["d", "e"]
    assert list(Replies(file).get(Counting(die="a"), prompts)) == ["A", "B", "C", "D", "E"]


def test_a_prompt_given_twice_is_asked_once_and_another_model_is_asked_anew(tmp_path: Path) -> None:
    ask, other = Counting(), Counting()
    other.name = "other"
    replies = Replies(tmp_path / "replies.jsonl")
    assert list(replies.get(ask, ["a", "a", "b", "a"])) == ["A", "A", "B", "A"]
    assert ask.asked == ["a", "b"]
    list(replies.get(other, ["a"]))
    assert other.asked == ["a"]


def test_a_line_of_the_cache_that_is_no_reply_is_named(tmp_path: Path) -> None:
    (tmp_path / "replies.jsonl").write_text('{"key": "k"}\n')
    with pytest.raises(ValueError, match=r"replies.jsonl: line 1: .*wanted a json object with key and reply"):
        Replies(tmp_path / "replies.jsonl")


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_model_of_hugging_face_replies_as_its_own_greedy_generation(checkpoints: SimpleNamespace, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = getattr(checkpoints, kind)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = ["Say it.", "Say something longer, please.", "No."]
    alone = []
    for prompt in prompts:
        if tokenizer.chat_template is None:
            ids = tokenizer(prompt + "\n", return_tensors="pt").input_ids
        else:
            turn = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        alone.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert list(LocalModel(folder, batch_size=2, max_new_tokens=6, device="cpu")(prompts)) == alone
    assert any(alone)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"checkpoint": "no/such/folder"}, "checkpoint: 'no/such/folder' cannot be read"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"device": "tpu"}, "device: got 'tpu', wanted auto, cpu or cuda"),
        ({"dtype": "fp8"}, "dtype: got 'fp8', wanted one of"),
    ],
)
def test_a_local_model_s_settings_that_make_no_sense_are_named(
    checkpoints: SimpleNamespace, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        LocalModel(**{"checkpoint": checkpoints.llama, "device": "cpu", **settings})
