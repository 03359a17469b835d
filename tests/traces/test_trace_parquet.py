"""Parquet files that are damaged, of another shape, or written by other tools."""

from __future__ import annotations

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from veridifr.errors import MissingExtraError, TraceError
from veridifr.trace import EngineRecord, Sampling, Trace
from veridifr.traces import parquet as parquet_module
from veridifr.traces import read_traces, trace_to_dict, write_traces

ROW = {
    "id": "a",
    "model": "m",
    "prompt_token_ids": [1, 2],
    "output_token_ids": [3],
    "sampling": '{"temperature": 0.5, "seed": 1}',
    "engine": '{"name": "vllm"}',
}


def write(path, rows, schema=None):
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def message(path):
    with pytest.raises(TraceError) as caught:
        list(read_traces(path))
    return str(caught.value)


def test_a_file_of_another_tool_is_read(tmp_path):
    """int64 ids, large lists and large strings, as pandas and polars write them; optional columns absent."""
    path = tmp_path / "t.parquet"
    wide = pa.large_list(pa.int64())
    text = pa.large_string()
    schema = pa.schema([(name, wide if name.endswith("_ids") else text) for name in ROW])
    write(path, [ROW, {**ROW, "id": "b", "output_token_ids": []}], schema)
    first, second = read_traces(path)
    assert trace_to_dict(first)["output_token_ids"] == [3]
    assert first.sampling == Sampling(temperature=0.5, seed=1)
    assert len(second.output_token_ids) == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"id": None}, r":row 2: id: got None, expected a string"),
        ({"id": "a"}, r":row 2: id: 'a' was used before, at .*:row 1"),
        ({"output_token_ids": None}, r":row 2: output_token_ids: is or holds a null"),
        ({"output_token_ids": [1, None]}, r":row 2: output_token_ids: is or holds a null"),
        ({"output_token_ids": [1, -5]}, r":row 2: output_token_ids\[1\]: got -5, expected 0 to"),
        ({"prompt_token_ids": []}, r":row 2: prompt_token_ids: got 0 token ids"),
        ({"sampling": None}, r":row 2: sampling: missing"),
        ({"sampling": "{"}, r":row 2: sampling: JSON: "),
        ({"sampling": '{"temperature": NaN}'}, r":row 2: sampling: JSON: NaN is no number"),
        ({"sampling": '{"seed": "1"}'}, r":row 2: sampling.seed: got '1', expected an integer"),
        ({"engine": "[]"}, r":row 2: engine: got list, expected an object"),
        ({"engine": "[" * 5000}, r":row 2: engine: JSON: nested deeper than 32"),
        ({"finish_reason": "tired"}, r":row 2: finish_reason: got 'tired'"),
        ({"stop_reason": "-3"}, r":row 2: stop_reason: got -3"),
        ({"stop_reason": "word"}, r":row 2: stop_reason: JSON: "),
        ({"extra": "[1]"}, r":row 2: extra: got list, expected an object"),
        ({"extra": '{"model": "x"}'}, r":row 2: extra: the key 'model' has a place of its own"),
        ({"extra": '{"version": 1}'}, r":row 2: extra: the key 'version' has a place of its own"),
    ],
)
def test_bad_row_is_named(tmp_path, change, match):
    path = tmp_path / "t.parquet"
    columns = [
        (n, pa.list_(pa.int32()) if n in parquet_module.TOKEN_COLUMNS else pa.string()) for n in parquet_module.COLUMNS
    ]
    write(path, [ROW, {**ROW, "id": "b", **change}], pa.schema(columns))
    with pytest.raises(TraceError, match=match):
        list(read_traces(path))


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({**ROW, "prompt": "text"}, "column 'prompt': is unknown, expected id, model"),
        ({key: value for key, value in ROW.items() if key != "engine"}, "column 'engine': missing"),
        ({**ROW, "output_token_ids": [0.5]}, r"column 'output_token_ids': got list<.*double>, expected list<int32>"),
        ({**ROW, "output_token_ids": [True]}, r"column 'output_token_ids': got list<.*bool>, expected list<int32>"),
        ({**ROW, "output_token_ids": "3"}, "column 'output_token_ids': got string, expected list<int32>"),
        ({**ROW, "sampling": {"temperature": 1.0}}, r"column 'sampling': got struct<.*, expected string"),
        ({**ROW, "id": 7}, "column 'id': got int64, expected string"),
    ],
)
def test_another_schema_is_refused_by_column(tmp_path, row, match):
    write(tmp_path / "t.parquet", [row])
    with pytest.raises(TraceError, match=match):
        list(read_traces(tmp_path / "t.parquet"))


@pytest.mark.parametrize("version", [b"2", b"0", b"1.0", b"9" * 30])
def test_newer_format_is_refused(tmp_path, version):
    table = pa.Table.from_pylist([ROW]).replace_schema_metadata({parquet_module.VERSION_KEY: version})
    pq.write_table(table, tmp_path / "t.parquet")
    assert "version: got" in message(tmp_path / "t.parquet")


def test_no_rows(tmp_path):
    schema = pa.Table.from_pylist([ROW]).schema
    write(tmp_path / "t.parquet", [], schema)
    assert message(tmp_path / "t.parquet").endswith("holds no traces")


def test_row_group_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "MAX_GROUP_BYTES", 99)
    write(tmp_path / "t.parquet", [ROW, {**ROW, "id": "b"}])
    assert "row group 0: unpacks to more than 99 bytes" in message(tmp_path / "t.parquet")


def test_many_row_groups_are_streamed_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "_GROUP_ROWS", 3)
    monkeypatch.setattr(parquet_module, "_BATCH_ROWS", 2)
    engine, sampling = EngineRecord(name="x"), Sampling(temperature=0)
    some = [
        Trace(id=str(i), model="m", prompt_token_ids=[i], output_token_ids=[i] * i, sampling=sampling, engine=engine)
        for i in range(10)
    ]
    path = tmp_path / "t.parquet"
    write_traces(path, some)
    assert pq.ParquetFile(path).metadata.num_row_groups == 4
    assert [trace.output_token_ids.tolist() for trace in read_traces(path)] == [[i] * i for i in range(10)]


def test_damaged_files(tmp_path):
    write(tmp_path / "good.parquet", [{**ROW, "id": str(i)} for i in range(50)])
    data = (tmp_path / "good.parquet").read_bytes()
    path = tmp_path / "t.parquet"
    for bad in (b"", b"PAR1", b"not parquet", data[: len(data) // 2], data[:-1], data[4:]):
        path.write_bytes(bad)
        assert message(path).startswith(f"{path}:row 1: cannot be read as Parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'veridifr\[parquet\]'"):
        list(read_traces(tmp_path / "t.parquet"))


def test_json_in_cells_is_what_the_line_would_hold(tmp_path):
    write(tmp_path / "t.parquet", [ROW])
    line = {**ROW, "sampling": json.loads(ROW["sampling"]), "engine": json.loads(ROW["engine"])}
    (tmp_path / "t.jsonl").write_text(json.dumps(line) + "\n")
    one, two = next(read_traces(tmp_path / "t.parquet")), next(read_traces(tmp_path / "t.jsonl"))
    assert trace_to_dict(one) == trace_to_dict(two)
