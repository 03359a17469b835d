"""Evidence on disk: an append-only file, so that a killed run loses nothing but the record it was writing.

Layout (all integers little-endian): the magic line, then records. A record is a uint32 header length, a JSON header,
the arrays as raw bytes in the order and sizes that the header gives, and the SHA-256 of header and arrays. The first
record describes the reference and has no arrays. An incomplete last record is what a kill leaves behind: readers
ignore it, writers cut it off. Nothing is unpickled; every length is checked before anything is read.

Format 2 is written where the reference also projects its hidden states: a record may then have the key `projections`,
three sizes (taps, entries, k), and that many float32 values after the other arrays. Format 3 is written where it also
gives their sensitivity to rounding: of each entry of each tap one more float32 value, after those. In all formats a
record may have the key `race`: contract, seed, temperature and the list of open tokens (`evidence.Race`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from veridifr.errors import EvidenceError
from veridifr.evidence import MAX_CANDIDATES, Evidence, Race
from veridifr.trace import MAX_TOKEN_ID, MAX_TOKENS

MAGIC = b"veridifr-evidence 1\n"
MAGIC_2 = b"veridifr-evidence 2\n"
"""Of a file with projections; older versions of this package refuse it."""
MAGIC_3 = b"veridifr-evidence 3\n"
"""Of a file with projections and their sensitivity."""
_MAGICS = (MAGIC, MAGIC_2, MAGIC_3)
_MAX_HEADER = 65536
_HASH = 32
_PER_TOKEN = (
    ("counts", "<u4"),
    ("lse_T", "<f8"),
    ("rank_T", "<i4"),
    ("floor_T", "<f4"),
    ("tail_T", "<f8"),
    ("hot_tail_T", "<f8"),
)
_PER_CANDIDATE = (("ids_N", "<i4"), ("logits_N", "<f4"))
_PROJECTION_LIMITS = (64, MAX_TOKENS, 4096)


@dataclass(frozen=True, kw_only=True)
class EvidenceHeader:
    """Which reference the evidence comes from. Two runs may share a file only if their headers are equal."""

    reference: str
    weights: str
    vocab_size: int
    eos_ids: tuple[int, ...]
    settings: Mapping[str, str | int | float | bool | None]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of the header."""
        return {
            "reference": self.reference,
            "weights": self.weights,
            "vocab_size": self.vocab_size,
            "eos_ids": list(self.eos_ids),
            "settings": dict(self.settings),
        }


class EvidenceWriter:
    """Appends evidence to a file, one flushed record at a time; continues a file whose header is the same."""

    def __init__(self, path: Path, header: EvidenceHeader) -> None:
        self._path = path
        self._file: BinaryIO
        if path.exists() and not _killed_at_start(path):
            found, places = scan(path)
            if _comparable(found) != _comparable(header):
                raise EvidenceError(
                    f"{path}: made by reference {found.reference} (weights {found.weights[:12]}), expected "
                    f"{header.reference} (weights {header.weights[:12]}) with equal settings; use another file"
                )
            end = max([place.end for place in places.values()], default=_first_end(path))
            self._file = path.open("r+b")
            self._file.truncate(end)
            self._file.seek(end)
        else:
            self._file = path.open("wb")
            self._file.write(_magic(header) + _record(header.to_json(), b""))
        self._file.flush()

    def append(self, evidence: Evidence) -> None:
        """Write one record; it is on its way to the disk when this returns."""
        body = b"".join(np.ascontiguousarray(values, dtype=kind).tobytes() for values, kind in _arrays(evidence))
        header: dict[str, Any] = {
            "id": evidence.trace_id,
            "digest": evidence.trace_digest,
            "vocab_size": evidence.vocab_size,
            "temperature": evidence.temperature,
            "tokens": evidence.tokens,
            "candidates": len(evidence.ids_N),
        }
        own_AFK = evidence.projections_AFK
        if own_AFK is not None:
            header["projections"] = list(own_AFK.shape)
            body += np.ascontiguousarray(own_AFK, dtype="<f4").tobytes()
        if evidence.sensitivity_AF is not None:
            header["sensitivity"] = True
            body += np.ascontiguousarray(evidence.sensitivity_AF, dtype="<f4").tobytes()
        if (race := evidence.race) is not None:  # a reader that does not know it only sees the long tail
            header["race"] = [race.contract, race.seed, race.temperature, race.open_O.tolist()]
        self._file.write(_record(header, body))
        self._file.flush()

    def close(self) -> None:
        """Flush to the disk and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one sequence's evidence lies in a file."""

    start: int
    end: int


