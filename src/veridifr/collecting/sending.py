"""One attempt over HTTP: an answer, or why there is none and whether it may have been paid for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from veridifr.collecting.answers import MAX_ANSWER_BYTES, Answer, read_answer
from veridifr.collecting.endpoint import Endpoint
from veridifr.collecting.streams import Stream
from veridifr.errors import TraceError, require
from veridifr.traces.strict_json import parse_json

if TYPE_CHECKING:
    import httpx

_MAX_ERROR_BYTES = 65_536
_CONNECT_SECONDS = 30.0
_FOR_ALL = (401, 402, 403, 404, 405, 407, 451)
"""Refusals that would meet every other request too."""
_RETRIED = (408, 409, 425, 429)
_MAYBE_PAID = (408, 502, 504)
"""A gateway that lost its server: the answer may have been made, and be on the invoice."""


@dataclass(eq=False)
class Failure(Exception):
    """An attempt without a usable answer. `maybe_paid`: the server may have done the work. `again`: another attempt
    may fare better, `after` so many seconds if the server said so. `for_all`: no request will fare better."""

    why: str
    maybe_paid: bool = False
    again: bool = False
    after: float | None = None
    for_all: bool = False


class Sender:
    """Sends requests to one endpoint, at most `connections` at a time. Close it when done."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        self._httpx: Any = require("httpx", "http")
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key.secret}"
        self._endpoint = endpoint
        self._client: httpx.AsyncClient = self._httpx.AsyncClient(
            headers=headers,
            follow_redirects=False,  # a redirect could carry the key elsewhere
            timeout=self._httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=self._httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def send(self, path: str, body: Mapping[str, Any]) -> Answer:
        """One attempt. Raises `Failure`, whose text has been cleaned of the key."""
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                return await self._attempt(path, json.dumps(body).encode("ascii"))
        except TimeoutError:
            why = f"no answer within {self._endpoint.timeout:g} seconds"
            raise Failure(why, maybe_paid=True, again=True) from None
        except (self._httpx.ConnectError, self._httpx.ConnectTimeout, self._httpx.PoolTimeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise Failure(f"the certificate of {self._endpoint.host} does not hold", for_all=True) from None
            raise Failure(f"{self._endpoint.host} cannot be reached", again=True) from None
        except self._httpx.TransportError as error:
            why = f"the connection broke: {type(error).__name__}"
            raise Failure(why, maybe_paid=True, again=True) from None
        except (self._httpx.InvalidURL, self._httpx.HTTPError) as error:
            raise Failure(f"cannot be sent: {type(error).__name__}", for_all=True) from None
        except TraceError as error:
            why = f"the answer cannot be read: {self._endpoint.clean(str(error))}"
            raise Failure(why, maybe_paid=True, again=True) from None

    async def _attempt(self, path: str, content: bytes) -> Answer:
        async with self._client.stream("POST", f"{self._endpoint.base_url}/{path}", content=content) as response:
            if response.status_code != 200:
                raise await self._refusal(response)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise TraceError("it is compressed, which was not asked for")
            if self._endpoint.stream:
                stream = Stream()
                async for data in response.aiter_raw():
                    stream.feed(data)
                return read_answer(stream.body())
            body = parse_json(await _bounded(response.aiter_raw(), MAX_ANSWER_BYTES))
        if isinstance(body, Mapping) and body.get("error"):
            raise Failure(f"an error in place of an answer: {self._said(body)}", maybe_paid=True, again=True)
        return read_answer(body)

    async def _refusal(self, response: httpx.Response) -> Failure:
        """What a status other than 200 means for this request and the others."""
        status = response.status_code
        if 300 <= status < 400:
            return Failure(f"status {status}: redirects are not followed; give the final base URL", for_all=True)
        if status in (401, 403):
            return Failure(f"status {status}: the key is missing or was not accepted", for_all=True)
        try:
            data = await _bounded(response.aiter_raw(), _MAX_ERROR_BYTES)
        except (TraceError, self._httpx.TransportError):
            data = b""
        why = f"status {status}: {self._said(data)}".removesuffix(": ")
        if status in _FOR_ALL:
            return Failure(why, for_all=True)
        if status in _RETRIED or status >= 500:
            after = _retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
            maybe = status in _MAYBE_PAID or status > 504
            return Failure(why, maybe_paid=maybe, again=True, after=after)
        return Failure(why)

    def _said(self, body: bytes | Mapping[str, Any]) -> str:
        """A server's own words on an error, cleaned."""
        found: Any = body
        if isinstance(body, bytes):
            try:
                found = parse_json(body)
            except TraceError:
                return self._endpoint.clean(body.decode("utf-8", errors="replace"))
        for key in ("error", "message", "detail"):
            found = found.get(key, found) if isinstance(found, Mapping) else found
        return self._endpoint.clean(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))


async def _bounded(chunks: AsyncIterator[bytes], most: int) -> bytes:
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise TraceError(f"it has more than {most} bytes")
    return bytes(data)


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or a date; None if it is neither."""
    if value is None or len(value) > 60:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())
