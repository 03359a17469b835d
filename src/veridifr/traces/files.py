"""Reading and writing files of traces, the format chosen by the file's suffix."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from veridifr.errors import TraceError
from veridifr.trace import Trace
from veridifr.traces.jsonl import read_jsonl, write_jsonl
from veridifr.traces.parquet import read_parquet, write_parquet
from veridifr.traces.strict_json import MAX_LINE_BYTES

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def read_traces(path: str | Path, *, limit_bytes_per_line: int = MAX_LINE_BYTES) -> Iterator[Trace]:
    """The traces of one file (JSON lines, gzipped JSON lines or Parquet, by its suffix), streamed in file order.

    Raises `TraceError` ``file:line: field: what is wrong`` at the first thing wrong (``file:row N:`` in Parquet), also
    for an id that occurs twice and for a file without traces; `MissingExtraError` if Parquet needs pyarrow.
    """
    return (trace for _, trace in _unique([Path(path)], limit_bytes_per_line))


def read_trace_files(paths: Iterable[str | Path]) -> list[Trace]:
    """All traces of several files, in order. Ids must be unique across all of them. See `read_traces`."""
    return [trace for _, trace in _unique([Path(path) for path in paths], MAX_LINE_BYTES)]


def read_batches(paths: Iterable[str | Path]) -> list[list[Trace]]:
    """The traces of several files, file by file. See `read_trace_files`."""
    files = [Path(path) for path in paths]
    batches: list[list[Trace]] = [[] for _ in files]
    for number, trace in _unique(files, MAX_LINE_BYTES):
        batches[number].append(trace)
    return batches


def write_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write traces to one file, atomically: the file is complete, or as it was before.

    Raises `TraceError` for what could not be read back: equal ids, no traces, `extra` values that JSON cannot hold.
    """
    path = Path(path)
    suffix = _suffix(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as stream:
            if suffix == ".parquet":
                write_parquet(stream, _checked(path, traces))
            else:
                write_jsonl(stream, _checked(path, traces), packed=suffix.endswith(".gz"))
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def digest_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _suffix(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise TraceError(f"{path}: unknown kind of file, expected a name that ends in {', '.join(SUFFIXES)}")


def _unique(paths: list[Path], limit: int) -> Iterator[tuple[int, Trace]]:
    """Each trace with the number of its file."""
    places: dict[str, str] = {}
    for number, path in enumerate(paths):
        found = read_parquet(path) if _suffix(path) == ".parquet" else read_jsonl(path, limit=limit)
        before = len(places)
        for place, trace in found:
            if trace.id in places:
                raise TraceError(f"{place}: id: {trace.id!a} was used before, at {places[trace.id]}")
            places[trace.id] = place
            yield number, trace
        if len(places) == before:
            raise TraceError(f"{path}: holds no traces")


def _checked(path: Path, traces: Iterable[Trace]) -> Iterator[Trace]:
    ids: set[str] = set()
    for trace in traces:
        if trace.id in ids:
            raise TraceError(f"{path}: id: {trace.id!a} occurs twice")
        ids.add(trace.id)
        yield trace
    if not ids:
        raise TraceError(f"{path}: no traces to write")
