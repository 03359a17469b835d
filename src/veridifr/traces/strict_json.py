"""JSON from a party that is not trusted: bounded, strict UTF-8, and only our own errors.

`json.loads` alone accepts NaN, turns 1e999 into infinity, keeps the last of two equal keys, and recurses as deep as the
text nests. Here each of these is refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from veridifr.errors import InputError, TraceError

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longest line of a JSON lines file, and longest JSON text inside a Parquet cell, in bytes."""
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Largest file that is one JSON document (the files of other tools), in bytes."""
MAX_DEPTH = 32
"""Deepest nesting of arrays and objects."""

_CHUNK = 1 << 20
_STEP = np.zeros(256, dtype=np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1


def parse_json(data: bytes, *, error: type[InputError] = TraceError) -> Any:
    """The value of one JSON text (RFC 8259, UTF-8 without byte order mark).

    Raises `error` for anything else, and for: nesting above `MAX_DEPTH`, a key that occurs twice in one object, NaN and
    Infinity, numbers too large for a float or longer than Python converts, and lone surrogates.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise error("JSON: starts with a byte order mark, expected plain UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise error(f"JSON: byte {data[fault.start]:#04x} at position {fault.start + 1} is not UTF-8") from None
    _check_depth(data, error)
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _unique(pairs, error),
            parse_constant=lambda name: _refuse(f"JSON: {name} is no number", error),
            parse_float=lambda digits: _finite(digits, error),
        )
    except json.JSONDecodeError as fault:
        raise error(f"JSON: {fault.msg} at position {fault.pos + 1}") from None
    except ValueError:  # Python converts at most 4300 digits (sys.set_int_max_str_digits); other ValueErrors are above
        raise error("JSON: holds an integer of thousands of digits") from None
    if b"\\u" in data:  # only an escape can make one: raw surrogates are not UTF-8
        _check_surrogates(value, "", error)
    return value


def read_bounded(path: Path, most: int, *, error: type[InputError] = TraceError) -> bytes:
    """The whole of a file of at most `most` bytes; else `error`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    if len(data) > most:
        raise error(f"{path}: longer than {most} bytes")
    return data


def json_argument(name: str, text: str) -> Any:
    """A JSON value given on the command line as text, or as ``@FILE``; `InputError` that begins with `name`."""
    try:
        data = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
        return parse_json(data, error=InputError)
    except OSError as fault:
        raise InputError(f"{name}: {text[1:]}: cannot be read: {fault.strerror}") from fault
    except InputError as fault:
        raise InputError(f"{name}: {fault}") from fault


def _check_depth(data: bytes, error: type[InputError]) -> None:
    """Refuse nesting above `MAX_DEPTH` before anything recurses into it.

    Counts brackets outside strings. Exact up to the first syntax error, which is as far as the parser gets.
    """
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    depth, inside = 0, 0
    for start in range(0, len(data), _CHUNK):
        codes = np.frombuffer(data, dtype=np.uint8, count=min(_CHUNK, len(data) - start), offset=start)
        # uint8 wraps around at 256, which keeps the parity
        string = (np.cumsum(codes == ord('"'), dtype=np.uint8) & 1) ^ np.uint8(inside)
        steps = _STEP[codes]
        steps[string == 1] = 0
        depths = depth + np.cumsum(steps, dtype=np.int32)
        if int(depths.max()) > MAX_DEPTH:
            raise error(f"JSON: nested deeper than {MAX_DEPTH}")
        depth, inside = int(depths[-1]), int(string[-1])


def _unique(pairs: list[tuple[str, Any]], error: type[InputError]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise error(f"{_shown_key(key)}: the key occurs twice in one object")
            seen.add(key)
    return found


def _finite(digits: str, error: type[InputError]) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise error(f"JSON: {digits[:40]} is too large for a number")
    return number


def _refuse(message: str, error: type[InputError]) -> Any:
    raise error(message)


def _check_surrogates(value: Any, path: str, error: type[InputError]) -> None:
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise error(f"{path or 'JSON'}: holds a lone surrogate, which is no character")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_surrogates(key, f"{path}: a key" if path else "a key", error)
            _check_surrogates(item, f"{path}.{_shown_key(key)}" if path else _shown_key(key), error)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, int | float):
                _check_surrogates(item, f"{path}[{index}]", error)


def _shown_key(key: str) -> str:
    # a hostile key must not write to the terminal of whoever reads the message
    return key if key.isascii() and key.isidentifier() and len(key) <= 60 else ascii(key[:60])
