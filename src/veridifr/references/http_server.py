"""One server spoken to over HTTP: bounded answers, few retries, and a key that appears nowhere else.

The server is trusted for its numbers, but what arrives is checked like anything from outside: its size before it is
read, and its depth and types before it is used.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from veridifr.errors import ReferenceError, require
from veridifr.traces.strict_json import MAX_DOCUMENT_BYTES, parse_json

KEY_VARIABLE = "VERIDIFR_REFERENCE_KEY"
"""The environment variable that holds the key, if the server wants one."""
_PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further try."""
_CONNECT, _SILENCE, _WHOLE = 10.0, 300.0, 900.0
"""Seconds to connect, between two pieces of an answer, and for one answer in all."""
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LOCAL = ("localhost", "127.0.0.1", "::1")
_SHOWN = 300


def read_key(file: Path | None) -> str | None:
    """The key in `file`, or else in the environment variable `KEY_VARIABLE`; None without either. Never shown."""
    if file is None:
        key, where = os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE
    else:
        where = str(file)
        try:
            with file.open("rb") as handle:
                key = handle.read(8193).decode("ascii", errors="replace")
        except OSError as error:
            raise ReferenceError(f"reference key: {file}: cannot be read: {error.strerror}") from None
        if not key.strip():
            raise ReferenceError(f"reference key: {file}: is empty")
    key = key.strip()
    if len(key) > 8192 or not all("!" <= char <= "~" for char in key):
        raise ReferenceError(f"reference key: {where}: holds something else than one line of printable ASCII")
    return key or None


class Server:
    """The API at `url` (as given to an OpenAI client: with its ``/v1``). Safe to use from several threads."""

    def __init__(self, url: str, key: str | None) -> None:
        httpx = require("httpx", "http")
        self._check(url, key)
        self._url, self._key = url.rstrip("/"), key
        self._failures = (httpx.TransportError,)
        headers = {"Accept-Encoding": "identity"}  # what is unpacked on the way could not be bounded
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(_SILENCE, connect=_CONNECT),
            limits=httpx.Limits(max_keepalive_connections=0),  # a reference has no end at which to close them
            follow_redirects=False,
        )

    @staticmethod
    def _check(url: str, key: str | None) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or not url.isascii() or not url.isprintable() or " " in url:
            raise ReferenceError(f"reference {url!a}: not a URL")
        if parts.username is not None or parts.query or parts.fragment:
            raise ReferenceError(
                f"reference {parts.scheme}://{host}: a name, password, query or fragment in the URL would end up in "
                f"reports; a key belongs into {KEY_VARIABLE}"
            )
        if key is not None and parts.scheme == "http" and host not in _LOCAL:
            raise ReferenceError(f"reference {url}: the key would be sent unencrypted; use https")

    def get(self, path: str) -> dict[str, Any]:
        """The object at `path` below the URL; `ReferenceError` for anything else."""
        return self._object("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The object that the server answers to `body`; `ReferenceError` for anything else."""
        return self._object("POST", path, json.dumps(body).encode())

    def _object(self, method: str, path: str, content: bytes | None) -> dict[str, Any]:
        status, data = self._tried(method, path, content)
        if status != 200:
            hint = "; the URL usually ends in /v1" if status == 404 else ""
            raise self._error(path, f"status {status}{hint}: {self._shown(data)}")
        try:
            value = parse_json(data, error=ReferenceError)
        except ReferenceError as error:
            raise self._error(path, str(error)) from None
        if not isinstance(value, dict):
            raise self._error(path, f"got {type(value).__name__}, expected an object")
        return value

    def _tried(self, method: str, path: str, content: bytes | None) -> tuple[int, bytes]:
        """Status and body, after further tries where the failure may pass."""
        for pause in (*_PAUSES, None):
            try:
                status, data = self._once(method, path, content)
            except self._failures as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise self._error(path, "the server's certificate does not hold") from None
                if pause is None:
                    raise self._error(path, f"no answer: {self._shown(str(error).encode()) or _name(error)}") from None
            else:
                if status not in _AGAIN or pause is None:
                    return status, data
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, path: str, content: bytes | None) -> tuple[int, bytes]:
        data, until = bytearray(), time.monotonic() + _WHOLE
        headers = {} if content is None else {"Content-Type": "application/json"}
        with self._client.stream(method, f"{self._url}/{path}", content=content, headers=headers) as response:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise self._error(path, "the answer is compressed, although that was not asked for")
            for piece in response.iter_raw():
                data += piece
                if len(data) > MAX_DOCUMENT_BYTES:
                    raise self._error(
                        path, f"more than {MAX_DOCUMENT_BYTES} bytes; ask for fewer top logprobs or shorter sequences"
                    )
                if time.monotonic() > until:
                    raise self._error(path, f"took longer than {_WHOLE:g} s")
            return response.status_code, bytes(data)

    def _shown(self, data: bytes) -> str:
        """The start of what a server or a library says, on one line, without the key and without control characters."""
        text = data[: 4 * _SHOWN].decode("utf-8", errors="replace")
        if self._key is not None:
            text = text.replace(self._key, "[key]")
        text = " ".join(text.split())[:_SHOWN]
        return "".join(char if char.isprintable() else "?" for char in text)

    def _error(self, path: str, what: str) -> ReferenceError:
        return ReferenceError(f"reference {self._url}/{path}: {what}")


def _name(error: BaseException) -> str:
    return type(error).__name__