def scan(path: Path) -> tuple[EvidenceHeader, dict[str, Place]]:
    """The header of an evidence file and the place of each complete record, by trace digest. Arrays are not read."""
    with _open(path) as file:
        size = path.stat().st_size
        if file.read(len(MAGIC)) not in _MAGICS:
            raise EvidenceError(f"{path}: not an evidence file of format 1, 2 or 3")
        first = _read_header(file, path, size)
        if first is None:
            raise EvidenceError(f"{path}: the file ends inside its header")
        end = file.tell()
        file.seek(len(MAGIC) + 4)
        text, checksum = file.read(end - file.tell()), file.read(_HASH)
        if len(checksum) < _HASH:
            raise EvidenceError(f"{path}: the file ends inside its header")
        if hashlib.sha256(text).digest() != checksum:
            raise EvidenceError(f"{path}: its header is damaged (the checksum does not fit)")
        header = _parse_header(first, path)
        places: dict[str, Place] = {}
        while True:
            start = file.tell()
            entry = _read_header(file, path, size)
            if entry is None:
                return header, places
            end = file.tell() + _body_size(entry, path) + _HASH
            if end > size:
                return header, places
            places[str(entry["digest"])] = Place(start=start, end=end)
            file.seek(end)


def read(path: Path, place: Place) -> Evidence:
    """The evidence at `place`, checked; `EvidenceError` if a byte is wrong."""
    with _open(path) as file:
        file.seek(place.start)
        raw = file.read(place.end - place.start)
    length = int.from_bytes(raw[:4], "little")
    if hashlib.sha256(raw[4:-_HASH]).digest() != raw[-_HASH:]:
        raise EvidenceError(f"{path}: a record at byte {place.start} is damaged (its checksum does not fit)")
    entry = json.loads(raw[4 : 4 + length])
    return _unpack(entry, memoryview(raw)[4 + length : -_HASH]).validate()


def read_all(path: Path) -> Iterator[Evidence]:
    """All evidence of a file, in the order written."""
    for place in scan(path)[1].values():
        yield read(path, place)


def _arrays(evidence: Evidence) -> Iterator[tuple[Any, str]]:
    for name, kind in _PER_TOKEN:
        yield (np.diff(evidence.offsets_T1) if name == "counts" else getattr(evidence, name)), kind
    for name, kind in _PER_CANDIDATE:
        yield getattr(evidence, name), kind


def _unpack(entry: Mapping[str, Any], body: memoryview) -> Evidence:
    fields: dict[str, Any] = {}
    start = 0
    for group, count in ((_PER_TOKEN, entry["tokens"]), (_PER_CANDIDATE, entry["candidates"])):
        for name, kind in group:
            stop = start + count * np.dtype(kind).itemsize
            fields[name] = np.frombuffer(body[start:stop], dtype=kind)
            start = stop
    sizes = entry.get("projections")
    if sizes is not None:
        values, count = np.frombuffer(body[start:], dtype="<f4"), math.prod(sizes)
        fields["projections_AFK"] = values[:count].reshape(sizes)
        if entry.get("sensitivity") is True:
            fields["sensitivity_AF"] = values[count:].reshape(sizes[:2])
    fields["race"] = _race(entry.get("race"))
    counts = fields.pop("counts").astype(np.int64)
    return Evidence(
        trace_id=str(entry["id"]),
        trace_digest=str(entry["digest"]),
        vocab_size=int(entry["vocab_size"]),
        temperature=float(entry["temperature"]),
        offsets_T1=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        **fields,
    )


def _race(stated: object) -> Race | None:
    """A record's race, checked; None if it has none."""
    if stated is None:
        return None
    if not isinstance(stated, list) or len(stated) != 4:
        raise EvidenceError(f"race: got {stated!r:.40}, expected contract, seed, temperature and open tokens")
    contract, seed, temperature, open_tokens = stated
    heat = isinstance(temperature, float) and 0 < temperature <= 1e4
    steps = isinstance(open_tokens, list) and all(type(step) is int and abs(step) < 2**31 for step in open_tokens)
    if not (isinstance(contract, str) and type(seed) is int and heat and steps):
        raise EvidenceError(f"race: got {stated!r:.40}, expected contract, seed, temperature and open tokens")
    return Race(contract=contract, seed=seed, temperature=temperature, open_O=np.array(open_tokens, dtype=np.int64))


def _record(header: Mapping[str, Any], body: bytes) -> bytes:
    text = json.dumps(header, allow_nan=False).encode()
    if len(text) > _MAX_HEADER:
        raise EvidenceError(f"a record header of {len(text)} bytes is over the limit of {_MAX_HEADER}")
    return len(text).to_bytes(4, "little") + text + body + hashlib.sha256(text + body).digest()


