"""From prompts and settings to requests: what is sent, under which seed, and what it can cost at worst."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from veridifr.collecting.budget import Use
from veridifr.collecting.endpoint import Endpoint
from veridifr.collecting.prompts import Prompt
from veridifr.collecting.tokenizer import Tokenizer
from veridifr.errors import TraceError, UnsupportedError
from veridifr.seeds import ASKED, SeedIssuer
from veridifr.trace import MAX_TOKENS, UNSCORED, EngineRecord, Sampling, Trace
from veridifr.traces.codec import sampling_to_dict

COMPLETIONS, CHAT = "completions", "chat/completions"
SEND = ("ids", "text")
"""How prompts are sent where a tokenizer is at hand: as its token ids, or as they are."""
PROMPT_UNKNOWN = "prompt_token_ids: not known: the server did not return them, and no tokenizer was given"
_TEMPLATE_TOKENS, _MESSAGE_TOKENS = 512, 16
"""Most tokens that a server's chat template is taken to add: once, and for each message. A template's default system
message has some tens of tokens."""
_NEVER = ("bad_words_token_ids",)
_NOT_IN_OPENAI = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "allowed_token_ids",
)
_EXPLICIT: Mapping[str, float | int] = {
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_EXPLICIT_VLLM: Mapping[str, float | int] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Settings that are sent even where they are off: else a server may put the defaults of the model's author there."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request. `request` is what goes on record; its prompt is empty while only the server knows the ids."""

    index: int
    request: Trace
    path: str
    body: Mapping[str, Any]
    worst: Use

    @property
    def prompt_known(self) -> bool:
        """Whether the prompt's token ids are known before an answer."""
        return len(self.request.prompt_token_ids) > 0

    def digest(self) -> str:
        """SHA-256 (hex) of what is sent, by which a ledger knows its requests."""
        text = json.dumps([self.request.id, self.path, self.body], sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_sampling(sampling: Sampling, dialect: str) -> None:
    """Refuse, by name, what a request in this dialect cannot say. Raises `UnsupportedError` and `TraceError`."""
    if sampling.seed is not None:
        raise UnsupportedError("sampling.seed", "is issued for each request from the secret, and can't be given")
    if sampling.max_tokens is None:
        raise TraceError("sampling.max_tokens: missing, and needed to know what a request can cost")
    for name in sampling.extra:
        raise UnsupportedError(f"sampling.{name[:60]}", "is no setting that this version knows how to ask for")
    stated = sampling_to_dict(sampling)
    for name in _NEVER + (_NOT_IN_OPENAI if dialect == "openai" else ()):
        if name in stated:
            raise UnsupportedError(f"sampling.{name}", f"can't be asked for in the dialect {dialect!r}")


def make_asks(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    endpoint: Endpoint,
    issuer: SeedIssuer,
    engine: EngineRecord,
    tokenizer: Tokenizer | None = None,
    send: str = "ids",
) -> list[Ask]:
    """One request for each prompt, in order, with its seed.

    With a tokenizer, prompts become token ids here and are sent as such (`send` "ids"), or as they are ("text").
    """
    check_sampling(sampling, endpoint.dialect)
    if not prompts:
        raise TraceError("prompts: got none")
    if send not in SEND:
        raise TraceError(f"send: got {send[:40]!a}, expected one of {', '.join(SEND)}")
    plain = [
        _request(prompt, f"{issuer.audit_id}/{index:04d}", sampling, endpoint.model, engine, tokenizer)
        for index, prompt in enumerate(prompts)
    ]
    names = [request.id for request in plain]
    if len(set(names)) != len(names):
        raise TraceError("prompts: two of them have the same id")
    issued = issuer.issue(plain)
    as_ids = tokenizer is not None and send == "ids"
    return [
        _ask(index, prompt, request, endpoint, as_ids=as_ids)
        for index, (prompt, request) in enumerate(zip(prompts, issued, strict=True))
    ]


def _request(
    prompt: Prompt, name: str, sampling: Sampling, model: str, engine: EngineRecord, tokenizer: Tokenizer | None
) -> Trace:
    ids, extra = _ids(prompt, tokenizer), dict[str, Any]()
    if ids is None:
        sent = {"prompt": prompt.prompt} if prompt.messages is None else {"messages": list(prompt.messages)}
        extra = {ASKED: sent, UNSCORED: PROMPT_UNKNOWN}
    return Trace(
        id=prompt.id or name,
        model=model,
        prompt_token_ids=np.array(ids or [], dtype=np.int32),
        output_token_ids=np.array([], dtype=np.int32),
        sampling=sampling,
        engine=engine,
        extra=extra,
    )


def _ids(prompt: Prompt, tokenizer: Tokenizer | None) -> list[int] | None:
    if prompt.prompt_token_ids is not None:
        return list(prompt.prompt_token_ids)
    if tokenizer is None:
        return None
    if prompt.messages is not None:
        return tokenizer.of_messages(prompt.messages)
    return tokenizer.of_text(prompt.prompt or "")


def _ask(index: int, prompt: Prompt, request: Trace, endpoint: Endpoint, *, as_ids: bool) -> Ask:
    ids = request.prompt_token_ids.tolist()
    if as_ids or prompt.prompt_token_ids is not None:
        path, what = COMPLETIONS, {"prompt": ids}
    elif prompt.messages is not None:
        path, what = CHAT, {"messages": [dict(message) for message in prompt.messages]}
    else:
        path, what = COMPLETIONS, {"prompt": prompt.prompt}
    body = {"model": endpoint.model, **what, **_settings(request.sampling, endpoint, path)}
    most = request.sampling.max_tokens or MAX_TOKENS
    return Ask(index=index, request=request, path=path, body=body, worst=Use(_most_prompt(prompt, ids, path), most))


def _most_prompt(prompt: Prompt, ids: Sequence[int], path: str) -> int:
    """Most tokens that a prompt can be charged as: a token has at least one byte of the text that it came from."""
    if ids and path == COMPLETIONS:
        return len(ids)
    if prompt.messages is None:
        return len((prompt.prompt or "").encode("utf-8")) + _MESSAGE_TOKENS
    text = sum(len(part.encode("utf-8")) for message in prompt.messages for part in message.values())
    return max(text + _MESSAGE_TOKENS * len(prompt.messages) + _TEMPLATE_TOKENS, len(ids))


def _settings(sampling: Sampling, endpoint: Endpoint, path: str) -> dict[str, Any]:
    """The fields of a request that say how to sample and what to return."""
    body: dict[str, Any] = {**_EXPLICIT, **(_EXPLICIT_VLLM if endpoint.dialect == "vllm" else {})}
    body |= sampling_to_dict(sampling)
    if endpoint.dialect == "vllm":
        body["return_token_ids"] = True
    if endpoint.logprobs:
        body |= {"logprobs": True, "top_logprobs": 0} if path == CHAT else {"logprobs": 0}
        body |= {"return_tokens_as_token_ids": True} if endpoint.dialect == "vllm" else {}
    if endpoint.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def with_prompt(request: Trace, ids: Sequence[int]) -> Trace:
    """A request whose prompt only the server could tokenize, now that it has said how."""
    extra = {key: value for key, value in request.extra.items() if key != UNSCORED}
    return replace(request, prompt_token_ids=np.array(ids, dtype=np.int32), extra=extra)
