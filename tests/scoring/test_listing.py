"""What a listing promises, against whole sorted rows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from veridifr.evidence import HOT
from veridifr.references import fused_listing
from veridifr.references.listing import Listing, allowed_tail, fewest_listed, joined, list_candidates
from veridifr.trace import Sampling

ROWS, VOCAB = 24, 1500


def logits_of(seed: int = 0, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    widths = rng.choice([0.05, 1.0, 4.0, 10.0], size=(ROWS, 1)) * scale
    return (rng.normal(size=(ROWS, VOCAB)) * widths).astype(np.float32)


def made(logits_RV: np.ndarray, claimed: np.ndarray, processed: np.ndarray | None = None, **sampling: Any) -> Listing:
    logits = torch.from_numpy(logits_RV)
    other = logits if processed is None else torch.from_numpy(processed)
    return list_candidates(
        logits, other, torch.from_numpy(claimed), Sampling(**sampling), tail_mass=1e-6, list_bytes=400
    )


def rows_of(listing: Listing) -> list[np.ndarray]:
    return np.split(listing.ids_N, np.cumsum(listing.counts_R)[:-1])


def check_promises(got: Listing, logits: np.ndarray, claimed: np.ndarray, heat: float) -> None:
    exact = logits.astype(np.float64)
    np.testing.assert_allclose(got.lse_R, np.log(np.exp(exact).sum(axis=1)), atol=1e-5)
    for row, ids in enumerate(rows_of(got)):
        assert claimed[row] in ids
        assert (np.diff(ids) > 0).all()
        out = np.setdiff1d(np.arange(VOCAB), ids)
        assert got.rank_R[row] == (logits[row] > logits[row, claimed[row]]).sum()
        assert (logits[row, out] <= got.floor_R[row]).all()
        assert set(np.argsort(-exact[row])[:43]) <= set(ids.tolist()), "the largest are not all there"
        for tail, temperature in ((got.tail_R[row], heat), (got.hot_tail_R[row], heat * HOT)):
            share = np.exp((exact[row] - exact[row].max()) / temperature)
            assert share[out].sum() / share.sum() <= tail + 1e-6
    at = np.split(got.logits_N, np.cumsum(got.counts_R)[:-1])
    assert all(
        (values == logits[row, ids]).all() for row, (ids, values) in enumerate(zip(rows_of(got), at, strict=True))
    )


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 0.5},
        {"temperature": 0.7},
        {"temperature": 1.6},
        {"temperature": 0.0},
        {"top_p": 0.8},
        {"top_k": 60},
        {"min_p": 0.02, "temperature": 1.3},
    ],
    ids=str,
)
def test_what_is_left_out_is_as_stated(sampling: dict[str, Any]) -> None:
    logits = logits_of(3)
    claimed = np.argsort(-logits, axis=1)[np.arange(ROWS), np.arange(ROWS) * 60]
    got = made(logits, claimed, **sampling)
    heat = sampling.get("temperature", 1.0) or 1.0
    check_promises(got, logits, claimed, heat)
    if not sampling or ("temperature" in sampling and len(sampling) == 1 and sampling["temperature"]):
        assert (got.tail_R <= 1e-6).all()
        assert ((got.counts_R < VOCAB) | (logits.std(axis=1) < 5)).all()


@pytest.mark.parametrize("heat", [0.5, 0.65, 0.8, 0.99])
def test_the_tail_bounded_from_temperature_1_holds_and_is_close(heat: float) -> None:
    rng = np.random.default_rng(6)
    logits = (rng.gumbel(size=(ROWS, VOCAB)) * rng.uniform(2.0, 4.0, (ROWS, 1))).astype(np.float32)
    got = made(logits, logits.argmax(axis=1), temperature=heat)
    scaled = logits.astype(np.float64) / heat
    share = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
    left_R = np.array([np.delete(row, ids).sum() for row, ids in zip(share, rows_of(got), strict=True)])
    assert (got.counts_R < VOCAB).sum() > ROWS / 2
    assert (left_R <= got.tail_R).all()
    assert (got.tail_R <= 1e-6).all()
    far = left_R > 1e-9
    assert far.any()
    assert (got.tail_R[far] < 2.5 * left_R[far]).mean() > 0.8


def test_old_values_in_the_scratch_memory_change_nothing() -> None:
    logits = logits_of(5)
    claimed = logits.argmax(axis=1)
    for heat in (0.3, 0.7, 1.0, 1.4):
        plain = made(logits, claimed, temperature=heat)
        block, scratch = torch.from_numpy(logits), torch.full((ROWS, VOCAB), float("nan"))
        got = list_candidates(
            block,
            block,
            torch.from_numpy(claimed),
            Sampling(temperature=heat),
            tail_mass=1e-6,
            list_bytes=400,
            scratch_RV=scratch,
        )
        for field in fields(Listing):
            np.testing.assert_array_equal(getattr(got, field.name), getattr(plain, field.name), err_msg=field.name)


def test_min_p_keeps_more_than_its_inverse_where_the_row_is_flat() -> None:
    logits = np.zeros((1, VOCAB), dtype=np.float32)
    logits[0, 400:] = -30.0  # 400 equal tokens: none has 1/20 of the mass, all have 1/20 of the best one's
    (ids,) = rows_of(made(logits, np.array([1]), min_p=0.05))
    assert len(ids) == 400


def test_a_cold_row_lists_few_though_shares_underflow() -> None:
    logits = logits_of(1, scale=40.0)
    listing = made(logits, logits.argmax(axis=1), temperature=0.05)
    sharp = logits.std(axis=1) > 10
    assert (listing.counts_R[sharp] < 200).all()


def test_forbidden_tokens_are_not_listed() -> None:
    logits = logits_of(2)
    processed = np.full_like(logits, -np.inf)
    processed[:, 10:15] = logits[:, 10:15]
    listing = made(logits, np.full(ROWS, 12), processed)
    assert all(ids.tolist() == [10, 11, 12, 13, 14] for ids in rows_of(listing))
    assert (listing.floor_R == -np.inf).all()
    assert (listing.tail_R == 0).all()
    forbidden = made(
        logits, np.full(ROWS, 700), processed
    )  # the claimed one is listed all the same, with its own logit
    assert all(ids.tolist() == [10, 11, 12, 13, 14, 700] for ids in rows_of(forbidden))
    assert np.isfinite(forbidden.logits_N).all()


def test_listings_joined_are_their_rows_one_after_another() -> None:
    logits = logits_of(4)  # its flat rows outgrow the room made at first
    claimed = logits.argmin(axis=1)
    whole = made(logits, claimed)
    parts = [made(logits[low : low + 5], claimed[low : low + 5]) for low in range(0, ROWS, 5)]
    got = joined(iter(parts), ROWS)
    assert len(got.ids_N) > 300 * ROWS
    for field in fields(Listing):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(whole, field.name), err_msg=field.name)


def fused(logits_RV: np.ndarray, claimed: np.ndarray, threads: int = 1, **sampling: Any) -> Listing:
    settings = Sampling(**sampling)
    return fused_listing.list_rows(logits_RV, claimed, settings, tail_mass=1e-6, list_bytes=400, threads=threads)


@pytest.fixture
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels as Python runs them: the same arithmetic, uncompiled."""
    monkeypatch.setattr(fused_listing, "_kernels", lambda: (fused_listing._measure, fused_listing._gather))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.3}, {"temperature": 1.6}, {"top_p": 0.8}], ids=str)
