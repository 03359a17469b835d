"""A vLLM server's surroundings for the middleware: an engine client that says what it is told, and an ASGI client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veridifr.fingerprints import FingerprintSpec
from veridifr.fingerprints.spec import to_dict
from veridifr.vllm.middleware import Middleware
from veridifr.vllm.options import EXTENSION
from veridifr.vllm.server_options import ServerOptions, server_options_to_json

SPEC = FingerprintSpec(seed=5, hidden_size=16, k=4, encoding="float32")
ENGINE = {"name": "vllm", "version": "0.32.0", "runner": "v1", "device": "cpu", "sampler": "vllm-cpu-gumbel-splitmix"}


class FakeClient:
    """What of AsyncLLM the service uses. The tokens of a request follow from its prompt; `lost` names what the worker
    answers instead of "ok", by status."""

    def __init__(self, extension: str = EXTENSION) -> None:
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(worker_extension_cls=extension),
            model_config=SimpleNamespace(model="some/model"),
        )
        self.kept: dict[tuple[str, int | None], tuple[list[int], list[int]]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.closed: list[str] = []
        self.lost: dict[str, str] | None = None
        self.refused: str | None = None
        self.after_first: Callable[[], Any] | None = None

    async def generate(self, prompt: list[int], params: Any, request_id: str, **fields: Any) -> AsyncIterator[Any]:
        """Three steps of one token each, for each of n outputs."""
        delta = params.output_kind.name == "DELTA"
        seen: dict[int, list[int]] = {child: [] for child in range(params.n)}
        try:
            for step in range(3):
                outputs = []
                for child, tokens in seen.items():
                    tokens.append(prompt[0] * 100 + 10 * child + step)
                    name = (request_id, child if params.n > 1 else None)
                    self.kept[name] = (prompt, list(tokens))
                    reason = "length" if step == 2 else None
                    new = tokens[-1:] if delta else list(tokens)
                    outputs.append(SimpleNamespace(index=child, token_ids=new, finish_reason=reason, stop_reason=None))
                yield SimpleNamespace(
                    request_id=request_id, prompt_token_ids=prompt, outputs=outputs, finished=step == 2
                )
                if step == 0 and self.after_first is not None:
                    await self.after_first()
        finally:
            self.closed.append(request_id)

    async def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> list[Any]:
        """The worker extension of one rank and its neighbour."""
        self.calls.append((method, args))
        if self.refused is not None:
            return [{"refused": self.refused}]
        if method == "veridifr_take":
            return [{"requests": [self._take(*name) for name in args[0]]}, {"rank": 1}]
        return [{"engine": ENGINE, "spec": to_dict(SPEC)}, {"rank": 1}]

    def _take(self, name: str, child: int | None, tokens: int) -> dict[str, Any]:
        if self.lost is not None:
            return self.lost
        prompt, made = self.kept.pop((name, child))
        return {
            "status": "ok",
            "reason": None,
            "prompt": np.array(prompt, "<i4").tobytes(),
            "tokens": np.array(made[:tokens], "<i4").tobytes(),
            "values": np.full((tokens, SPEC.k), float(prompt[0]), "<f4").tobytes(),
            "sampling": {"temperature": 1.0, "seed": 3, "max_tokens": 3},
        }


class Server:
    """A vLLM server's application: its handler makes one engine request for each prompt of the body."""

    def __init__(self, client: FakeClient, *, key: str | None = None, served: tuple[str, ...] = ()) -> None:
        arguments = SimpleNamespace(api_key=[key] if key else None, served_model_name=list(served) or None)
        self.client = client
        self.state = SimpleNamespace(engine_client=client, args=arguments)
        self.app = Middleware(self.handle)
        self.body_sent: list[bytes] = []

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        asked = json.loads((await receive())["body"] or b"{}")
        kind = SimpleNamespace(name=asked.get("kind", "FINAL_ONLY"))
        params = SimpleNamespace(n=asked.get("n", 1), output_kind=kind)
        shown = dict(scope["headers"]).get(b"x-request-id", b"cmpl-0").decode()
        streams = [self.client.generate(p, params, f"{shown}-{i}") for i, p in enumerate(asked.get("prompts", []))]
        await send({"type": "http.response.start", "status": asked.get("status", 200), "headers": [(b"a", b"b")]})
        for stream in streams:
            async for output in stream:
                body = json.dumps(output.outputs[0].token_ids).encode()
                self.body_sent.append(body)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                if asked.get("leave"):
                    await stream.aclose()
                    break
        await send({"type": "http.response.body", "body": b""})

    async def start(self) -> list[Any]:
        """The messages of the lifespan's start."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app({"type": "lifespan", "app": self}, receive, send)
        return sent

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request."""
        sent: list[Any] = []
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            named["authorization"] = f"Bearer {key}"

        async def receive() -> Any:
            return {"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "app": self,
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        }
        await self.app(scope, receive, send)
        start = sent[0]
        found = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


RECORD = "x-veridifr-record"


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def started(monkeypatch: pytest.MonkeyPatch, client: FakeClient | None = None, **given: Any) -> Server:
    options = ServerOptions(**{k: v for k, v in given.items() if k not in ("key", "served")})
    monkeypatch.setenv("VERIDIFR_CAPTURE", server_options_to_json(options))
    server = Server(client or FakeClient(), **{k: v for k, v in given.items() if k in ("key", "served")})
    assert await server.start() == [{"type": "lifespan.startup.complete"}]
    return server


async def made(server: Server, body: dict[str, Any], **headers: str) -> str:
    status, found, _ = await server.ask("POST", "/v1/completions", body, **headers)
    assert status == 200
    return found[RECORD]


async def got(server: Server, record: str, method: str = "GET", **given: Any) -> tuple[int, dict[str, Any]]:
    status, headers, body = await server.ask(method, f"/veridifr/v1/records/{record}", **given)
    assert headers["content-type"] == "application/json"
    return status, json.loads(body)
