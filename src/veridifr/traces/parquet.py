"""Traces as Parquet, for large sets: token ids as lists of int32, everything that varies in shape as JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from veridifr.errors import TraceError, require
from veridifr.trace import MAX_TOKENS, Trace
from veridifr.traces.codec import FORMAT_VERSION, trace_from_dict, trace_to_dict
from veridifr.traces.strict_json import MAX_LINE_BYTES, parse_json

TOKEN_COLUMNS = ("prompt_token_ids", "output_token_ids")
TEXT_COLUMNS = ("id", "model", "finish_reason")
JSON_COLUMNS = ("sampling", "engine", "stop_reason", "extra")
REQUIRED_COLUMNS = ("id", "model", *TOKEN_COLUMNS, "sampling", "engine")
VERSION_KEY = b"veridifr_trace_version"
"""Key of the file's metadata that holds the format version in decimal digits; absent means 1."""
COLUMNS = (*REQUIRED_COLUMNS, "finish_reason", "stop_reason", "extra")

MAX_GROUP_BYTES = 1024**3
"""Most bytes of one row group, unpacked, as the file states it."""
_BATCH_ROWS = 64
_GROUP_ROWS = 4096
_GROUP_TOKENS = 4 * MAX_TOKENS


def read_parquet(path: Path) -> Iterator[tuple[str, Trace]]:
    """The traces of a Parquet file, each with its place (``file:row N``, N from 1), streamed by batches.

    Raises `TraceError` that names the place, also for a damaged file or another schema; `MissingExtraError` without
    pyarrow.
    """
    pq = require("pyarrow.parquet", "parquet")
    arrow_error = require("pyarrow", "parquet").ArrowException
    number = 0
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            _check_schema(path, file)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                batch.validate(full=True)  # offsets and text of a damaged file may point anywhere
                columns = {name: batch.column(name) for name in batch.schema.names}
                for index in range(batch.num_rows):
                    number += 1
                    yield f"{path}:row {number}", _row(f"{path}:row {number}", columns, index)
    except (arrow_error, OSError, EOFError, OverflowError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}:row {number + 1}: cannot be read as Parquet: {str(error)[:200]}") from error


def _check_schema(path: Path, file: Any) -> None:
    types = require("pyarrow.types", "parquet")
    schema = file.schema_arrow
    version = (schema.metadata or {}).get(VERSION_KEY, b"1")
    if not re.fullmatch(rb"[1-9][0-9]{0,8}", version) or int(version) > FORMAT_VERSION:
        raise TraceError(
            f"{path}: version: got {version[:20]!a}, this veridifr reads up to {FORMAT_VERSION}: "
            "the traces were written by a newer veridifr"
        )
    names = list(schema.names)
    for name in names:
        if name not in COLUMNS or names.count(name) > 1:
            wrong = "occurs twice" if name in COLUMNS else f"is unknown, expected {', '.join(COLUMNS)}"
            raise TraceError(f"{path}: column {name[:60]!a}: {wrong}")
    for name in REQUIRED_COLUMNS:
        if name not in names:
            raise TraceError(f"{path}: column {name!a}: missing")
    for name in names:
        kind = schema.field(name).type
        if name in TOKEN_COLUMNS:
            good = (types.is_list(kind) or types.is_large_list(kind)) and types.is_integer(kind.value_type)
            if not good or types.is_uint64(kind.value_type):
                raise TraceError(f"{path}: column {name!a}: got {str(kind)[:60]}, expected list<int32>")
        elif not (types.is_string(kind) or types.is_large_string(kind)):
            raise TraceError(f"{path}: column {name!a}: got {str(kind)[:60]}, expected string")
    for group in range(file.metadata.num_row_groups):
        # not RowGroupMetaData.column(): in pyarrow 26 it ends the process where the footer is damaged
        if file.metadata.row_group(group).total_byte_size > MAX_GROUP_BYTES:
            raise TraceError(f"{path}: row group {group}: unpacks to more than {MAX_GROUP_BYTES} bytes")


def _row(place: str, columns: dict[str, Any], index: int) -> Trace:
    try:
        record: dict[str, Any] = {}
        for name in ("id", "model", "finish_reason"):
            if name in columns:
                record[name] = columns[name][index].as_py()
        for name in TOKEN_COLUMNS:
            values = columns[name][index].values
            if values is None or values.null_count:
                raise TraceError(f"{name}: is or holds a null, expected a list of token ids")
            record[name] = values.to_numpy(zero_copy_only=False)
        for name in JSON_COLUMNS:
            text = columns[name][index].as_py() if name in columns else None
            if text is not None:
                record[name] = _cell(name, text)
        extra = record.pop("extra", {})
        if not isinstance(extra, dict):
            raise TraceError(f"extra: got {type(extra).__name__}, expected an object")
        for key in extra:
            if key in COLUMNS[:-1] or key == "version":
                raise TraceError(f"extra: the key {key!a} has a place of its own")
        return trace_from_dict({**extra, **record})
    except TraceError as error:
        raise TraceError(f"{place}: {error}") from error


def _cell(name: str, text: str) -> Any:
    data = text.encode("utf-8")
    if len(data) > MAX_LINE_BYTES:
        raise TraceError(f"{name}: longer than {MAX_LINE_BYTES} bytes")
    try:
        return parse_json(data)
    except TraceError as error:
        raise TraceError(f"{name}: {error}") from error


def write_parquet(stream: BinaryIO, traces: Iterable[Trace]) -> None:
    """Write traces to an open binary file, in row groups that a reader can hold. What is written can be read back."""
    pa = require("pyarrow", "parquet")
    pq = require("pyarrow.parquet", "parquet")
    ids = pa.list_(pa.int32())
    schema = pa.schema([(name, ids if name in TOKEN_COLUMNS else pa.string()) for name in COLUMNS])
    schema = schema.with_metadata({VERSION_KEY: str(FORMAT_VERSION).encode()})
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        tokens = 0
        for trace in traces:
            rows.append(_cells(trace))
            tokens += len(trace.prompt_token_ids) + len(trace.output_token_ids)
            if tokens >= _GROUP_TOKENS or len(rows) >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows, tokens = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _cells(trace: Trace) -> dict[str, Any]:
    try:
        record = trace_to_dict(trace)
        row: dict[str, Any] = {name: record.pop(name, None) for name in COLUMNS if name != "extra"}
        row["extra"] = record or None
        for name in JSON_COLUMNS:
            if row[name] is not None:
                text = json.dumps(row[name], allow_nan=False, ensure_ascii=False, separators=(",", ":"))
                _cell(name, text)
                row[name] = text
        row["prompt_token_ids"], row["output_token_ids"] = trace.prompt_token_ids, trace.output_token_ids
    except (ValueError, TypeError, RecursionError, TraceError) as error:
        raise TraceError(f"trace {trace.id!a}: cannot be written: {error}") from error
    return row