def test_the_fused_listing_keeps_the_same_promises(sampling: dict[str, Any], plain_kernels: None) -> None:
    logits = logits_of(3)
    claimed = np.argsort(-logits, axis=1)[np.arange(ROWS), np.arange(ROWS) * 60]
    got, usual = fused(logits, claimed, **sampling), made(logits, claimed, **sampling)
    check_promises(got, logits, claimed, sampling.get("temperature", 1.0))
    assert (got.tail_R <= 1.001 * allowed_tail(Sampling(**sampling), 1e-6)).all()
    assert got.counts_R.sum() <= usual.counts_R.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"top_k": 5},
        {"top_k": 300, "temperature": 0.7},
        {"top_k": 60, "top_p": 0.9, "temperature": 1.4},
        {"top_k": 20, "min_p": 0.05},
    ],
    ids=str,
)
def test_the_fused_listing_by_number_is_the_usual_one_but_for_its_length(
    sampling: dict[str, Any], plain_kernels: None
) -> None:
    logits = logits_of(3)
    claimed = np.argsort(-logits, axis=1)[np.arange(ROWS), np.arange(ROWS) * 60]
    got, usual = fused(logits, claimed, **sampling), made(logits, claimed, **sampling)
    heat = sampling.get("temperature", 1.0) or 1.0
    check_promises(got, logits, claimed, heat)
    fewest = fewest_listed(Sampling(**sampling), 400)
    assert (got.counts_R >= fewest).all() and (got.counts_R <= 1.6 * fewest + 1).all()
    np.testing.assert_array_equal(got.rank_R, usual.rank_R)
    np.testing.assert_allclose(got.lse_R, usual.lse_R, rtol=1e-6)
    unlisted = [np.delete(row, ids) for row, ids in zip(logits, rows_of(got), strict=True)]
    left_R = np.array([np.exp(row.astype(np.float64) / heat).sum() for row in unlisted])
    whole_R = np.exp(logits.astype(np.float64) / heat).sum(axis=1)
    np.testing.assert_allclose(got.tail_R, left_R / whole_R, rtol=1e-4, atol=1e-12)


