"""Evidence on disk: what a kill, a flipped byte or a stranger can do to a file."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from makers import make_trace, whole_rows
from veridifr import evidence_io
from veridifr.errors import EvidenceError
from veridifr.evidence import Evidence, Race
from veridifr.evidence_io import MAGIC, EvidenceHeader, EvidenceWriter

HEADER = EvidenceHeader(
    reference="hf:x",
    weights="ab" * 32,
    vocab_size=9,
    eos_ids=(1,),
    settings={"dtype": "float32", "tail_mass": 1e-6, "list_bytes": 64, "threads": 2},
)
ARRAYS = ("offsets_T1", "ids_N", "logits_N", "lse_T", "rank_T", "floor_T", "tail_T", "hot_tail_T")


def evidence(number: int) -> Evidence:
    rng = np.random.default_rng(number)
    trace = make_trace(rng.integers(0, 9, size=2 + number), name=f"s{number}")
    return whole_rows(trace, rng.normal(size=(2 + number, 9)))


def write(path: Path, count: int, header: EvidenceHeader = HEADER) -> list[Evidence]:
    writer = EvidenceWriter(path, header)
    made = [evidence(number) for number in range(count)]
    for item in made:
        writer.append(item)
    writer.close()
    return made


def same(left: Evidence, right: Evidence) -> bool:
    texts = ("trace_id", "trace_digest", "vocab_size", "temperature")
    return all(getattr(left, n) == getattr(right, n) for n in texts) and all(
        np.array_equal(getattr(left, n), getattr(right, n)) for n in ARRAYS
    )


def record(header: object, body: bytes = b"") -> bytes:
    """A record with a valid checksum, whatever its header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + text + body + hashlib.sha256(text + body).digest()


def entry(**changes: Any) -> dict[str, Any]:
    fields = {"id": "s", "digest": "d", "vocab_size": 9, "temperature": 1.0, "tokens": 0, "candidates": 0}
    return {**fields, **changes}


def file_of(path: Path, *records: bytes) -> Path:
    path.write_bytes(MAGIC + record(HEADER.to_json()) + b"".join(records))
    return path


def test_round_trip(tmp_path: Path) -> None:
    made = write(tmp_path / "e", 3)
    header, places = evidence_io.scan(tmp_path / "e")
    assert header == HEADER
    assert list(places) == [item.trace_digest for item in made]
    assert all(same(a, b) for a, b in zip(evidence_io.read_all(tmp_path / "e"), made, strict=True))


@pytest.mark.parametrize("name", ["s\n", "ü" * 4096, "x" * 4096])
def test_names_survive(tmp_path: Path, name: str) -> None:
    writer = EvidenceWriter(tmp_path / "e", HEADER)
    writer.append(replace(evidence(0), trace_id=name))
    writer.close()
    assert [item.trace_id for item in evidence_io.read_all(tmp_path / "e")] == [name]


def test_a_kill_loses_the_last_record_only(tmp_path: Path) -> None:
    """Cut at every byte of the last record: the others are read, and a writer goes on from there."""
    made = write(tmp_path / "e", 3)
    whole = (tmp_path / "e").read_bytes()
    last = evidence_io.scan(tmp_path / "e")[1][made[2].trace_digest]
    assert last.end == len(whole)
    cut = tmp_path / "cut"
    for size in range(last.start, last.end):
        cut.write_bytes(whole[:size])
        assert list(evidence_io.scan(cut)[1]) == [item.trace_digest for item in made[:2]]
        writer = EvidenceWriter(cut, HEADER)
        writer.append(made[2])
        writer.close()
        assert cut.read_bytes() == whole


def test_a_longer_record_cut_short_leaves_nothing_behind(tmp_path: Path) -> None:
    """What goes on after a kill may be shorter than what the kill left: no rest of it may stay."""
    made = write(tmp_path / "e", 9)
    whole = (tmp_path / "e").read_bytes()
    (tmp_path / "e").write_bytes(whole[:-1])
    start = evidence_io.scan(tmp_path / "e")[1][made[7].trace_digest].end
    again = replace(evidence(0), trace_digest="another")
    writer = EvidenceWriter(tmp_path / "e", HEADER)
    writer.append(again)
    writer.close()
    found = list(evidence_io.read_all(tmp_path / "e"))
    assert len(found) == 9
    assert same(found[-1], again)
    assert (tmp_path / "e").read_bytes()[:start] == whole[:start]
    assert (tmp_path / "e").stat().st_size == evidence_io.scan(tmp_path / "e")[1]["another"].end < len(whole)


