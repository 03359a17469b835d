"""Re-checking seeds from the secret: whatever was changed is named, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makers import CPU_ENGINE, make_trace
from veridifr import SeedIssuer, Trace, check_seeds
from veridifr.errors import InputError, TraceError
from veridifr.seeds import HEADER, issued_seed

SECRET = bytes(range(32))


def issue(count: int = 5, secret: bytes = SECRET, audit_id: str = "night 1", bits: int = 31) -> list[Trace]:
    requests = [make_trace((), name=f"r{i}", prompt=(i,), seed=None) for i in range(count)]
    return SeedIssuer(secret, audit_id, bits).issue(requests)


def header(trace: Trace, **changes: Any) -> Trace:
    return replace(trace, extra={HEADER: {**trace.extra[HEADER], **changes}})


def with_seed(trace: Trace, seed: int | None) -> Trace:
    return replace(trace, sampling=replace(trace.sampling, seed=seed))


def test_what_was_issued_holds() -> None:
    issued = issue(bits=53)
    answered = [replace(trace, output_token_ids=[1, 2], model="theirs", finish_reason="length") for trace in issued]
    found = check_seeds(answered[::-1], SECRET)  # in any order, with any output
    assert found.holds and dict(found.wrong) == {}
    assert (found.audit_id, found.bits, found.sequences, found.absent) == ("night 1", 53, 5, 0)
    assert found.commitment == SeedIssuer(SECRET, "night 1", 53).commitment
    found.require()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: with_seed(t, 1), "sampling.seed: got 1, issued for this prompt and settings was "),
        (lambda t: with_seed(t, None), "sampling.seed: got None, issued"),
        (lambda t: with_seed(t, -t.sampling.seed), "sampling.seed: got -"),
        (lambda t: replace(t, prompt_token_ids=[2, 2]), "sampling.seed: got"),
        (lambda t: replace(t, sampling=replace(t.sampling, temperature=0.5)), "sampling.seed: got"),
        (lambda t: replace(t, engine=replace(CPU_ENGINE, child=1)), "engine.child: got 1, and a seed was issued for"),
        (lambda t: replace(t, extra={}), "issued_seed: missing"),
        (lambda t: replace(t, extra={HEADER: None}), "issued_seed: missing"),
        (lambda t: replace(t, extra={HEADER: []}), "issued_seed: got list, expected an object"),
        (lambda t: replace(t, extra={HEADER: {"veridifr": "seeds/1"}}), "issued_seed.commitment: missing"),
        (lambda t: header(t, veridifr="seeds/3"), "issued_seed.veridifr: got 'seeds/3', expected 'seeds/1' or"),
        (lambda t: header(t, veridifr="seeds/2"), "asked: missing, and seeds/2 issues seeds for it"),
        (lambda t: header(t, commitment="F" * 64), "issued_seed.commitment: expected 64 hexadecimal digits"),
        (lambda t: header(t, commitment="f" * 64), "issued_seed: of another commitment, audit or width"),
        (lambda t: header(t, audit_id="night 2"), "issued_seed: of another commitment, audit or width"),
        (lambda t: header(t, audit_id=""), "issued_seed.audit_id: got an empty string, expected a name"),
        (lambda t: header(t, audit_id=7), "issued_seed.audit_id: got 7, expected a string"),
        (lambda t: header(t, bits=32), "issued_seed: of another commitment, audit or width"),
        (lambda t: header(t, bits=64), "issued_seed.bits: got 64, expected 31 to 63"),
        (lambda t: header(t, bits=True), "issued_seed.bits: got True, expected an integer"),
        (lambda t: header(t, index=0), "sampling.seed: got"),
        (lambda t: header(t, index=-1), "issued_seed.index: got -1, expected 0 to"),
        (lambda t: header(t, index=2.0), "issued_seed.index: got 2.0, expected an integer"),
        (lambda t: header(t, attempt=1), "sampling.seed: got"),
        (lambda t: header(t, attempt=10**9), "issued_seed.attempt: got 1000000000, expected 0 to 63"),
    ],
)  # fmt: skip
def test_what_was_changed_is_named(change: Any, reason: str) -> None:
    issued = issue()
    found = check_seeds([*issued[:2], change(issued[2]), *issued[3:]], SECRET)
    assert list(found.wrong) == ["r2"]
    assert found.wrong["r2"].startswith(reason)
    assert not found.holds
    assert found.absent == 1
    with pytest.raises(TraceError, match=r"1 of 5 seeds are not as issued: 'r2': "):
        found.require()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
KEYS = ("veridifr", "commitment", "audit_id", "bits", "index", "attempt")


@settings(max_examples=80, deadline=None)
@given(json_values | st.dictionaries(st.sampled_from(KEYS), json_values, min_size=1))
def test_no_header_breaks_the_check(value: Any) -> None:
    """Whatever a provider writes there is named for its trace, whether it replaces the header or parts of it."""
    first, second, third = issue(3)
    whole = replace(second, extra={HEADER: value})
    assert list(check_seeds([first, whole, third], SECRET).wrong) == ["r1"]
    if isinstance(value, dict):
        mixed = header(second, **value)
        meant = [[{"attempt": 0, **t.extra[HEADER]}[key] for key in KEYS] for t in (second, mixed)]
        same = repr(meant[0]) == repr(meant[1])  # True is not 1; keys that are not known mean nothing
        assert list(check_seeds([first, mixed, third], SECRET).wrong) == ([] if same else ["r1"])
        check_seeds([mixed], SECRET)


def test_another_secret() -> None:
    found = check_seeds(issue(3), SECRET[::-1])
    assert set(found.wrong.values()) == {"issued_seed.commitment: is not that of this secret"}
    assert len(found.wrong) == 3 and found.absent is None


def test_another_audit_id_for_all_does_not_fit_the_commitment() -> None:
    """Else a verifier could try audit ids under one commitment until the seeds suit."""
    other = SeedIssuer(SECRET, "night 2").issue(issue(3))
    told = [header(trace, commitment=SeedIssuer(SECRET, "night 1").commitment) for trace in other]
    assert set(check_seeds(told, SECRET).wrong.values()) == {"issued_seed.commitment: is not that of this secret"}


def test_nothing_was_issued() -> None:
    found = check_seeds([make_trace()], SECRET)
    assert dict(found.wrong) == {"s0": "issued_seed: missing"}
    assert (found.commitment, found.audit_id, found.bits, found.absent) == (None, None, None, None)


def test_a_number_that_is_used_twice() -> None:
    issued = issue(3)
    found = check_seeds([*issued, replace(issued[1], id="again")], SECRET)
    assert dict(found.wrong) == {"again": "issued_seed.index: 1 names more than one sequence"}


def test_what_is_not_shown_is_counted() -> None:
    issued = issue(9)
    assert check_seeds([issued[8], issued[2]], SECRET).absent == 7
    assert check_seeds(issued[:4], SECRET).absent == 0  # nobody can know of those after the last


def test_an_attempt_that_was_not_due() -> None:
    """A verifier that may skip a seed it dislikes is choosing seeds again."""
    issued, issuer = issue(3), SeedIssuer(SECRET, "night 1")
    shopped = header(with_seed(issued[1], issuer.seed_for(issued[1], 1, 1)), attempt=1)
    found = check_seeds([issued[0], shopped, issued[2]], SECRET)
    assert dict(found.wrong) == {"r1": "issued_seed.attempt: got 1, which is not the one that was due"}


def test_an_attempt_may_be_due_to_a_request_that_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SeedIssuer._seed

    def fake(self: SeedIssuer, digest: bytes, index: int, attempt: int) -> int:
        return 7 if attempt == 0 and index in (1, 3) else real(self, digest, index, attempt)

    monkeypatch.setattr(SeedIssuer, "_seed", fake)
    issued = issue(5)
    assert [trace.extra[HEADER].get("attempt") for trace in issued] == [None, None, None, 1, None]
    assert check_seeds(issued, SECRET).holds
    assert check_seeds([issued[0], *issued[2:]], SECRET).holds
    taken = header(with_seed(issued[3], 7), attempt=0)
    found = check_seeds([*issued[:3], {3: taken}[3], issued[4]], SECRET)
    assert dict(found.wrong) == {"r3": "issued_seed.attempt: got 0, which is not the one that was due"}


def test_the_wrong_ones_come_in_the_traces_order() -> None:
    issued = issue(4)
    changed = [with_seed(issued[3], 1), issued[1], replace(issued[2], extra={}), with_seed(issued[0], 1)]
    assert list(check_seeds(changed, SECRET).wrong) == ["r3", "r2", "r0"]


def test_refusals() -> None:
    with pytest.raises(TraceError, match="traces: got none"):
        check_seeds([], SECRET)
    with pytest.raises(InputError, match="secret: got 3 bytes"):
        check_seeds(issue(1), b"abc")


def test_a_header_says_what_it_says() -> None:
    trace = issue(2)[1]
    found = issued_seed(trace)
    assert found is not None
    assert found.to_dict() == trace.extra[HEADER]
    assert (found.index, found.attempt, found.bits) == (1, 0, 31)
    assert issued_seed(make_trace()) is None
