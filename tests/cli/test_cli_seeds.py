"""`veridifr seeds` and the check before an audit: what is printed, with which status, and that no secret is."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from recorded import Recorded
from veridifr import SeedIssuer, Trace, check_seeds, read_secret, read_traces, report, write_traces
from veridifr.calibration_io import write_calibration
from veridifr.cli import main
from veridifr.seeds import HEADER

SECRET = bytes(range(32))


class Desk:
    """A folder with a secret and requests, and the commands run on them. No command may print the secret."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.secret = folder / "secret"
        self.secret.write_text(SECRET.hex() + "\n")
        lines = [{"id": f"r{i}", "prompt_token_ids": [i], "sampling": {"max_tokens": 4}} for i in range(3)]
        (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(self, *arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        printed = self.capsys.readouterr()
        assert SECRET.hex() not in printed.out + printed.err
        return status, printed.out, printed.err

    def issue(self, *more: object) -> tuple[int, str, str]:
        asked = ["--secret-file", self.secret, "--audit-id", "night 1", "--out", self.folder / "asked.jsonl"]
        return self.run("seeds", "issue", self.folder / "requests.jsonl", *asked, *more)

    def check(self, name: str = "asked.jsonl", secret: Path | None = None) -> tuple[int, str, str]:
        return self.run("seeds", "check", self.folder / name, "--secret-file", secret or self.secret)

    def asked(self) -> list[Trace]:
        return list(read_traces(self.folder / "asked.jsonl"))


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def test_issue_and_check(desk: Desk) -> None:
    issuer = SeedIssuer(SECRET, "night 1")
    status, out, err = desk.issue()
    assert (status, err) == (0, "")
    assert out == (
        f"{desk.folder / 'asked.jsonl'}: 3 requests with seeds of 31 bits\n"
        f"commitment to publish before the audit: {issuer.commitment}\n"
    )
    asked = desk.asked()
    assert [trace.sampling.seed for trace in asked] == [issuer.seed_for(trace, i) for i, trace in enumerate(asked)]
    assert desk.check() == (
        0,
        f"3 of 3 seeds are as issued\nstated: commitment {issuer.commitment}, audit 'night 1', 31 bits\n",
        "",
    )


def test_check_names_what_is_wrong_with_status_3(desk: Desk) -> None:
    desk.issue("--bits", 53)
    first, second, third = desk.asked()
    changed = replace(second, id="x\x1b[2J", sampling=replace(second.sampling, seed=first.sampling.seed))
    write_traces(desk.folder / "t.jsonl", [first, changed, third])
    status, out, err = desk.check("t.jsonl")
    lines = out.splitlines()
    assert (status, err) == (3, "")
    assert lines[0].startswith(f"'x\\x1b[2J': sampling.seed: got {first.sampling.seed}, issued")  # escaped
    assert lines[1] == "2 of 3 seeds are as issued"
    assert lines[2].endswith("53 bits")
    assert lines[3] == "1 further requests were issued before the last of these and are not here"
    assert lines[4].startswith(f"Seed {first.sampling.seed} is shared by 2 of 3 sequences: ")


def test_another_secret_and_none_issued(desk: Desk) -> None:
    desk.issue()
    other = desk.folder / "other"
    other.write_text(SECRET[::-1].hex())
    status, out, _ = desk.check(secret=other)
    assert status == 3 and out.startswith("'r0': issued_seed.commitment: is not that of this secret\n")
    write_traces(desk.folder / "t.jsonl", [replace(trace, extra={}) for trace in desk.asked()])
    status, out, _ = desk.check("t.jsonl")
    assert status == 3 and out.splitlines()[-1] == "0 of 3 seeds are as issued"


def test_new_secret(desk: Desk) -> None:
    out = desk.folder / "fresh"
    status, printed, _ = desk.run("seeds", "new-secret", "--out", out)
    assert status == 0 and stat.S_IMODE(out.stat().st_mode) == 0o600
    secret = read_secret(out)
    assert len(secret) == 32 and secret.hex() not in printed
    status, printed, err = desk.run("seeds", "new-secret", "--out", out)
    assert (status, printed) == (2, "")
    assert err == f"veridifr: {out}: exists already, and a secret is never overwritten\n"
    assert read_secret(out) == secret


def test_what_cannot_be_used_ends_with_2(desk: Desk) -> None:
    assert desk.issue("--bits", 30)[::2] == (2, "veridifr: bits: got 30, expected 31 to 63\n")
    assert not (desk.folder / "asked.jsonl").exists()
    desk.issue()
    (desk.folder / "bad").write_text("not a secret")
    status, out, err = desk.check(secret=desk.folder / "bad")
    assert (status, out) == (2, "") and "secret: expected hexadecimal digits" in err and "not a" not in err
    assert desk.check(secret=desk.folder / "none")[0] == 2
    assert desk.check("none.jsonl")[0] == 2
    for arguments in (["seeds"], ["seeds", "reveal"], ["seeds", "check", "t.jsonl"], ["seeds", "issue", "r.jsonl"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "secret" not in desk.capsys.readouterr().out


def audit(desk: Desk, recorded: Recorded, traces: list[Trace], *more: object) -> tuple[int, str, str]:
    write_traces(desk.folder / "t.jsonl", traces)
    write_calibration(desk.folder / "c.json", recorded.calibration)
    options = ["--reference", f"evidence:{recorded.file}", "--calibration", desk.folder / "c.json"]
    secret = ["--seed-secret-file", desk.secret, "--json", desk.folder / "out.json", "--report", desk.folder / "o.html"]
    return desk.run("audit", desk.folder / "t.jsonl", *options, *secret, *more)


def test_an_audit_refuses_seeds_that_are_not_as_issued(desk: Desk, recorded: Recorded) -> None:
    """The recorded traces have seeds of their own. Neither they nor requests like them get past the check."""
    status, out, err = audit(desk, recorded, recorded["v1"])
    assert (status, out) == (2, "")
    assert err.startswith("veridifr: 24 of 24 seeds are not as issued: 'v1/0': issued_seed: missing; 'v1/1': ")
    assert err.count("\n") == 1
    issued = SeedIssuer(SECRET, "a").issue(recorded["v1"])
    asked = [replace(t, sampling=replace(t.sampling, seed=1)) if t.id == "v1/3" else t for t in issued]
    write_traces(desk.folder / "asked.jsonl", asked)
    status, _, err = audit(desk, recorded, issued, "--requests", desk.folder / "asked.jsonl")
    assert status == 2
    assert err.startswith("veridifr: 1 of 24 seeds are not as issued: 'v1/3': sampling.seed: got 1, issued for this ")
    assert not (desk.folder / "out.json").exists()


def test_an_audit_with_issued_seeds_names_the_commitment(desk: Desk, recorded: Recorded) -> None:
    """Tokens drawn under other seeds than those issued: the audit runs, and accuses."""
    issuer = SeedIssuer(SECRET, "a")
    asked = issuer.issue(recorded["v1"])
    assert check_seeds(asked, SECRET).holds
    write_traces(desk.folder / "asked.jsonl", asked)
    status, out, err = audit(desk, recorded, recorded["v1"], "--requests", desk.folder / "asked.jsonl")
    assert (status, err) == (1, "")
    value = json.loads((desk.folder / "out.json").read_text())
    jsonschema.Draft202012Validator(report.schema()).validate(value)
    assert value["provenance"]["settings"]["seed_commitment"] == issuer.commitment
    assert not any("Seed" in text for text in value["assumptions"])
    page = (desk.folder / "o.html").read_text()
    assert issuer.commitment in page
    for form in (SECRET.hex(), repr(SECRET)):
        assert form not in (desk.folder / "out.json").read_text() + page + out


def test_an_audit_says_that_seeds_are_shared(desk: Desk, recorded: Recorded) -> None:
    requests = [replace(t, sampling=replace(t.sampling, seed=42)) for t in recorded["v1"]]
    write_traces(desk.folder / "asked.jsonl", [*SeedIssuer(SECRET, "a").issue(requests[:1]), *requests[1:]])
    write_traces(desk.folder / "t.jsonl", recorded["v1"])
    write_calibration(desk.folder / "c.json", recorded.calibration)
    options = ["--reference", f"evidence:{recorded.file}", "--calibration", desk.folder / "c.json", "--quiet"]
    out = ["--requests", desk.folder / "asked.jsonl", "--json", desk.folder / "out.json"]
    assert desk.run("audit", desk.folder / "t.jsonl", *options, *out)[0] == 1
    value = json.loads((desk.folder / "out.json").read_text())
    assert value["assumptions"][0] == (
        "Seed 42 is shared by 23 of 24 sequences: their noise is taken as independent, and as not foreseen by the "
        "provider."
    )
    assert "seed_commitment" not in value["provenance"]["settings"]


def test_as_processes(tmp_path: Path) -> None:
    """From nothing to checked seeds, and one that was changed."""

    def veridifr(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "veridifr", "seeds", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    line = {"id": "r0", "prompt_token_ids": [1, 2], "sampling": {"temperature": 1.0, "max_tokens": 4}}
    (tmp_path / "r.jsonl").write_text(json.dumps(line) + "\n")
    assert veridifr("new-secret", "--out", "s").returncode == 0
    assert veridifr("new-secret", "--out", "s").returncode == 2
    issued = veridifr("issue", "r.jsonl", "--secret-file", "s", "--audit-id", "a", "--out", "asked.jsonl")
    assert (issued.returncode, issued.stderr) == (0, "")
    assert veridifr("check", "asked.jsonl", "--secret-file", "s").returncode == 0
    (trace,) = read_traces(tmp_path / "asked.jsonl")
    write_traces(tmp_path / "t.jsonl", [replace(trace, prompt_token_ids=[1, 3])])
    changed = veridifr("check", "t.jsonl", "--secret-file", "s")
    assert (changed.returncode, changed.stderr) == (3, "")
    assert changed.stdout.startswith("'r0': sampling.seed: got ")
    assert trace.extra[HEADER]["audit_id"] == "a"
