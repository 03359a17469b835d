"""An OpenAI-compatible server of ours that counts what it served, and a proxy before it that fails in every way."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Body = dict[str, Any]
REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests",
    500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable"}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One request as it came in. Header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Body:
        return json.loads(self.raw)


@dataclass(frozen=True)
class Response:
    status: int = 200
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Status')}"]
        lines += [f"{k}: {v}" for k, v in {"Content-Length": len(self.content), **self.headers}.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.content


def as_json(value: Any, status: int = 200, **headers: str) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class Listener:
    """A server in a thread of its own; subclasses say what happens on one connection. Close it with `with`.

    With `certificate`, a file of a key and its certificate, it speaks TLS.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._loop = asyncio.new_event_loop()
        started: Future[int] = Future()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        self.port = started.result(30)

    @property
    def url(self) -> str:
        return f"http{'' if self._tls is None else 's'}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(30)

    def _serve(self, started: Future[int]) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main(started))
        self._loop.close()

    async def _main(self, started: Future[int]) -> None:
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2**26, ssl=self._tls)
        started.set_result(server.sockets[0].getsockname()[1])
        await self._stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await read_request(reader)) is not None:
                if not await self.handle(request, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def handle(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False ends the connection."""
        raise NotImplementedError


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    head = await reader.readline()
    if not head:
        return None
    headers = {}
    while line := (await reader.readline()).strip().decode("latin-1"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(head.split()[1].decode(), headers, raw)


class FakeServer(Listener):
    """Serves tokens that follow from the seed. `served` counts, by seed, what was generated to its end.

    `respond` may make another answer of the request and the usual body; `seconds` is what one answer takes.
    """

    def __init__(
        self,
        respond: Callable[[Request, Body], Response | Body] | None = None,
        seconds: float = 0.0,
        certificate: Path | None = None,
    ) -> None:
        self.served: Counter[int] = Counter()
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._now = 0
        self._respond = respond
        self._seconds = seconds
        super().__init__(certificate)

    async def handle(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        self.requests.append(request)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(self._seconds)
        self._now -= 1
        answer: Response | Body = usual_body(request)
        if self._respond is not None:
            answer = self._respond(request, answer)
        response = answer if isinstance(answer, Response) else as_json(answer)
        if response.status == 200:
            self.served[request.body["seed"]] += 1
        writer.write(response.encoded())
        await writer.drain()
        return True


def tokens_for(body: Body) -> list[int]:
    """What the fake model says: it never ends before it must."""
    rng = random.Random(body["seed"])
    return [rng.randrange(3, 8000) for _ in range(body["max_tokens"])]


def prompt_for(body: Body) -> list[int]:
    if isinstance(body.get("prompt"), list):
        return body["prompt"]
    return list(json.dumps(body.get("prompt") or body["messages"]).encode())


def usual_body(request: Request) -> Body:
    body, ids = request.body, tokens_for(request.body)
    usage = {"prompt_tokens": len(prompt_for(body)), "completion_tokens": len(ids)}
    text = " ".join(map(str, ids))
    choice: Body = {"index": 0, "finish_reason": "length", "stop_reason": None}
    top: Body = {"id": "x", "object": "text_completion", "model": body["model"], "usage": usage}
    if body.get("return_token_ids"):
        choice["token_ids"] = ids
    if request.path.endswith("/chat/completions"):
        choice["message"] = {"role": "assistant", "content": text}
        top["prompt_token_ids"] = prompt_for(body) if body.get("return_token_ids") else None
    else:
        choice["text"] = text
        choice["prompt_token_ids"] = prompt_for(body) if body.get("return_token_ids") else None
    return {**top, "choices": [choice]}


def streamed(request: Request, body: Body) -> Response | Body:
    """The usual body as events where that was asked for: one for each token, then the usage."""
    if not request.body.get("stream"):
        return body
    choice = body["choices"][0]
    events = [{**body, "usage": None, "choices": [
        {"index": 0, "text": "x", "token_ids": [token], "finish_reason": None,
         "prompt_token_ids": choice["prompt_token_ids"] if not n else None}]}
        for n, token in enumerate(choice["token_ids"])]  # fmt: skip
    events[-1]["choices"][0]["finish_reason"] = "length"
    events.append({**body, "choices": []})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ": ping\n\ndata: [DONE]\n\n"
    return Response(200, text.encode(), {"Content-Type": "text/event-stream"})


FAULTS = ("429", "429 later", "500", "502", "refused", "reset", "half", "other model", "wrong counts", "stall")
"""Every way to fail. With `refused`, `429` and `500` the server is not reached."""


class FaultyProxy(Listener):
    """Passes requests to a server, `share` of them with a fault. `seen` counts the faults that happened."""

    def __init__(self, port: int, *, share: float = 0.2, seed: int = 0, faults: tuple[str, ...] = FAULTS) -> None:
        self.seen: Counter[str] = Counter()
        self._target = port
        self._share = share
        self._rng = random.Random(seed)
        self._faults = faults
        super().__init__()

    async def handle(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        fault = self._rng.choice(self._faults) if self._rng.random() < self._share else None
        self.seen[fault or "none"] += 1
        if fault == "refused":
            return False
        if fault in ("429", "429 later", "500"):
            headers = {"Retry-After": "0"} if fault == "429 later" else {}
            status = 500 if fault == "500" else 429
            writer.write(as_json({"error": {"message": "try again"}}, status, **headers).encoded())
            return True
        whole = await forward(request, self._target)
        if fault == "stall":
            await asyncio.sleep(3600)
        writer.write(faulty(fault, whole))
        await writer.drain()
        if fault == "reset":
            await asyncio.sleep(0.005)  # what was written arrives first
            reset(writer)
        return fault != "reset"


async def forward(request: Request, port: int) -> bytes:
    """The whole response of the server on that port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**26)
    try:
        headers = {**request.headers, "content-length": str(len(request.raw))}
        head = [f"POST {request.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*head, "", ""]).encode() + request.raw)
        lines = [await reader.readline()]
        while lines[-1].strip():
            lines.append(await reader.readline())
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length"))
        return b"".join(lines) + await reader.readexactly(length)
    finally:
        writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection off: the other side is sent a reset, not an end."""
    handle: socket.socket = writer.get_extra_info("socket")
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Relay(Listener):
    """Passes each request on to the port that `route` names, with the body that `change` makes of it."""

    def __init__(self, route: Callable[[Body], int], change: Callable[[Body], Body] = lambda body: body) -> None:
        self._route = route
        self._change = change
        super().__init__()

    async def handle(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        port, raw = self._route(request.body), json.dumps(self._change(request.body)).encode()
        writer.write(await forward(Request(request.path, request.headers, raw), port))
        await writer.drain()
        return True


def faulty(fault: str | None, whole: bytes) -> bytes:
    """A response with a fault put into it."""
    head, _, content = whole.partition(b"\r\n\r\n")
    if fault == "reset":
        return head + b"\r\n\r\n" + content[: len(content) // 2]
    if fault == "half":
        return Response(200, content[: len(content) // 2]).encoded()
    if fault == "502":
        return Response(502, b"<html>Bad Gateway</html>").encoded()
    if fault == "other model":
        return Response(200, re.sub(rb'"model": "[^"]*"', b'"model": "another"', content)).encoded()
    if fault == "wrong counts":
        return Response(200, re.sub(rb'("(?:prompt|completion)_tokens": )\d+', rb"\g<1>1000000", content)).encoded()
    return whole
