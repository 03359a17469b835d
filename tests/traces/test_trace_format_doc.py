"""docs/trace-format.md says what the code does: its examples are read, its tables and limits are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from veridifr import trace as trace_module
from veridifr.trace import FINISH_REASONS
from veridifr.traces import FORMAT_VERSION, MAX_DEPTH, MAX_LINE_BYTES, engine_from_dict, read_traces, sampling_from_dict
from veridifr.traces.codec import ENGINE_KEYS, REQUIRED_KEYS, SAMPLING_KEYS, TRACE_KEYS
from veridifr.traces.jsonl import MAX_GZIP_BYTES
from veridifr.traces.parquet import COLUMNS, MAX_GROUP_BYTES, REQUIRED_COLUMNS, VERSION_KEY

TEXT = (Path(__file__).parent.parent.parent / "docs" / "trace-format.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def table(section: str) -> dict[str, str]:
    """First cells of a section's table, one entry per name in backquotes, with the rest of the row."""
    rows = re.findall(r"^\| *((?:`\w+`(?:, )?)+) *\|(.*)\|$", SECTIONS[section], re.MULTILINE)
    return {name: rest for cell, rest in rows for name in re.findall(r"`(\w+)`", cell)}


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)


def test_the_example_file_is_read(tmp_path):
    (body,) = blocks("A trace", "jsonl")
    (tmp_path / "t.jsonl").write_text(body)
    (trace,) = read_traces(tmp_path / "t.jsonl")
    assert (trace.extra, trace.sampling.extra, trace.engine.extra) == ({}, {}, {})


def test_the_examples_of_settings_and_engines_use_known_keys():
    (sampling,) = blocks("Sampling settings", "json")
    assert sampling_from_dict(json.loads(sampling)).extra == {}
    (engine,) = blocks("Engine record", "json")
    assert engine_from_dict(json.loads(engine)).extra == {}


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("A trace", ("version", *TRACE_KEYS)),
        ("Sampling settings", SAMPLING_KEYS),
        ("Engine record", ENGINE_KEYS),
        ("Parquet", COLUMNS),
    ],
)
def test_tables_list_every_key_once(section, keys):
    assert sorted(table(section)) == sorted(keys)


def test_what_must_be_present():
    assert {key for key, rest in table("A trace").items() if "MUST |" in rest} == set(REQUIRED_KEYS)
    assert {key for key, rest in table("Parquet").items() if "MUST" in rest} == set(REQUIRED_COLUMNS)


def test_limits_and_names_are_those_of_the_code():
    assert f"# Trace format, version {FORMAT_VERSION}" in TEXT
    assert re.findall(r"\| ([\d]+)(?: (\w+))?[^|]*\|$", SECTIONS["Limits"], re.MULTILINE) == [
        (str(MAX_LINE_BYTES >> 20), "MiB"),
        (str(MAX_DEPTH), ""),
        (str(trace_module.MAX_TOKENS), "each"),
        (str(trace_module.MAX_TEXT), "characters"),
        (str(MAX_GZIP_BYTES >> 30), "GiB"),
        (str(MAX_GROUP_BYTES >> 30), "GiB"),
    ]
    assert f"`{VERSION_KEY.decode()}`" in SECTIONS["Parquet"]
    assert re.findall(r"`(\w+)`", table("A trace")["finish_reason"]) == list(FINISH_REASONS)
    assert f"0 to {trace_module.MAX_TOKEN_ID}" in SECTIONS["A trace"]


@pytest.mark.parametrize("key", SAMPLING_KEYS)
def test_values_that_mean_off_do(key):
    cells = table("Sampling settings")[key].split("|")
    for value in re.findall(r"`([^`]+)`|(-?\d+)", cells[1]):
        off = json.loads(value[0] or value[1])
        assert sampling_from_dict({key: off}) == sampling_from_dict({})
