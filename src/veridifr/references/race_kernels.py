"""Triton kernels over rows of logits on a GPU: what a listing needs of each row, and who wins its race.

Every program reads one row in blocks; nothing of the size of the logits is written. Random numbers are the contracts'
own (Philox4x32-10), their logarithms only float32: kernels decide which tokens are listed, with a margin, and the exact
scores are taken from the list afterwards. Triton reads annotations as code, so there are none.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def survey(  # noqa: PLR0913 (a kernel takes pointers)
    x_ptr, stride, vocab, heat, lse_ptr, hot_lse_ptr, top_ptr, least_ptr,
    SHORT: tl.constexpr, LANES: tl.constexpr, DEPTH: tl.constexpr, HOT: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp at temperature 1 and at `heat` (the same unless HOT), the largest logit, and one that at least SHORT
    logits reach."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    deep = tl.arange(0, DEPTH)
    best = tl.full((LANES,), float("-inf"), tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    hot_total = tl.zeros((LANES,), tl.float32)
    for first in range(0, vocab, LANES * DEPTH):
        at = first + deep[:, None] * LANES + lane[None, :]
        x = tl.load(x_ptr + row * stride + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        found = tl.maximum(best, tl.max(x, axis=0))
        shift = tl.where(found == float("-inf"), 0.0, found)
        total = total * tl.exp(best - shift) + tl.sum(tl.exp(x - shift[None, :]), axis=0)
        if HOT:
            hot_total = hot_total * tl.exp((best - shift) / heat) + tl.sum(tl.exp((x - shift[None, :]) / heat), axis=0)
        best = found
    top = tl.max(best, axis=0)
    lse = top + tl.log(tl.sum(total * tl.exp(best - top), axis=0))
    tl.store(lse_ptr + row, lse)
    if HOT:
        lse = top / heat + tl.log(tl.sum(hot_total * tl.exp((best - top) / heat), axis=0))
    tl.store(hot_lse_ptr + row, lse)
    tl.store(top_ptr + row, top)
    ordered = tl.sort(best, descending=True)
    tl.store(least_ptr + row, tl.max(tl.where(lane == SHORT - 1, ordered, float("-inf")), axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def gather(  # noqa: PLR0913 (a kernel takes pointers)
    x_ptr, stride, vocab, least_ptr, claimed_ptr, ids_ptr, logits_ptr,
    count_ptr, rank_ptr, ROOM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The ids and logits of at least `least`, and of the claimed token, in ascending order of id: the first ROOM of
    them. `count` is how many there are, `rank` how many logits exceed the claimed one."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    least = tl.load(least_ptr + row)
    claimed = tl.load(claimed_ptr + row)
    own = tl.load(x_ptr + row * stride + claimed).to(tl.float32)
    larger = tl.zeros((BLOCK,), tl.int32)
    count = 0
    for first in range(0, vocab, BLOCK):
        at = first + lane
        x = tl.load(x_ptr + row * stride + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        larger += (x > own).to(tl.int32)
        kept = (((x >= least) | (at == claimed)) & (at < vocab)).to(tl.int32)
        some = tl.sum(kept, axis=0)
        if some > 0:
            place = count + tl.cumsum(kept, axis=0) - 1
            fits = (kept > 0) & (place < ROOM)
            tl.store(ids_ptr + row * ROOM + place, at, mask=fits)
            tl.store(logits_ptr + row * ROOM + place, x, mask=fits)
            count += some
    tl.store(count_ptr + row, count)
    tl.store(rank_ptr + row, tl.sum(larger, axis=0))


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """The first word of Philox4x32-10."""
    for _ in tl.static_range(10):
        high_0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
        low_0 = c0 * 0xD2511F53
        high_2 = tl.umulhi(c2, tl.full(c2.shape, 0xCD9E8D57, tl.uint32))
        low_2 = c2 * 0xCD9E8D57
        c0 = high_2 ^ c1 ^ k0
        c1 = low_2
        c2 = high_0 ^ c3 ^ k1
        c3 = low_0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0


@triton.jit  # type: ignore[untyped-decorator]
def race(  # noqa: PLR0913 (a kernel takes pointers)
    x_ptr, stride, vocab, heat, window, key_ptr, counter_ptr, least_ptr, claimed_ptr,
    ids_ptr, logits_ptr, count_ptr,
    TRITON_UNIFORM: tl.constexpr, ROOM: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The tokens whose perturbed score comes within `window` of the best, but for those that `gather` lists anyway.

    They are sought among the two best of every lane. `count` is how many there are, or -1 where that is not sure: a
    lane had a third, or there are more than ROOM. `key` [R, 2] and `counter` [R] as the contract has them: with
    TRITON_UNIFORM the counter is the id, else the id is the counter's third word.
    """
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    zero = tl.zeros((LANES,), tl.uint32)
    k0 = zero + tl.load(key_ptr + 2 * row).to(tl.uint32, bitcast=True)
    k1 = zero + tl.load(key_ptr + 2 * row + 1).to(tl.uint32, bitcast=True)
    step = zero + tl.load(counter_ptr + row).to(tl.uint32, bitcast=True)
    first_z = tl.full((LANES,), float("-inf"), tl.float32)
    second_z, third_z, first_x, second_x = first_z, first_z, first_z, first_z
    first_id = tl.zeros((LANES,), tl.int32)
    second_id = first_id
    for begin in range(0, vocab, LANES):
        at = begin + lane
        x = tl.load(x_ptr + row * stride + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        index = at.to(tl.uint32, bitcast=True)
        if TRITON_UNIFORM:
            bits = _philox(index, zero, zero, zero, k0, k1).to(tl.int32, bitcast=True)
            u = tl.maximum((bits ^ (bits >> 31)).to(tl.float32) * 4.6566127342e-10, 4.6566127342e-10)
            rate = tl.where(u < 0.001, u * (1.0 + u * (0.5 + u * 0.33333334)), -tl.log(1.0 - u))
        else:
            bits = _philox(step, zero, index, zero, k0, k1)
            u = bits.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
            rate = tl.where(u >= 0.99999994, 5.9604645e-08, -tl.log(u))
        z = x - heat * tl.log(rate)
        wins, places = z > first_z, z > second_z
        third_z = tl.where(places, second_z, tl.maximum(third_z, z))
        second_z = tl.where(wins, first_z, tl.where(places, z, second_z))
        second_x = tl.where(wins, first_x, tl.where(places, x, second_x))
        second_id = tl.where(wins, first_id, tl.where(places, at, second_id))
        first_z, first_x, first_id = (
            tl.where(wins, z, first_z),
            tl.where(wins, x, first_x),
            tl.where(wins, at, first_id),
        )
    edge = tl.max(first_z, axis=0) - window
    least = tl.load(least_ptr + row)
    claimed = tl.load(claimed_ptr + row)
    near = ((first_z >= edge) & (first_x < least) & (first_id != claimed)).to(tl.int32)
    count = tl.sum(near, axis=0)
    place = tl.cumsum(near, axis=0) - 1
    tl.store(ids_ptr + row * ROOM + place, first_id, mask=(near > 0) & (place < ROOM))
    tl.store(logits_ptr + row * ROOM + place, first_x, mask=(near > 0) & (place < ROOM))
    near = ((second_z >= edge) & (second_x < least) & (second_id != claimed)).to(tl.int32)
    place = count + tl.cumsum(near, axis=0) - 1
    tl.store(ids_ptr + row * ROOM + place, second_id, mask=(near > 0) & (place < ROOM))
    tl.store(logits_ptr + row * ROOM + place, second_x, mask=(near > 0) & (place < ROOM))
    count += tl.sum(near, axis=0)
    sure = (tl.max(third_z, axis=0) < edge) & (count <= ROOM)
    tl.store(count_ptr + row, tl.where(sure, count, -1))
