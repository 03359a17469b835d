"""What to ask: a file of prompts, or the set that the package brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veridifr.errors import TraceError
from veridifr.trace import check_ids, check_text
from veridifr.traces.jsonl import read_lines
from veridifr.traces.strict_json import parse_json

DEFAULT = "default"
"""In place of a file: the prompts that come with the package."""
MAX_PROMPTS = 1_000_000
MAX_CHARACTERS = 4_000_000
"""Longest text of one prompt."""
_KINDS = ("prompt", "messages", "prompt_token_ids")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One thing to ask: a text, chat messages (objects with `role` and `content`, both text) or token ids."""

    id: str | None = None
    prompt: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.id is not None and not check_text("id", self.id):
            raise TraceError("id: got an empty string, expected a name for the prompt")
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise TraceError(f"got {' and '.join(given) or 'none'}, expected one of {', '.join(_KINDS)}")
        if self.prompt is not None:
            _text("prompt", self.prompt)
        if self.prompt_token_ids is not None:
            ids = check_ids("prompt_token_ids", self.prompt_token_ids, least=1)
            object.__setattr__(self, "prompt_token_ids", tuple(ids.tolist()))
        if self.messages is not None:
            object.__setattr__(self, "messages", _messages(self.messages))

    def as_chat(self) -> Prompt:
        """A text as a user's message; what is none of the two as it is."""
        if self.prompt is None:
            return self
        return Prompt(id=self.id, messages=({"role": "user", "content": self.prompt},))


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a JSON lines file, or the package's own for `default`. See `Prompt` for the keys of a line.

    Raises `TraceError` ``file:line: field: what is wrong``.
    """
    if str(path) == DEFAULT:
        return default_prompts()
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, line in read_lines(Path(path)):
        try:
            prompt = _prompt(parse_json(line))
            if prompt.id is not None and prompt.id in seen:
                raise TraceError(f"id: {prompt.id!a} occurs twice")
        except TraceError as error:
            raise TraceError(f"{path}:{number}: {error}") from error
        seen |= {prompt.id} if prompt.id is not None else set()
        prompts.append(prompt)
        if len(prompts) > MAX_PROMPTS:
            raise TraceError(f"{path}:{number}: more than {MAX_PROMPTS} prompts")
    if not prompts:
        raise TraceError(f"{path}: holds no prompts")
    return prompts


def default_prompts() -> list[Prompt]:
    """About 300 prompts of many kinds and languages, written for this package."""
    return read_prompts(Path(__file__).parent.parent / "data" / "prompts.jsonl")


def _prompt(value: Any) -> Prompt:
    if not isinstance(value, dict):
        raise TraceError(f"got {type(value).__name__}, expected an object")
    for key in value:
        if key not in ("id", *_KINDS):
            raise TraceError(f"{key[:60]!a}: not a key of a prompt, expected id and one of {', '.join(_KINDS)}")
    return Prompt(**value)


def _messages(value: object) -> tuple[Mapping[str, str], ...]:
    if not isinstance(value, list | tuple) or not value:
        raise TraceError("messages: expected a list of at least one message")
    found = []
    for number, message in enumerate(value):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise TraceError(f"{where}: expected an object with role and content, and nothing else")
        found.append({"role": check_text(f"{where}.role", message["role"]), "content": message["content"]})
        _text(f"{where}.content", message["content"])
    return tuple(found)


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TraceError(f"{name}: got {type(value).__name__}, expected a string")
    if not 0 < len(value) <= MAX_CHARACTERS:
        raise TraceError(f"{name}: got {len(value)} characters, expected 1 to {MAX_CHARACTERS}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise TraceError(f"{name}: holds a lone surrogate, which is no character")
