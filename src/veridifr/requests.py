"""What was asked for, so that nothing a provider says can remove evidence.

The verifier's own requests decide which sequences exist, with which settings they are scored and how many tokens each
owes. Without requests the trace's claims stand in for them, and the report says that this is the provider's word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from veridifr.origins import why_unscored
from veridifr.trace import EngineRecord, Sampling, Trace

Decode = Callable[[Sequence[int]], str | None]
_STOP_TAIL = 64
"""Tokens decoded to look for a stop string: longer than any stop string worth setting."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One sequence that was asked for. `tokens` are owed; the first `end` of the trace's output are evidence.

    `trace` is None where the provider returned nothing usable; `reason` then says why. `forced` means that the request
    itself left no choice of token.
    """

    id: str
    trace: Trace | None
    end: int
    tokens: int
    forced: bool = False
    reason: str | None = None


def plan(
    traces: Sequence[Trace],
    requests: Sequence[Trace] | None,
    engine: EngineRecord,
    eos_ids: tuple[int, ...],
    decode: Decode,
) -> tuple[list[Planned], list[str]]:
    """The sequences to audit, and the assumptions that it took.

    `requests` are traces as the verifier sent them (their outputs are ignored), matched by id. `engine` is the record
    that was fixed for the audit: a sequence that states another one is not scored.
    """
    if requests is None:
        past = [trace for trace in traces if _runs_past(trace, eos_ids)]
        loose = {trace.id: replace(trace, sampling=replace(trace.sampling, ignore_eos=True)) for trace in past}
        planned = [_one(trace, loose.get(trace.id, trace), engine, eos_ids, decode, asked=False) for trace in traces]
        assumptions = [
            "No requests were given: the prompts, the settings and the number of sequences are the provider's word."
        ]
        if any(trace.sampling.max_tokens is None for trace in traces):
            assumptions.append("sampling.max_tokens is not stated: where an output ends is the provider's word.")
        if past:
            assumptions.append(
                f"{len(past)} outputs run past an end-of-sequence token and state no stop: ignore_eos is taken as on."
            )
        return planned, assumptions
    by_id = {trace.id: trace for trace in traces}
    typical = int(np.median([len(t.output_token_ids) for t in traces])) if traces else 1
    planned = []
    for request in requests:
        found = by_id.pop(request.id, None)
        if found is None:
            owed = request.sampling.max_tokens or typical
            planned.append(Planned(id=request.id, trace=None, end=0, tokens=owed, reason="absent from the traces"))
        else:
            planned.append(_one(found, request, engine, eos_ids, decode, asked=True))
    left = [f"{len(by_id)} sequences in the traces were never asked for and are ignored."] if by_id else []
    return planned, left


def _one(
    trace: Trace, request: Trace, engine: EngineRecord, eos_ids: tuple[int, ...], decode: Decode, *, asked: bool
) -> Planned:
    sampling = request.sampling
    owed = sampling.max_tokens or max(len(trace.output_token_ids), 1)
    end, owed = _end(trace.output_token_ids.tolist(), sampling, eos_ids, decode, owed)

    def out(reason: str) -> Planned:
        return Planned(id=trace.id, trace=None, end=0, tokens=owed, reason=reason)

    why = why_unscored(trace)
    if why is not None:
        return out(why)
    if not np.array_equal(trace.prompt_token_ids, request.prompt_token_ids):
        return out("prompt_token_ids: not the prompt that was asked for")
    if trace.engine.identity() != engine.identity():
        return out("engine: another record than the one fixed for this audit")
    # The child's number decides the seed, so a provider that may choose it chooses among 65536 seeds.
    if asked and (trace.engine.child or 0) != (request.engine.child or 0):
        return out(f"engine.child: got {trace.engine.child or 0}, and {request.engine.child or 0} was asked for")
    if not len(trace.output_token_ids):
        return out("output_token_ids: empty")
    # A choice of one is no evidence only where the verifier asked for it; a provider's word does not remove evidence.
    only = sampling.allowed_token_ids
    forced = only is not None and len(only) == 1 and bool((trace.output_token_ids == only[0]).all())
    if forced and not asked:
        return out("sampling.allowed_token_ids: one token, by the provider's word only")
    return Planned(
        id=trace.id,
        trace=replace(trace, sampling=sampling, output_token_ids=trace.output_token_ids[:end]),
        end=end,
        tokens=owed,
        forced=forced,
    )


def _runs_past(trace: Trace, eos_ids: tuple[int, ...]) -> bool:
    """Whether the output goes on after an end-of-sequence token and does not claim to have stopped there."""
    inner = trace.output_token_ids[:-1]
    return trace.finish_reason in (None, "length") and bool(np.isin(inner, np.array(eos_ids, dtype=np.int32)).any())


def _end(output: list[int], sampling: Sampling, eos_ids: tuple[int, ...], decode: Decode, owed: int) -> tuple[int, int]:
    """Where the output ends by the request's rules, and how many tokens are owed.

    Tokens after a stop token or beyond max_tokens were never due: they are owed nothing and prove nothing, but each
    one counts as a token that could not be scored. An output that stops early without a stop owes the rest.
    """
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(eos_ids))
    least = sampling.min_tokens or 0
    limit = min(len(output), owed)
    for index, token in enumerate(output[:limit]):
        if token in stops and index + 1 > least:
            return index + 1, max(len(output), index + 1)
    if len(output) < owed and _stopped_by_text(output, sampling, decode):
        return len(output), len(output)
    return limit, max(owed, len(output))


def _stopped_by_text(output: list[int], sampling: Sampling, decode: Decode) -> bool:
    text = decode(output[-_STOP_TAIL:]) if sampling.stop else None
    last = decode(output[-1:]) if text else None
    if text is None or last is None:
        return False
    room = len(last) + 1  # the stop string may end inside the last token
    return any(stop and stop in text[-(len(stop) + room) :] for stop in sampling.stop)


def reasons(planned: Sequence[Planned]) -> Mapping[str, int]:
    """How often each reason kept a sequence from being scored."""
    counts: dict[str, int] = {}
    for item in planned:
        if item.reason is not None:
            counts[item.reason] = counts.get(item.reason, 0) + 1
    return counts
