"""One tap of a committed fingerprint, in a trace: the key `commitment` beside `fingerprint`. docs/fingerprints.md.

With the response a trace carries the root alone. Once the verifier has named a tap, it carries the fingerprint of that
tap, and the salt and siblings that lead from it to the root. The verifier checks against the root that it received with
the response, never against the one that comes with the opening.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from veridifr.errors import FingerprintError
from veridifr.fingerprints import attached
from veridifr.fingerprints.merkle import HASH_BYTES, Opening, check_opening, commit, open_tap
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.fingerprints.wire import Fingerprint
from veridifr.trace import Trace

KEY = "commitment"
_FIELDS = ("root", "tap", "salt", "siblings")
_MOST_SIBLINGS = 6
"""Of 64 taps."""


@dataclass(frozen=True, kw_only=True)
class Openings:
    """What a verifier checks openings against: the tap it asked for, and by sequence id the root (32 bytes) that it
    received with the response, before it named the tap."""

    tap: str
    roots: Mapping[str, bytes]

    def check(self, trace: Trace, spec: FingerprintSpec) -> None:
        """`FingerprintError` naming the field unless `trace` carries the fingerprint of the tap, opened from its root.

        `spec` is the specification with all taps, which the commitment binds.
        """
        root = self.roots.get(trace.id)
        if root is None:
            raise FingerprintError(f"{KEY}.root: none was received with the response")
        found = attached.fingerprint_of(trace, spec.alone(self.tap))
        if found is None:
            raise FingerprintError("fingerprint: missing")
        opening = _opening_of(trace, spec.taps.index(self.tap), found.payloads[0])
        check_opening(opening, root, spec, len(trace.output_token_ids), trace.digest())


def with_root(trace: Trace, found: Fingerprint, secret: bytes) -> Trace:
    """The trace to send with the response: the root over all taps of `found` (see `merkle.commit`), and no
    fingerprint."""
    extra = {key: value for key, value in trace.extra.items() if key != attached.KEY}
    return replace(trace, extra={**extra, KEY: {"root": commit(found, trace.digest(), secret).hex()}})


def with_opening(trace: Trace, found: Fingerprint, secret: bytes, tap: str) -> Trace:
    """The trace to send once `tap` was asked for: the fingerprint of that tap, and its way to the root."""
    alone = found.spec.alone(tap)
    opening = open_tap(found, trace.digest(), secret, found.spec.taps.index(tap))
    one = Fingerprint(spec=alone, tokens=found.tokens, payloads=(opening.payload,))
    opened = {
        "root": commit(found, trace.digest(), secret).hex(),
        "tap": opening.tap,
        "salt": opening.salt.hex(),
        "siblings": [sibling.hex() for sibling in opening.siblings],
    }
    sent = attached.with_fingerprint(trace, one)
    return replace(sent, extra={**sent.extra, KEY: opened})


def root_of(value: object) -> bytes:
    """The root in the value of a trace's key `commitment`. `FingerprintError` naming the field if there is none."""
    return _hash("root", _fields(value).get("root"))


def _opening_of(trace: Trace, tap: int, payload: bytes) -> Opening:
    given = _fields(trace.extra.get(KEY))
    if type(given.get("tap")) is not int or given["tap"] != tap:
        raise FingerprintError(f"{KEY}.tap: got {given.get('tap')!r:.40}, expected {tap}")
    siblings = given.get("siblings", [])
    if not isinstance(siblings, list) or len(siblings) > _MOST_SIBLINGS:
        raise FingerprintError(f"{KEY}.siblings: expected a list of at most {_MOST_SIBLINGS}")
    return Opening(
        tap=tap,
        payload=payload,
        salt=_hash("salt", given.get("salt")),
        siblings=tuple(_hash(f"siblings[{i}]", sibling) for i, sibling in enumerate(siblings)),
    )


def _fields(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FingerprintError(f"{KEY}: missing" if value is None else f"{KEY}: expected an object")
    for key in value:
        if key not in _FIELDS:
            raise FingerprintError(f"{KEY}.{str(key)[:40]!a}: not a field")
    return value


def _hash(name: str, value: object) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * HASH_BYTES or set(value) - set("0123456789abcdef"):
        raise FingerprintError(f"{KEY}.{name}: expected {2 * HASH_BYTES} lower-case hexadecimal digits")
    return bytes.fromhex(value)
