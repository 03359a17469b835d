"""Traces as JSON objects: which key means what (docs/trace-format.md is the norm)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from veridifr.errors import TraceError
from veridifr.trace import EngineRecord, Sampling, Trace, check_int, check_text

FORMAT_VERSION = 1
"""Version of the trace format that this package writes. It reads this one and all earlier ones."""

SAMPLING_KEYS = tuple(f.name for f in fields(Sampling) if f.name != "extra")
ENGINE_KEYS = tuple(f.name for f in fields(EngineRecord) if f.name != "extra")
REQUIRED_KEYS = ("id", "model", "prompt_token_ids", "output_token_ids", "sampling", "engine")
TRACE_KEYS = (*REQUIRED_KEYS, "finish_reason", "stop_reason")

_TOKEN_ID_KEY = re.compile(r"(?:0|[1-9][0-9]{0,9})\Z")


def trace_from_dict(obj: object) -> Trace:
    """The trace that a parsed JSON object describes. Unknown keys are kept in the `extra` fields.

    Raises `TraceError` (``field: what is wrong``) for anything that is not a valid trace of version 1.
    """
    record = _mapping("trace", obj)
    if "version" in record:
        version = check_int("version", record["version"], 1, 2**31 - 1)
        if version > FORMAT_VERSION:
            raise TraceError(
                f"version: got {version}, this veridifr reads up to {FORMAT_VERSION}: "
                "the trace was written by a newer veridifr"
            )
    for key in REQUIRED_KEYS:
        if key not in record:
            raise TraceError(f"{key}: missing")
    if isinstance(record.get("stop_reason"), str):
        check_text("stop_reason", record["stop_reason"])
    return Trace(
        **{key: record[key] for key in TRACE_KEYS if key in record and key not in ("sampling", "engine")},
        sampling=sampling_from_dict(record["sampling"]),
        engine=engine_from_dict(record["engine"]),
        extra={key: value for key, value in record.items() if key not in TRACE_KEYS and key != "version"},
    )


def sampling_from_dict(obj: object) -> Sampling:
    """The sampling settings of a parsed JSON object; see `trace_from_dict`."""
    record = _mapping("sampling", obj)
    known = {key: record[key] for key in SAMPLING_KEYS if key in record}
    if "logit_bias" in known:
        known["logit_bias"] = _logit_bias(known["logit_bias"])
    return Sampling(**known, extra={key: value for key, value in record.items() if key not in SAMPLING_KEYS})


def engine_from_dict(obj: object) -> EngineRecord:
    """The engine record of a parsed JSON object; see `trace_from_dict`."""
    record = _mapping("engine", obj)
    if "name" not in record:
        raise TraceError("engine.name: missing")
    known = {key: record[key] for key in ENGINE_KEYS if key in record}
    return EngineRecord(**known, extra={key: value for key, value in record.items() if key not in ENGINE_KEYS})


def trace_to_dict(trace: Trace) -> dict[str, Any]:
    """The JSON object of a trace, which `trace_from_dict` turns back into an equal one. Settings that are off are
    left out. Raises `TraceError` if an `extra` field holds a key that has a meaning of its own."""
    record: dict[str, Any] = {
        "id": trace.id,
        "model": trace.model,
        "prompt_token_ids": trace.prompt_token_ids.tolist(),
        "output_token_ids": trace.output_token_ids.tolist(),
        "sampling": sampling_to_dict(trace.sampling),
        "engine": engine_to_dict(trace.engine),
    }
    for key in ("finish_reason", "stop_reason"):
        if getattr(trace, key) is not None:
            record[key] = _plain(getattr(trace, key))
    return _with_extra("extra", record, trace.extra, (*TRACE_KEYS, "version"))


def sampling_to_dict(sampling: Sampling) -> dict[str, Any]:
    """The JSON object of sampling settings; those that are off are left out."""
    record: dict[str, Any] = {}
    for key in SAMPLING_KEYS:
        value = getattr(sampling, key)
        if key == "logit_bias":
            value = {str(token): bias for token, bias in value.items()}
        if key == "temperature" or (value is not None and value is not False and value not in ((), {})):
            record[key] = _plain(value)
    return _with_extra("sampling.extra", record, sampling.extra, SAMPLING_KEYS)


def engine_to_dict(engine: EngineRecord) -> dict[str, Any]:
    """The JSON object of an engine record; fields that are not stated are left out."""
    record = {key: _plain(getattr(engine, key)) for key in ENGINE_KEYS if getattr(engine, key) is not None}
    return _with_extra("engine.extra", record, engine.extra, ENGINE_KEYS)


def _mapping(name: str, obj: object) -> Mapping[str, Any]:
    if not isinstance(obj, Mapping):
        raise TraceError(f"{name}: got {type(obj).__name__}, expected an object")
    return obj


def _logit_bias(value: object) -> dict[int, Any]:
    """JSON keys are strings, so token ids are decimal strings here; one spelling per id, so that none occurs twice."""
    record = _mapping("sampling.logit_bias", value)
    for key in record:
        if not isinstance(key, str) or not _TOKEN_ID_KEY.match(key):
            raise TraceError(
                f"sampling.logit_bias: got the key {str(key)[:40]!a}, expected a token id in decimal digits"
            )
    return {int(key): bias for key, bias in record.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, np.integer) else value


def _with_extra(name: str, record: dict[str, Any], extra: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    for key in extra:
        if not isinstance(key, str) or key in known:
            raise TraceError(f"{name}: the key {str(key)[:40]!a} has a field of its own")
    return {**record, **extra}
