"""TOPLOC, the baseline: the largest activations of a chunk as a polynomial over GF(65497). numpy only.

From the definition in Ong et al., "TOPLOC: A Locality Sensitive Hashing Scheme for Trustless Verifiable Inference",
arXiv 2501.16007: the k entries of largest magnitude of a chunk of hidden states (flattened, bfloat16) become points
(index mod m, bits of the value), m the largest modulus of at most 65497 for which the indices stay distinct; the proof
is m and the k coefficients of the Newton form through these points, whose nodes the verifier does not know, rewritten
in powers of x: 2 + 2 k bytes. The verifier takes the largest entries of its own chunk, evaluates the polynomial there,
and compares exponents, and mantissas where exponents agree. All three statistics grow with the error.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.errors import FingerprintError
from veridifr.fingerprints.encoding import bfloat16_bits

Int64 = npt.NDArray[np.int64]

PRIME = 65497
MAX_TOP_K = 4096
_SMALLEST_MODULUS = 2**15


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A polynomial: coefficients of x^0, x^1, ... modulo `PRIME`, and the modulus that indices are reduced by."""

    modulus: int
    coefficients: tuple[int, ...]

    def __post_init__(self) -> None:
        if not _SMALLEST_MODULUS < self.modulus <= PRIME:
            raise FingerprintError(f"modulus: got {self.modulus}, expected {_SMALLEST_MODULUS + 1} to {PRIME}")
        if not 1 <= len(self.coefficients) <= MAX_TOP_K:
            raise FingerprintError(f"coefficients: got {len(self.coefficients)}, expected 1 to {MAX_TOP_K}")
        for index, value in enumerate(self.coefficients):
            if not 0 <= value < PRIME:
                raise FingerprintError(f"coefficients[{index}]: got {value}, expected 0 to {PRIME - 1}")


@dataclass(frozen=True, kw_only=True)
class Distance:
    """What a comparison found. The mantissa differences (in units of the last of 7 bits) are None where no exponent
    agrees."""

    top_k: int
    exponent_mismatches: int
    mantissa_mean: float | None
    mantissa_median: float | None


def proof_bytes(top_k: int) -> int:
    """Bytes of one chunk's proof."""
    return 2 + 2 * top_k


def prove(chunk_TD: npt.ArrayLike, top_k: int) -> Proof:
    """The proof of one chunk of hidden states [T, D]; `FingerprintError` for values that are not finite in bfloat16."""
    index_N, bits_N = _largest(chunk_TD, top_k)
    modulus = injective_modulus(index_N)
    return Proof(modulus=modulus, coefficients=interpolate(index_N % modulus, bits_N))


def compare(chunk_TD: npt.ArrayLike, proof: Proof, top_k: int) -> Distance:
    """How far the verifier's own chunk lies from a proof. `FingerprintError` for a proof of another top-k."""
    if len(proof.coefficients) != top_k:
        raise FingerprintError(f"coefficients: got {len(proof.coefficients)}, expected {top_k}")
    index_N, bits_N = _largest(chunk_TD, top_k)
    return distance(evaluate(proof, index_N % proof.modulus), bits_N)


