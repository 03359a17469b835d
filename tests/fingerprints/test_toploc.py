"""The TOPLOC baseline: answers of the toploc package, algebra against a slow oracle, and hostile proofs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veridifr.errors import FingerprintError
from veridifr.fingerprints.toploc import (
    PRIME,
    Distance,
    Proof,
    compare,
    distance,
    evaluate,
    from_bytes,
    injective_modulus,
    interpolate,
    proof_bytes,
    prove,
    to_bytes,
)

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "data" / "toploc_golden.json").read_text())


@pytest.fixture(scope="module")
def activations() -> Any:
    sys.path.insert(0, str(ROOT / "tools"))
    import make_toploc_golden

    sys.path.pop(0)
    return make_toploc_golden.activations


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['tokens']}x{c['size']}-top{c['top_k']}-{c['seed']}")
def test_the_package_and_this_agree(case: Any, activations: Any) -> None:
    """toploc 0.1.6's C++ tensor path: proof bytes and all three statistics."""
    theirs, own = activations(case["seed"], case["tokens"], case["size"])
    proof = prove(theirs, case["top_k"])
    assert to_bytes(proof).hex() == case["proof"]
    found = compare(own, from_bytes(bytes.fromhex(case["proof"]), case["top_k"]), case["top_k"])
    wanted = case["found"]
    assert [found.exponent_mismatches, found.mantissa_median] == [wanted[0], wanted[2]]
    assert found.mantissa_mean == pytest.approx(wanted[1], rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, PRIME - 1), st.integers(0, 65535)), min_size=1, max_size=24,
                unique_by=lambda p: p[0]))  # fmt: skip
def test_interpolation_goes_through_its_points(points: list[tuple[int, int]]) -> None:
    """Checked with Python's own integers and powers."""
    x, y = (np.array(column, dtype=np.int64) for column in zip(*points, strict=True))
    coefficients = interpolate(x, y)
    for a, b in points:
        assert sum(c * pow(a, n, PRIME) for n, c in enumerate(coefficients)) % PRIME == b % PRIME
    assert (evaluate(Proof(modulus=PRIME, coefficients=coefficients), x) == y % PRIME).all()


def test_the_modulus_is_the_largest_that_keeps_indices_apart() -> None:
    assert injective_modulus(np.array([0, 1, 2])) == PRIME
    assert injective_modulus(np.array([0, PRIME])) == PRIME - 1
    assert injective_modulus(np.array([0, PRIME, PRIME - 1])) == PRIME - 2


def test_an_own_proof_has_no_distance() -> None:
    chunk = np.random.default_rng(0).normal(size=(4, 384))
    assert compare(chunk, prove(chunk, 16), 16) == Distance(
        top_k=16, exponent_mismatches=0, mantissa_mean=0.0, mantissa_median=0.0
    )


def test_nothing_to_compare_is_none() -> None:
    found = distance(np.array([0x3F80, 0x4000]), np.array([0x4200, 0x4200]))
    assert (found.exponent_mismatches, found.mantissa_mean, found.mantissa_median) == (2, None, None)


def test_where_the_provider_chose_nothing_the_polynomial_is_as_good_as_random() -> None:
    """The benchmark draws those values at random; the exponents of true polynomials agree as rarely."""
    rng = np.random.default_rng(1)
    wrong = [
        compare(rng.normal(size=(1, 384)), prove(rng.normal(size=(1, 384)), 8), 8).exponent_mismatches
        for _ in range(200)
    ]
    assert sum(wrong) / (8 * 200) > 0.9


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got 0 bytes, expected 10"),
        (bytes(9), "got 9 bytes"),
        (bytes(10), "modulus: got 0"),
        (b"\x7f\xff" + bytes(8), "modulus: got 32767"),
        (b"\xff\xff" + bytes(8), "modulus: got 65535"),
        (b"\xff\xd9\xff\xda" + bytes(6), r"coefficients\[0\]: got 65498"),
    ],
)
def test_hostile_proofs_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FingerprintError, match=message):
        from_bytes(data, 4)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=18, max_size=18))
def test_no_polynomial_breaks_the_verifier(data: bytes) -> None:
    try:
        proof = from_bytes(data, 8)
    except FingerprintError:
        return
    found = compare(np.random.default_rng(0).normal(size=(2, 64)), proof, 8)
    assert 0 <= found.exponent_mismatches <= 8


def test_sizes_and_refusals() -> None:
    assert proof_bytes(128) == 258
    chunk = np.ones((2, 4))
    for top_k in (0, 9, 4097):
        with pytest.raises(FingerprintError, match="top_k"):
            prove(chunk, top_k)
    with pytest.raises(FingerprintError, match="coefficients: got 4, expected 8"):
        compare(chunk, prove(chunk, 4), 8)
    with pytest.raises(FingerprintError, match="NaN or infinity"):
        prove(np.array([[1.0, np.inf]]), 1)
    with pytest.raises(FingerprintError, match="too large for bfloat16"):
        prove(np.array([[1.0, 3.4e38]]), 1)
