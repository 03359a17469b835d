"""The command line: what it prints, what it writes, and with which status it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from recorded import Recorded
from veridifr import auditing, report
from veridifr.calibration_io import read_calibration, write_calibration
from veridifr.cli import main
from veridifr.contracts.describe import noise_values, table
from veridifr.demo import model_path
from veridifr.trace import Trace
from veridifr.traces import read_traces, write_traces

TESTS = Path(__file__).parents[1]


class Shop:
    """Trace files, a calibration and the evidence in one folder, and the audit of one of the files."""

    def __init__(self, folder: Path, recorded: Recorded) -> None:
        self.folder, self.recorded = folder, recorded
        self.calibration = folder / "calibration.json"
        write_calibration(self.calibration, recorded.calibration)

    def traces(self, name: str, traces: list[Trace]) -> Path:
        path = self.folder / f"{name}.jsonl"
        write_traces(path, traces)
        return path

    def audit(self, traces: Path, *more: object, reference: str | None = None) -> int:
        reference = reference or f"evidence:{self.recorded.file}"
        options = ["--reference", reference, "--calibration", self.calibration, *more]
        return main(["audit", str(traces), *map(str, options)])


@pytest.fixture
def shop(tmp_path: Path, recorded: Recorded) -> Shop:
    return Shop(tmp_path, recorded)


def only_line(text: str) -> str:
    assert text.endswith("\n") and text.count("\n") == 1, text
    return text.rstrip("\n")


@pytest.mark.parametrize(
    ("name", "count", "status", "verdict"),
    [("v1", 24, 0, "consistent"), ("int4", 12, 1, "divergent"), ("v1", 1, 3, "undecided")],
)
def test_audit_ends_with_the_verdict(
    shop: Shop, capsys: pytest.CaptureFixture[str], name: str, count: int, status: int, verdict: str
) -> None:
    file = shop.traces(name, shop.recorded[name][:count])
    out, page = shop.folder / "out.json", shop.folder / "out.html"
    assert shop.audit(file, "--json", out, "--report", page) == status
    value = json.loads(out.read_text())
    jsonschema.Draft202012Validator(report.schema()).validate(value)
    assert (value["verdict"], value["alpha"], value["sequences"]) == (verdict, 0.01, count)
    assert value["provenance"]["traces"][0]["file"] == f"{name}.jsonl"
    assert value["provenance"]["calibration_file"] == "calibration.json"
    assert value["provenance"]["calibration"] == read_calibration(shop.calibration)[1]
    assert page.read_text().startswith("<!doctype html>")
    printed = capsys.readouterr()
    assert verdict in printed.out.lower()
    assert printed.err == ""
    assert {path.name for path in shop.folder.iterdir()} == {"calibration.json", file.name, "out.json", "out.html"}


@pytest.mark.parametrize(("change", "verdict"), [({"fp64_noise": True}, "unsupported"), (None, "no_evidence")])
def test_what_decides_nothing_ends_with_3(shop: Shop, change: dict[str, Any] | None, verdict: str) -> None:
    traces = shop.recorded["v1"]
    if change:
        traces = [replace(t, engine=replace(t.engine, **change)) for t in traces]
    else:
        traces = [replace(t, output_token_ids=t.output_token_ids[:0]) for t in traces]
    out = shop.folder / "out.json"
    assert shop.audit(shop.traces("x", traces), "--json", out, "--quiet") == 3
    assert json.loads(out.read_text())["verdict"] == verdict


def test_quiet_prints_nothing(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert shop.audit(shop.traces("v1", shop.recorded["v1"]), "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_requests_and_engine_on_the_command_line(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    traces = shop.recorded["v1"]
    asked = shop.traces("asked", [replace(t, output_token_ids=t.output_token_ids[:0]) for t in traces])
    out = shop.folder / "out.json"
    assert shop.audit(shop.traces("half", traces[:12]), "--requests", asked, "--json", out) == 3
    assert json.loads(out.read_text())["coverage"] == pytest.approx(0.5)
    record = {"name": "vllm", "version": "0.24.0", "runner": "v2", "device": "NVIDIA H200"}
    assert shop.audit(shop.folder / "half.jsonl", "--engine", json.dumps(record), "--json", out) == 3
    assert "another record than the one fixed" in json.loads(out.read_text())["reason"]
    capsys.readouterr()
    assert shop.audit(shop.folder / "half.jsonl", "--engine", "{nonsense") == 2
    assert only_line(capsys.readouterr().err).startswith("veridifr: --engine: ")
    assert shop.audit(shop.folder / "half.jsonl", "--engine", "@none.json") == 2
    assert (
        only_line(capsys.readouterr().err) == "veridifr: --engine: none.json: cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(("debug", "lines"), [((), 1), (("--debug",), 5)])
def test_a_failure_is_no_accusation(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, debug: tuple[str], lines: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr(auditing, "audit", fail)
    out = shop.folder / "out.json"
    assert shop.audit(shop.traces("int4", shop.recorded["int4"][:4]), "--json", out, *debug) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == "veridifr: unexpected failure: RuntimeError: boom"
    assert ("Traceback" in printed.err) == bool(debug)
    assert len(printed.err.splitlines()) >= lines and (debug or printed.err.count("\n") == 1)
    assert not out.exists()


def test_an_interrupt_is_no_accusation_either(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(auditing, "audit", stop)
    assert shop.audit(shop.traces("int4", shop.recorded["int4"][:4])) == 4
    assert "interrupted" in only_line(capsys.readouterr().err)


def test_a_failed_write_leaves_the_old_finding(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON is written beside its place and then moved there: the disk is full, and the old file is whole."""
    out = shop.folder / "out.json"
    out.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    file = shop.traces("int4", shop.recorded["int4"][:4])
    monkeypatch.setattr("os.fsync", full)
    assert shop.audit(file, "--json", out, "--quiet") == 4
    assert out.read_text() == "old"
    assert {path.name for path in shop.folder.iterdir()} == {"calibration.json", "int4.jsonl", "out.json"}