def distance(claimed_N: Int64, bits_N: Int64) -> Distance:
    """The three statistics, from bfloat16 bits claimed and bits of the verifier's own. Signs are not compared."""
    same_N = ((claimed_N >> 7) & 0xFF) == ((bits_N >> 7) & 0xFF)
    errors = np.sort(np.abs((claimed_N & 0x7F) - (bits_N & 0x7F))[same_N])
    return Distance(
        top_k=len(bits_N),
        exponent_mismatches=int((~same_N).sum()),
        mantissa_mean=float(errors.mean()) if len(errors) else None,
        mantissa_median=float(errors[len(errors) // 2]) if len(errors) else None,
    )


def to_bytes(proof: Proof) -> bytes:
    """Modulus, then coefficients from x^0, each as 16 bits, most significant byte first."""
    return struct.pack(f">{1 + len(proof.coefficients)}H", proof.modulus, *proof.coefficients)


def from_bytes(data: bytes, top_k: int) -> Proof:
    """The proof of one chunk; `FingerprintError` for another length, a null or too small modulus, or coefficients
    outside the field."""
    if not 1 <= top_k <= MAX_TOP_K:
        raise FingerprintError(f"top_k: got {top_k}, expected 1 to {MAX_TOP_K}")
    if len(data) != proof_bytes(top_k):
        raise FingerprintError(f"proof: got {len(data)} bytes, expected {proof_bytes(top_k)}")
    modulus, *coefficients = struct.unpack(f">{1 + top_k}H", data)
    return Proof(modulus=modulus, coefficients=tuple(coefficients))


def injective_modulus(index_N: Int64) -> int:
    """The largest modulus of at most `PRIME` under which the indices stay distinct; `FingerprintError` for none."""
    for modulus in range(PRIME, _SMALLEST_MODULUS, -1):
        if len(np.unique(index_N % modulus)) == len(index_N):
            return modulus
    raise FingerprintError("chunk: no modulus keeps the indices of its largest values distinct")


def interpolate(x_N: Int64, y_N: Int64) -> tuple[int, ...]:
    """Coefficients, from x^0, of the polynomial through N points with distinct x, over GF(PRIME). O(N^2).

    Divided differences, then Horner's rule from the Newton form to powers of x.
    """
    x_N, newton = x_N % PRIME, y_N % PRIME
    count = len(x_N)
    for step in range(1, count):
        gaps = (x_N[step:] - x_N[:-step]) % PRIME
        newton[step:] = (newton[step:] - newton[step - 1 : -1]) % PRIME * _inverse(gaps) % PRIME
    powers = np.zeros(count, dtype=np.int64)
    for position in range(count - 1, -1, -1):
        shifted = np.concatenate([[0], powers[:-1]])
        powers = (shifted - x_N[position] * powers) % PRIME
        powers[0] = (powers[0] + newton[position]) % PRIME
    return tuple(powers.tolist())


def evaluate(proof: Proof, x_N: Int64) -> Int64:
    """Values of the polynomial over GF(PRIME), by Horner's rule."""
    x_N = x_N % PRIME
    total = np.zeros(len(x_N), dtype=np.int64)
    for coefficient in reversed(proof.coefficients):
        total = (total * x_N + coefficient) % PRIME
    return total


def _largest(chunk_TD: npt.ArrayLike, top_k: int) -> tuple[Int64, Int64]:
    """Flat index and bfloat16 bits of the `top_k` entries of largest magnitude; equal magnitudes by index."""
    flat = np.asarray(chunk_TD, dtype=np.float32).reshape(-1)
    if not 1 <= top_k <= min(MAX_TOP_K, len(flat)):
        raise FingerprintError(f"top_k: got {top_k}, expected 1 to {min(MAX_TOP_K, len(flat))}")
    if not np.isfinite(flat).all():
        raise FingerprintError("chunk: holds NaN or infinity")
    bits = bfloat16_bits(flat).astype(np.int64)
    size = bits & 0x7FFF
    if int(size.max()) >= 0x7F80:
        raise FingerprintError("chunk: a value is too large for bfloat16")
    candidates = np.flatnonzero(size >= np.partition(size, len(size) - top_k)[len(size) - top_k])
    index_N = candidates[np.argsort(-size[candidates], kind="stable")][:top_k]
    return index_N, bits[index_N]


def _inverse(value_N: Int64) -> Int64:
    """Multiplicative inverses modulo `PRIME` (Fermat): value^(PRIME - 2)."""
    result, base, power = np.ones_like(value_N), value_N % PRIME, PRIME - 2
    while power:
        if power & 1:
            result = result * base % PRIME
        base = base * base % PRIME
        power >>= 1
    return result
