"""What the verifier asked for, as a file: lines like traces, of which only id, prompt and sampling are needed."""

from __future__ import annotations

from pathlib import Path

from veridifr.errors import TraceError
from veridifr.trace import Trace
from veridifr.traces.codec import trace_from_dict
from veridifr.traces.jsonl import read_lines
from veridifr.traces.strict_json import parse_json


def read_requests(path: str | Path) -> list[Trace]:
    """The requests in a JSON lines file, as traces without output. A trace file serves as well: outputs are ignored.

    Raises `TraceError` naming file, line and field.
    """
    requests, seen = [], set()
    for number, line in read_lines(Path(path)):
        try:
            record = parse_json(line)
            if isinstance(record, dict):
                record = {"model": "", "engine": {"name": "asked"}, **record, "output_token_ids": []}
            request = trace_from_dict(record)
            if request.id in seen:
                raise TraceError(f"id: {request.id!r} occurs twice")
        except TraceError as error:
            raise TraceError(f"{path}:{number}: {error}") from error
        seen.add(request.id)
        requests.append(request)
    if not requests:
        raise TraceError(f"{path}: holds no requests")
    return requests
