"""The projection matrix: exactly orthogonal, a prefix of itself, the same bits as written in docs/fingerprints.md."""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veridifr.errors import FingerprintError
from veridifr.fingerprints import matrix_digest, project, projection_matrix, tolerance
from veridifr.fingerprints.projection import factors, scale, squared_length
from veridifr.rng import philox4x32

DOC = Path(__file__).parents[2] / "docs" / "fingerprints.md"
SIZES = [1, 2, 3, 5, 6, 7, 8, 9, 12, 15, 45, 64, 97, 384, 896]


def naive(seed: int, k: int, size: int) -> list[list[int]]:
    """The definition, entry by entry in Python's integers."""

    def draws(domain: int) -> tuple[list[int], list[int]]:
        keys, signs = [], []
        for number in range(size):
            words = philox4x32((number, 0, domain, 0), (seed & 0xFFFFFFFF, seed >> 32), (0, 1, 2))
            low, high, extra = (int(word[0]) for word in words)
            keys.append(high * 2**32 + low)
            signs.append(-1 if extra & 1 else 1)
        return sorted(range(size), key=lambda n: (keys[n], n)), signs

    def entry(row: int, column: int) -> int:
        value, rest, prime = 1, size, 3
        while rest % 2 == 0:
            rest //= 2
        while rest > 1:
            while rest % prime == 0:
                value *= 2 - prime if row % prime == column % prime else 2
                row, column, rest = row // prime, column // prime, rest // prime
            prime += 2
        return value * (-1) ** bin(row & column).count("1")

    rows, _ = draws(0x46505257)
    columns, signs = draws(0x4650434C)
    return [[signs[c] * entry(rows[r], columns[c]) for c in range(size)] for r in range(k)]


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_exactly_orthogonal_and_of_equal_length(size: int) -> None:
    rows = projection_matrix(11, min(size, 64), size).astype(object)  # Python's integers: nothing is rounded
    gram = rows @ rows.T
    assert (gram == np.eye(len(rows), dtype=object) * squared_length(size)).all()


@pytest.mark.parametrize(("seed", "size"), [(0, 6), (7, 12), (2**63 + 5, 45), (1, 16)])
def test_it_is_what_the_definition_says(seed: int, size: int) -> None:
    assert projection_matrix(seed, size, size).tolist() == naive(seed, size, size)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 200), st.data())
def test_a_smaller_k_is_a_prefix(seed: int, size: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, size))
    assert (projection_matrix(seed, k, size) == projection_matrix(seed, size, size)[:k]).all()


def test_seeds_differ() -> None:
    assert (projection_matrix(1, 4, 384) != projection_matrix(2, 4, 384)).any()
    assert (projection_matrix(1, 4, 384) != projection_matrix(1 + 2**32, 4, 384)).any()


def test_factors() -> None:
    assert factors(384) == ((3,), 7)
    assert factors(2880) == ((3, 3, 5), 6)
    assert factors(4096) == ((), 12)
    assert factors(97) == ((97,), 0)
    assert squared_length(384) == 9 * 128


def test_the_documents_digests() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| `([0-9a-f]{64})` \|$", DOC.read_text(), re.MULTILINE)
    assert len(rows) >= 5
    for seed, k, size, digest in rows:
        assert matrix_digest(int(seed), int(k), int(size)) == digest
        matrix = projection_matrix(int(seed), int(k), int(size))
        assert hashlib.sha256(matrix.astype("<i4").tobytes()).hexdigest() == digest


def test_projections_keep_lengths() -> None:
    hidden = np.random.default_rng(0).normal(size=(5, 96))
    whole = project(hidden, 3, 96)
    assert np.allclose(np.linalg.norm(whole, axis=1), np.linalg.norm(hidden, axis=1), rtol=1e-5)


@pytest.mark.parametrize("size", [384, 4096, 2880])
def test_float32_sums_in_any_order_stay_within_the_tolerance(size: int) -> None:
    """Against exact rational arithmetic, for sums forwards, backwards, in pairs and by BLAS."""
    rng = np.random.default_rng(1)
    hidden = (rng.normal(size=size) * rng.choice([1, 100], size=size)).astype(np.float32)
    row = projection_matrix(5, 1, size)[0]
    exact = sum(Fraction(float(h)) * int(q) for h, q in zip(hidden, row, strict=True))
    true = float(exact) / squared_length(size) ** 0.5
    products = hidden * row.astype(np.float32)
    sums = [
        np.cumsum(products, dtype=np.float32)[-1],
        np.cumsum(products[::-1], dtype=np.float32)[-1],
        products.sum(dtype=np.float32),
        np.dot(hidden, row.astype(np.float32)),
    ]
    bound = tolerance(size) / 2 * float(np.linalg.norm(hidden.astype(np.float64)))
    errors = [abs(float(np.float32(total) * scale(size)) - true) for total in sums]
    assert max(errors) <= bound
    assert bound < 1e-3 * float(np.linalg.norm(hidden))  # a bound that says something


@pytest.mark.parametrize(("k", "size"), [(0, 4), (5, 4), (1, 0), (1, 2**20 + 1), (4097, 2**20)])
def test_impossible_sizes_are_refused(k: int, size: int) -> None:
    with pytest.raises(FingerprintError, match="projection: got k"):
        projection_matrix(1, k, size)


def test_values_that_are_not_finite_are_refused() -> None:
    hidden = np.zeros((1, 8))
    hidden[0, 3] = np.inf
    with pytest.raises(FingerprintError, match="NaN or infinity"):
        project(hidden, 1, 2)
