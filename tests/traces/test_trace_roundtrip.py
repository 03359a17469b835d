"""What is written is read back equal, in every format, and the shipped samples are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veridifr.errors import TraceError
from veridifr.trace import EngineRecord, Sampling, Trace
from veridifr.traces import (
    digest_file,
    read_trace_files,
    read_traces,
    sampling_from_dict,
    sampling_to_dict,
    trace_from_dict,
    trace_to_dict,
    write_traces,
)

DATA = Path(__file__).parent.parent / "data"
SAMPLES = sorted(DATA.glob("traces_*.jsonl"))
SUFFIXES = [".jsonl", ".jsonl.gz", ".parquet"]

FULL = Trace(
    id="r-1/3",
    model="org/name",
    prompt_token_ids=[0, 2**31 - 1],
    output_token_ids=[7],
    sampling=Sampling(
        temperature=0.7,
        top_k=50,
        top_p=0.95,
        min_p=0.05,
        seed=2**64 - 1,
        repetition_penalty=1.1,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias={7: -100.0, 11: 1.5},
        allowed_token_ids=(7, 8),
        bad_words_token_ids=((1,), (2, 3)),
        min_tokens=1,
        max_tokens=300,
        stop=("\n\n", "é"),
        stop_token_ids=(2,),
        ignore_eos=True,
        extra={"dry_multiplier": 0.8, "nested": {"list": [1, None, "x"]}, "extra": 1},
    ),
    engine=EngineRecord(
        name="vllm",
        version="0.24.0",
        runner="v1",
        device="NVIDIA H200",
        multiprocessors=132,
        threads_per_multiprocessor=2048,
        dtype="bfloat16",
        sampler="vllm-v1-cuda-exp32",
        fp64_noise=False,
        speculative_decoding=False,
        deterministic=True,
        filtered_batch=False,
        batch_row=0,
        batch_size=4,
        child=3,
        extra={"build": "nightly"},
    ),
    finish_reason="stop",
    stop_reason="\n\n",
    extra={"note": ["kept", {"as": "read"}], "null": None, "extra": {"a": 1}},
)


def small(number: int = 0, **changes: object) -> Trace:
    fields = {
        "id": f"t/{number}",
        "model": "m",
        "prompt_token_ids": [1, 2],
        "output_token_ids": [3],
        "sampling": Sampling(temperature=0.0),
        "engine": EngineRecord(name="vllm"),
    }
    return Trace(**{**fields, **changes})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_field_survives(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    write_traces(path, [FULL, small(stop_reason=13, finish_reason="length"), small(1, output_token_ids=[])])
    first, second, third = read_traces(path)
    assert trace_to_dict(first) == trace_to_dict(FULL)
    assert first.sampling == FULL.sampling
    assert first.engine == FULL.engine
    assert first.extra == FULL.extra
    assert first.digest() == FULL.digest()
    assert first.prompt_token_ids.dtype == np.int32
    assert not first.prompt_token_ids.flags.writeable
    assert (second.stop_reason, second.finish_reason) == (13, "length")
    assert len(third.output_token_ids) == 0


def test_known_json_of_a_full_trace():
    record = trace_to_dict(FULL)
    assert record["sampling"]["logit_bias"] == {"7": -100.0, "11": 1.5}
    assert record["sampling"]["bad_words_token_ids"] == [[1], [2, 3]]
    assert record["sampling"]["dry_multiplier"] == 0.8
    assert record["engine"]["fp64_noise"] is False  # false is a statement, unlike a missing key
    assert record["note"] == ["kept", {"as": "read"}]


def test_settings_that_are_off_are_left_out():
    off = Sampling(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0, max_tokens=0)
    assert sampling_to_dict(off) == {"temperature": 1.0}
    assert sampling_from_dict({}) == off


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_rewritten_byte_for_byte(tmp_path, path):
    write_traces(tmp_path / "t.jsonl", read_traces(path))
    assert (tmp_path / "t.jsonl").read_bytes() == path.read_bytes()


def test_samples_are_as_their_provider_wrote_them():
    traces = read_trace_files(SAMPLES)
    assert len(traces) == 20
    first = next(trace for trace in traces if trace.id == "v1.paper/0")
    assert (len(first.prompt_token_ids), len(first.output_token_ids)) == (151, 300)
    assert first.sampling == Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=42)
    assert (first.engine.runner, first.engine.multiprocessors) == ("v1", 132)


token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=8)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names.map("x".__add__), inner, max_size=3),
    max_leaves=6,
)
extras = st.dictionaries(names.map("x_".__add__), plain, max_size=3)
traces = st.builds(
    Trace,
    id=names,
    model=names,
    prompt_token_ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8),
    output_token_ids=token_ids,
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0, 1e4),
        top_k=st.none() | st.integers(-1, 2**31 - 1),
        top_p=st.none() | st.floats(1e-9, 1),
        seed=st.none() | st.integers(-(2**63), 2**64 - 1),
        logit_bias=st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100, 100), max_size=3),
        stop=st.lists(names, max_size=2),
        extra=extras,
    ),
    engine=st.builds(EngineRecord, name=names, version=st.none() | names, child=st.none() | st.integers(0, 65535)),
    stop_reason=st.none() | names | st.integers(0, 2**31 - 1),
    extra=extras,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(traces, min_size=1, max_size=3, unique_by=lambda trace: trace.id), st.sampled_from(SUFFIXES))
def test_any_trace_survives(tmp_path_factory, some, suffix):
    path = tmp_path_factory.mktemp("any") / f"t{suffix}"
    write_traces(path, some)
    assert list(map(trace_to_dict, read_traces(path))) == list(map(trace_to_dict, some))


def test_dict_and_json_agree():
    record = trace_to_dict(FULL)
    assert trace_to_dict(trace_from_dict(json.loads(json.dumps(record)))) == record


def test_writing_is_atomic(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"before")

    def broken():
        yield small()
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        write_traces(path, broken())
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    write_traces(path, [small()])
    assert list(tmp_path.iterdir()) == [path]
    assert len(list(read_traces(path))) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("some", "match"),
    [
        ([], "no traces to write"),
        ([small(), small()], "id: 't/0' occurs twice"),
        ([small(extra={"model": "x"})], "extra: the key 'model' has a field of its own"),
        ([small(extra={"version": 3})], "extra: the key 'version' has a field of its own"),
        ([small(extra={1: 2})], "extra: the key '1' has a field of its own"),
        ([small(sampling=Sampling(extra={"seed": 1}))], "sampling.extra: the key 'seed'"),
        ([small(engine=EngineRecord(name="x", extra={"name": 1}))], "engine.extra: the key 'name'"),
        ([small(extra={"a": float("nan")})], "cannot be written"),
        ([small(extra={"a": object()})], "cannot be written"),
        ([small(extra={"a": "\ud800"})], "cannot be written"),
        ([small(extra={"a": "x" * 17_000_000})], "cannot be written.*longer than 16777216 bytes"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, suffix, some, match):
    with pytest.raises(TraceError, match=match):
        write_traces(tmp_path / f"t{suffix}", some)
    assert list(tmp_path.iterdir()) == []


def test_writing_to_nowhere_is_an_error_of_ours(tmp_path):
    with pytest.raises(TraceError, match="cannot be written: No such file"):
        write_traces(tmp_path / "none" / "t.jsonl", [small()])
    with pytest.raises(TraceError, match="unknown kind of file"):
        write_traces(tmp_path / "t.csv", [small()])


def test_equal_traces_give_equal_files(tmp_path):
    for suffix in SUFFIXES:
        one, two = tmp_path / f"1{suffix}", tmp_path / f"2{suffix}"
        write_traces(one, [FULL])
        write_traces(two, [FULL])
        assert digest_file(one) == digest_file(two)


def test_digest_of_a_file_is_sha256(tmp_path):
    (tmp_path / "t").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert digest_file(tmp_path / "t") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
