"""From what a worker captured to a trace: tokens, sampling and seed as executed, the engine record, the fingerprint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from veridifr.errors import UnsupportedError, VeridifrError
from veridifr.fingerprints import FingerprintSpec, fingerprint, with_fingerprint
from veridifr.trace import EngineRecord, Trace
from veridifr.traces.codec import engine_from_dict, sampling_from_dict
from veridifr.traces.importers import from_vllm


def first_rank(answers: Sequence[Any]) -> dict[str, Any]:
    """The answer of the rank that records, of one call to all workers; `UnsupportedError` with the reason if any
    refused."""
    recorded = None
    for answer in answers:
        if not isinstance(answer, Mapping):
            raise UnsupportedError("capture", f"the worker answered with {type(answer).__name__}")
        if "refused" in answer:
            setting, _, reason = str(answer["refused"]).partition(": ")
            raise UnsupportedError(setting, reason)
        if "rank" not in answer:
            recorded = dict(answer)
    if recorded is None:
        raise UnsupportedError("capture", "no worker answered for the first rank")
    return recorded


def engine_of(record: Mapping[str, Any]) -> EngineRecord:
    """The engine record of what `WorkerExtension.veridifr_record` returned."""
    return engine_from_dict(record["engine"])


def trace_of(
    request: Any, captured: Mapping[str, Any], *, model: str, engine: EngineRecord, spec: FingerprintSpec | None
) -> Trace:
    """The trace of a `RequestOutput` with a single output, and of what the worker captured of it.

    `UnsupportedError` where the request's noise cannot be replayed, or the worker has not captured it; `TraceError`
    and `FingerprintError` for an output that is not what the worker sampled.
    """
    if captured["status"] != "ok":
        raise UnsupportedError(
            f"capture of request {request.request_id}", f"{captured['status']}: {captured['reason']}"
        )
    sampling = sampling_from_dict(captured["sampling"])
    (trace,) = from_vllm([request], model=model, engine=engine, sampling=sampling)
    for name, mine, other in (
        ("prompt", trace.prompt_token_ids, captured["prompt"]),
        ("output", trace.output_token_ids, captured["tokens"]),
    ):
        if not np.array_equal(mine, np.frombuffer(other, dtype="<i4")):
            raise UnsupportedError(
                f"capture of request {request.request_id}", f"the {name} differs from what the worker saw"
            )
    if sampling.seed is None and not sampling.greedy:
        raise UnsupportedError("sampling.seed", str(captured["reason"]))
    if spec is None:
        return trace
    values = np.frombuffer(captured["values"], dtype="<f4").reshape(-1, spec.k)
    return with_fingerprint(trace, fingerprint(spec, len(trace.output_token_ids), [values[:: spec.every]]))


def reason_of(error: VeridifrError) -> str:
    """One line on why a request has no trace."""
    return str(error).splitlines()[0][:500]


def single(request: Any, index: int) -> Any:
    """A copy of a `RequestOutput` with one of its outputs."""
    found = copy(request)
    found.outputs = [output for output in request.outputs if output.index == index]
    return found


def with_child(engine: EngineRecord, child: int | None) -> EngineRecord:
    """The record of one sequence of n > 1."""
    return engine if child is None else replace(engine, child=child)
