"""From answers to traces: which token ids an answer holds, where they are from, and why some hold no evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from veridifr.collecting.answers import Answer
from veridifr.collecting.asking import Ask, with_prompt
from veridifr.collecting.endpoint import Endpoint
from veridifr.collecting.tokenizer import Tokenizer
from veridifr.origins import RETOKENIZATION, SERVER, TEXT, TOKEN_IDS_FROM, TOKEN_STRINGS
from veridifr.trace import FINISH_REASONS, MAX_TOKENS, UNSCORED, Sampling, Trace

USAGE, ATTEMPTS = "usage", "attempts"
"""Keys of a collected trace: what the server says it counted, and how often the request was sent."""
NO_IDS = "output_token_ids: the server returned none, and there is no tokenizer to make them from the text"


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Output token ids and their origin; `own_count` where they were made from the text. Or why there are none."""

    ids: tuple[int, ...] = ()
    origin: str | None = None
    why: str | None = None


def make_trace(ask: Ask, answer: Answer, endpoint: Endpoint, tokenizer: Tokenizer | None, attempts: int) -> Trace:
    """The trace of an answered request. What cannot be scored carries its reason under the key `unscored`."""
    request = ask.request
    if not ask.prompt_known and answer.prompt_token_ids:
        request = with_prompt(request, answer.prompt_token_ids)
    found = find_ids(answer, request, tokenizer)
    why = _why_not(ask, answer, endpoint) or found.why
    extra: dict[str, Any] = {**request.extra, ATTEMPTS: attempts}
    if answer.usage is not None:
        extra[USAGE] = {"prompt_tokens": answer.usage.prompt, "completion_tokens": answer.usage.output}
    if found.origin is not None:
        extra[TOKEN_IDS_FROM] = found.origin
    if found.origin == TEXT:
        counted = None if answer.usage is None else answer.usage.output
        extra[RETOKENIZATION] = {"server_count": counted, "own_count": len(found.ids)}
    if why is not None:
        extra[UNSCORED] = why
    word = answer.finish_reason
    if word is not None and word not in FINISH_REASONS:
        extra["engine_finish_reason"] = word
    return replace(
        request,
        output_token_ids=np.array(found.ids, dtype=np.int32),
        finish_reason=word if word in FINISH_REASONS else None,
        stop_reason=answer.stop_reason,
        extra=extra,
    )


def missing_trace(ask: Ask, why: str, attempts: int) -> Trace:
    """The trace of a request without an answer, which says why."""
    return replace(ask.request, extra={**ask.request.extra, ATTEMPTS: attempts, UNSCORED: why})


def request_of(trace: Trace) -> Trace:
    """What was asked for, as a line of the file for ``veridifr audit --requests``."""
    kept = ("issued_seed", "asked")
    extra = {key: value for key, value in trace.extra.items() if key in kept}
    if not len(trace.prompt_token_ids):
        extra[UNSCORED] = trace.extra[UNSCORED]
    return replace(
        trace, output_token_ids=np.array([], dtype=np.int32), finish_reason=None, stop_reason=None, extra=extra
    )


def find_ids(answer: Answer, request: Trace, tokenizer: Tokenizer | None) -> Ids:
    """The output's ids: as the server gives them, else from its token strings, else from its text."""
    if answer.token_ids is not None:
        return Ids(ids=answer.token_ids, origin=SERVER)
    if tokenizer is None:
        return Ids(why=NO_IDS)
    if answer.tokens is not None:
        ids = [tokenizer.of_token(token) for token in answer.tokens]
        if None not in ids:
            return Ids(ids=tuple(token for token in ids if token is not None), origin=TOKEN_STRINGS)
    if answer.text is None and not answer.apart:
        return Ids(why="output_token_ids: the answer has neither ids nor text")
    return _from_text(answer, request, tokenizer)


def _from_text(answer: Answer, request: Trace, tokenizer: Tokenizer) -> Ids:
    if answer.apart:
        return Ids(why=f"{', '.join(answer.apart)}: returned apart from the text, which is not all that was sampled")
    text = answer.text or ""
    ids = tokenizer.of_output(text)
    if len(ids) >= MAX_TOKENS:
        return Ids(why=f"text: gives more than {MAX_TOKENS} token ids")
    why = None if tokenizer.exact(text, ids) else "text: its token ids do not give it back, so characters were lost"
    if tokenizer.end is not None and _ended(answer.finish_reason, answer.stop_reason, request.sampling):
        ids = [*ids, tokenizer.end]  # which no text shows
    return Ids(ids=tuple(ids), origin=TEXT, why=why)


def _ended(finish_reason: str | None, stop_reason: str | int | None, sampling: Sampling) -> bool:
    """Whether an output ended by the end token, and not by a stop string or token."""
    return finish_reason == "stop" and stop_reason is None and not sampling.stop and not sampling.stop_token_ids


def _why_not(ask: Ask, answer: Answer, endpoint: Endpoint) -> str | None:
    """Why an answer is no evidence, whatever its token ids are."""
    if answer.model is not None and answer.model not in endpoint.names():
        return f"model: the answer names {endpoint.clean(answer.model, 100)!a}, and {endpoint.model!a} was asked for"
    if answer.finish_reason in ("content_filter", "error", "abort"):
        return f"finish_reason: {answer.finish_reason}"
    if answer.prompt_token_ids and ask.prompt_known:
        if answer.prompt_token_ids != tuple(ask.request.prompt_token_ids.tolist()):
            return "prompt_token_ids: the server's are not those that were asked for"
    elif not ask.prompt_known and not answer.prompt_token_ids:
        return str(ask.request.extra[UNSCORED])
    return None


def count_ends(traces: Sequence[Trace]) -> list[Trace]:
    """The same traces, those that ended by themselves unscored if this server does not count the end token.

    Only texts are concerned: that the end token was sampled is seen from the count alone. Where it is not in most
    counts, a count that is higher by one would come from another split of the text.
    """
    ended = [
        trace
        for trace in traces
        if trace.extra.get(TOKEN_IDS_FROM) == TEXT and _ended(trace.finish_reason, trace.stop_reason, trace.sampling)
    ]
    off = Counter(_excess(trace) for trace in ended)
    if off[0] >= off[-1]:
        return list(traces)
    why = "usage: the server does not count the end token, so the number of token ids cannot be checked"
    doubtful = {trace.id for trace in ended}
    return [
        replace(t, extra={UNSCORED: why, **t.extra}) if t.id in doubtful else t for t in traces
    ]  # fmt: skip


def _excess(trace: Trace) -> int | None:
    counted = trace.extra[RETOKENIZATION]["server_count"]
    return None if counted is None else counted - len(trace.output_token_ids)


def wrong_count(trace: Trace) -> bool:
    """Whether the server counted another number of output tokens than it returned ids."""
    usage = trace.extra.get(USAGE)
    return (
        usage is not None
        and trace.extra.get(TOKEN_IDS_FROM) == SERVER
        and usage["completion_tokens"] != len(trace.output_token_ids)
    )
