"""Commit to all taps, open one: a Merkle tree over salted payloads (SHA-256). docs/fingerprints.md is the norm.

Leaves and nodes have prefixes of their own (so that no node passes for a leaf), and a leaf binds the tap's number, the
specification, the token ids (by digest) and the payload. The salt of a leaf comes from a secret of 32 bytes, so that
an unopened leaf cannot be guessed. The shape of the tree follows from the number of taps: a node without a sibling
moves up unchanged.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from veridifr.errors import FingerprintError
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.fingerprints.wire import Fingerprint

HASH_BYTES = 32
_LEAF, _NODE, _SALT = b"veridifr leaf 1\0", b"veridifr node 1\0", b"veridifr salt 1\0"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What the provider sends when a tap is asked for: its payload, its salt, and the siblings from leaf to root."""

    tap: int
    payload: bytes
    salt: bytes
    siblings: tuple[bytes, ...]


def commit(found: Fingerprint, trace_digest: str, secret: bytes) -> bytes:
    """The root (32 bytes) over all taps. `trace_digest` is the SHA-256 (hex) of the token ids; `secret` 32 random
    bytes, fresh for each sequence, kept by the provider until the tap is asked for."""
    return _levels(found, trace_digest, secret)[-1][0]


def open_tap(found: Fingerprint, trace_digest: str, secret: bytes, tap: int) -> Opening:
    """The opening of tap number `tap`. `FingerprintError` for a tap that the specification lacks."""
    if not 0 <= tap < len(found.payloads):
        raise FingerprintError(f"tap: got {tap}, expected 0 to {len(found.payloads) - 1}")
    siblings, index = [], tap
    for level in _levels(found, trace_digest, secret)[:-1]:
        if index ^ 1 < len(level):
            siblings.append(level[index ^ 1])
        index //= 2
    return Opening(
        tap=tap, payload=found.payloads[tap], salt=_salt(secret, tap), siblings=tuple(siblings)
    )  # fmt: skip


def check_opening(opening: Opening, root: bytes, spec: FingerprintSpec, tokens: int, trace_digest: str) -> bytes:
    """The payload of the opened tap if the opening belongs to the root, else `FingerprintError` naming the field.

    `spec`, `tokens` and `trace_digest` are the verifier's own; nothing in the opening chooses the shape of the tree.
    """
    count = len(spec.taps)
    if type(opening.tap) is not int or not 0 <= opening.tap < count:
        raise FingerprintError(f"opening.tap: got {opening.tap!r:.40}, expected 0 to {count - 1}")
    expected = spec.payload_bytes(tokens)
    _check_bytes("root", root, HASH_BYTES)
    _check_bytes("opening.salt", opening.salt, HASH_BYTES)
    _check_bytes("opening.payload", opening.payload, expected)
    path = _shape(opening.tap, count)
    if len(opening.siblings) != len(path):
        raise FingerprintError(f"opening.siblings: got {len(opening.siblings)}, expected {len(path)}")
    node = _leaf(spec, opening.tap, trace_digest, opening.salt, opening.payload)
    for sibling, right in zip(opening.siblings, path, strict=True):
        _check_bytes("opening.siblings", sibling, HASH_BYTES)
        node = _node(sibling, node) if right else _node(node, sibling)
    if not hmac.compare_digest(node, root):
        raise FingerprintError(f"opening: its root is {node.hex()[:16]}..., committed was {root.hex()[:16]}...")
    return opening.payload


def storage_per_token(spec: FingerprintSpec, tokens: int) -> float:
    """Bytes per token that a provider keeps until a tap is asked for: all payloads, the secret and the root."""
    if tokens < 1:
        raise FingerprintError(f"tokens: got {tokens}, expected at least 1")
    return (spec.payload_bytes(tokens) * len(spec.taps) + 2 * HASH_BYTES) / tokens


def _levels(found: Fingerprint, trace_digest: str, secret: bytes) -> list[list[bytes]]:
    _check_bytes("secret", secret, HASH_BYTES)
    level = [
        _leaf(found.spec, tap, trace_digest, _salt(secret, tap), payload) for tap, payload in enumerate(found.payloads)
    ]
    levels = [level]
    while len(level) > 1:
        pairs = [_node(*level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
        levels.append(level := pairs)
    return levels


def _shape(index: int, count: int) -> list[bool]:
    """For each sibling on the way up: whether the node is the right one of the two."""
    path = []
    while count > 1:
        if index ^ 1 < count:
            path.append(bool(index & 1))
        index, count = index // 2, -(-count // 2)
    return path


def _leaf(spec: FingerprintSpec, tap: int, trace_digest: str, salt: bytes, payload: bytes) -> bytes:
    try:
        bound = bytes.fromhex(trace_digest)
    except ValueError:
        bound = b""
    _check_bytes("trace digest", bound, HASH_BYTES)
    head = _LEAF + salt + tap.to_bytes(2, "little") + spec.digest() + bound + len(payload).to_bytes(8, "little")
    return hashlib.sha256(head + payload).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _salt(secret: bytes, tap: int) -> bytes:
    return hmac.digest(secret, _SALT + tap.to_bytes(2, "little"), "sha256")


def _check_bytes(name: str, value: object, size: int) -> None:
    if not isinstance(value, bytes) or len(value) != size:
        got = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise FingerprintError(f"{name}: got {got}, expected {size} bytes")
