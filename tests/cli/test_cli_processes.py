"""The command line as a process of its own: statuses, a kill in the middle, and the demo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recorded import Recorded, cut
from veridifr import evidence_io
from veridifr.calibration_io import write_calibration
from veridifr.demo import DATA, model_path
from veridifr.traces import read_traces, write_traces

MODEL = f"hf:{model_path()}"


def veridifr(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "veridifr", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_statuses_reach_the_shell(tmp_path: Path, recorded: Recorded) -> None:
    write_calibration(tmp_path / "c.json", recorded.calibration)
    options = ["--reference", f"evidence:{recorded.file}", "--calibration", "c.json", "--json", "out.json", "--quiet"]
    for name, count, status in (("v1", 24, 0), ("int4", 12, 1), ("v2", 1, 3)):
        write_traces(tmp_path / f"{name}.jsonl", recorded[name][:count])
        done = veridifr("audit", f"{name}.jsonl", *options, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    (tmp_path / "bad.jsonl").write_text('{"id": 3}\n')
    done = veridifr("audit", "bad.jsonl", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("veridifr: bad.jsonl:1: ") and done.stderr.count("\n") == 1
    assert veridifr("audit", "v1.jsonl", cwd=tmp_path).returncode == 2


def test_a_killed_replay_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle of the work: what was computed stays as it is, and only the rest is computed."""
    traces = [cut(trace, 100) for trace in read_traces(DATA / "demo" / "v1.jsonl.gz")]
    write_traces(tmp_path / "v1.jsonl", traces)
    spool = tmp_path / "evidence"
    command = [sys.executable, "-m", "veridifr", "replay", "v1.jsonl", "--reference", MODEL, "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [*command, "--out", str(spool)], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (spool.exists() and spool.stat().st_size > 400_000):
            assert running.poll() is None and time.monotonic() < deadline, "it was to be killed while it works"
            time.sleep(0.005)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    before = spool.read_bytes()
    kept = evidence_io.scan(spool)[1]
    assert 0 < len(kept) < len(traces)
    done = veridifr(*command[3:], "--out", spool, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{spool}: evidence for 40 of 40 sequences\n")
    after, records = spool.read_bytes(), list(evidence_io.read_all(spool))
    assert sorted(record.trace_id for record in records) == sorted(trace.id for trace in traces)  # none twice
    changed = next((i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old != new), len(before))
    assert changed > len(before) / 2, "the records before the kill lie where they lay"
    assert set(kept.items()) <= set(evidence_io.scan(spool)[1].items())
    again = veridifr(*command[3:], "--out", spool, "--quiet", cwd=tmp_path)
    assert (again.returncode, again.stdout, spool.read_bytes() == after) == (0, "", True)
    assert {record.tokens for record in records} == {100}


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    done = veridifr("demo", "--json", "out.json", "--report", "report.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    expected = ["demo v1 consistent: ", "demo v2 consistent: ", "demo int4 divergent: ", "demo temp1.1 divergent: "]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    assert all(len(line) > len(start) + 20 for line, start in zip(lines, expected, strict=True))
    assert "temperature 1.1" in lines[3]
    page = (tmp_path / "report.html").read_text()
    assert len(re.findall(r"<article\b", page)) == 4
    for name in ("v1", "v2", "int4", "temp1.1"):
        assert f"{name}.jsonl.gz" in page
        value = json.loads((tmp_path / f"out.{name}.json").read_text())
        assert value["sequences"] == 40
        assert f"demo {name} {value['verdict']}: " in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html",
        *(f"out.{n}.json" for n in ("v1", "v2", "int4", "temp1.1")),
    }