def _read_header(file: BinaryIO, path: Path, size: int) -> dict[str, Any] | None:
    """The next record's header, or None where the file ends before it does."""
    at = file.tell()
    raw = file.read(4)
    length = int.from_bytes(raw, "little")
    if len(raw) < 4:
        return None
    if not 2 <= length <= _MAX_HEADER:
        raise EvidenceError(f"{path}: the record at byte {at} states a header of {length} bytes")
    if at + 4 + length > size:
        return None
    try:
        entry = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{path}: the record at byte {at} has no readable header") from error
    if not isinstance(entry, dict):
        raise EvidenceError(f"{path}: the record at byte {at} has no object as its header")
    return entry


def _body_size(entry: Mapping[str, Any], path: Path) -> int:
    for name in ("id", "digest"):
        if not isinstance(entry.get(name), str):
            raise EvidenceError(f"{path}: {name}: got {entry.get(name)!r:.40}, expected a string")
    limits = {"tokens": MAX_TOKENS, "candidates": MAX_CANDIDATES, "vocab_size": MAX_TOKEN_ID}
    for name, limit in limits.items():
        value = entry.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            raise EvidenceError(f"{path}: {name}: got {value!r:.40}, expected an integer from 0 to {limit}")
    heat = entry.get("temperature")
    if isinstance(heat, bool) or not isinstance(heat, int | float) or heat > 1e300:
        raise EvidenceError(f"{path}: temperature: got {heat!r:.40}, expected a number")
    per_token = sum(np.dtype(kind).itemsize for _, kind in _PER_TOKEN)
    per_candidate = sum(np.dtype(kind).itemsize for _, kind in _PER_CANDIDATE)
    return int(entry["tokens"]) * per_token + int(entry["candidates"]) * per_candidate + _projection_size(entry, path)


def _projection_size(entry: Mapping[str, Any], path: Path) -> int:
    """Bytes of a record's projections, 0 if it has none."""
    sizes = entry.get("projections")
    if sizes is None:
        return 0
    if not isinstance(sizes, list) or len(sizes) != len(_PROJECTION_LIMITS):
        raise EvidenceError(f"{path}: projections: got {sizes!r:.40}, expected three sizes")
    for size, limit in zip(sizes, _PROJECTION_LIMITS, strict=True):
        if type(size) is not int or not 0 <= size <= limit:
            raise EvidenceError(f"{path}: projections: got {size!r:.40}, expected an integer from 0 to {limit}")
    more = entry.get("sensitivity")
    if more is not None and more is not True:
        raise EvidenceError(f"{path}: sensitivity: got {more!r:.40}, expected true or nothing")
    return 4 * (math.prod(sizes) + (math.prod(sizes[:2]) if more is True else 0))


def _parse_header(entry: Mapping[str, Any], path: Path) -> EvidenceHeader:
    eos, vocab, settings = entry.get("eos_ids"), entry.get("vocab_size"), entry.get("settings")
    texts = all(isinstance(entry.get(key), str) for key in ("reference", "weights"))
    ids = isinstance(eos, list) and all(type(i) is int and 0 <= i <= MAX_TOKEN_ID for i in eos)
    if not (texts and ids and type(vocab) is int and 0 < vocab <= MAX_TOKEN_ID and isinstance(settings, dict)):
        raise EvidenceError(f"{path}: the header does not describe a reference")
    assert isinstance(eos, list)  # noqa: S101  (established by `ids`; for the type checker)
    return EvidenceHeader(
        reference=str(entry["reference"]),
        weights=str(entry["weights"]),
        vocab_size=int(vocab),
        eos_ids=tuple(eos),
        settings=settings or {},
    )


def _comparable(header: EvidenceHeader) -> tuple[Any, ...]:
    """What must be equal for two runs to share a file: threads and library versions may differ."""
    keys = ("dtype", "tail_mass", "list_bytes", "fingerprints", "sensitivity", "top_logprobs")
    return (header.weights, header.vocab_size, tuple(header.settings.get(key) for key in keys))


def _magic(header: EvidenceHeader) -> bytes:
    """The first line of a file with this header."""
    if header.settings.get("fingerprints") is None:
        return MAGIC
    return MAGIC_2 if header.settings.get("sensitivity") is None else MAGIC_3


def _killed_at_start(path: Path) -> bool:
    """Whether a file holds no more than the beginning of what every evidence file starts with."""
    with _open(path) as file:
        raw = file.read(len(MAGIC) + 4)
    if len(raw) < len(MAGIC):
        return any(magic.startswith(raw) for magic in _MAGICS)
    return raw.startswith(_MAGICS) and path.stat().st_size < _first_end(path) <= len(MAGIC) + 4 + _MAX_HEADER + _HASH


def _first_end(path: Path) -> int:
    with path.open("rb") as file:
        raw = file.read(len(MAGIC) + 4)
    return len(MAGIC) + 4 + int.from_bytes(raw[len(MAGIC) :], "little") + _HASH


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise EvidenceError(f"{path}: cannot read it: {error.strerror}") from error
