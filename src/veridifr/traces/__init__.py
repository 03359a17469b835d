"""Traces on disk and from elsewhere: the files of docs/trace-format.md, and importers for other tools' output."""

from __future__ import annotations

from veridifr.traces.codec import (
    FORMAT_VERSION,
    engine_from_dict,
    engine_to_dict,
    sampling_from_dict,
    sampling_to_dict,
    trace_from_dict,
    trace_to_dict,
)
from veridifr.traces.files import digest_file, read_batches, read_trace_files, read_traces, write_traces
from veridifr.traces.importers import IMPORT_KINDS, from_openai, from_vllm, import_file, sampling_from_vllm
from veridifr.traces.peer_files import from_difr, from_token_difr
from veridifr.traces.request_files import read_requests
from veridifr.traces.strict_json import MAX_DEPTH, MAX_LINE_BYTES

__all__ = [
    "FORMAT_VERSION",
    "IMPORT_KINDS",
    "MAX_DEPTH",
    "MAX_LINE_BYTES",
    "digest_file",
    "engine_from_dict",
    "engine_to_dict",
    "from_difr",
    "from_openai",
    "from_token_difr",
    "from_vllm",
    "import_file",
    "read_batches",
    "read_requests",
    "read_trace_files",
    "read_traces",
    "sampling_from_dict",
    "sampling_from_vllm",
    "sampling_to_dict",
    "trace_from_dict",
    "trace_to_dict",
    "write_traces",
]
