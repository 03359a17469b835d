"""What a provider computes and how it writes it: a fingerprint specification, chosen by the verifier.

docs/fingerprints.md is the norm. A specification is sent in the open; its digest stands in every fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from veridifr.errors import FingerprintError

SPEC_VERSION = 1
FINAL = "final"
"""The tap after the final norm, before the LM head. The other taps are ``layer.N``: the output of decoder layer N."""
ENCODINGS = {
    "float32": 32,
    "bfloat16": 16,
    "scaled8": 8,
    "scaled4": 4,
    "scaled2": 2,
    "sign": 1,
    **{f"wrapped{bits}": bits for bits in range(1, 9)},
}
"""Bits of one coordinate, by encoding. ``scaled`` encodings spend another byte per token and tap on a scale."""

MAX_HIDDEN = 2**20
MAX_K = 4096
MAX_EVERY = 4096
MAX_TAPS = 64
MAX_LAYER = 4095
MAX_STEP_LOG2 = 64
MAX_SPEC_BYTES = 65536
_LAYER = re.compile(r"layer\.(0|[1-9][0-9]{0,3})\Z")


@dataclass(frozen=True, kw_only=True)
class FingerprintSpec:
    """k coordinates of a hidden state of size D, at each tap, for every `every`-th output token.

    `seed` picks the matrix (`projection_matrix`). `step_log2` is for the wrapped encodings alone: one base-2 logarithm
    of the lattice step per tap, in the units of a projected coordinate; coordinate j has the step
    2^(step_log2[tap] + pattern_log2[j mod len(pattern_log2)]).

    Raises `FingerprintError` naming the field for anything out of range.
    """

    seed: int
    hidden_size: int
    k: int
    encoding: str
    taps: tuple[str, ...] = (FINAL,)
    every: int = 1
    step_log2: tuple[int, ...] = ()
    pattern_log2: tuple[int, ...] = (0,)
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        put = object.__setattr__
        version = _integer("version", self.version, 1, 2**31 - 1)
        if version != SPEC_VERSION:
            raise FingerprintError(f"spec.version: got {version}, this veridifr knows {SPEC_VERSION}")
        put(self, "seed", _integer("seed", self.seed, 0, 2**64 - 1))
        put(self, "hidden_size", _integer("hidden_size", self.hidden_size, 1, MAX_HIDDEN))
        put(self, "k", _integer("k", self.k, 1, min(MAX_K, self.hidden_size)))
        put(self, "every", _integer("every", self.every, 1, MAX_EVERY))
        if not isinstance(self.encoding, str) or self.encoding not in ENCODINGS:
            raise FingerprintError(f"spec.encoding: got {self.encoding!r:.40}, expected one of {', '.join(ENCODINGS)}")
        put(self, "taps", _taps(self.taps))
        steps = _integers("step_log2", self.step_log2, -MAX_STEP_LOG2, MAX_STEP_LOG2)
        pattern = _integers("pattern_log2", self.pattern_log2, -16, 16)
        expected = len(self.taps) if self.wrapped else 0
        if len(steps) != expected:
            raise FingerprintError(
                f"spec.step_log2: got {len(steps)} steps, expected {expected} "
                f"({self.encoding} with {len(self.taps)} taps)"
            )
        if not 1 <= len(pattern) <= self.k or (not self.wrapped and pattern != (0,)):
            raise FingerprintError("spec.pattern_log2: expected 1 to k steps, and (0,) unless the encoding is wrapped")
        put(self, "step_log2", steps)
        put(self, "pattern_log2", pattern)

    @property
    def wrapped(self) -> bool:
        """Whether coordinates are sent as lattice points modulo a power of two."""
        return self.encoding.startswith("wrapped")

    @property
    def scaled(self) -> bool:
        """Whether each token and tap carries a scale."""
        return self.encoding.startswith("scaled")

    @property
    def bits(self) -> int:
        """Bits of one coordinate."""
        return ENCODINGS[self.encoding]

    def entries(self, tokens: int) -> int:
        """How many of `tokens` output tokens carry coordinates: those whose number is a multiple of `every`."""
        return -(-tokens // self.every)

    def payload_bytes(self, tokens: int) -> int:
        """Bytes of one tap's payload for `tokens` output tokens."""
        entries = self.entries(tokens)
        return -(-entries * self.k * self.bits // 8) + (entries if self.scaled else 0)

    def alone(self, tap: str) -> FingerprintSpec:
        """The same with one of its taps alone. `FingerprintError` for another tap."""
        if tap not in self.taps:
            raise FingerprintError(f"tap: got {tap!a:.40}, expected one of {', '.join(self.taps)}")
        return replace(self, taps=(tap,), step_log2=self.step_log2 and (self.step_log2[self.taps.index(tap)],))

    def bytes_per_token(self) -> float:
        """Payload bytes of one output token over all taps, in the limit of long outputs; headers come on top."""
        return (self.k * self.bits / 8 + self.scaled) * len(self.taps) / self.every

    def canonical(self) -> bytes:
        """The one JSON text of this specification: keys sorted, no spaces, ASCII."""
        return json.dumps(to_dict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over a domain prefix and the canonical JSON."""
        return hashlib.sha256(b"veridifr fingerprint spec 1\0" + self.canonical()).digest()


def to_dict(spec: FingerprintSpec) -> dict[str, Any]:
    """The JSON object of a specification; every field is always present."""
    return {f.name: _plain(getattr(spec, f.name)) for f in fields(spec)}


def from_dict(value: object) -> FingerprintSpec:
    """The specification of a parsed JSON object. `FingerprintError` for a key too many or too few, or a bad value."""
    if not isinstance(value, Mapping):
        raise FingerprintError(f"spec: got {type(value).__name__}, expected an object")
    names = {f.name for f in fields(FingerprintSpec)}
    for key in value:
        if key not in names:
            raise FingerprintError(f"spec.{str(key)[:40]!a}: not a field of version {SPEC_VERSION}")
    for name in sorted(names):
        if name not in value:
            raise FingerprintError(f"spec.{name}: missing")
    return FingerprintSpec(**dict(value))


def layer_of(tap: str) -> int | None:
    """The decoder layer of a tap, None for the final one."""
    found = _LAYER.match(tap)
    return int(found[1]) if found else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _integer(name: str, value: object, low: int, high: int) -> int:
    if type(value) is not int:
        raise FingerprintError(f"spec.{name}: got {value!r:.40}, expected an integer")
    if not low <= value <= high:
        raise FingerprintError(f"spec.{name}: got {value!r:.40}, expected {low} to {high}")
    return value


def _integers(name: str, value: object, low: int, high: int) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_K:
        raise FingerprintError(f"spec.{name}: got {value!r:.40}, expected a list of integers")
    return tuple(_integer(f"{name}[{i}]", item, low, high) for i, item in enumerate(value))


def _taps(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_TAPS:
        raise FingerprintError(f"spec.taps: got {value!r:.40}, expected a list of 1 to {MAX_TAPS} taps")
    for i, tap in enumerate(value):
        if not isinstance(tap, str) or not (tap == FINAL or _LAYER.match(tap)):
            raise FingerprintError(f"spec.taps[{i}]: got {tap!r:.40}, expected {FINAL!r} or 'layer.N'")
    if len(set(value)) != len(value):
        raise FingerprintError("spec.taps: a tap occurs twice")
    return tuple(value)
