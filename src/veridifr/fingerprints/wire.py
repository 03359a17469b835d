"""A fingerprint as bytes and as base64: fixed header, payloads, a checksum. docs/fingerprints.md is the norm.

Every byte comes from the party being audited: lengths are computed from the verifier's own specification and token
count and compared before anything is read, and each malformed byte string gives a `FingerprintError` naming the field.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.errors import FingerprintError
from veridifr.fingerprints.encoding import Codes, Intervals, pack_bits, to_codes, to_intervals, unpack_bits
from veridifr.fingerprints.spec import FingerprintSpec

MAGIC = b"VDFP"
FORMAT_VERSION = 1
MAX_TOKENS = 1_048_576
MAX_BYTES = 16 * 2**20
"""Largest fingerprint of one sequence."""
DIGEST_BYTES = 8
"""Leading bytes of the specification's digest in the header: against mistakes; the verifier uses its own spec."""

_HEADER = struct.Struct("<4sBBHII8s")
_CHECKSUM = struct.Struct("<I")
OVERHEAD_BYTES = _HEADER.size + _CHECKSUM.size
"""What a fingerprint spends per sequence beside its payloads."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The coordinates of one sequence: one payload per tap in the specification's order."""

    spec: FingerprintSpec
    tokens: int
    payloads: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or not 0 <= self.tokens <= MAX_TOKENS:
            raise FingerprintError(f"tokens: got {self.tokens!r:.40}, expected 0 to {MAX_TOKENS}")
        if len(self.payloads) != len(self.spec.taps):
            raise FingerprintError(f"taps: got {len(self.payloads)} payloads, expected {len(self.spec.taps)}")
        expected = self.spec.payload_bytes(self.tokens)
        for tap, payload in zip(self.spec.taps, self.payloads, strict=True):
            if len(payload) != expected:
                raise FingerprintError(f"payload of tap {tap}: got {len(payload)} bytes, expected {expected}")

    def intervals(self, tap: int) -> Intervals:
        """The values that tap number `tap` stands for. `FingerprintError` for NaN, infinities and stray bits."""
        return to_intervals(self.spec, tap, read_codes(self.spec, self.tokens, self.payloads[tap]))


def write_codes(codes: Codes, bits: int) -> bytes:
    """One tap's payload: the scale bytes if there are any, then the codes as packed bits."""
    scales = b"" if codes.scales_F is None else codes.scales_F.tobytes()
    return scales + pack_bits(codes.codes_FK, bits)


def read_codes(spec: FingerprintSpec, tokens: int, payload: bytes) -> Codes:
    """The codes of one tap's payload. `FingerprintError` for a wrong length or stray bits."""
    entries = spec.entries(tokens)
    expected = spec.payload_bytes(tokens)
    if len(payload) != expected:
        raise FingerprintError(f"payload: got {len(payload)} bytes, expected {expected}")
    split = entries if spec.scaled else 0
    flat = unpack_bits(payload[split:], entries * spec.k, spec.bits)
    scales = np.frombuffer(payload[:split], dtype=np.uint8) if spec.scaled else None
    return Codes(codes_FK=flat.reshape(entries, spec.k), scales_F=scales)


def fingerprint(spec: FingerprintSpec, tokens: int, values_AFK: Sequence[npt.ArrayLike]) -> Fingerprint:
    """The fingerprint of a sequence from its projections: per tap (A) an array [entries(tokens), k] in float32."""
    if len(values_AFK) != len(spec.taps):
        raise FingerprintError(f"taps: got {len(values_AFK)} arrays, expected {len(spec.taps)}")
    payloads = []
    for tap, values in enumerate(values_AFK):
        codes = to_codes(spec, tap, values)
        if len(codes.codes_FK) != spec.entries(tokens):
            raise FingerprintError(f"entries: got {len(codes.codes_FK)}, expected {spec.entries(tokens)}")
        payloads.append(write_codes(codes, spec.bits))
    return Fingerprint(spec=spec, tokens=tokens, payloads=tuple(payloads))


def to_bytes(found: Fingerprint) -> bytes:
    """The binary form."""
    total = sum(map(len, found.payloads))
    head = _HEADER.pack(
        MAGIC, FORMAT_VERSION, 0, len(found.payloads), found.tokens, total, found.spec.digest()[:DIGEST_BYTES]
    )
    body = head + b"".join(found.payloads)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def from_bytes(data: bytes, spec: FingerprintSpec, tokens: int) -> Fingerprint:
    """The fingerprint in `data`, which must be of this specification and cover exactly `tokens` output tokens.

    Raises `FingerprintError`, naming the field, for anything else: nothing is read before its length is checked.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise FingerprintError(f"fingerprint: got {type(data).__name__}, expected bytes")
    data = bytes(data[: MAX_BYTES + 1])
    if not OVERHEAD_BYTES <= len(data) <= MAX_BYTES:
        raise FingerprintError(f"fingerprint: got {len(data)} bytes, expected {OVERHEAD_BYTES} to {MAX_BYTES}")
    magic, version, flags, taps, count, total, digest = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FingerprintError(f"magic: got {magic!r}, expected {MAGIC!r}")
    if version != FORMAT_VERSION:
        raise FingerprintError(f"version: got {version}, this veridifr reads {FORMAT_VERSION}")
    if flags:
        raise FingerprintError(f"flags: got {flags}, expected 0")
    if digest != spec.digest()[:DIGEST_BYTES]:
        raise FingerprintError(
            f"spec digest: got {digest.hex()}, expected {spec.digest()[:DIGEST_BYTES].hex()}: made for another "
            "k, hidden size, encoding, seed or set of taps"
        )
    if taps != len(spec.taps):
        raise FingerprintError(f"taps: got {taps}, expected {len(spec.taps)}")
    if count != tokens:
        raise FingerprintError(f"tokens: got {count}, expected the {tokens} of the output")
    each = spec.payload_bytes(tokens)
    if total != each * taps or len(data) != OVERHEAD_BYTES + total:
        raise FingerprintError(
            f"payload length: states {total}, {len(data) - OVERHEAD_BYTES} are there, expected {each * taps}"
        )
    body, stated = data[: -_CHECKSUM.size], _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]
    if zlib.crc32(body) != stated:
        raise FingerprintError(f"checksum: got {stated:#010x}, expected {zlib.crc32(body):#010x}")
    starts = range(_HEADER.size, _HEADER.size + each * taps, each) if each else [_HEADER.size] * taps
    found = Fingerprint(spec=spec, tokens=tokens, payloads=tuple(body[start : start + each] for start in starts))
    for tap in range(taps):
        found.intervals(tap)  # NaN, infinities and stray bits are refused here, not by whoever uses them
    return found


def to_base64(found: Fingerprint) -> str:
    """The binary form in base64 (RFC 4648 section 4, padded, no line breaks), for JSON."""
    return base64.b64encode(to_bytes(found)).decode("ascii")


def from_base64(text: object, spec: FingerprintSpec, tokens: int) -> Fingerprint:
    """The fingerprint in a base64 string; see `from_bytes`."""
    if not isinstance(text, str):
        raise FingerprintError(f"fingerprint: got {type(text).__name__}, expected a base64 string")
    if len(text) > -(-MAX_BYTES // 3) * 4:
        raise FingerprintError(f"fingerprint: got {len(text)} characters, more than {MAX_BYTES} bytes need")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FingerprintError("fingerprint: not base64") from None
    if base64.b64encode(data).decode("ascii") != text:
        raise FingerprintError("fingerprint: not the one base64 text of its bytes")
    return from_bytes(data, spec, tokens)
