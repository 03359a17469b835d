"""A small OpenAI-compatible server on this machine whose answers a test decides."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

Rows = Callable[[Sequence[int]], np.ndarray]
"""Log-probabilities of the token after each of some ids, [len(ids), V]."""
MODEL = "tb7m"


@dataclass
class Api:
    """`answer` gives status and body (an object, or raw bytes) for a path and the request's own body."""

    answer: Callable[[str, dict[str, Any]], tuple[int, Any]]
    headers: dict[str, str] = field(default_factory=dict)
    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)


@contextmanager
def serve(api: Api, certificate: Path | None = None) -> Iterator[Api]:
    """With `certificate`, a file of a key and its certificate, over TLS."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            path = self.path.removeprefix("/v1/")
            api.asked.append((path, body))
            api.authorizations.append(self.headers.get("Authorization"))
            status, value = api.answer(path, body)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(data)), **api.headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    api.url = f"http{'' if certificate is None else 's'}://127.0.0.1:{server.server_port}/v1"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def cards(**more: Any) -> dict[str, Any]:
    """The list of models of a server with one model."""
    return {"object": "list", "data": [{"id": MODEL, "root": "/models/tb7m", "max_model_len": 2048, **more}]}


def listed(logprobs_V: np.ndarray, own: int, count: int) -> dict[int, float]:
    """The `count` likeliest tokens and `own`, as servers list them: own first."""
    best = np.argsort(-logprobs_V, kind="stable")[:count].tolist()
    return {token: float(logprobs_V[token]) for token in [own, *best]}


def vllm_choice(logprobs_TV: np.ndarray, ids: Sequence[int], count: int) -> dict[str, Any]:
    """As vLLM answers to `prompt_logprobs`."""
    entries: list[Any] = [None]
    for row, own in zip(logprobs_TV, ids[1:], strict=False):
        rank = int((row >= row[own]).sum())
        ranks = [rank, *range(1, count + 1)]
        entries.append(
            {
                str(token): {"logprob": value, "rank": place, "decoded_token": "x"}
                for (token, value), place in zip(listed(row, own, count).items(), ranks, strict=False)
            }
        )
    return {"index": 0, "text": "", "logprobs": None, "finish_reason": "length", "prompt_logprobs": entries}


def echo_choice(logprobs_TV: np.ndarray, ids: Sequence[int], count: int, *, named: bool = True) -> dict[str, Any]:
    """As hosted APIs answer to `echo`: tokens by text, or with `named` by id as vLLM writes it."""
    name = (lambda token: f"token_id:{token}") if named else (lambda token: f" word{token}")
    pairs = list(zip(logprobs_TV, ids[1:], strict=False))
    logprobs = {
        "text_offset": list(range(len(ids))),
        "tokens": [name(token) for token in ids],
        "token_logprobs": [None, *(float(row[own]) for row, own in pairs)],
        "top_logprobs": [
            None,
            *({name(t): v for t, v in listed(row, own, count).items()} for row, own in pairs),
        ],
    }
    return {"index": 0, "text": "", "logprobs": logprobs, "finish_reason": "length"}


def model_api(rows: Rows, form: str) -> Api:
    """A server of a model with these rows that answers in one form: prompt_logprobs, echo or text."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "models":
            return 200, cards()
        ids = body["prompt"]
        if form == "prompt_logprobs" and "prompt_logprobs" in body:
            choice = vllm_choice(rows(ids), ids, body["prompt_logprobs"])
        elif form != "prompt_logprobs" and body.get("echo"):
            choice = echo_choice(rows(ids), ids, body["logprobs"], named=form == "echo")
        else:
            choice = {"index": 0, "text": "x", "logprobs": None, "finish_reason": "length"}
        return 200, {"id": "1", "object": "text_completion", "model": body["model"], "choices": [choice]}

    return Api(answer)
