"""Commit to all taps, open one: honest openings pass, every other is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veridifr.errors import FingerprintError
from veridifr.fingerprints import Fingerprint, FingerprintSpec, fingerprint
from veridifr.fingerprints.merkle import check_opening, commit, open_tap, storage_per_token

TRACE = hashlib.sha256(b"token ids").hexdigest()
SECRET = bytes(range(32))


def committed(taps: int, tokens: int = 3) -> Fingerprint:
    names = tuple(f"layer.{i}" for i in range(taps))
    spec = FingerprintSpec(seed=1, hidden_size=16, k=8, encoding="wrapped2", taps=names, step_log2=(-3,) * taps)
    rng = np.random.default_rng(taps)
    return fingerprint(spec, tokens, [rng.normal(size=(tokens, 8)) for _ in names])


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 7, 8, 13, 64])
def test_every_tap_can_be_opened(taps: int) -> None:
    found = committed(taps)
    root = commit(found, TRACE, SECRET)
    for tap in range(taps):
        opening = open_tap(found, TRACE, SECRET, tap)
        assert check_opening(opening, root, found.spec, 3, TRACE) == found.payloads[tap]


def test_the_root_by_hand() -> None:
    """Three taps: the third leaf moves up unchanged."""
    found = committed(3)

    def leaf(tap: int) -> bytes:
        salt = hmac.digest(SECRET, b"veridifr salt 1\0" + tap.to_bytes(2, "little"), "sha256")
        payload = found.payloads[tap]
        bound = found.spec.digest() + bytes.fromhex(TRACE) + len(payload).to_bytes(8, "little")
        return hashlib.sha256(b"veridifr leaf 1\0" + salt + tap.to_bytes(2, "little") + bound + payload).digest()

    def node(a: bytes, b: bytes) -> bytes:
        return hashlib.sha256(b"veridifr node 1\0" + a + b).digest()

    assert commit(found, TRACE, SECRET) == node(node(leaf(0), leaf(1)), leaf(2))


def test_each_change_is_refused() -> None:
    found = committed(5)
    root = commit(found, TRACE, SECRET)
    opening = open_tap(found, TRACE, SECRET, 2)
    other = open_tap(found, TRACE, SECRET, 3)
    replace = dataclasses.replace
    for wrong, message in (
        (replace(opening, tap=3), "its root is"),
        (replace(opening, tap=5), "opening.tap: got 5"),
        (replace(opening, tap=True), "opening.tap"),
        (replace(opening, payload=other.payload), "its root is"),
        (replace(opening, payload=opening.payload[:-1]), "opening.payload: got 5 bytes"),
        (replace(opening, salt=other.salt), "its root is"),
        (replace(opening, salt=b""), "opening.salt: got 0 bytes"),
        (replace(opening, siblings=opening.siblings[:-1]), "opening.siblings: got 2, expected 3"),
        (replace(opening, siblings=(*opening.siblings, root)), "opening.siblings: got 4"),
        (replace(opening, siblings=opening.siblings[::-1]), "its root is"),
        (replace(opening, siblings=(b"", *opening.siblings[1:])), "opening.siblings: got 0 bytes"),
    ):
        with pytest.raises(FingerprintError, match=message):
            check_opening(wrong, root, found.spec, 3, TRACE)
    with pytest.raises(FingerprintError, match="its root is"):
        check_opening(opening, root, found.spec, 3, hashlib.sha256(b"other tokens").hexdigest())
    with pytest.raises(FingerprintError, match="its root is"):
        check_opening(opening, root, dataclasses.replace(found.spec, seed=2), 3, TRACE)
    with pytest.raises(FingerprintError, match="root: got 31 bytes"):
        check_opening(opening, root[:-1], found.spec, 3, TRACE)
    with pytest.raises(FingerprintError, match="trace digest"):
        check_opening(opening, root, found.spec, 3, "not hex")


def test_a_node_does_not_pass_for_a_leaf() -> None:
    """Without prefixes a tree of two taps could be opened as one tap whose payload is two hashes."""
    found = committed(2)
    assert commit(found, TRACE, SECRET) != commit(committed(1), TRACE, SECRET)


def test_secrets_hide_payloads() -> None:
    found = committed(2)
    assert commit(found, TRACE, SECRET) != commit(found, TRACE, bytes(32))
    assert open_tap(found, TRACE, SECRET, 0).salt != open_tap(found, TRACE, SECRET, 1).salt
    with pytest.raises(FingerprintError, match="secret: got 5 bytes, expected 32"):
        commit(found, TRACE, b"short")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.data())
def test_a_flipped_bit_anywhere_is_found(taps: int, data: st.DataObject) -> None:
    found = committed(taps)
    root = commit(found, TRACE, SECRET)
    opening = open_tap(found, TRACE, SECRET, data.draw(st.integers(0, taps - 1)))
    part = data.draw(st.sampled_from(["payload", "salt", *(["siblings"] if opening.siblings else [])]))
    whole = b"".join(opening.siblings) if part == "siblings" else getattr(opening, part)
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    value = bytes(flipped)
    siblings = tuple(value[i : i + 32] for i in range(0, len(value), 32))
    wrong = dataclasses.replace(opening, **{part: siblings if part == "siblings" else value})
    with pytest.raises(FingerprintError, match="its root is"):
        check_opening(wrong, root, found.spec, 3, TRACE)


def test_storage_is_counted() -> None:
    spec = committed(5).spec
    assert storage_per_token(spec, 100) == (5 * 200 + 64) / 100
    with pytest.raises(FingerprintError, match="tokens"):
        storage_per_token(spec, 0)