def test_the_fused_listing_passes_over_minus_infinities(plain_kernels: None) -> None:
    logits = logits_of(2)
    logits[:, 100:] = -np.inf  # fewer are left than are wanted
    for sampling in ({"top_k": 120}, {"temperature": 0.8}):
        listing = fused(logits, np.full(ROWS, 7), **sampling)
        assert all(ids.max() < 100 for ids in rows_of(listing))
        assert np.isfinite(listing.logits_N).all() and np.isfinite(listing.lse_R).all()
    assert (fused(logits, np.full(ROWS, 7), top_k=120).counts_R == 100).all()


def test_the_fused_listing_of_cold_rows_lists_few(plain_kernels: None) -> None:
    logits = logits_of(1, scale=40.0)
    listing = fused(logits, logits.argmax(axis=1), temperature=0.05)
    assert (listing.counts_R[logits.std(axis=1) > 10] < 200).all()


def test_the_fused_listing_is_for_all_rows_but_those_of_min_p_alone(plain_kernels: None) -> None:
    for some in (Sampling(temperature=0.7, top_p=0.9), Sampling(temperature=0.0), Sampling(top_k=5, min_p=0.1)):
        assert fused_listing.applies(some)
    assert not fused_listing.applies(Sampling(min_p=0.1))


COMPILED = """
import numpy as np
from veridifr.references import fused_listing
from veridifr.rng import compiled
from veridifr.trace import Sampling

rng = np.random.default_rng(0)
logits = (rng.normal(size=(7, 900)) * rng.choice([0.5, 4.0], size=(7, 1))).astype(np.float32)
claimed = rng.integers(0, 900, size=7)
assert not fused_listing.applies(Sampling())
compiled.enable()
assert fused_listing.applies(Sampling()), "numba is part of the tests' environment"
found = []
for kernels in (fused_listing._kernels(), (fused_listing._measure, fused_listing._gather)):
    fused_listing._kernels = lambda kernels=kernels: kernels
    settings = ({}, {"temperature": 0.6}, {"temperature": 0.6, "top_k": 60}, {"temperature": 0.0})
    for sampling in (Sampling(**fields) for fields in settings):
        found.append(
            fused_listing.list_rows(logits, claimed, sampling, tail_mass=1e-6, list_bytes=400, threads=3)
        )
for fast, plain in zip(found[:4], found[4:], strict=True):
    np.testing.assert_array_equal(fast.ids_N, plain.ids_N)
    np.testing.assert_array_equal(fast.logits_N, plain.logits_N)
    for name in ("lse_R", "floor_R", "tail_R", "hot_tail_R", "rank_R", "counts_R"):
        np.testing.assert_allclose(getattr(fast, name), getattr(plain, name), rtol=1e-4, atol=1e-9)
"""


def test_the_fused_listing_compiled_is_the_same() -> None:
    """In a process of its own, since numba must not be loaded before vLLM."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)
