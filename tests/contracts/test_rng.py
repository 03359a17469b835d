"""The generators: published vectors, a slow oracle, and what must hold whatever the block size."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veridifr import rng
from veridifr.errors import UnsupportedError
from veridifr.rng import compiled

from . import oracles

WORD = st.integers(0, 2**32 - 1)
SEED = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known answers for philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    got = rng.philox4x32(counter, key, (0, 1, 2, 3))
    assert tuple(int(word[0]) for word in got) == expected


@settings(max_examples=50)
@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_philox_equals_the_oracle(counter: tuple[int, int, int, int], key: tuple[int, int]) -> None:
    got = rng.philox4x32([np.array([word]) for word in counter], [np.array([word]) for word in key], (3, 0, 2, 1))
    third, zeroth, second, first = (int(word[0]) for word in got)
    assert (zeroth, first, second, third) == oracles.philox(counter, key)


@settings(max_examples=50)
@given(words=st.lists(WORD, min_size=6, max_size=6), shared=st.lists(st.booleans(), min_size=6, max_size=6))
def test_philox_words_that_all_lanes_share_change_nothing(words: list[int], shared: list[bool]) -> None:
    lanes = [word if same else (np.arange(3) * 977 + word) % 2**32 for word, same in zip(words, shared, strict=True)]
    rows = [[int(np.broadcast_to(lane, 3)[n]) for lane in lanes] for n in range(3)]
    for wanted in ((0,), (1, 0), (0, 1, 2, 3)):
        got = rng.philox4x32(lanes[:4], lanes[4:], wanted)
        for n in range(1 if all(shared) else 3):
            exact = oracles.philox(tuple(rows[n][:4]), tuple(rows[n][4:]))
            assert [int(word[n]) for word in got] == [exact[index] for index in wanted]


@pytest.mark.parametrize("count", [1, 24575, 24576, 24577, 60000])
def test_philox_blocks_join(count: int) -> None:
    lanes = np.arange(count)
    keys = (lanes * 2654435761) % 2**32
    whole = rng.philox4x32((lanes, 0, 7, 0), (keys, 3))[0]
    assert len(whole) == count
    for lane in {0, count // 2, count - 1, min(24576, count - 1)}:
        assert int(whole[lane]) == oracles.philox((lane, 0, 7, 0), (int(keys[lane]), 3))[0]


COMPILED = """
import numpy as np
from veridifr.rng import compiled, philox4x32
rng = np.random.default_rng(4)
count = 30_007
arrays = [rng.integers(0, 2**32, count, dtype=np.uint32) for _ in range(6)]
for shared in ((), (1, 2, 3, 5), (0, 1, 3, 4)):
    lanes = [int(array[0]) if i in shared else array for i, array in enumerate(arrays)]
    compiled._enabled = False
    slow = philox4x32(lanes[:4], lanes[4:], (0, 1, 2, 3))
    compiled.enable()
    assert compiled.kernel(count) is not None, "numba is part of the tests' environment"
    fast = philox4x32(lanes[:4], lanes[4:], (0, 1, 2, 3))
    for one, other in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(one, other)
few = [array[:600] for array in arrays]
assert compiled.kernel(600) is not None, "a kernel that is loaded is used for fewer lanes as well"
np.testing.assert_array_equal(philox4x32(few[:4], few[4:])[0], philox4x32(arrays[:4], arrays[4:])[0][:600])
print("the same")
"""


def test_philox_compiled_is_the_same() -> None:
    """All words, lanes that are shared or not; in a process of its own, since numba must not be loaded before vLLM."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "the same"), done.stderr


def test_numba_is_not_used_unless_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.kernel(10**6) is None
    monkeypatch.setattr(compiled, "_enabled", True)
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    compiled._compiled.cache_clear()
    try:
        assert compiled.kernel(10**6) is None
    finally:
        compiled._compiled.cache_clear()


