"""Seeds issued by a verifier: the published vector recomputed from the standard's words, and what a seed depends on."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makers import CPU_ENGINE, make_trace
from veridifr import SeedIssuer, Trace, read_traces, seeds, write_traces
from veridifr.errors import InputError, TraceError
from veridifr.seeds import HEADER, issued_seed, request_digest

DOC = (Path(__file__).parents[2] / "docs" / "seeds.md").read_text(encoding="utf-8")
VECTOR = next(json.loads(body) for body in re.findall(r"^```json\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL))
SECRET = bytes(range(32))


def asked(name: str = "r0", prompt: tuple[int, ...] = (5, 6), **sampling: Any) -> Trace:
    """A request without a seed."""
    return make_trace((), name=name, prompt=prompt, **{"seed": None, "max_tokens": 4, **sampling})


def many(count: int) -> list[Trace]:
    return [asked(f"r{i}", (i,)) for i in range(count)]


def parts(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(8, "big") + value for value in values)


def by_the_document(secret: bytes, canonical: bytes, audit_id: str, index: int, attempt: int, bits: int) -> int:
    """docs/seeds.md, written again without the module."""
    digest = hashlib.sha256(parts(b"veridifr seeds/1 request", canonical)).digest()
    message = parts(
        b"veridifr seeds/1 seed", digest, audit_id.encode(), index.to_bytes(8, "big"), attempt.to_bytes(8, "big")
    )
    drawn = hmac.new(secret, message, hashlib.sha256).digest()
    return int.from_bytes(drawn, "big") >> (256 - bits)


# The vector.


def test_the_vector_of_the_document_is_what_its_words_give() -> None:
    secret, text = bytes.fromhex(VECTOR["secret"]), VECTOR["canonical_request"].encode("ascii")
    assert hashlib.sha256(parts(b"veridifr seeds/1 request", text)).hexdigest() == VECTOR["request_digest"]
    for row in VECTOR["seeds"]:
        found = by_the_document(secret, text, VECTOR["audit_id"], row["index"], row["attempt"], row["bits"])
        assert found == row["seed"]
    for bits, commitment in VECTOR["commitments"].items():
        message = parts(
            b"veridifr seeds/1 commitment", secret, VECTOR["audit_id"].encode(), int(bits).to_bytes(8, "big")
        )
        assert hashlib.sha256(message).hexdigest() == commitment


def test_the_code_gives_the_vector() -> None:
    secret = bytes.fromhex(VECTOR["secret"])
    request = asked(
        prompt=(0, 486, 756), temperature=1, top_k=50, top_p=0.95, max_tokens=300, logit_bias={13: 1.5}, seed=99
    )
    assert request_digest(request) == VECTOR["request_digest"]
    for row in VECTOR["seeds"]:
        issuer = SeedIssuer(secret, VECTOR["audit_id"], row["bits"])
        assert issuer.seed_for(request, row["index"], row["attempt"]) == row["seed"]
        assert issuer.commitment == VECTOR["commitments"][str(row["bits"])]


@pytest.mark.parametrize(
    ("sampling", "canonical"),
    [
        ({"temperature": 0}, '{"max_tokens":4,"temperature":0.0}'),
        ({"temperature": 1e-5, "top_k": -1}, '{"max_tokens":4,"temperature":1e-05}'),
        ({"logit_bias": {7: 1, 13: -100}}, '{"logit_bias":{"13":-100.0,"7":1.0},"max_tokens":4,"temperature":1.0}'),
        ({"stop": ["\n", "\x7f\xe9\U0001f600"]},
         '{"max_tokens":4,"stop":["\\n","\\u007f\\u00e9\\ud83d\\ude00"],"temperature":1.0}'),
        ({"extra": {"Z": {"b": 1, "a": 1.0}}}, '{"Z":{"a":1.0,"b":1},"max_tokens":4,"temperature":1.0}'),
    ],
)  # fmt: skip
def test_the_canonical_request_is_as_the_document_says(sampling: dict[str, Any], canonical: str) -> None:
    text = f'{{"prompt_token_ids":[5,6],"sampling":{canonical}}}'
    expected = hashlib.sha256(parts(b"veridifr seeds/1 request", text.encode("ascii"))).hexdigest()
    assert request_digest(asked(**sampling)) == expected


def test_the_widths_of_the_vector() -> None:
    assert {row["bits"] for row in VECTOR["seeds"]} == {31, 53, 63}
    assert {(row["index"], row["attempt"]) for row in VECTOR["seeds"]} >= {(0, 0), (1, 0), (0, 1)}


# What a seed depends on.

secrets_ = st.binary(min_size=16, max_size=64).filter(lambda value: len(set(value)) > 1)
requests_ = st.builds(
    asked,
    prompt=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4).map(tuple),
    temperature=st.floats(0, 2),
    top_k=st.none() | st.integers(1, 100),
    top_p=st.none() | st.floats(0.1, 1),
    stop=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3), max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(secrets_, requests_, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
       st.integers(0, 2**31 - 1), st.integers(31, 63))  # fmt: skip
def test_a_seed_lies_in_range_and_is_the_same_again(
    secret: bytes, request: Trace, audit_id: str, index: int, bits: int
) -> None:
    issuer = SeedIssuer(secret, audit_id, bits)
    seed = issuer.seed_for(request, index)
    assert 0 <= seed < 2**bits
    assert SeedIssuer(bytes(bytearray(secret)), audit_id, bits).seed_for(replace(request, id="other"), index) == seed
    assert SeedIssuer(secret, audit_id, 63).seed_for(request, index) >> (63 - bits) == seed


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": (5, 7)}, {"prompt": (5, 6, 6)}, {"prompt": (5,)}, {"temperature": 0.9}, {"top_k": 5},
        {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1}, {"logit_bias": {1: 1.0}}, {"allowed_token_ids": [1, 2]},
        {"bad_words_token_ids": [[1]]}, {"min_tokens": 1}, {"max_tokens": 5}, {"stop": ["x"]},
        {"stop_token_ids": [3]}, {"ignore_eos": True}, {"extra": {"x": 1}},
    ],
)  # fmt: skip
def test_every_part_of_a_request_changes_its_seed(change: dict[str, Any]) -> None:
    issuer = SeedIssuer(SECRET, "a", 63)
    assert issuer.seed_for(asked(**change), 0) != issuer.seed_for(asked(), 0)


def test_secret_audit_number_and_attempt_change_the_seed() -> None:
    base = SeedIssuer(SECRET, "a", 63)
    found = [
        base.seed_for(asked(), 0),
        base.seed_for(asked(), 1),
        base.seed_for(asked(), 0, 1),
        SeedIssuer(SECRET, "b", 63).seed_for(asked(), 0),
        SeedIssuer(SECRET + b"\1", "a", 63).seed_for(asked(), 0),
    ]
    assert len(set(found)) == len(found)


def test_zero_bytes_at_a_secret_s_end_change_the_commitment_only() -> None:
    """HMAC fills its key up with them; the document says so."""
    one, two = SeedIssuer(SECRET, "a"), SeedIssuer(SECRET + b"\0", "a")
    assert one.seed_for(asked(), 0) == two.seed_for(asked(), 0)
    assert one.commitment != two.commitment


def test_what_is_no_part_of_a_request_changes_nothing() -> None:
    issuer, request = SeedIssuer(SECRET, "a"), asked()
    for same in (
        replace(request, id="x", model="y"),
        replace(request, output_token_ids=[1, 2]),
        replace(request, engine=replace(CPU_ENGINE, version="9")),
        asked(seed=123),
        asked(top_k=0, top_p=1.0, min_p=0),  # off, by other words
    ):
        assert issuer.seed_for(same, 3) == issuer.seed_for(request, 3)


def test_a_commitment_binds_secret_audit_and_width() -> None:
    found = [
        SeedIssuer(secret, audit, bits).commitment
        for secret in (SECRET, SECRET[::-1])
        for audit in ("a", "b")
        for bits in (31, 32)
    ]
    assert len(set(found)) == 8
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in found)


# Issuing to many.


@settings(max_examples=10, deadline=None)
@given(secrets_, st.integers(31, 63))
def test_issued_seeds_are_distinct(secret: bytes, bits: int) -> None:
    issued = SeedIssuer(secret, "a", bits).issue(many(200))
    found = [trace.sampling.seed for trace in issued]
    assert len({seed % 2**32 for seed in found if seed is not None}) == 200
    headers = [issued_seed(trace) for trace in issued]
    assert [header.index for header in headers if header is not None] == list(range(200))


def test_issuing_changes_the_seed_and_the_header_only() -> None:
    request = replace(asked(seed=9), extra={"note": 1})
    (issued,) = SeedIssuer(SECRET, "a").issue([request])
    assert issued.extra == {"note": 1, HEADER: issued.extra[HEADER]}
    assert replace(issued, sampling=request.sampling, extra=request.extra).digest() == request.digest()
    assert replace(issued.sampling, seed=9) == request.sampling
    assert request.sampling.seed == 9 and HEADER not in request.extra


def script(monkeypatch: pytest.MonkeyPatch, drawn: dict[tuple[int, int], int]) -> None:
    """Let the seeds of chosen (index, attempt) be what they would be only once in billions of times."""
    real = SeedIssuer._seed

    def fake(self: SeedIssuer, digest: bytes, index: int, attempt: int) -> int:
        return drawn.get((index, attempt), real(self, digest, index, attempt))

    monkeypatch.setattr(SeedIssuer, "_seed", fake)


@pytest.mark.parametrize(
    ("drawn", "expected", "attempts"),
    [
        ({(0, 0): 7, (1, 0): 7, (1, 1): 8}, [7, 8], [0, 1]),
        ({(0, 0): 7, (1, 0): 7 + 2**32, (1, 1): 8}, [7, 8], [0, 1]),  # an engine that uses 32 bits sees one seed
        ({(0, 0): 0, (0, 1): 2**32 - 1, (0, 2): 5, (1, 0): 5, (1, 1): 0, (1, 2): 6}, [5, 6], [2, 2]),
    ],
)
def test_a_seed_that_is_taken_is_drawn_again(
    monkeypatch: pytest.MonkeyPatch, drawn: dict[tuple[int, int], int], expected: list[int], attempts: list[int]
) -> None:
    script(monkeypatch, drawn)
    issued = SeedIssuer(SECRET, "a", 40).issue(many(2))
    assert [trace.sampling.seed for trace in issued] == expected
    assert [trace.extra[HEADER].get("attempt", 0) for trace in issued] == attempts
    assert seeds.check_seeds(issued, SECRET).holds


def test_no_distinct_seed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, {(1, attempt): 7 for attempt in range(64)} | {(0, 0): 7})
    with pytest.raises(TraceError, match="bits: 31 are too few for 2 distinct seeds"):
        SeedIssuer(SECRET, "a").issue(many(2))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_issued_requests_survive_a_file(tmp_path: Path, suffix: str) -> None:
    issued = SeedIssuer(SECRET, "é", 63).issue([asked("a", temperature=0.1 + 0.2), asked("b", logit_bias={3: 1e-7})])
    write_traces(tmp_path / f"t{suffix}", issued)
    back = list(read_traces(tmp_path / f"t{suffix}"))
    assert [trace.extra for trace in back] == [trace.extra for trace in issued]
    assert seeds.check_seeds(back, SECRET).holds


# Refusals.


@pytest.mark.parametrize("bits", [30, 64, 0, -1, 16])
def test_a_width_out_of_range(bits: int) -> None:
    with pytest.raises(TraceError, match=f"bits: got {bits}, expected 31 to 63"):
        SeedIssuer(SECRET, "a", bits)


@pytest.mark.parametrize("bits", [31.0, True, "31", None])
def test_a_width_that_is_no_integer(bits: Any) -> None:
    with pytest.raises(TraceError, match=r"bits: got .*, expected an integer"):
        SeedIssuer(SECRET, "a", bits)


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (b"", "secret: got 0 bytes, expected 16 to 4096"),
        (bytes(range(15)), "secret: got 15 bytes, expected 16 to 4096"),
        (bytes(range(256)) * 17, "secret: got 4352 bytes, expected 16 to 4096"),
        (bytes(32), "secret: one byte repeated, expected random bytes"),
        ("sixteen or more letters", "secret: got str, expected bytes"),
        (None, "secret: got NoneType, expected bytes"),
    ],
)
def test_a_secret_that_is_none(secret: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SeedIssuer(secret, "a")
    assert "sixteen" not in str(caught.value)


def test_other_refusals() -> None:
    issuer = SeedIssuer(SECRET, "a")
    with pytest.raises(TraceError, match="audit_id: got an empty string"):
        SeedIssuer(SECRET, "")
    with pytest.raises(TraceError, match="index: got -1, expected 0 to"):
        issuer.seed_for(asked(), -1)
    with pytest.raises(TraceError, match="attempt: got 64, expected 0 to 63"):
        issuer.seed_for(asked(), 0, 64)
    child = replace(asked(), engine=replace(CPU_ENGINE, child=2))
    with pytest.raises(TraceError, match=r"requests\[1\]\.engine\.child: got 2, expected one output each"):
        issuer.issue([asked("a"), child])
    with pytest.raises(TraceError, match="sampling: cannot be written as JSON"):
        issuer.issue([asked(extra={"x": object()})])


def test_nothing_shows_the_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    issuer = SeedIssuer(SECRET, "a")
    issued = issuer.issue(many(3))
    check = seeds.check_seeds([replace(issued[0], extra={}), *issued[1:]], SECRET)
    shown = [repr(issuer), str(issuer), f"{issuer}", repr(issued), repr(check), caplog.text, issuer.commitment]
    for text in shown:
        for form in (SECRET.hex(), repr(SECRET), repr(SECRET)[2:-1], str(list(SECRET))):
            assert form not in text
    assert SECRET in pickle.dumps(issuer)  # what the forms above look for is there to be found