def test_a_kill_inside_the_first_record_is_no_reason_to_give_up(tmp_path: Path) -> None:
    made = write(tmp_path / "e", 1)
    whole = (tmp_path / "e").read_bytes()
    first = evidence_io.scan(tmp_path / "e")[1][made[0].trace_digest].start
    for size in range(first):
        cut = tmp_path / "cut"
        cut.write_bytes(whole[:size])
        with pytest.raises(EvidenceError, match=r"not an evidence file of format 1|ends inside its header"):
            evidence_io.scan(cut)
        writer = EvidenceWriter(cut, HEADER)
        writer.append(made[0])
        writer.close()
        assert cut.read_bytes() == whole


@pytest.mark.parametrize("content", [b"x", b"precious text\n" * 9, MAGIC[:-2] + b"4\n", b"PK\x03\x04"])
def test_a_file_that_is_no_evidence_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e").write_bytes(content)
    with pytest.raises(EvidenceError, match="not an evidence file of format 1"):
        EvidenceWriter(tmp_path / "e", HEADER)
    assert (tmp_path / "e").read_bytes() == content


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="cannot read it: No such file"):
        evidence_io.scan(tmp_path / "none")
    with pytest.raises(EvidenceError, match="cannot read it: Is a directory"):
        evidence_io.scan(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        replace(HEADER, weights="cd" * 32),
        replace(HEADER, vocab_size=10),
        replace(HEADER, settings={**HEADER.settings, "dtype": "bfloat16"}),
        replace(HEADER, settings={**HEADER.settings, "tail_mass": 1e-5}),
        replace(HEADER, settings={**HEADER.settings, "list_bytes": 65}),
    ],
)
def test_another_reference_does_not_share_a_file(tmp_path: Path, other: EvidenceHeader) -> None:
    write(tmp_path / "e", 2)
    before = (tmp_path / "e").read_bytes()
    with pytest.raises(EvidenceError, match=r"made by reference hf:x \(weights abababababab\).*use another file"):
        EvidenceWriter(tmp_path / "e", other)
    assert (tmp_path / "e").read_bytes() == before


def test_threads_and_names_may_differ(tmp_path: Path) -> None:
    write(tmp_path / "e", 1)
    EvidenceWriter(
        tmp_path / "e", replace(HEADER, reference="hf:y", settings={**HEADER.settings, "threads": 4})
    ).close()
    assert len(evidence_io.scan(tmp_path / "e")[1]) == 1


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (record(entry(tokens=-1)), "tokens: got -1, expected an integer from 0"),
        (record(entry(tokens=2**20 + 1)), "tokens: got 1048577"),
        (record(entry(tokens=True)), "tokens: got True"),
        (record(entry(candidates=2.0)), r"candidates: got 2\.0"),
        (record(entry(candidates=2**31)), "candidates: got 2147483648"),
        (record(entry(vocab_size="9")), "vocab_size: got '9'"),
        (record(entry(vocab_size=None)), "vocab_size: got None"),
        (record(entry(temperature="hot")), "temperature: got 'hot', expected a number"),
        (record(entry(temperature=10**400)), "temperature: got 1000.*expected a number"),
        (record(entry(id=None)), "id: got None, expected a string"),
        (record(entry(digest=["d"])), r"digest: got \['d'\], expected a string"),
        (record([1, 2]), "has no object as its header"),
        (record(b"\xff\xfe\x00"), "has no readable header"),
        (record(b"[" * 60000), "has no readable header"),
        (record(b'{"id": ' + b"1" * 5000 + b"}"), "has no readable header"),
        ((1).to_bytes(4, "little") + b"{", "states a header of 1 bytes"),
        ((2**32 - 1).to_bytes(4, "little"), "states a header of 4294967295 bytes"),
    ],
)
def test_lying_records_are_refused(tmp_path: Path, bad: bytes, match: str) -> None:
    path = file_of(tmp_path / "e", bad)
    with pytest.raises(EvidenceError, match=match):
        evidence_io.scan(path)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (record(entry(temperature=float("nan"))), "temperature: got nan"),
        (record(entry(temperature=0)), "temperature: got 0.0"),
        (record(entry(vocab_size=0)), "vocab_size: sizes are out of range"),
        (record(entry(tokens=1), b"\0" * 36), "offsets: every token must own"),
        (record(entry(candidates=1), b"\0" * 8), "offsets: every token must own"),
        (record(entry(tokens=1), b"\xff" * 36), "offsets: every token must own"),
        (record(entry(tokens=1, candidates=1), b"\1" + b"\0" * 35 + b"\xff" * 8), "ids: an id lies outside"),
    ],
)
def test_records_that_hold_nonsense_are_refused(tmp_path: Path, bad: bytes, match: str) -> None:
    path = file_of(tmp_path / "e", bad)
    with pytest.raises(EvidenceError, match=match):
        list(evidence_io.read_all(path))


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": -3}, {"vocab_size": 0}, {"vocab_size": 2**40}, {"vocab_size": True}, {"eos_ids": [True]},
     {"eos_ids": [-1]}, {"eos_ids": 1}, {"weights": None}, {"reference": 1}, {"settings": []}],
)  # fmt: skip
def test_headers_that_describe_no_reference(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "e").write_bytes(MAGIC + record({**HEADER.to_json(), **change}))
    with pytest.raises(EvidenceError, match="the header does not describe a reference"):
        evidence_io.scan(tmp_path / "e")


