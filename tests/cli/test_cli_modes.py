"""The sampler on the command line: `veridifr identify`, and audits that are told that it is unknown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from recorded import Recorded
from veridifr.cli import main
from veridifr.trace import EngineRecord, Trace
from veridifr.traces import write_traces


def nameless(traces: list[Trace]) -> list[Trace]:
    return [replace(trace, engine=EngineRecord(name="unknown")) for trace in traces]


def test_identify_names_the_sampler(tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    traces = tmp_path / "t.jsonl"
    write_traces(traces, nameless(recorded["v2"][:6]))
    assert main(["identify", str(traces), "--reference", f"evidence:{recorded.file}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("vllm-v2-e ") and "by chance" in said[0]
    assert said[-1].startswith("The tokens fit vllm-v2-e")
    assert main(["identify", str(traces), "--reference", f"evidence:{recorded.file}", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["schema"], value["contract"]) == ("veridifr-identification/1", "vllm-v2-e")


def test_identify_says_so_if_none_fits(tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    traces = tmp_path / "t.jsonl"
    other = [replace(t, sampling=replace(t.sampling, seed=i)) for i, t in enumerate(recorded["v2"][:6])]
    write_traces(traces, other)
    assert main(["identify", str(traces), "--reference", f"evidence:{recorded.file}"]) == 3
    assert "fit none of" in capsys.readouterr().out


def test_calibrate_and_audit_without_known_noise(
    tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    honest, audited, out = tmp_path / "h.jsonl", tmp_path / "a.jsonl", tmp_path / "f.json"
    write_traces(honest, nameless(recorded["calibration.v1"]))
    write_traces(audited, nameless(recorded["temp1.1"]))
    reference = ["--reference", f"evidence:{recorded.file}", "--quiet"]
    calibration = ["--calibration", str(tmp_path / "c.json")]
    unknown = ["--sampler", "unknown"]
    assert main(["calibrate", str(honest), *reference, *unknown, "--out", calibration[1]]) == 0
    assert main(["audit", str(audited), *reference, *calibration, *unknown, "--json", str(out)]) == 1
    value = json.loads(out.read_text())
    assert (value["verdict"], value["mode"], value["contract"]) == ("divergent", "distribution", "unknown")
    assert main(["audit", str(audited), *reference, *calibration, "--json", str(out)]) == 1  # the record tells nothing
    assert any("does not tell the sampler" in text for text in json.loads(out.read_text())["assumptions"])
    write_traces(audited, recorded["temp1.1"])
    assert main(["audit", str(audited), *reference, *calibration]) == 2
    assert "mode: made for distribution evidence, this audit's is seeded" in capsys.readouterr().err
