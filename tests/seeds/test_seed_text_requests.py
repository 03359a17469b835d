"""Seeds of requests that are sent as text (`seeds/2`): the published vector, and what such a seed is bound to."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from makers import make_trace
from veridifr import SeedIssuer, Trace, check_seeds, read_traces, write_traces
from veridifr.errors import TraceError
from veridifr.seeds import request_digest

DOC = (Path(__file__).parents[2] / "docs" / "seeds.md").read_text(encoding="utf-8")
VECTOR = [json.loads(body) for body in re.findall(r"^```json\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)][1]
SECRET = bytes(range(32))


def asked(name: str = "r0", sent: Any = None, ids: tuple[int, ...] = ()) -> Trace:
    """A request sent as text; its ids are not known unless given."""
    extra = {"asked": {"prompt": "Hello é"} if sent is None else sent, "unscored": "not known"}
    trace = make_trace((), name=name, prompt=(1,), seed=None, temperature=1.0, max_tokens=8)
    return replace(trace, extra=extra, prompt_token_ids=list(ids))


def parts(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(8, "big") + value for value in values)


def by_the_document(canonical: str, index: int) -> int:
    """docs/seeds.md, written again without the module."""
    digest = hashlib.sha256(parts(b"veridifr seeds/1 request", canonical.encode("ascii"))).digest()
    numbers = (index.to_bytes(8, "big"), (0).to_bytes(8, "big"))
    message = parts(b"veridifr seeds/1 seed", digest, VECTOR["audit_id"].encode(), *numbers)
    return int.from_bytes(hmac.new(SECRET, message, hashlib.sha256).digest(), "big") >> (256 - 31)


def test_the_vector() -> None:
    """The document's words, its numbers and the code agree."""
    assert bytes.fromhex(VECTOR["secret"]) == SECRET
    issuer = SeedIssuer(SECRET, VECTOR["audit_id"])
    for index, seed in enumerate(VECTOR["seeds"]):
        assert by_the_document(VECTOR["canonical_request"], index) == seed
        assert issuer.seed_for(asked(), index) == seed
    issued = issuer.issue([asked(f"r{n}") for n in range(len(VECTOR["seeds"]))])
    assert [trace.sampling.seed for trace in issued] == VECTOR["seeds"]
    assert {trace.extra["issued_seed"]["veridifr"] for trace in issued} == {"seeds/2"}


def test_the_ids_that_the_server_makes_change_nothing_and_the_text_does() -> None:
    issued = SeedIssuer(SECRET, "a").issue([asked("r0"), asked("r1", {"messages": [{"role": "user", "content": "x"}]})])
    kept = [{key: trace.extra[key] for key in ("asked", "issued_seed")} for trace in issued]
    answered = [replace(t, prompt_token_ids=[4, 5], extra=extra) for t, extra in zip(issued, kept, strict=True)]
    assert check_seeds(answered, SECRET).holds
    changed = replace(answered[0], extra={**answered[0].extra, "asked": {"prompt": "Hello e"}})
    assert list(check_seeds([changed, answered[1]], SECRET).wrong) == ["r0"]
    bare = replace(answered[0], extra={"issued_seed": answered[0].extra["issued_seed"]})
    assert check_seeds([bare, answered[1]], SECRET).wrong == {"r0": "asked: missing, and seeds/2 issues seeds for it"}


def test_both_schemes_in_one_audit() -> None:
    """The scheme decides what is read: beside token ids under seeds/1, `asked` is an unknown key, as ever."""
    mixed = [asked("r0"), make_trace((), name="r1", prompt=(7,), seed=None)]
    issued = SeedIssuer(SECRET, "a").issue(mixed)
    assert [t.extra["issued_seed"]["veridifr"] for t in issued] == ["seeds/2", "seeds/1"]
    with_key = replace(issued[1], extra={**issued[1].extra, "asked": {"prompt": "anything"}})
    assert check_seeds([issued[0], with_key], SECRET).holds


def test_requests_survive_a_file(tmp_path: Path) -> None:
    issued = SeedIssuer(SECRET, "a").issue([asked("r0"), asked("r1", ids=(3,))])
    write_traces(tmp_path / "r.jsonl", issued)
    assert check_seeds(list(read_traces(tmp_path / "r.jsonl")), SECRET).holds


def test_refusals() -> None:
    with pytest.raises(TraceError, match="asked: missing"):
        request_digest(make_trace(()), "seeds/2")
    with pytest.raises(TraceError, match="cannot be written as JSON"):
        request_digest(asked(sent={"prompt": {1, 2}}), "seeds/2")
