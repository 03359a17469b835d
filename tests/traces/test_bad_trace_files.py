"""Every way of being wrong gives one message that names file, line and field."""

from __future__ import annotations

import gzip
import importlib.util
import tracemalloc
from pathlib import Path

import pytest

from veridifr.errors import TraceError
from veridifr.traces import digest_file, read_trace_files, read_traces
from veridifr.traces import jsonl as jsonl_module

ASSETS = Path(__file__).parent.parent / "assets"
_spec = importlib.util.spec_from_file_location("make_bad", ASSETS / "make_bad.py")
assert _spec is not None and _spec.loader is not None
make_bad = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_bad)


def message(path: Path, **options: int) -> str:
    with pytest.raises(TraceError) as caught:
        list(read_traces(path, **options))
    return str(caught.value)


def test_assets_are_those_of_the_script():
    found = {path.stem: path.read_bytes() for path in (ASSETS / "bad").glob("*.jsonl")}
    assert found == {name: data for name, (data, _) in make_bad.BAD.items()}


@pytest.mark.parametrize("name", make_bad.BAD)
def test_bad_file_is_refused_by_name_line_and_field(name):
    path = ASSETS / "bad" / f"{name}.jsonl"
    text = message(path)
    assert text.startswith(str(path) + make_bad.BAD[name][1])
    assert "\n" not in text
    assert len(text) < 600


def test_the_line_they_were_made_from_is_good(tmp_path):
    path = tmp_path / "good.jsonl"
    path.write_bytes(make_bad.GOOD_LINE + make_bad.SECOND)
    assert [trace.id for trace in read_traces(path)] == ["a/0", "a/1"]


@pytest.mark.parametrize(
    ("name", "data"),
    {
        "greedy without seed": make_bad.line(sampling={"temperature": 0}),
        "seed missing at temperature above 0 (an audit refuses it, a reader does not)": make_bad.line(sampling={}),
        "empty output": make_bad.line(output_token_ids=[]),
        "top-k off": make_bad.sampling(top_k=-1),
        "top-k off too": make_bad.sampling(top_k=0),
        "explicit version": make_bad.line(version=1),
        "carriage return": make_bad.GOOD_LINE[:-1] + b"\r\n",
        "no newline at the end": make_bad.GOOD_LINE[:-1],
        "surrogate pair": make_bad.line(id="\U0001f600"),
        "nested to the limit": make_bad.line(note=__import__("json").loads("[" * 31 + "]" * 31)),
        "brackets in a string": make_bad.line(note='\\"' + "[" * 50 + '"\\\\'),
    }.items(),
)
def test_unusual_but_valid_lines_are_read(tmp_path, name, data):
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    assert len(list(read_traces(path))) == 1, name


def test_gigabyte_line_is_refused_without_being_held(tmp_path):
    path = tmp_path / "t.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"id":"')
        stream.truncate(1 << 30)  # a sparse file: nothing is stored
    tracemalloc.start()
    text = message(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text == f"{path}:1: line: longer than 16777216 bytes"
    assert peak < 100e6


def test_line_limit_is_exact(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(make_bad.GOOD_LINE)
    length = len(make_bad.GOOD_LINE) - 1
    assert len(list(read_traces(path, limit_bytes_per_line=length))) == 1
    assert message(path, limit_bytes_per_line=length - 1) == f"{path}:1: line: longer than {length - 1} bytes"
    path.write_bytes(make_bad.GOOD_LINE[:-1])
    assert len(list(read_traces(path, limit_bytes_per_line=length))) == 1
    assert "longer than" in message(path, limit_bytes_per_line=length - 1)


def test_zip_bomb_of_one_line(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 20_000_000 + make_bad.GOOD_LINE, 1))
    assert message(path) == f"{path}:1: line: longer than 16777216 bytes"


def test_zip_bomb_of_many_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl_module, "MAX_GZIP_BYTES", 1000)
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(make_bad.line(id=str(i)) for i in range(100))))
    assert message(path).endswith("unpacks to more than 1000 bytes")


@pytest.mark.parametrize("cut", [0, 5, 12, 40, -8, -1])
def test_damaged_gzip(tmp_path, cut):
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(make_bad.GOOD_LINE)[:cut])
    assert message(path).startswith(str(path))


def test_gzip_with_a_wrong_byte(tmp_path):
    data = bytearray(gzip.compress(make_bad.GOOD_LINE))
    data[20] ^= 255
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(data)
    assert message(path).startswith(f"{path}:1: cannot be read: ")


def test_missing_file_directory_and_unknown_suffix(tmp_path):
    assert "cannot be read: No such file" in message(tmp_path / "none.jsonl")
    assert "cannot be read" in message(tmp_path / "none.parquet")
    (tmp_path / "dir.jsonl").mkdir()
    assert "cannot be read: Is a directory" in message(tmp_path / "dir.jsonl")
    assert "expected a name that ends in .jsonl, .jsonl.gz, .parquet" in message(tmp_path / "t.json")
    with pytest.raises(TraceError, match="cannot be read"):
        digest_file(tmp_path / "none.jsonl")


def test_ids_are_unique_across_files(tmp_path):
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one.write_bytes(make_bad.GOOD_LINE)
    two.write_bytes(make_bad.SECOND + make_bad.GOOD_LINE)
    with pytest.raises(TraceError) as caught:
        read_trace_files([one, two])
    assert str(caught.value) == f"{two}:2: id: 'a/0' was used before, at {one}:1"
    two.write_bytes(make_bad.SECOND)
    assert [trace.id for trace in read_trace_files([one, str(two)])] == ["a/0", "a/1"]
    two.write_bytes(b"")
    with pytest.raises(TraceError, match=r"2.jsonl: holds no traces"):
        read_trace_files([one, two])


def test_hostile_names_do_not_reach_the_terminal(tmp_path):
    path = tmp_path / "t.jsonl"
    hostile = "\x1b[31m\n"
    for data in (
        make_bad.line(id=hostile) * 2,
        make_bad.line(**{hostile: "\ud800"}),
        make_bad.line(finish_reason=hostile),
        make_bad.sampling(logit_bias={hostile: 1}),
        make_bad.GOOD_LINE[:-2] + b',"\\u001b[31m":1,"\\u001b[31m":2}',
    ):
        path.write_bytes(data)
        assert "\x1b" not in message(path)


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(make_bad.GOOD_LINE + b"broken\n")
    traces = read_traces(path)
    assert next(traces).id == "a/0"
    with pytest.raises(TraceError, match=r":2: JSON"):
        next(traces)