@pytest.mark.parametrize("option", ["--json", "--report", "--resume"])
def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    shop: Shop, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """The traces do not exist either: the output is what is looked at first."""
    for place in (shop.folder / "none" / "out", shop.folder):
        assert shop.audit(shop.folder / "no traces.jsonl", option, place) == 2
        assert only_line(capsys.readouterr().err).startswith(f"veridifr: {place}: cannot be written")


@pytest.mark.parametrize("alpha", ["0", "0.5", "-0.1", "1", "nan", "inf", "x", ""])
def test_a_bad_alpha_is_refused(shop: Shop, capsys: pytest.CaptureFixture[str], alpha: str) -> None:
    with pytest.raises(SystemExit) as caught:
        shop.audit(shop.folder / "t.jsonl", f"--alpha={alpha}")
    assert caught.value.code == 2
    assert f"argument --alpha: got {alpha!r}, expected a number above 0 and below 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nonsense"], ["audit"], ["audit", "t.jsonl"], ["noise", "vllm-v2-e", "--seed", "x"],
        ["calibrate", "t.jsonl", "--reference", "hf:x", "--out", "c", "--detect", "0.1"],
        ["calibrate", "t.jsonl", "--reference", "hf:x", "--out", "c", "--detect", "sigma=-1"],
        ["calibrate", "t.jsonl", "--reference", "hf:x", "--out", "c", "--detect", "sigma=nan"],
        ["audit", "t", "--reference", "hf:x", "--calibration", "c", "--threads", "0"],
        ["audit", "t", "--reference", "hf:x", "--calibration", "c", "--dtype", "int4"],
        ["import", "nonsense", "f", "--sampling", "{}", "--engine", "{}", "--out", "o"],
    ],
)  # fmt: skip
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "usage: veridifr" in printed.err and "Traceback" not in printed.err


