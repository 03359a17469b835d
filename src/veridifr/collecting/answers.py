"""What a server answered, read with suspicion: every field by its type and size, what is not understood left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veridifr.collecting.budget import Use
from veridifr.errors import TraceError
from veridifr.trace import MAX_TOKEN_ID, MAX_TOKENS, check_ids, check_int, check_text

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Largest body of one answer, streamed or not."""
_MOST = 2**53
_TOKEN_ID = re.compile(r"token_id:(0|[1-9][0-9]{0,9})\Z")
_APART = ("reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")
"""What a message may hold besides its content: it was sampled too, and its text is not all of what was."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One complete answer. None: not stated. `tokens` are the strings of its log-probabilities as bytes; `apart` names
    what the server returned apart from the text."""

    model: str | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    tokens: tuple[bytes, ...] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    usage: Use | None = None
    apart: tuple[str, ...] = ()

    @property
    def counted(self) -> int:
        """How many output tokens were seen to be returned."""
        return len(self.token_ids if self.token_ids is not None else self.tokens or ())

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; what is not stated is left out."""
        value: dict[str, Any] = {
            "model": self.model,
            "text": self.text,
            "token_ids": None if self.token_ids is None else list(self.token_ids),
            "prompt_token_ids": None if self.prompt_token_ids is None else list(self.prompt_token_ids),
            "tokens": None if self.tokens is None else [token.hex() for token in self.tokens],
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "usage": None if self.usage is None else list(self.usage),
            "apart": list(self.apart) or None,
        }
        return {key: item for key, item in value.items() if item is not None}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Answer:
        """What `to_dict` wrote."""
        tokens, usage = value.get("tokens"), value.get("usage")
        return cls(
            model=value.get("model"),
            text=value.get("text"),
            token_ids=_as_tuple(value.get("token_ids")),
            prompt_token_ids=_as_tuple(value.get("prompt_token_ids")),
            tokens=None if tokens is None else tuple(bytes.fromhex(token) for token in tokens),
            finish_reason=value.get("finish_reason"),
            stop_reason=value.get("stop_reason"),
            usage=None if usage is None else Use(*usage),
            apart=tuple(value.get("apart", ())),
        )

    def strings(self) -> Sequence[str]:
        """Every text that the server chose."""
        found = [self.model, self.text, self.finish_reason, self.stop_reason]
        joined = b"".join(self.tokens or ()).decode("utf-8", errors="replace")
        return [text for text in (*found, joined) if isinstance(text, str)]


def read_answer(body: object) -> Answer:
    """The answer in a parsed body of ``/completions`` or ``/chat/completions``. Raises `TraceError` naming the field.

    One choice is expected, as one was asked for.
    """
    if not isinstance(body, Mapping):
        raise TraceError(f"answer: got {type(body).__name__}, expected an object")
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise TraceError("choices: expected a list of one choice")
    choice = choices[0]
    message = choice.get("message")
    if message is not None and not isinstance(message, Mapping):
        raise TraceError("choices[0].message: expected an object")
    text = choice.get("text") if message is None else message.get("content")
    if text is not None and not isinstance(text, str):
        raise TraceError("choices[0]: the text is no string")
    ids, tokens = _listed(choice.get("logprobs"))
    stated = choice.get("token_ids")
    prompt = choice.get("prompt_token_ids", body.get("prompt_token_ids"))
    stop = choice.get("stop_reason")
    if stop is not None and not isinstance(stop, str):
        stop = check_int("choices[0].stop_reason", stop, 0, MAX_TOKEN_ID)
    return Answer(
        model=None if body.get("model") is None else check_text("model", body["model"]),
        text=text,
        token_ids=ids if stated is None else _ids("choices[0].token_ids", stated),
        prompt_token_ids=None if prompt is None else _ids("prompt_token_ids", prompt),
        tokens=tokens,
        finish_reason=_optional_text("choices[0].finish_reason", choice.get("finish_reason")),
        stop_reason=stop if stop is None or isinstance(stop, int) else check_text("choices[0].stop_reason", stop),
        usage=_usage(body.get("usage")),
        apart=tuple(name for name in _APART if message is not None and message.get(name)),
    )


def _listed(logprobs: object) -> tuple[tuple[int, ...] | None, tuple[bytes, ...] | None]:
    """Token ids (where the strings are ``token_id:N``) or token strings of the log-probabilities, if there are any."""
    if not isinstance(logprobs, Mapping):
        return None, None
    content = logprobs.get("content")
    entries = content if isinstance(content, list) else logprobs.get("tokens")
    if not isinstance(entries, list) or not entries:
        return None, None
    if len(entries) > MAX_TOKENS:
        raise TraceError(f"logprobs: got {len(entries)} tokens, expected at most {MAX_TOKENS}")
    tokens = tuple(_token(f"logprobs[{i}]", entry) for i, entry in enumerate(entries))
    ids = [_TOKEN_ID.match(token.decode("utf-8", errors="replace")) for token in tokens]
    if all(ids):
        return _ids("logprobs", [int(found[1]) for found in ids if found]), None
    return None, tokens


def _token(name: str, entry: object) -> bytes:
    text = entry.get("token") if isinstance(entry, Mapping) else entry
    raw = entry.get("bytes") if isinstance(entry, Mapping) else None
    if not isinstance(text, str):
        raise TraceError(f"{name}: expected a token's string")
    if isinstance(raw, list) and not text.startswith("token_id:"):
        if not all(type(byte) is int and 0 <= byte <= 255 for byte in raw):
            raise TraceError(f"{name}.bytes: expected numbers from 0 to 255")
        return bytes(raw)
    return text.encode("utf-8")


def _usage(value: object) -> Use | None:
    """What the server says it counted; None if it does not say both numbers in a form that can be used."""
    if not isinstance(value, Mapping):
        return None
    prompt, output = value.get("prompt_tokens"), value.get("completion_tokens")
    if type(prompt) is not int or type(output) is not int or not (0 <= prompt <= _MOST and 0 <= output <= _MOST):
        return None
    return Use(prompt, output)


def _ids(name: str, value: object) -> tuple[int, ...]:
    return tuple(check_ids(name, value).tolist())


def _optional_text(name: str, value: object) -> str | None:
    return None if value is None else check_text(name, value)


def _as_tuple(value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(value)
