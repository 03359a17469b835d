"""Specifications: checked, canonical, with a digest that never changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from veridifr.errors import FingerprintError
from veridifr.fingerprints.spec import FingerprintSpec, from_dict, to_dict

DOC = Path(__file__).parents[2] / "docs" / "fingerprints.md"
GOOD: dict[str, Any] = {
    "seed": 7,
    "hidden_size": 384,
    "k": 16,
    "encoding": "wrapped2",
    "taps": ("final", "layer.3"),
    "step_log2": (-4, -7),
}


def test_round_trip_through_json() -> None:
    spec = FingerprintSpec(**GOOD)
    assert from_dict(json.loads(spec.canonical())) == spec
    assert from_dict(to_dict(spec)).digest() == spec.digest()


def test_the_documents_example() -> None:
    found = re.search(r"^```json\n(\{.*?\})\n```\n\nSHA-256[^`]*`([0-9a-f]{64})`", DOC.read_text(), re.S | re.M)
    assert found
    assert from_dict(json.loads(found[1])).digest().hex() == found[2]


def test_sizes() -> None:
    spec = FingerprintSpec(**GOOD)
    assert spec.bytes_per_token() == 8  # two taps of 16 times 2 bits
    assert spec.payload_bytes(3) == 12
    thin = FingerprintSpec(seed=0, hidden_size=8, k=3, encoding="scaled4", every=4)
    assert [thin.entries(tokens) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert thin.payload_bytes(5) == 3 + 2  # 6 codes of 4 bits, 2 scale bytes
    assert thin.bytes_per_token() == (1.5 + 1) / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 385}, "spec.k: got 385, expected 1 to 384"),
        ({"k": True}, "spec.k: got True"),
        ({"k": 2.0}, "spec.k: got 2.0"),
        ({"hidden_size": 0}, "spec.hidden_size"),
        ({"hidden_size": 2**20 + 1}, "spec.hidden_size"),
        ({"seed": -1}, "spec.seed"),
        ({"seed": 2**64}, "spec.seed"),
        ({"every": 0}, "spec.every"),
        ({"encoding": "int8"}, "spec.encoding"),
        ({"encoding": ["sign"]}, "spec.encoding"),
        ({"encoding": "sign"}, "spec.step_log2: got 2 steps, expected 0"),
        ({"taps": ()}, "spec.taps"),
        ({"taps": ("final", "final")}, "a tap occurs twice"),
        ({"taps": ("final", "layer.03")}, r"spec.taps\[1\]"),
        ({"taps": ("final", "layer.3\n")}, r"spec.taps\[1\]"),
        ({"taps": "final"}, "spec.taps"),
        ({"step_log2": (-4,)}, "spec.step_log2: got 1 steps, expected 2"),
        ({"step_log2": (-4, 65)}, r"spec.step_log2\[1\]"),
        ({"pattern_log2": ()}, "spec.pattern_log2"),
        ({"pattern_log2": (0,) * 17}, "spec.pattern_log2"),
        ({"version": 2}, "spec.version: got 2, this veridifr knows 1"),
    ],
)
def test_bad_fields_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FingerprintError, match=message):
        FingerprintSpec(**{**GOOD, **change})


def test_keys_must_be_complete_and_known() -> None:
    whole = to_dict(FingerprintSpec(**GOOD))
    with pytest.raises(FingerprintError, match=r"spec\.'colour': not a field"):
        from_dict({**whole, "colour": 1})
    with pytest.raises(FingerprintError, match=r"spec\.every: missing"):
        from_dict({key: value for key, value in whole.items() if key != "every"})
    with pytest.raises(FingerprintError, match="expected an object"):
        from_dict([])


def test_every_field_changes_the_digest() -> None:
    base = FingerprintSpec(**GOOD)
    changes: list[dict[str, Any]] = [
        {"seed": 8}, {"hidden_size": 512}, {"k": 8}, {"encoding": "wrapped1"}, {"taps": ("layer.3", "final")},
        {"every": 2}, {"step_log2": (-4, -6)}, {"pattern_log2": (0, 1)},
    ]  # fmt: skip
    assert len({base.digest(), *(FingerprintSpec(**{**GOOD, **c}).digest() for c in changes)}) == len(changes) + 1
