"""Encodings and the binary format: what is written is read again, and nothing else is."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veridifr.errors import FingerprintError, InputError
from veridifr.fingerprints import FingerprintSpec, fingerprint, from_base64, from_bytes, to_base64, to_bytes
from veridifr.fingerprints.encoding import pack_bits, unpack_bits
from veridifr.fingerprints.spec import ENCODINGS
from veridifr.fingerprints.wire import MAX_BYTES, OVERHEAD_BYTES, Fingerprint


def spec_of(encoding: str, **fields: Any) -> FingerprintSpec:
    taps = fields.pop("taps", ("final",))
    steps = tuple(-4 - i for i in range(len(taps))) if encoding.startswith("wrapped") else ()
    given_ = {"seed": 7, "hidden_size": 24, "k": 5, "encoding": encoding, "taps": taps, "step_log2": steps, **fields}
    return FingerprintSpec(**given_)


def values_of(spec: FingerprintSpec, tokens: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(spec.entries(tokens), spec.k)).astype(np.float32) for _ in spec.taps]


WIRE = spec_of("wrapped2", taps=("final", "layer.1"), every=2)
GOOD = to_bytes(fingerprint(WIRE, 7, values_of(WIRE, 7)))


def sealed(body: bytes) -> bytes:
    """With a right checksum, so that what is tested is the field and not the sum."""
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_value_lies_in_the_interval_that_its_code_stands_for(encoding: str) -> None:
    spec = spec_of(encoding, taps=("final", "layer.1"), every=3)
    values = values_of(spec, 40)
    values[0][0] = [0.0, -0.0, 1e-30, -1e-30, 3.0]
    read = from_base64(to_base64(fingerprint(spec, 40, values)), spec, 40)
    for tap in range(2):
        found = read.intervals(tap)
        value = values[tap].astype(np.float64)
        if found.period_K is not None:
            width = found.high_FK - found.low_FK
            assert (found.low_FK == np.mod(np.floor(value / width), 2**spec.bits) * width).all()
            continue
        assert ((found.low_FK <= value) & (value <= found.high_FK)).all()


def test_wrapped_codes_by_hand() -> None:
    spec = spec_of("wrapped2", k=2, pattern_log2=(0, 2))  # steps 1/16 and 1/4
    found = fingerprint(spec, 2, [[[0.0, 0.25], [-0.01, 1.3]]])
    # codes 0, 1 | -1 mod 4 = 3, 5 mod 4 = 1, two bits each from the lowest
    assert found.payloads[0] == bytes([0b01_11_01_00])


def test_the_documents_bytes() -> None:
    """docs/fingerprints.md, example: k = 4, one token, wrapped2 with step 1/16."""
    spec = FingerprintSpec(seed=7, hidden_size=384, k=4, encoding="wrapped2", step_log2=(-4,))
    found = fingerprint(spec, 1, [[[0.1, -0.1, 0.5, 0.2]]])
    assert found.payloads[0] == bytes([0b11_00_10_01])
    data = to_bytes(found)
    assert data[:16].hex() == "56444650" + "01" + "00" + "0100" + "01000000" + "01000000"
    assert data[16:24] == spec.digest()[:8]
    assert data[24:25] == found.payloads[0]
    assert data[25:] == struct.pack("<I", zlib.crc32(data[:25]))
    assert len(data) == OVERHEAD_BYTES + 1


@given(st.integers(1, 7), st.lists(st.integers(0, 127), max_size=40))
def test_bits_come_back(bits: int, codes: list[int]) -> None:
    array = np.array(codes, dtype=np.uint32) % 2**bits
    data = pack_bits(array, bits)
    assert len(data) == -(-len(codes) * bits // 8)
    assert unpack_bits(data, len(codes), bits).tolist() == array.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"", "got 0 bytes"),
        (lambda d: d[:20], "got 20 bytes"),
        (lambda d: sealed(b"XXXX" + d[4:-4]), "magic"),
        (lambda d: sealed(d[:4] + b"\x02" + d[5:-4]), "version: got 2"),
        (lambda d: sealed(d[:5] + b"\x01" + d[6:-4]), "flags"),
        (lambda d: sealed(d[:6] + b"\xff\xff" + d[8:-4]), "taps: got 65535, expected 2"),
        (lambda d: sealed(d[:8] + b"\xff\xff\xff\xff" + d[12:-4]), "tokens: got 4294967295, expected the 7"),
        (lambda d: sealed(d[:12] + b"\xff\xff\xff\xff" + d[16:-4]), "payload length: states 4294967295"),
        (lambda d: sealed(d[:16] + bytes(8) + d[24:-4]), "spec digest: got 0000000000000000"),
        (lambda d: sealed(d[:-5]), "payload length"),
        (lambda d: sealed(d[:-4] + b"\0"), "payload length"),
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "checksum"),
        (lambda d: d[:25] + bytes([d[25] ^ 1]) + d[26:], "checksum"),
    ],
)
def test_each_wrong_field_is_named(change: Any, message: str) -> None:
    with pytest.raises(FingerprintError, match=message):
        from_bytes(change(GOOD), WIRE, 7)


@pytest.mark.parametrize("change", [{"k": 4}, {"hidden_size": 32}, {"seed": 8}, {"every": 1}, {"encoding": "wrapped3"}])
def test_another_specification_is_refused(change: dict[str, Any]) -> None:
    other = FingerprintSpec(**{**{f: getattr(WIRE, f) for f in WIRE.__dataclass_fields__}, **change})
    with pytest.raises(FingerprintError, match="spec digest"):
        from_bytes(GOOD, other, 7)


def test_another_token_count_is_refused() -> None:
    with pytest.raises(FingerprintError, match="tokens: got 7, expected the 8"):
        from_bytes(GOOD, WIRE, 8)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, float(np.float32(np.inf)) * 0])
def test_floats_that_are_not_finite_are_refused(encoding: str, bad: float) -> None:
    spec = spec_of(encoding, k=1)
    with pytest.raises(FingerprintError, match="NaN or infinity"):
        fingerprint(spec, 1, [[[bad]]])
    bits = np.float32(bad).view(np.uint32)
    payload = (bits >> (0 if encoding == "float32" else 16)).tobytes()[: spec.payload_bytes(1)]
    hostile = to_bytes(Fingerprint(spec=spec, tokens=1, payloads=(payload,)))
    with pytest.raises(FingerprintError, match="NaN or infinite"):
        from_bytes(hostile, spec, 1)


def test_stray_bits_are_refused() -> None:
    spec = spec_of("wrapped1", k=3)
    with pytest.raises(FingerprintError, match="bits after the last code"):
        from_bytes(to_bytes(Fingerprint(spec=spec, tokens=1, payloads=(b"\x08",))), spec, 1)


def test_base64_has_one_spelling() -> None:
    text = base64.b64encode(GOOD).decode()
    assert from_base64(text, WIRE, 7).payloads == from_bytes(GOOD, WIRE, 7).payloads
    for wrong in (text[:-1], text + "\n", "!" + text, text + "====", "é", None, 7, GOOD):
        with pytest.raises(FingerprintError, match=r"base64|got|not the one"):
            from_base64(wrong, WIRE, 7)


def test_huge_input_is_refused_by_its_size() -> None:
    with pytest.raises(FingerprintError, match=f"expected {OVERHEAD_BYTES} to {MAX_BYTES}"):
        from_bytes(bytes(MAX_BYTES + 2), WIRE, 7)
    with pytest.raises(FingerprintError, match="characters"):
        from_base64("A" * (MAX_BYTES * 2), WIRE, 7)


def test_wrong_shapes_are_refused() -> None:
    for values, message in (
        ([np.zeros((4, 5))], "taps: got 1"),
        ([np.zeros((4, 5)), np.zeros((4, 4))], "coordinates: got shape"),
        ([np.zeros((4, 5)), np.zeros((3, 5))], "entries: got 3, expected 4"),
    ):
        with pytest.raises(FingerprintError, match=message):
            fingerprint(WIRE, 7, values)


FUZZED = {name: spec_of(name, taps=("final", "layer.1"), every=2) for name in ENCODINGS}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ENCODINGS)), st.data())
def test_fuzz(encoding: str, data: st.DataObject) -> None:
    """Whatever the bytes: a fingerprint or our own error."""
    spec = FUZZED[encoding]
    good = bytearray(to_bytes(fingerprint(spec, 5, values_of(spec, 5))))
    for _ in range(data.draw(st.integers(0, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    hostile = bytes(good) if data.draw(st.booleans()) else bytes(good[:cut])
    if data.draw(st.booleans()) and len(hostile) > 4:
        hostile = sealed(hostile[:-4])
    tokens = data.draw(st.sampled_from([0, 4, 5, 6, 2**20]))
    try:
        found = from_bytes(hostile, spec, tokens)
    except InputError:
        return
    assert to_bytes(found) == hostile
    assert found.intervals(0).low_FK.shape == (3, 5)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.text(max_size=80))
def test_fuzz_from_nothing(data: bytes, text: str) -> None:
    with pytest.raises(FingerprintError):
        from_bytes(data, WIRE, 7)
    with pytest.raises(FingerprintError):
        from_base64(text, WIRE, 7)
