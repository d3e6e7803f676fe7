"""Language models that answer prompts, here or behind a URL, and a file that keeps what they said."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

_PASSING = (408, 425, 429, 500, 502, 503, 504)  # codes that say: later


class Ask(Protocol):
    """Replies to prompts, in their order; ``name`` says who replies and how: the same name, the same replies."""

    @property
    def name(self) -> str: ...

    @property
    def at_once(self) -> int:
        """How many prompts it takes at a time."""

    def __call__(self, prompts: Sequence[str]) -> Iterator[str]: ...


class Replies:
    """The replies in ``file``, a jsonl that grows by one line as each comes, so that a killed run asks no prompt twice.

    A line that was cut short as its run died is cut off, and its prompt asked again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, str] = {}
        text = file.read_bytes() if file.is_file() else b""
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode().splitlines(), start=1):
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["reply"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{file}: line {number}: {line[:80]!r}, wanted a json object with key and reply; delete the line"
                ) from error
        if len(whole) < len(text):
            with file.open("r+b") as cut:
                cut.truncate(len(whole))

    def get(self, ask: Ask, prompts: Sequence[str]) -> Iterator[str]:
        """The replies to ``prompts``, in their order; only those that the file lacks are asked for."""
        for start in range(0, len(prompts), ask.at_once):
            part = prompts[start : start + ask.at_once]
            lacking = list(dict.fromkeys(p for p in part if self._key(ask, p) not in self._known))
            if lacking:
                with self.file.open("a", encoding="utf-8") as out:
                    for prompt, reply in zip(lacking, ask(lacking), strict=True):
                        entry = {"key": self._key(ask, prompt), "reply": reply, "prompt": prompt, "by": ask.name}
                        out.write(json.dumps(entry) + "\n")
                        out.flush()
                        self._known[entry["key"]] = reply
            yield from (self._known[self._key(ask, prompt)] for prompt in part)

    def _key(self, ask: Ask, prompt: str) -> str:
        return hashlib.sha256(f"{ask.name}\n{prompt}".encode()).hexdigest()


@dataclass(frozen=True)
class Endpoint:
    """Replies of an OpenAI-compatible server: POST <url>/chat/completions, ``workers`` prompts under way at a time.

    ``url`` ends where /chat/completions begins, mostly in /v1. ``key_env`` names the environment variable that holds
    the API key. Answers 408, 425, 429 and 5xx, time-outs (``timeout`` seconds) and lost connections are tried again
    ``retries`` times, after 1, 2, 4, ... seconds times ``wait`` or what Retry-After says; anything else is an error at
    once. ``per_minute`` requests are sent at most.
    """

    url: str
    model: str
    key_env: str | None = None
    timeout: float = 60.0
    retries: int = 5
    wait: float = 1.0
    workers: int = 4
    per_minute: float | None = None
    temperature: float = 0.0
    max_tokens: int = 128
    _pace: _Pace = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"url: got {self.url!r}, wanted http://HOST:PORT/v1 or https://...")
        for key, least in (("retries", 0), ("workers", 1), ("max_tokens", 1), ("wait", 0), ("temperature", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: got {getattr(self, key)}, wanted at least {least}")
        for key in ("timeout", "per_minute"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise ValueError(f"{key}: got {getattr(self, key)}, wanted a number above 0")
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ValueError(f"key_env: the environment variable {self.key_env} is not set; export it, or name another")
        object.__setattr__(self, "_pace", _Pace(60 / self.per_minute if self.per_minute else 0.0))

    @property
    def name(self) -> str:
        """The model's name and how it is asked; not the URL, where the same model may move."""
        return f"{self.model} temperature={self.temperature} max_tokens={self.max_tokens}"

    @property
    def at_once(self) -> int:
        """Prompts handed over at a time: enough to keep all workers busy."""
        return 16 * self.workers

    def __call__(self, prompts: Sequence[str]) -> Iterator[str]:
        """The replies, in the order of ``prompts``."""
        pool = ThreadPoolExecutor(self.workers)
        try:
            yield from pool.map(self._reply, prompts)
        finally:
            pool.shutdown(cancel_futures=True)

    def _reply(self, prompt: str) -> str:
        for attempt in range(self.retries + 1):
            self._pace.wait()
            try:
                return self._content(self._post(prompt))
            except HTTPError as error:
                said, pause = self._said(error), error.headers.get("Retry-After", "")
                if error.code not in _PASSING:
                    raise ValueError(
                        f"url={self.url}: answered {said}; see to model, key_env and the server"
                    ) from error
            except (OSError, HTTPException) as error:  # refused, reset, timed out, cut short
                said, pause = f"{type(error).__name__}: {error}", ""
            if attempt < self.retries:
                time.sleep(float(pause) if pause.isdecimal() else self.wait * 2**attempt)
        raise ValueError(
            f"url={self.url}: no reply after {self.retries + 1} tries, the last: {said}; start the server, give it "
            "more timeout, retries or fewer workers, and run again: the replies so far are kept"
        )

    def _post(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        request = Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        with urlopen(request, timeout=self.timeout) as answer:
            return str(answer.read().decode("utf-8", "replace"))

    def _content(self, text: str) -> str:
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            wanted = 'wanted {"choices": [{"message": {"content": "..."}}]}; is the url that of an OpenAI-like server?'
            raise ValueError(f"url={self.url}: answered {text[:200]!r}, {wanted}") from error
        return content if isinstance(content, str) else ""  # null where a model said nothing

    def _said(self, error: HTTPError) -> str:
        return f"{error.code} {error.reason}: {error.read()[:200].decode('utf-8', 'replace')}"


class _Pace:
    """Lets callers through one by one, ``seconds`` apart, from whatever thread they come."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            mine = max(self._next, time.monotonic())
            self._next = mine + self.seconds
        time.sleep(max(0.0, mine - time.monotonic()))


class LocalModel:
    """Greedy replies of a causal language model, a folder or a name on the hub; ``batch_size`` prompts at a time.

    The prompt goes through the tokenizer's chat template where it has one, and as it is where not.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 128,
        dtype: str = "fp32",
        device: str = "auto",
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from hialign.models.pretrained import dtype_of, pretrained, pretrained_weights

        for key, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ValueError(f"{key}: got {value}, wanted at least 1")
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: got {device!r}, wanted auto, cpu or cuda")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = f"{checkpoint} {dtype} max_new_tokens={max_new_tokens}"
        self.at_once = batch_size
        self.max_new_tokens = max_new_tokens
        self.tokenizer: Any = pretrained(AutoTokenizer, "checkpoint", checkpoint, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model: Any = pretrained_weights(AutoModelForCausalLM, "checkpoint", checkpoint, dtype=dtype_of(dtype))
        self.model = model.to(device).eval()

    def __call__(self, prompts: Sequence[str]) -> Iterator[str]:
        """The replies, in the order of ``prompts``."""
        import torch

        for start in range(0, len(prompts), self.at_once):
            texts = [self._written(prompt) for prompt in prompts[start : start + self.at_once]]
            bare = self.tokenizer.chat_template is None  # a template writes the tokenizer's special tokens itself
            inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=bare)
            inputs = {key: inputs[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                rows = self.model.generate(
                    **inputs,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            new = rows[:, inputs["input_ids"].shape[1] :]
            yield from self.tokenizer.batch_decode(new, skip_special_tokens=True)

    def _written(self, prompt: str) -> str:
        if self.tokenizer.chat_template is None:
            return prompt + "\n"
        turn = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
