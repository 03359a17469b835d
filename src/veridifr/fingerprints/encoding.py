"""Coordinates as codes, and codes as the interval of values that they stand for.

A verifier never needs the provider's value, only how probable the code is given its own value. So decoding gives an
interval for each coordinate, and for the wrapped encodings the period after which codes repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.errors import FingerprintError
from veridifr.fingerprints.spec import FingerprintSpec

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]

SCALE_ZERO = 160
"""A scale byte s stands for 2^((s - 160) / 8): from 2^-20 to 2^11.875."""
_SCALE_STEPS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """What one tap's payload holds for F entries: unsigned codes [F, k] and, for scaled encodings, scale bytes [F]."""

    codes_FK: UInt32
    scales_F: UInt8 | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervals:
    """The values that codes stand for: from `low_FK` to `high_FK`, infinite at an open end.

    `period_K`: with it, the interval repeats at every multiple of the period of its coordinate.
    """

    low_FK: Float64
    high_FK: Float64
    period_K: Float64 | None

    @classmethod
    def joined(cls, parts: Sequence[Intervals]) -> Intervals:
        """The entries of several fingerprints of one tap and specification as those of one."""
        return cls(
            low_FK=np.concatenate([part.low_FK for part in parts]),
            high_FK=np.concatenate([part.high_FK for part in parts]),
            period_K=parts[0].period_K,
        )

    def of(self, entries: slice | npt.NDArray[np.bool_]) -> Intervals:
        """Those of some entries alone."""
        return Intervals(low_FK=self.low_FK[entries], high_FK=self.high_FK[entries], period_K=self.period_K)


def to_codes(spec: FingerprintSpec, tap: int, values_FK: npt.ArrayLike) -> Codes:
    """The codes of F projections of tap number `tap`. `FingerprintError` for a wrong shape or a value not finite."""
    values = np.asarray(values_FK, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] != spec.k:
        raise FingerprintError(f"coordinates: got shape {values.shape}, expected [entries, {spec.k}]")
    if not np.isfinite(values).all():
        raise FingerprintError("coordinates: hold NaN or infinity")
    if spec.encoding == "float32":
        return Codes(codes_FK=values.view(np.uint32), scales_F=None)
    if spec.encoding == "bfloat16":
        codes = bfloat16_bits(values)
        if (_exponent(codes, 7) == 255).any():
            raise FingerprintError("coordinates: too large for bfloat16")
        return Codes(codes_FK=codes, scales_F=None)
    if spec.encoding == "sign":
        return Codes(codes_FK=(values < 0).astype(np.uint32), scales_F=None)
    if spec.wrapped:
        # A step is a power of two, so this quotient is exact (short of underflow) and its floor is the same everywhere.
        lattice_FK = np.floor(np.ldexp(values.astype(np.float64), -_steps_log2(spec, tap)))
        return Codes(codes_FK=np.mod(lattice_FK, 2.0**spec.bits).astype(np.uint32), scales_F=None)
    scales = scale_bytes(np.abs(values).max(axis=1, initial=0.0))
    top = 2 ** (spec.bits - 1)
    step = (2.0 * scale_values(scales) / 2**spec.bits)[:, None]
    levels = np.clip(np.floor(values.astype(np.float64) / step), -top, top - 1)
    return Codes(codes_FK=(levels + top).astype(np.uint32), scales_F=scales)