@pytest.mark.parametrize("reference", ["nonsense", "hf:", "evidence:", "hf:/no/such/place", "evidence:/no/such/file"])
def test_bad_references(shop: Shop, capsys: pytest.CaptureFixture[str], reference: str) -> None:
    file = shop.traces("v1", shop.recorded["v1"][:2])
    assert shop.audit(file, reference=reference) == 2
    assert only_line(capsys.readouterr().err).startswith("veridifr: ")


def test_bad_calibrations(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    file = shop.traces("v1", shop.recorded["v1"][:2])
    good = json.loads(shop.calibration.read_text())
    for change, message in (
        ({"weights": "ab" * 32}, "calibration: weights: made for abab"),
        ({"sampling": {"temperature": 0.5}}, "calibration: sampling.temperature: made for 0.5, the traces claim 1.0"),
        ({"surprise": 1}, f"{shop.calibration}: calibration.surprise: not a field of this format"),
        ({"edges": "x"}, f"{shop.calibration}: calibration.edges: expected a list"),
    ):
        shop.calibration.write_text(json.dumps({**good, **change}))
        assert shop.audit(file) == 2
        assert only_line(capsys.readouterr().err).startswith(f"veridifr: {message}")


def test_calibrate(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(shop.traces(f"calibration.v{i}", shop.recorded[f"calibration.v{i}"][:10])) for i in (1, 2)]
    out = shop.folder / "c.json"
    options = ["--reference", f"evidence:{shop.recorded.file}", "--out", str(out)]
    assert main(["calibrate", *files, *options, "--detect", "sigma=0.3"]) == 0
    found, _ = read_calibration(out)
    assert [s.name for s in found.stacks] == ["calibration.v1", "calibration.v2"]
    assert found.detect_sigma == 0.3
    assert all(stack.traces_digest for stack in found.stacks)
    assert only_line(capsys.readouterr().out).startswith(f"{out}: honest logit noise 0.0")
    assert main(["calibrate", files[0], *options, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert read_calibration(out)[0].detect_sigma == pytest.approx(2 * read_calibration(out)[0].statistic.sigma)


def test_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == table()
    assert main(["samplers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [row["id"] for row in table()]


GRID = {"multiprocessors": 132, "threads_per_multiprocessor": 2048}


@pytest.mark.parametrize(
    ("contract", "kind", "more"),
    [
        ("vllm-v1-cuda-exp32", "exponential", GRID), ("vllm-v2-e", "gumbel", {}), ("vllm-v2-a", "gumbel", {}),
        ("sglang-murmur", "gumbel", {}), ("vllm-cpu-gumbel-splitmix", "gumbel", {}),
    ],
)  # fmt: skip
def test_noise(capsys: pytest.CaptureFixture[str], contract: str, kind: str, more: dict[str, int]) -> None:
    ids = [17, 0, 1, 8191, 1]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in more.items()]
    place = ["--seed=7", "--position=12", "--step=5", "--vocab-size=8192", "--ids", ",".join(map(str, ids))]
    assert main(["noise", contract, *place, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = noise_values(contract, seed=7, position=12, step=5, vocab_size=8192, ids=ids, **more)
    assert found == expected
    assert list(found) == ["contract", "kind", "values"]
    assert (found["contract"], found["kind"], len(found["values"])) == (contract, kind, 5)
    assert found["values"][2] == found["values"][4] != found["values"][0]
    assert main(["noise", contract, *place, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{contract} ({kind})"
    assert [int(line.split()[0]) for line in lines[1:]] == ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense", "--step=0"], "nonsense"),
        (["greedy", "--step=0"], "sampler: greedy draws no noise"),
        (["vllm-v2-e"], "is needed"),
        (["vllm-v2-e", "--position=-1"], "position"),
        (["vllm-v1-cuda-exp32", "--step=0", "--vocab-size=1081345"], "engine.multiprocessors: is needed"),
        (["vllm-v2-e", "--position=1", "--ids=0,100"], "ids: got 100, expected below vocab_size 100"),
        (["vllm-v2-e", "--position=1", f"--seed={2**64}"], "seed"),
        (["vllm-v1-cuda-exp64", "--step=0"], "vllm-v1-cuda-exp64"),
    ],
)
def test_noise_that_cannot_be_had(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["noise", "--seed=7", "--vocab-size=100", "--ids=0,1", "--json", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in only_line(printed.err)


def test_report_renders_findings_again(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    out, first, again = (shop.folder / name for name in ("out.json", "first.html", "again.html"))
    shop.audit(shop.traces("v1", shop.recorded["v1"]), "--json", out, "--report", first)
    text = capsys.readouterr().out
    assert main(["report", str(out), "--html", str(again)]) == 0
    assert capsys.readouterr().out == text
    assert again.read_bytes() == first.read_bytes()
    assert main(["report", str(shop.calibration)]) == 2
    assert "calibration.json: finding.schema: got 'veridifr-calibration/2'" in only_line(capsys.readouterr().err)


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.jsonl"
    options = ["--engine", '{"name": "vllm", "version": "0.24.0"}', "--out", str(out)]
    file = str(TESTS / "data" / "token_difr" / "sequences.json")
    sampling = ["--sampling", '{"temperature": 1.0, "seed": 42}']
    assert main(["import", "token-difr", file, *sampling, *options, "--model", "m"]) == 0
    found = list(read_traces(out))
    assert only_line(capsys.readouterr().out) == f"{out}: {len(found)} sequences"
    assert found and all(t.model == "m" and t.sampling.seed == 42 for t in found)
    assert main(["import", "token-difr", file, *sampling, *options]) == 2
    assert "model" in only_line(capsys.readouterr().err)
    assert main(["import", "token-difr", file, "--sampling", '{"temperature": true}', *options, "--model", "m"]) == 2
    assert "temperature" in only_line(capsys.readouterr().err)


def test_evidence_on_disk_gives_the_same_finding(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """`replay` once, then audit without the model: the same finding as with it, but for where it came from."""
    file = shop.traces("int4", shop.recorded["int4"][:6])
    evidence, model = shop.folder / "int4.evidence", f"hf:{model_path()}"
    assert main(["replay", str(file), "--reference", model, "--out", str(evidence), "--threads", "1"]) == 0
    assert only_line(capsys.readouterr().out) == f"{evidence}: evidence for 6 of 6 sequences"
    values = []
    for reference in (model, f"evidence:{evidence}"):
        out = shop.folder / "out.json"
        assert shop.audit(file, "--json", out, "--quiet", reference=reference) == 1
        value = json.loads(out.read_text())
        del value["provenance"]
        for token in value["worst_tokens"]:  # an evidence file brings no tokenizer
            token.update(before=None, claimed=None, after=None, best=None)
        values.append(value)
    assert values[0] == values[1]
    size = evidence.stat().st_size
    assert main(["replay", str(file), "--reference", model, "--out", str(evidence), "--quiet"]) == 0
    assert evidence.stat().st_size == size
    assert capsys.readouterr().out == ""


def test_replay_says_what_it_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    traces = shop.recorded["v1"][:2]
    ids = traces[1].output_token_ids.copy()
    ids[0] = 8192
    file = shop.traces("x", [traces[0], replace(traces[1], output_token_ids=ids)])
    arguments = ["--reference", f"hf:{model_path()}", "--out", str(shop.folder / "e"), "--threads", "1"]
    assert main(["replay", str(file), *arguments]) == 3
    printed = capsys.readouterr()
    assert only_line(printed.err).startswith(f"veridifr: not replayed: {traces[1].id}: ")
    assert "evidence for 1 of 2 sequences" in printed.out
