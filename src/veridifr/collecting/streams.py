"""Server-sent events of a streamed answer, folded into the body that the same server returns in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from veridifr.collecting.answers import MAX_ANSWER_BYTES
from veridifr.errors import TraceError
from veridifr.traces.strict_json import parse_json

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Longest line of a stream."""


class Stream:
    """Takes the bytes of a stream as they come, and gives the whole body once it is complete.

    A stream is complete at ``data: [DONE]``. Raises `TraceError` for what is no stream of completion chunks.
    """

    def __init__(self) -> None:
        self.done = False
        self._rest = bytearray()
        self._total = 0
        self._body: dict[str, Any] = {}
        self._choice: dict[str, Any] = {}
        self._message: dict[str, Any] | None = None
        self._texts: list[str] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._total += len(data)
        if self._total > MAX_ANSWER_BYTES:
            raise TraceError(f"stream: more than {MAX_ANSWER_BYTES} bytes")
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._line(bytes(self._rest + end).rstrip(b"\r"))
            self._rest.clear()
        self._rest += rest
        if len(self._rest) > MAX_EVENT_BYTES:
            raise TraceError(f"stream: a line of more than {MAX_EVENT_BYTES} bytes")

    def body(self) -> dict[str, Any]:
        """The answer in one piece. Raises `TraceError` for a stream that broke off."""
        if not self.done:
            raise TraceError("stream: ended before its last event")
        choice = dict(self._choice)
        if self._message is None:
            choice["text"] = "".join(self._texts)
        else:
            choice["message"] = {**self._message, "content": "".join(self._texts) if self._texts else None}
        return {**self._body, "choices": [choice]}

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:") or self.done:
            return  # comments keep the connection alive; event names and ids say nothing that is needed
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self.done = True
            return
        event = parse_json(data)
        if not isinstance(event, Mapping):
            raise TraceError("stream: an event is no object")
        if event.get("error"):
            raise TraceError("stream: the server reports an error")
        for key in ("model", "usage", "prompt_token_ids"):
            if event.get(key) is not None:
                self._body[key] = event[key]
        choices = event.get("choices") or []
        if not isinstance(choices, list) or len(choices) > 1:
            raise TraceError("stream: an event has several choices, and one was asked for")
        for choice in choices:
            if not isinstance(choice, Mapping):
                raise TraceError("stream: a choice is no object")
            self._fold(choice)

    def _fold(self, choice: Mapping[str, Any]) -> None:
        for key in ("finish_reason", "stop_reason", "prompt_token_ids"):
            if choice.get(key) is not None:
                self._choice[key] = choice[key]
        _extend(self._choice, "token_ids", choice.get("token_ids"))
        self._take_text(choice.get("text"))
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, Mapping):
            kept = self._choice.setdefault("logprobs", {})
            for key in ("content", "tokens"):
                _extend(kept, key, logprobs.get(key))
        delta = choice.get("delta")
        if isinstance(delta, Mapping):
            self._take_text(delta.get("content"))
            # that something else was there is all that is needed of it
            self._message = {**(self._message or {}), **{str(key): True for key, value in delta.items() if value}}

    def _take_text(self, value: object) -> None:
        if value is not None:
            if not isinstance(value, str):
                raise TraceError("stream: a text is no string")
            self._texts.append(value)


def _extend(kept: dict[str, Any], key: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        raise TraceError(f"stream: {key} is no list")
    kept.setdefault(key, []).extend(value)
