"""Traces as JSON lines, plain or gzipped: streamed, one bounded line at a time."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from veridifr.errors import TraceError
from veridifr.trace import Trace
from veridifr.traces.codec import trace_from_dict, trace_to_dict
from veridifr.traces.strict_json import MAX_LINE_BYTES, parse_json

MAX_GZIP_BYTES = 4 * 1024**3
"""Most bytes that one gzipped file may unpack to: a megabyte of gzip can hold a gigabyte of lines."""


def read_lines(path: Path, *, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, without line ends; at most `limit` bytes of one are ever held.

    Raises `TraceError` for a file that cannot be read, a longer line, an empty line, and more unpacked bytes than
    `MAX_GZIP_BYTES`.
    """
    packed = path.name.endswith(".gz")
    number, total = 0, 0
    try:
        stream = gzip.GzipFile(path, "rb") if packed else path.open("rb")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    with stream:
        while True:
            number += 1
            try:
                line = cast(BinaryIO, stream).readline(limit + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise TraceError(f"{path}:{number}: cannot be read: {error}") from error
            if not line:
                return
            total += len(line)
            if packed and total > MAX_GZIP_BYTES:
                raise TraceError(f"{path}:{number}: unpacks to more than {MAX_GZIP_BYTES} bytes")
            if len(line) > limit and not line.endswith(b"\n"):
                raise TraceError(f"{path}:{number}: line: longer than {limit} bytes")
            body = line.rstrip(b"\r\n")
            if not body.strip():
                raise TraceError(f"{path}:{number}: line: empty, expected one JSON object a line")
            yield number, body


def read_jsonl(path: Path, *, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[str, Trace]]:
    """The traces of a file, each with its place (``file:line``). Raises `TraceError` that names the place."""
    for number, line in read_lines(path, limit=limit):
        place = f"{path}:{number}"
        try:
            trace = trace_from_dict(parse_json(line))
        except TraceError as error:
            raise TraceError(f"{place}: {error}") from error
        yield place, trace


def write_jsonl(stream: BinaryIO, traces: Iterable[Trace], *, packed: bool) -> None:
    """Write traces to an open binary file. What is written has been read back, so that every file can be read."""
    # no file name and no time in the gzip header: equal traces give equal files
    sink = gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) if packed else stream
    for trace in traces:
        try:
            text = json.dumps(trace_to_dict(trace), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
            line = text.encode("utf-8")
            trace_from_dict(parse_json(line))
        except (ValueError, TypeError, RecursionError, TraceError) as error:
            raise TraceError(f"trace {trace.id!a}: cannot be written: {error}") from error
        if len(line) > MAX_LINE_BYTES:
            raise TraceError(f"trace {trace.id!a}: cannot be written: line: longer than {MAX_LINE_BYTES} bytes")
        sink.write(line + b"\n")
    if packed:
        sink.close()