def test_huge_counts_take_no_memory(tmp_path: Path) -> None:
    """A header may promise 2^31 candidates: the file is short, so nothing is read, and nothing is set aside."""
    path = file_of(tmp_path / "e", record(entry(tokens=2**20, candidates=2**31 - 1)))
    tracemalloc.start()
    assert evidence_io.scan(path)[1] == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_damaged_header_is_found(tmp_path: Path) -> None:
    write(tmp_path / "e", 1)
    raw = (tmp_path / "e").read_bytes()
    (tmp_path / "e").write_bytes(raw.replace(b"abab", b"acab", 1))
    with pytest.raises(EvidenceError, match="its header is damaged"):
        evidence_io.scan(tmp_path / "e")


def outcome(path: Path) -> list[Evidence] | None:
    """What a reader gets out of a file; None where it refuses it."""
    try:
        return list(evidence_io.read_all(path))
    except EvidenceError:
        return None


def test_every_flipped_byte_is_refused_or_looks_like_a_kill(tmp_path: Path) -> None:
    """No byte can be changed so that something else is read: what comes out is always a part of what went in."""
    made = write(tmp_path / "e", 2)
    raw = (tmp_path / "e").read_bytes()
    for place in range(len(raw)):
        (tmp_path / "e").write_bytes(raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :])
        found = outcome(tmp_path / "e")
        assert found is None or (
            len(found) < len(made) and all(same(a, b) for a, b in zip(found, made, strict=False))
        ), place


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=200), at=st.integers(0, 3000), keep=st.booleans())
def test_junk_raises_nothing_else(tmp_path: Path, junk: bytes, at: int, keep: bool) -> None:
    write(tmp_path / "base", 2) if not (tmp_path / "base").exists() else None
    raw = (tmp_path / "base").read_bytes()
    at %= len(raw)
    (tmp_path / "e").write_bytes(raw[:at] + junk + (raw[at + len(junk) :] if keep else b""))
    outcome(tmp_path / "e")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(list(entry())), JSON | st.integers(0, 4), min_size=1, max_size=4),
    body=st.binary(max_size=120),
)
def test_strange_records_raise_nothing_else(tmp_path: Path, changes: dict[str, Any], body: bytes) -> None:
    """Valid checksums around headers of any shape, with bodies cut to the size that they state."""
    fields = entry(**changes)
    tokens, candidates = fields["tokens"], fields["candidates"]
    if type(tokens) is int and type(candidates) is int and 0 <= tokens < 10 and 0 <= candidates < 10:
        body = body.ljust(36 * tokens + 8 * candidates, b"\1")[: 36 * tokens + 8 * candidates]
    outcome(file_of(tmp_path / "e", record(fields, body)))


def test_a_race_is_kept(tmp_path: Path) -> None:
    race = Race(contract="vllm-v2-e", seed=-5, temperature=0.7, open_O=np.array([1]))
    writer = EvidenceWriter(tmp_path / "e", HEADER)
    writer.append(replace(evidence(0), race=race))
    writer.append(evidence(1))
    writer.close()
    first, second = evidence_io.read_all(tmp_path / "e")
    assert first.race is not None
    assert (first.race.contract, first.race.seed, first.race.temperature) == ("vllm-v2-e", -5, 0.7)
    assert first.race.open_O.tolist() == [1]
    assert second.race is None


@pytest.mark.parametrize(
    "race",
    [7, ["x"], ["x", 1.5, 0.7, []], ["x", 1, 0.0, []], ["x", 1, 0.7, [True]], [3, 1, 0.7, []], ["x", 1, 0.7, [99]]],
    ids=str,
)
def test_a_race_that_is_none_is_refused(race: Any) -> None:
    with pytest.raises(EvidenceError, match="race"):
        found = evidence_io._race(race)
        replace(evidence(0), race=found).validate()
