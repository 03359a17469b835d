"""The importer on files that `token-difr` itself wrote: a committed sample, and ones that the installed code writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from veridifr.errors import TraceError
from veridifr.trace import EngineRecord, Sampling
from veridifr.traces import from_token_difr, read_traces, trace_to_dict, write_traces

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data" / "token_difr"
FILES = ["openrouter_toy.json", "sequences.json", "sequences.jsonl"]
GREEDY = Sampling(temperature=0.0, max_tokens=6)
ENGINE = EngineRecord(name="unknown")
# Words of tools/make_token_difr_sample.py, numbered by hand.
PROMPTS = [[1, 2, 4, 5, 6, 7, 8, 9, 10, 3], [1, 2, 13, 14, 3], [1, 2, 4, 5, 17, 10, 3]]
OUTPUTS = [[11, 12], [15, 16, 17, 12, 15, 16], []]


def check(path: Path) -> None:
    traces = from_token_difr(path, model="toy", sampling=GREEDY, engine=ENGINE)
    assert [trace.prompt_token_ids.tolist() for trace in traces] == PROMPTS
    assert [trace.output_token_ids.tolist() for trace in traces] == OUTPUTS
    assert [trace.id for trace in traces] == [f"{path.stem}/{i}" for i in range(3)]
    assert {trace.extra["imported_from"] for trace in traces} == {"token-difr"}
    assert all(trace.sampling == GREEDY and trace.engine == ENGINE for trace in traces)


@pytest.mark.parametrize("name", FILES)
def test_committed_files(name):
    check(DATA / name)


def test_files_written_by_the_installed_package(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_token_difr_sample.py"), str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"pip install --no-deps token-difr==0.1.2\n{done.stderr}"
    for name in FILES:
        check(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


def test_a_contradicted_temperature_is_refused():
    with pytest.raises(TraceError, match=r"config\.temperature: the file says 0, but the sampling given for it says 1"):
        from_token_difr(DATA / "openrouter_toy.json", model="toy", sampling=Sampling(seed=1), engine=ENGINE)


def test_imported_traces_can_be_kept(tmp_path):
    traces = from_token_difr(DATA / "sequences.json", model="toy", sampling=GREEDY, engine=ENGINE)
    write_traces(tmp_path / "t.jsonl", traces)
    assert [trace_to_dict(t) for t in read_traces(tmp_path / "t.jsonl")] == [trace_to_dict(t) for t in traces]


def test_bad_line_is_named(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_bytes((DATA / "sequences.jsonl").read_bytes() + b"{\n")
    with pytest.raises(TraceError, match=r"s.jsonl:4: JSON: "):
        from_token_difr(path, model="toy", sampling=GREEDY, engine=ENGINE)
    path.write_bytes(b'{"prompt_token_ids": [1]}\n')
    with pytest.raises(TraceError, match=r"samples\[0\]: expected either output_token_ids or outputs"):
        from_token_difr(path, model="toy", sampling=GREEDY, engine=ENGINE)
