"""Pure ASGI middleware of a vLLM server: it marks responses with their record's id, and answers for the records.

    GET    /veridifr/v1/records/ID              the record of a finished request
    GET    /veridifr/v1/records/ID/commitment   the commitments alone
    DELETE /veridifr/v1/records/ID
    GET    /veridifr/v1/engine                  the engine as measured, and the fingerprint specification

Bodies pass through untouched, streams too. The API key is checked here: the server's own check covers other paths.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from veridifr.errors import VeridifrError
from veridifr.vllm.records import Ticket
from veridifr.vllm.service import TICKET, Answer, Service, start

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADER = b"x-veridifr-record"
_PREFIX = "/veridifr/"


class Middleware:
    """For ``--middleware veridifr.vllm.middleware.Middleware``; the endpoint plugin adds it by itself."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection. Where capture is off, everything passes."""
        state = getattr(scope.get("app"), "state", None)
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send, state)
            return
        service = getattr(state, "veridifr", None)
        if state is None or service is None or scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _path(scope).startswith(_PREFIX):
            await _reply(send, await _answer(service, scope, keys_of(state.args)))
        elif scope["method"] == "POST":
            await self._mark(service, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _start(self, scope: Scope, receive: Receive, send: Send, state: Any) -> None:
        """Switch capture on when the server starts, unless the endpoint plugin has."""
        if state is not None and getattr(state, "veridifr", None) is None:
            try:
                await start(getattr(state, "engine_client", None), state, getattr(state, "args", None))
            except VeridifrError as error:
                await receive()
                await send({"type": "lifespan.startup.failed", "message": f"veridifr: {error}"})
                return
        await self._app(scope, receive, send)

    async def _mark(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        ticket = Ticket(service.records)

        async def send_marked(message: Any) -> None:
            if message["type"] == "http.response.start" and ticket.record is not None:
                if message["status"] < 400:
                    headers = [*message.get("headers", ()), (HEADER, ticket.record.id.encode("ascii"))]
                    message = {**message, "headers": headers}
                else:
                    service.records.remove(ticket.record, "never given out: the request failed")
            await send(message)

        token = TICKET.set(ticket)
        try:
            await self._app(scope, receive, send_marked)
        finally:
            TICKET.reset(token)


def keys_of(arguments: Any) -> list[str]:
    """The server's API keys, as vLLM reads them: --api-key, else VLLM_API_KEY; empty for an open server."""
    given = getattr(arguments, "api_key", None) or [os.environ.get("VLLM_API_KEY")]
    return [key for key in given if key]


def authorized(headers: list[tuple[bytes, bytes]], keys: list[str]) -> bool:
    """Whether a request brings one of the keys as a bearer token. The time does not depend on which bytes differ."""
    given = [value for name, value in headers if name.lower() == b"authorization"]
    scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    digest = hashlib.sha256(token).digest()
    matches = [hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in keys]
    return not keys or (scheme.lower() == b"bearer" and any(matches))


async def _answer(service: Service, scope: Scope, keys: list[str]) -> Answer:
    if not authorized(list(scope["headers"]), keys):
        return 401, {"error": "Unauthorized"}
    method, parts = scope["method"], _path(scope).removeprefix(_PREFIX).split("/")
    if parts == ["v1", "engine"]:
        return service.engine() if method == "GET" else (405, {"error": "expected GET"})
    if len(parts) not in (3, 4) or parts[:2] != ["v1", "records"] or parts[3:] not in ([], ["commitment"]):
        return 404, {"error": "no such path"}
    try:
        if method == "DELETE" and len(parts) == 3:
            return service.delete(parts[2])
        if method == "GET":
            return await (service.commitment if len(parts) == 4 else service.get)(parts[2])
    except VeridifrError as error:
        return 503, {"error": str(error)}
    return 405, {"error": "expected GET or DELETE"}


async def _reply(send: Send, answer: Answer) -> None:
    status, content = answer
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path") or "")
