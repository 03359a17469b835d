"""The projection matrix: k exactly orthogonal integer rows, the same bits everywhere.

The D x D integer matrix A is a Kronecker product over the prime factors of D: for each odd prime p the p x p matrix
2 J - p I (J all ones), which is p times a Householder reflection, and for 2^a the Sylvester-Hadamard matrix. Its rows
are orthogonal and have equal length, A A^T = (m^2 2^a) I with m the odd part of D. The seed permutes rows and columns
and flips the sign of columns, none of which changes that. docs/fingerprints.md is the norm.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from veridifr.errors import FingerprintError
from veridifr.fingerprints.spec import MAX_HIDDEN, MAX_K
from veridifr.rng import philox4x32

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

_ROWS, _COLUMNS = 0x46505257, 0x4650434C
"""Third counter word of the draws for rows ("FPRW") and for columns ("FPCL")."""
_UNIT = 2.0**-24
"""Unit roundoff of float32."""


def factors(size: int) -> tuple[tuple[int, ...], int]:
    """The odd prime factors of `size`, ascending and repeated as they occur, and the exponent of 2."""
    twos = (size & -size).bit_length() - 1
    rest, odd, prime = size >> twos, [], 3
    while prime * prime <= rest:
        while rest % prime == 0:
            odd.append(prime)
            rest //= prime
        prime += 2
    return (*odd, *((rest,) if rest > 1 else ())), twos


def squared_length(size: int) -> int:
    """The exact squared length of every row of the integer matrix: m^2 2^a for size = m 2^a, m odd."""
    odd, twos = factors(size)
    return int(math.prod(odd)) ** 2 << twos


@lru_cache(maxsize=16)
def projection_matrix(seed: int, k: int, size: int) -> Int32:
    """The first k rows of the integer matrix for a hidden size, int32 [k, D], read-only.

    Rows are exactly orthogonal and a smaller k is a prefix of a larger one. Entries are below 2^21 in magnitude, so
    float32 holds them exactly. Cost: k D entries; nothing of size D x D is made.
    """
    if not (1 <= size <= MAX_HIDDEN and 1 <= k <= min(size, MAX_K)):
        raise FingerprintError(
            f"projection: got k {k} and hidden size {size}, expected k of at most both D and {MAX_K}"
        )
    rows_K = _order(seed, size, _ROWS)[0][:k]
    columns_D, signs_D = _order(seed, size, _COLUMNS)
    matrix_KD = np.broadcast_to(signs_D, (k, size)).astype(np.int32)
    odd, twos = factors(size)
    for prime in odd:
        same = (rows_K % prime)[:, None] == (columns_D % prime)[None, :]
        matrix_KD *= np.where(same, 2 - prime, 2).astype(np.int32)
        rows_K, columns_D = rows_K // prime, columns_D // prime
    if twos:
        matrix_KD *= 1 - 2 * _parity(rows_K[:, None] & columns_D[None, :])
    matrix_KD.flags.writeable = False
    return matrix_KD


def matrix_digest(seed: int, k: int, size: int) -> str:
    """SHA-256 (hex) of the integer matrix as little-endian int32, row by row."""
    return hashlib.sha256(projection_matrix(seed, k, size).astype("<i4").tobytes()).hexdigest()


def scale(size: int) -> np.float32:
    """What a product with the integer matrix is multiplied by, once: 1 / sqrt(squared length), rounded to float32."""
    return np.float32(1.0 / math.sqrt(squared_length(size)))


def project(hidden_ND: npt.ArrayLike, seed: int, k: int) -> Float32:
    """Projections [N, k] of hidden states [N, D], in float32 (sums in float64, then rounded: the verifier's side).

    `FingerprintError` for a shape that is not [N, D], or a value that is not finite.
    """
    values_ND = np.asarray(hidden_ND, dtype=np.float64)
    if values_ND.ndim != 2:
        raise FingerprintError(f"hidden: got {values_ND.ndim} axes, expected [N, D]")
    if not np.isfinite(values_ND).all():
        raise FingerprintError("hidden: holds NaN or infinity")
    matrix_KD = projection_matrix(seed, k, values_ND.shape[1])
    exact = float(scale(values_ND.shape[1]))
    return np.asarray(values_ND @ matrix_KD.T.astype(np.float64) * exact, dtype=np.float32)


def tolerance(size: int) -> float:
    """How far two float32 evaluations of one coordinate may lie apart, in units of the hidden state's L2 norm.

    Each is a sum of D products in any order, with or without fused multiply-add, times the scale: its error is at most
    gamma_(D+1) times the sum of |q_i h_i| (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., 3.1 and
    4.2; gamma_n = n u / (1 - n u), u = 2^-24), and that sum is at most ||h|| as a scaled row has length 1
    (Cauchy-Schwarz). Two evaluations differ by twice that. It is a worst case: errors of random sign are about
    sqrt(D) / D of it.
    """
    steps = (size + 1) * _UNIT
    return 2 * steps / (1 - steps)


def _order(seed: int, size: int, domain: int) -> tuple[Int64, Int32]:
    """A permutation of `size` numbers and a sign for each: sorted by 64 random bits, equal ones by number."""
    number = np.arange(size, dtype=np.int64)
    low, high, extra = philox4x32((number, 0, domain, 0), (seed & 0xFFFFFFFF, seed >> 32), (0, 1, 2))
    keys = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    return np.argsort(keys, kind="stable"), (1 - 2 * (extra & np.uint32(1)).astype(np.int32)).astype(np.int32)


def _parity(value: Int64) -> Int32:
    """The number of set bits, modulo 2."""
    return (np.bitwise_count(value) & 1).astype(np.int32)
