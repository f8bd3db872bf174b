"""A small OpenAI-compatible server on the toy language, that can be told to misbehave.

It keeps the keys and values of one sequence, as llama.cpp's server with one slot does, and reports how much of a
prompt that saved. Its tokens are bytes, of which it draws the toy's characters; with ``ids`` it takes and gives token
ids the way vLLM does.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tiny import EOS, byte_tokenizer
from toy import SYMBOLS, toy_model

TOKENIZER = byte_tokenizer()
# The toy's symbols as the server's tokens: byte_tokenizer's, of which the last ends a text.
_TOKENS = [EOS, *(TOKENIZER.encode(symbol)[0] for symbol in SYMBOLS[1:])]

Fault = Callable[["Handler", dict[str, Any]], bool]
"""Answers a request in place of the server; whether it did."""


@dataclass
class Fake:
    """The server's settings, and what it has seen.

    Attributes:
        model: next-token probabilities of a tuple of tokens.
        logprobs: whether it reports log-probabilities.
        tempered: whether it reports those of the tempered distribution.
        reports_end: whether the end-of-text token is among the tokens that it reports.
        echoes: whether it scores prompts; "late", with each log-probability one place too late.
        seeded: whether it heeds seeds.
        several: whether it heeds ``n``.
        strict: whether it refuses options that are not OpenAI's.
        ids: whether it takes and gives token ids.
        completions: whether it has `/v1/completions`; else only chats.
        continues: whether its chats go on with an assistant's message.
        context: its limit.
        key: the key that it asks for.
        models: that it serves.
        pause: seconds for each token.
        fault: see `Fault`.
        requests: the bodies of the requests so far.
        open: requests being answered at the moment, and at most.
    """

    model: Callable[[tuple[int, ...]], np.ndarray] = toy_model
    logprobs: bool = True
    tempered: bool = False
    reports_end: bool = True
    echoes: bool | str = True
    seeded: bool = True
    several: bool = False
    strict: bool = False
    ids: bool = False
    completions: bool = True
    continues: bool = False
    context: int = 128
    key: str | None = None
    models: tuple[str, ...] = ("toy",)
    pause: float = 0.0
    fault: Fault | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    broken: int = 0
    open: int = 0
    most_open: int = 0
    slot: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def law(self, tokens: list[int]) -> np.ndarray:
        """Next-token probabilities over the server's tokens."""
        known = tuple(_TOKENS.index(token) for token in tokens if token in _TOKENS)
        law = np.zeros(TOKENIZER.vocab_size)
        law[_TOKENS] = self.model(known)
        return law

    def draw(self, body: dict[str, Any], tokens: list[int], index: int) -> Iterator[tuple[int, float, float]]:
        """Token, log-probability and the likeliest token's, one after the other; an end-of-text token last."""
        seed = body.get("seed") if self.seeded else None
        rng = np.random.default_rng(None if seed is None else [seed, index])
        temperature = body.get("temperature", 1.0)
        for _ in range(body.get("max_tokens", 16)):
            if len(tokens) >= self.context:
                return
            law = self.law(tokens)
            with np.errstate(divide="ignore"):
                logits = np.log(law)
            for token, bias in (body.get("logit_bias") or {}).items():
                logits[int(token)] = max(logits[int(token)], -50) + bias
            hot = np.exp((logits - logits.max()) / (temperature or 1))
            hot /= hot.sum()
            token = int(np.argmax(logits)) if temperature == 0 else int(rng.choice(len(hot), p=hot))
            told = hot if self.tempered and temperature else np.exp(logits - logits.max())
            told = told / told.sum()
            tokens = [*tokens, token]
            if self.pause:
                time.sleep(self.pause)
            yield token, float(np.log(told[token])), float(np.log(told.max()))
            if token == EOS:
                return


def encode(text: str) -> list[int]:
    """Token ids; the end-of-text token may be written out."""
    first, *others = text.split("<eos>")
    return TOKENIZER.encode(first) + [token for other in others for token in (EOS, *TOKENIZER.encode(other))]


