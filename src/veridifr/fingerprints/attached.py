"""Fingerprints in traces: the key `fingerprint` at the top of a trace. docs/fingerprints.md is the norm.

The object is kept among the trace's unknown keys until somebody asks for it, so a malformed one spoils no trace file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from veridifr.errors import FingerprintError
from veridifr.fingerprints.spec import FingerprintSpec, from_dict, to_dict
from veridifr.fingerprints.wire import Fingerprint, from_base64, to_base64
from veridifr.trace import Trace

KEY = "fingerprint"
_FIELDS = ("spec", "data")


def with_fingerprint(trace: Trace, found: Fingerprint) -> Trace:
    """The trace with its fingerprint; `FingerprintError` unless it covers exactly the output's tokens."""
    tokens = len(trace.output_token_ids)
    if found.tokens != tokens:
        raise FingerprintError(f"fingerprint: covers {found.tokens} tokens, the output has {tokens}")
    return replace(trace, extra={**trace.extra, KEY: {"spec": to_dict(found.spec), "data": to_base64(found)}})


def fingerprint_of(trace: Trace, expected: FingerprintSpec | None = None) -> Fingerprint | None:
    """The fingerprint that a trace carries, None if it has none.

    Raises `FingerprintError` naming the field for one that is malformed, does not cover the whole output, or, with
    `expected`, was made by another specification.
    """
    value = trace.extra.get(KEY)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise FingerprintError(f"fingerprint: got {type(value).__name__}, expected an object")
    for key in value:
        if key not in _FIELDS:
            raise FingerprintError(f"fingerprint.{str(key)[:40]!a}: not a field")
    for name in _FIELDS:
        if name not in value:
            raise FingerprintError(f"fingerprint.{name}: missing")
    try:
        spec = from_dict(value["spec"])
    except FingerprintError as error:
        raise FingerprintError(f"fingerprint.{error}") from error
    if expected is not None and spec != expected:
        raise FingerprintError(
            f"fingerprint.spec: got {spec.digest().hex()[:16]}, expected {expected.digest().hex()[:16]} "
            f"(first that differs: {_difference(spec, expected)})"
        )
    try:
        return from_base64(value["data"], spec, len(trace.output_token_ids))
    except FingerprintError as error:
        raise FingerprintError(f"fingerprint.data: {str(error).removeprefix('fingerprint: ')}") from error


def _difference(spec: FingerprintSpec, expected: FingerprintSpec) -> str:
    mine, other = to_dict(spec), to_dict(expected)
    return next(name for name in mine if mine[name] != other[name])
