"""Whatever the bytes, a reader gives traces or a `TraceError`."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veridifr.errors import TraceError
from veridifr.traces import from_openai, import_file, read_traces, trace_from_dict, write_traces
from veridifr.traces.codec import ENGINE_KEYS, SAMPLING_KEYS, engine_from_dict, sampling_from_dict
from veridifr.traces.strict_json import MAX_DEPTH, parse_json

DATA = Path(__file__).parent.parent / "data"
GOOD = (
    b'{"id":"a","model":"m","prompt_token_ids":[1,2],"output_token_ids":[3],"sampling":{"temperature":1.0,"top_k":50,'
    b'"logit_bias":{"7":1.5},"stop":["x"],"seed":42},"engine":{"name":"vllm","multiprocessors":132},"stop_reason":"x"}\n'
)
quick = settings(max_examples=150, deadline=None)


def survives(path: Path) -> None:
    try:
        for trace in read_traces(path):
            assert len(trace.prompt_token_ids) >= 1
    except TraceError as error:
        assert str(error).startswith(str(path))
        assert len(str(error)) < 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@quick
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_any_bytes(folder, data, suffix):
    path = folder / f"t{suffix}"
    path.write_bytes(data)
    survives(path)


@quick
@given(data=st.data())
def test_changed_lines(folder, data):
    """Bytes of a good line replaced, cut out, doubled: most are still nearly JSON."""
    line = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(line) - 1))
        end = min(len(line), at + data.draw(st.integers(0, 6)))
        line[at:end] = data.draw(
            st.binary(max_size=3)
            | st.sampled_from(
                [b"[", b"}", b'"', b"-", b"1e99", b"null", b"true", b"\\ud800", b"NaN", bytes(line[at:end]) * 2]
            )
        )
        line = line or bytearray(b" ")
    path = folder / "t.jsonl"
    path.write_bytes(line)
    survives(path)


@pytest.mark.parametrize("end", range(1, len(GOOD) - 1))
def test_every_truncation_is_refused(folder, end):
    path = folder / "t.jsonl"
    path.write_bytes(GOOD[:end])
    with pytest.raises(TraceError, match=r":1: JSON: "):
        list(read_traces(path))


wild: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@quick
@given(data=st.data(), value=wild)
def test_any_value_under_any_key(data, value):
    record = json.loads(GOOD)
    where = data.draw(st.sampled_from(["", "sampling", "engine"]))
    names = {
        "": [*list(record), "finish_reason", "version"],
        "sampling": list(SAMPLING_KEYS),
        "engine": list(ENGINE_KEYS),
    }
    target = record[where] if where else record
    target[data.draw(st.sampled_from(names[where]))] = value
    try:
        trace_from_dict(record)
    except TraceError as error:
        assert ": " in str(error)


@quick
@given(value=wild)
def test_any_value_as_a_record_or_an_answer(value):
    for read in (
        trace_from_dict,
        sampling_from_dict,
        engine_from_dict,
        lambda v: from_openai(v, sampling=sampling_from_dict({}), engine=engine_from_dict({"name": "x"})),
        lambda v: from_openai(
            {"id": "a", "model": "m", "choices": [v, {"token_ids": v, "prompt_token_ids": [1]}]},
            sampling=sampling_from_dict({}),
            engine=engine_from_dict({"name": "x"}),
        ),
    ):
        with contextlib.suppress(TraceError):
            read(value)


@quick
@given(value=wild, kind=st.sampled_from(["difr", "token-difr", "openai"]), suffix=st.sampled_from([".json", ".jsonl"]))
def test_any_value_as_a_file_of_another_tool(folder, value, kind, suffix):
    path = folder / f"t{suffix}"
    for document in (
        value,
        {"samples": value},
        {"samples": [value, {"prompt_token_ids": [1], "outputs": value}]},
        [{"prompt_token_ids": value, "output_token_ids": value}],
        {"id": "a", "model": "m", "choices": value},
    ):
        path.write_text(json.dumps(document))
        try:
            import_file(kind, path, sampling={}, engine={"name": "x"}, model="m")
        except TraceError as error:
            assert str(error).startswith(str(path))


@quick
@given(text=st.text(alphabet='[]{}":,\\1a ', max_size=120))
def test_depth_is_that_of_the_parser(text):
    """The bracket count never refuses what a parser that recurses would accept within the limit."""

    def depth(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    try:
        value = json.loads(text)
    except ValueError:
        with pytest.raises(TraceError):
            parse_json(text.encode())
        return
    wrapped = text
    for _ in range(MAX_DEPTH - depth(value)):
        wrapped = f'["]\\"[", {wrapped}]'
    parse_json(wrapped.encode())
    with pytest.raises(TraceError, match=r"nested deeper|occurs twice"):
        parse_json(f"[{wrapped}]".encode())


def test_changed_parquet_files(folder):
    """Flipped bytes: a reader may still find valid traces (other numbers), else it is our error."""
    path = folder / "t.parquet"
    write_traces(path, read_traces(DATA / "traces_v1.paper.jsonl"))
    good = path.read_bytes()
    draw = random.Random(7)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        survives(path)


def test_changed_gzip_files(folder):
    path = folder / "t.jsonl.gz"
    good = gzip.compress(GOOD * 3)
    draw = random.Random(8)
    for _ in range(300):
        data = bytearray(good)
        data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        survives(path)
