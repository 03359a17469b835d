"""`veridifr audit --sequential`: its status, what it says, and going on with a second purchase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recorded import Recorded
from veridifr.calibration_io import write_calibration
from veridifr.cli import main
from veridifr.trace import Trace
from veridifr.traces import write_traces


def ran(folder: Path, recorded: Recorded, files: list[list[Trace]], *more: str) -> tuple[int, dict[str, Any]]:
    """Status and finding of an audit of some files."""
    write_calibration(folder / "calibration.json", recorded.calibration)
    names = []
    for number, traces in enumerate(files):
        names.append(str(folder / f"{number}.jsonl"))
        write_traces(folder / f"{number}.jsonl", traces)
    out = folder / "finding.json"
    options = ["--reference", f"evidence:{recorded.file}", "--calibration", str(folder / "calibration.json")]
    status = main(["audit", *names, *options, "--json", str(out), *more])
    return status, json.loads(out.read_text())


def test_a_deviating_provider(tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    status, value = ran(tmp_path, recorded, [recorded["int4"]], "--sequential", "--seed", "5")
    ended = value["test"]["sequential"]
    assert (status, value["verdict"], ended["status"], ended["seed"]) == (1, "divergent", "rejected", 5)
    assert value["sequences"] == ended["n"] < ended["ordered"] == 24
    assert f"rejected after {ended['n']} of 24 sequences" in " ".join(capsys.readouterr().out.split())


def test_an_honest_provider_and_a_second_purchase(tmp_path: Path, recorded: Recorded) -> None:
    status, first = ran(tmp_path, recorded, [recorded["v1"][:3]], "--sequential", "--quiet")
    assert (status, first["verdict"]) == (3, "undecided")
    status, both = ran(tmp_path, recorded, [recorded["v1"][:3], recorded["v1"][3:]], "--sequential", "--quiet")
    assert [r["id"] for r in both["results"][:3]] == [r["id"] for r in first["results"]]
    assert both["test"]["sequential"]["ordered"] == 24
    status, value = ran(tmp_path, recorded, [recorded["v1"]], "--sequential", "--never-give-up", "--quiet")
    assert (status, value["verdict"]) == (0, "consistent")
    assert value["test"]["sequential"]["floor"] == 0.0


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", ""])
def test_a_bad_seed_is_refused(capsys: pytest.CaptureFixture[str], seed: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["audit", "t.jsonl", "--reference", "hf:x", "--calibration", "c", f"--seed={seed}"])
    assert caught.value.code == 2
    assert f"argument --seed: got {seed!r}, expected a whole number" in capsys.readouterr().err
