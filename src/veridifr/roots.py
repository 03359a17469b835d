"""The roots that came with the responses, from a file that the verifier wrote before it named a tap."""

from __future__ import annotations

from pathlib import Path

from veridifr.errors import FingerprintError, TraceError
from veridifr.fingerprints.opened import KEY, root_of
from veridifr.traces.jsonl import read_lines
from veridifr.traces.strict_json import parse_json

_MOST_ID = 4096


def read_roots(path: str | Path) -> dict[str, bytes]:
    """The root (32 bytes) of each sequence in a JSON lines file: objects with `id` and `commitment.root`; a trace file
    as it was received serves. A line without a commitment has no root, which is no error here.

    Raises `TraceError` naming file, line and field.
    """
    found: dict[str, bytes] = {}
    seen: set[str] = set()
    for number, line in read_lines(Path(path)):
        try:
            record = parse_json(line)
            name = record.get("id") if isinstance(record, dict) else None
            if not isinstance(name, str) or not 0 < len(name) <= _MOST_ID:
                raise TraceError("id: expected a string, in an object")
            if name in seen:
                raise TraceError(f"id: {name[:60]!a} occurs twice")
            seen.add(name)
            if record.get(KEY) is not None:
                found[name] = root_of(record[KEY])
        except (TraceError, FingerprintError) as error:
            raise TraceError(f"{path}:{number}: {error}") from error
    if not found:
        raise TraceError(f"{path}: holds no roots")
    return found