def to_intervals(spec: FingerprintSpec, tap: int, codes: Codes) -> Intervals:
    """The intervals that codes stand for. `FingerprintError` for a float that is NaN or infinite."""
    codes_FK = codes.codes_FK
    if spec.encoding in ("float32", "bfloat16"):
        short = spec.encoding == "bfloat16"
        if (_exponent(codes_FK, 7 if short else 23) == 255).any():
            raise FingerprintError(f"payload: a {spec.encoding} is NaN or infinite")
        bits: UInt32 = np.ascontiguousarray(codes_FK << np.uint32(16) if short else codes_FK, dtype=np.uint32)
        values: Float64 = bits.view(np.float32).astype(np.float64)
        # Half a unit in the last place: |v| = m 2^e with m from 0.5 to 1, and 8 or 24 bits of significand.
        half: Float64 = np.where(values == 0, 0.0, np.ldexp(1.0, np.frexp(values)[1] - (9 if short else 25)))
        return Intervals(low_FK=values - half, high_FK=values + half, period_K=None)
    if spec.encoding == "sign":
        negative = codes_FK == 1
        return Intervals(
            low_FK=np.where(negative, -np.inf, 0.0), high_FK=np.where(negative, 0.0, np.inf), period_K=None
        )
    if spec.wrapped:
        step_K = np.ldexp(1.0, _steps_log2(spec, tap))
        low: Float64 = codes_FK.astype(np.float64) * step_K
        return Intervals(low_FK=low, high_FK=low + step_K, period_K=step_K * 2**spec.bits)
    if codes.scales_F is None:
        raise FingerprintError("payload: a scaled encoding without scales")
    top = 2 ** (spec.bits - 1)
    step = (2.0 * scale_values(codes.scales_F) / 2**spec.bits)[:, None]
    low = (codes_FK.astype(np.float64) - top) * step
    high = low + step
    # The outermost levels also stand for whatever was clipped to them.
    return Intervals(
        low_FK=np.where(codes_FK == 0, -np.inf, low),
        high_FK=np.where(codes_FK == 2 * top - 1, np.inf, high),
        period_K=None,
    )


def bfloat16_bits(values: Float32) -> UInt32:
    """The bits of the nearest bfloat16, halves to even, of finite float32 values."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)


def scale_bytes(largest_F: npt.NDArray[np.floating]) -> UInt8:
    """The smallest scale byte that covers each magnitude; 0 for magnitudes below the smallest scale."""
    with np.errstate(divide="ignore"):
        exact = np.ceil(np.log2(largest_F.astype(np.float64)) * _SCALE_STEPS) + SCALE_ZERO
    found: UInt8 = np.clip(exact, 0, 255).astype(np.uint8)
    return found


def scale_values(scales_F: UInt8) -> Float64:
    """The magnitude that each scale byte stands for."""
    return np.exp2((scales_F.astype(np.float64) - SCALE_ZERO) / _SCALE_STEPS)


def pack_bits(codes_FK: UInt32, bits: int) -> bytes:
    """Codes laid end to end, entry by entry, each with its lowest bit first, bits filling bytes from the lowest."""
    shifts = np.arange(bits, dtype=np.uint32)
    flat = ((codes_FK.reshape(-1, 1) >> shifts) & np.uint32(1)).astype(np.uint8)
    return np.packbits(flat.reshape(-1), bitorder="little").tobytes()


def unpack_bits(data: bytes, count: int, bits: int) -> UInt32:
    """`count` codes that `pack_bits` wrote. `FingerprintError` for another length, or padding that is not zero."""
    if len(data) != -(-count * bits // 8):
        raise FingerprintError(f"payload: got {len(data)} bytes, expected {-(-count * bits // 8)}")
    if bits >= 8:  # whole bytes, lowest first
        return np.frombuffer(data, dtype=f"<u{bits // 8}").astype(np.uint32)
    flat = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if flat[count * bits :].any():
        raise FingerprintError("payload: bits after the last code are set")
    places = np.left_shift(np.uint8(1), np.arange(bits, dtype=np.uint8))
    found: UInt32 = (flat[: count * bits].reshape(count, bits) * places).sum(axis=1, dtype=np.uint8).astype(np.uint32)
    return found


def _steps_log2(spec: FingerprintSpec, tap: int) -> npt.NDArray[np.int64]:
    """Base-2 logarithm of the lattice step of each coordinate, [k]."""
    return spec.step_log2[tap] + np.resize(np.asarray(spec.pattern_log2, dtype=np.int64), spec.k)


def _exponent(codes: UInt32, mantissa: int) -> UInt32:
    return (codes >> np.uint32(mantissa)) & np.uint32(255)