def spelling(token: int) -> str:
    return TOKENIZER.decode([token])


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.answer({"error": {"message": message}}, status, **headers)

    def allowed(self) -> bool:
        given = self.headers.get("Authorization")
        if self.fake.key is None or given == f"Bearer {self.fake.key}":
            return True
        self.refuse(401, f"wrong key: {given}")
        return False

    def do_GET(self) -> None:  # noqa: N802
        if not self.allowed():
            return
        if self.path != "/v1/models":
            self.refuse(404, "no such path")
            return
        # What is made of another model names it before a plus.
        parents = {name: name.partition("+")[0] if "+" in name else None for name in self.fake.models}
        size = self.fake.context
        self.answer({"data": [{"id": n, "parent": p, "max_model_len": size} for n, p in parents.items()]})

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake = self.fake
        with fake.lock:
            fake.requests.append(body)
            fake.open += 1
            fake.most_open = max(fake.open, fake.most_open)
        try:
            self._post(body)
        except (BrokenPipeError, ConnectionResetError):
            fake.broken += 1
        finally:
            with fake.lock:
                fake.open -= 1

    def _post(self, body: dict[str, Any]) -> None:
        fake, chat = self.fake, self.path == "/v1/chat/completions"
        if not self.allowed() or (fake.fault is not None and fake.fault(self, body)):
            return
        if self.path != "/v1/completions" and not chat or (not chat and not fake.completions):
            self.refuse(404, "no such path")
            return
        if fake.strict and (unknown := body.keys() & {"top_k", "min_p", "repetition_penalty", "stream_options"}):
            self.refuse(400, f"unrecognized arguments: {sorted(unknown)}")
            return
        if chat:
            text = "".join(message["content"] for message in body["messages"] if message["role"] != "assistant") + "?"
            if body["messages"][-1]["role"] == "assistant" and fake.continues:
                text += body["messages"][-1]["content"]
            prompt = encode(text)
        elif isinstance(body["prompt"], str):
            text, prompt = body["prompt"], encode(body["prompt"])
        elif fake.ids:
            text, prompt = TOKENIZER.decode(body["prompt"]), list(body["prompt"])
        else:
            self.refuse(422, "prompt must be a string")
            return
        if len(prompt) + body["max_tokens"] > fake.context:
            self.refuse(
                400,
                f"This model's maximum context length is {fake.context} tokens. However, you requested "
                f"{len(prompt) + body['max_tokens']} tokens ({len(prompt)} in the messages, "
                f"{body['max_tokens']} in the completion).",
            )
            return
        with fake.lock:
            cached = next((i for i, (a, b) in enumerate(zip(prompt, fake.slot, strict=False)) if a != b), None)
            cached = min(len(prompt), len(fake.slot)) if cached is None else cached
            fake.slot = list(prompt)
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": cached}}
        if body.get("stream"):
            self._stream(body, chat, prompt, usage)
            return
        found = [self._choice(body, chat, text, prompt, i) for i in range(body.get("n", 1) if fake.several else 1)]
        usage["completion_tokens"] = sum(count for _, count in found)
        self.answer({"choices": [choice for choice, _ in found], "usage": usage})

    def _choice(
        self, body: dict[str, Any], chat: bool, text: str, prompt: list[int], index: int
    ) -> tuple[dict[str, Any], int]:
        stops, drawn, reason = body.get("stop") or [], [], "length"
        for drawing in self.fake.draw(body, prompt, index):
            drawn.append(drawing)
            written = "".join(spelling(token) for token, _, _ in drawn)
            if drawing[0] == EOS or any(stop in written for stop in stops):
                reason = "stop"
                break
        said = "".join(spelling(token) for token, _, _ in drawn)
        for stop in stops:
            said = said.split(stop)[0]
        reported = drawn if self.fake.reports_end or not drawn or drawn[-1][0] != EOS else drawn[:-1]
        entries = [(token, lp, best) for token, lp, best in reported]
        if body.get("echo"):
            said = text + said
            if self.fake.echoes:
                laws = [np.log(self.fake.law(prompt[:i]) + 1e-30) for i in range(len(prompt))]
                scores = [float(law[token]) for law, token in zip(laws, prompt, strict=True)]
                scores = [0.0, *scores[:-1]] if self.fake.echoes == "late" else scores
                told: list[Any] = [(prompt[0], None, None)] if prompt else []
                told += [(token, score, score) for token, score in zip(prompt[1:], scores[1:], strict=True)]
                entries = told + entries
        return {**self._said(body, chat, said, entries), "index": index, "finish_reason": reason}, len(drawn)

    def _said(self, body: dict[str, Any], chat: bool, said: str, entries: list[Any]) -> dict[str, Any]:
        names = [f"token_id:{t}" if body.get("return_tokens_as_token_ids") and self.fake.ids else spelling(t)
                 for t, _, _ in entries]  # fmt: skip
        logprobs: dict[str, Any] | None = None
        if self.fake.logprobs and body.get("logprobs") is not None and chat:
            content = [
                {"token": name, "logprob": lp, "top_logprobs": [{"token": "", "logprob": best}]}
                for name, (_, lp, best) in zip(names, entries, strict=True)
            ]
            logprobs = {"content": content}
        elif self.fake.logprobs and body.get("logprobs") is not None:
            logprobs = {
                "tokens": names,
                "token_logprobs": [lp for _, lp, _ in entries],
                "top_logprobs": [None if best is None else {"": best} for _, _, best in entries],
            }
        word = {"message": {"content": said}} if chat else {"text": said}
        return {**word, "logprobs": logprobs}

    def _stream(self, body: dict[str, Any], chat: bool, prompt: list[int], usage: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        count, reason = 0, "length"
        for token, lp, best in self.fake.draw(body, prompt, 0):
            count += 1
            if token == EOS:
                reason = "stop"
            entries = [] if token == EOS and not self.fake.reports_end else [(token, lp, best)]
            said = self._said(body, chat, spelling(token), entries)
            if chat:
                said["delta"] = said.pop("message")
            self.event({"choices": [{**said, "index": 0, "finish_reason": None}]})
        empty = {"delta": {}} if chat else {"text": ""}
        self.event({"choices": [{**empty, "index": 0, "finish_reason": reason}]})
        self.event({"choices": [], "usage": {**usage, "completion_tokens": count}})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def event(self, value: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.wfile.write(b"data: " + data + b"\n\n")
        self.wfile.flush()


@contextlib.contextmanager
def fake_server(**settings: Any) -> Iterator[Fake]:
    """A running server with these settings; its ``url`` is where."""
    fake = Fake(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