def test_philox_takes_words_modulo_two_to_the_32() -> None:
    wide = np.array([2**32 + 5, -1])
    got = rng.philox4x32((wide, 0, 0, 0), (-1, 2**40))[0]
    assert [int(x) for x in got] == [oracles.philox((c, 0, 0, 0), (2**32 - 1, 0))[0] for c in (5, 2**32 - 1)]


@pytest.mark.parametrize(
    ("seed", "position", "domain", "expected"),
    [
        (42, 7, 0, (0x661EB28D, 0x860D65EC, 0x1F1CC266, 0x399E25CC)),
        (-1, 0, 0, (0x3E003DC7, 0xB885F0B7, 0x32657859, 0x13B7C10F)),
        (42, 7, 0x9E3779B9, (0x4A0243AA, 0xDBDBDA9E, 0x9A901466, 0x80E2F8FB)),
    ],
)
def test_murmur_known_answers(seed: int, position: int, domain: int, expected: tuple[int, ...]) -> None:
    got = rng.murmur3(seed, np.array([position]), np.zeros(4, dtype=np.int64), np.arange(4), domain)
    assert tuple(int(h) for h in got) == expected


@given(seed=SEED, positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=3), column=WORD)
def test_murmur_equals_the_oracle(seed: int, positions: list[int], column: int) -> None:
    rows = np.arange(len(positions))
    got = rng.murmur3(seed, np.array(positions), rows, np.full(len(positions), column))
    assert [int(h) for h in got] == [oracles.murmur_key(seed, p, column) for p in positions]


def test_the_murmur_oracle_is_the_published_hash() -> None:
    # smhasher's widely published values
    assert oracles.murmur(b"test", 0) == 0xBA6BD213
    assert oracles.murmur(b"test", 0x9747B28C) == 0x704B81DC
    assert oracles.murmur(struct.pack("<I", 0x87654321), 0) == 0xF55B516B


def test_splitmix_known_answers() -> None:
    # The first outputs of the generator seeded with 1234567 (published test vector of splitmix64.c).
    got = rng.splitmix64_draw(np.full(3, 1234567, dtype=np.uint64), np.arange(3))
    assert [int(x) for x in got] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(key=st.integers(0, 2**64 - 1), index=st.integers(0, 2**31))
def test_splitmix_equals_the_oracle(key: int, index: int) -> None:
    got = rng.splitmix64_draw(np.array([key], dtype=np.uint64), np.array([index]))
    assert int(got[0]) == oracles.splitmix((key + (index + 1) * 0x9E3779B97F4A7C15) & oracles.MASK_64)


def test_mersenne_known_answer() -> None:
    # The 10000th word of std::mt19937 (seed 5489) is 4123659995: ISO C++ [rand.predef].
    assert rng.mt19937_words(5489, np.array([9999]), "x").tolist() == [4123659995]
    words = rng.mt19937_words(42, np.array([1, 3, 5, 7]), "x") & np.uint32(2**31 - 1)
    assert words.tolist() == [1273642419, 787846414, 1201263687, 415968276]


@settings(max_examples=20)
@given(seed=st.integers(-(2**63), 2**64 - 1), index=st.lists(st.integers(0, 1500), max_size=20, unique=True))
def test_mersenne_equals_the_oracle(seed: int, index: list[int]) -> None:
    index.sort()
    expected = oracles.twister_words(seed, 1501)
    got = rng.mt19937_words(seed, np.array(index, dtype=np.int64), "x")
    assert got.tolist() == [expected[i] for i in index]


def test_mersenne_chunks_join() -> None:
    index = np.array([0, 2**18 - 1, 2**18, 2**19 + 5])
    reference = np.random.MT19937()
    reference._legacy_seeding(7)
    assert rng.mt19937_words(7, index, "x").tolist() == reference.random_raw(2**19 + 6)[index].tolist()


def test_mersenne_refuses_to_run_for_days() -> None:
    with pytest.raises(UnsupportedError, match=r"^engine.batch_size: would take 68719476737 words"):
        rng.mt19937_words(1, np.array([rng.MAX_WORDS]), "engine.batch_size")
