"""The command line. It reads, calls the library, prints, and exits with the verdict; nothing is decided here.

Exit status: 0 consistent (or the command did its work), 1 divergent, 2 usage or unreadable input, 3 undecided, no
evidence, unsupported, or seeds that are not as issued, 4 an unexpected failure. A crash is never 1: it must not look
like an accusation.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veridifr import __version__, cli_collect, cli_compare, cli_identify, cli_plan, cli_seeds, cli_serve
from veridifr.arguments import parser
from veridifr.errors import InputError, MissingExtraError, UnsupportedError
from veridifr.finding import Finding, Verdict
from veridifr.paths import check_writable, stem

if TYPE_CHECKING:
    from veridifr.fingerprints import FingerprintSpec, Openings

OK, DIVERGENT, USAGE, OPEN, FAILURE = 0, 1, 2, 3, 4
STATUS = {
    Verdict.CONSISTENT: OK,
    Verdict.DIVERGENT: DIVERGENT,
    Verdict.UNDECIDED: OPEN,
    Verdict.NO_EVIDENCE: OPEN,
    Verdict.UNSUPPORTED: OPEN,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    given = parser(__version__).parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = _COMMANDS[given.command]
    try:
        return command(given)
    except (InputError, MissingExtraError, UnsupportedError) as error:
        return _fail(given, USAGE, f"veridifr: {error}")
    except KeyboardInterrupt:
        return _fail(given, FAILURE, f"veridifr: interrupted; {_RESUMED.get(given.command, _BY_OPTION)}")
    except Exception as error:  # noqa: BLE001 (the top level: a crash must get status 4 and one line)
        return _fail(given, FAILURE, f"veridifr: unexpected failure: {type(error).__name__}: {_line(error)}")


def _fail(given: argparse.Namespace, status: int, message: str) -> int:
    if getattr(given, "debug", False):
        traceback.print_exc()
    print(message, file=sys.stderr)
    return status


def _line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:300]


def _audit(given: argparse.Namespace) -> int:
    from veridifr.auditing import Sources, audit
    from veridifr.betting import Sequential
    from veridifr.calibration_io import read_calibration
    from veridifr.replay import Replayer
    from veridifr.traces import digest_file, engine_from_dict, read_batches, read_requests
    from veridifr.traces.strict_json import json_argument

    check_writable(given.json, given.report, given.resume)
    batches = read_batches(given.traces)
    traces = [trace for batch in batches for trace in batch]
    requests = read_requests(given.requests) if given.requests else None
    engine = engine_from_dict(json_argument("--engine", given.engine)) if given.engine else None
    commitment = cli_seeds.commitment_of(given.seed_secret_file, traces if requests is None else requests)
    calibration, digest = read_calibration(given.calibration)
    reference = _reference(given)
    finding = audit(
        traces,
        reference,
        calibration,
        given.alpha,
        requests=requests,
        engine=engine,
        replayer=Replayer(reference, spool=given.resume, quiet=given.quiet),
        sources=Sources(
            traces=tuple((path.name, digest_file(path)) for path in given.traces),
            calibration=(given.calibration.name, digest),
            seed_commitment=commitment,
        ),
        seed=given.seed,
        sequential=Sequential(seed=given.seed, batches=tuple(map(len, batches)), give_up=not given.never_give_up)
        if given.sequential
        else False,
        fingerprints=_openings(given) or given.fingerprints,
        sampler=given.sampler,
    )
    _publish(given, [finding], "Inference audit")
    return STATUS[finding.verdict]


def _openings(given: argparse.Namespace) -> Openings | None:
    """What openings of commitments are checked against, None without --opened."""
    if (given.opened is None) != (given.roots is None):
        raise InputError("--opened and --roots: give both or neither")
    if given.roots is None:
        return None
    if given.fingerprints == "off":
        raise InputError("--opened: got --fingerprints off")
    from veridifr.fingerprints import Openings
    from veridifr.roots import read_roots

    return Openings(tap=given.opened, roots=read_roots(given.roots))


def _demo(given: argparse.Namespace) -> int:
    from veridifr import demo

    check_writable(given.json, given.report)
    findings, fine = [], True
    for audited in demo.run(threads=given.threads, quiet=given.quiet):
        finding = audited.finding
        findings.append(finding)
        fine = fine and audited.as_expected
        reason = finding.diagnosis.sentence or finding.reason
        print(f"demo {audited.name} {finding.verdict.value}: {reason}", flush=True)
    _publish(given, findings, "Demo: four providers of one model", text=False)
    if not fine:
        print("demo: a verdict is not the expected one", file=sys.stderr)
    return OK if fine else FAILURE


def _calibrate(given: argparse.Namespace) -> int:
    from veridifr.calibration import calibrate
    from veridifr.calibration_io import write_calibration
    from veridifr.honest_traces import HonestTraces
    from veridifr.replay import Replayer
    from veridifr.traces import digest_file, read_trace_files

    check_writable(given.out, given.resume)
    stacks = [
        HonestTraces(name=stem(path), traces=read_trace_files([path]), digest=digest_file(path))
        for path in given.traces
    ]
    reference = _reference(given)
    calibration = calibrate(
        stacks,
        reference,
        detect_sigma=given.detect,
        replayer=Replayer(reference, spool=given.resume, quiet=given.quiet),
        fingerprints=_specification(given),
        sensitivity=given.sensitivity,
        sampler=given.sampler,
    )
    write_calibration(given.out, calibration)
    if not given.quiet:
        sizes = ", ".join(f"{stack.name} {len(stack.sequences)}" for stack in calibration.stacks)
        print(
            f"{given.out}: honest logit noise {calibration.statistic.sigma:.4f}, exact match "
            f"{calibration.exact_match:.4f}; null sequences: {sizes}; consistent will rule out logit noise of "
            f"{calibration.detect_sigma:.4f} or more"
        )
    return OK


def _replay(given: argparse.Namespace) -> int:
    from veridifr.replay import Replayer
    from veridifr.requests import Planned
    from veridifr.traces import read_trace_files

    check_writable(given.out)
    traces = read_trace_files(given.traces)
    reference = _reference(given)
    planned = [
        Planned(id=trace.id, trace=trace, end=len(trace.output_token_ids), tokens=len(trace.output_token_ids))
        for trace in traces
    ]
    done, refused = 0, []
    replayer = Replayer(reference, spool=given.out, quiet=given.quiet).with_projections(
        _specification(given), sensitivity=given.sensitivity
    )
    for item, evidence in replayer.run(planned, label="replay"):
        done += evidence is not None
        if evidence is None:
            refused.append(f"{item.id}: {item.reason}")
    for line in refused:
        print(f"veridifr: not replayed: {line}", file=sys.stderr)
    if not given.quiet:
        print(f"{given.out}: evidence for {done} of {len(traces)} sequences")
    return OK if not refused else OPEN


def _samplers(given: argparse.Namespace) -> int:
    from veridifr.contracts.describe import table

    rows = table()
    if given.json_output:
        print(json.dumps(rows, indent=1))
        return OK
    width = max(len(row["id"]) for row in rows)
    for row in rows:
        print(f"{row['id']:<{width}}  {row['status']:<9}  {row['summary']}")
    return OK


def _noise(given: argparse.Namespace) -> int:
    from veridifr.contracts.describe import noise_values

    found = noise_values(
        given.contract,
        seed=given.seed,
        position=given.position,
        step=given.step,
        vocab_size=given.vocab_size,
        ids=given.ids,
        multiprocessors=given.multiprocessors,
        threads_per_multiprocessor=given.threads_per_multiprocessor,
    )
    if given.json_output:
        print(json.dumps(found))
        return OK
    print(f"{found['contract']} ({found['kind']})")
    ids = given.ids if len(found["values"]) == len(given.ids) else ["-"]
    for token, value in zip(ids, found["values"], strict=True):
        print(f"{token:>8}  {value:.9g}")
    return OK


def _report(given: argparse.Namespace) -> int:
    from veridifr import report

    check_writable(given.html)
    findings = [report.read_json(path) for path in given.findings]
    _publish(argparse.Namespace(json=None, report=given.html, quiet=False), findings, given.title)
    return OK


def _import(given: argparse.Namespace) -> int:
    from veridifr.traces import import_file, write_traces
    from veridifr.traces.strict_json import json_argument

    check_writable(given.out)
    traces = import_file(
        given.kind,
        given.file,
        sampling=json_argument("--sampling", given.sampling),
        engine=json_argument("--engine", given.engine),
        model=given.model,
    )
    write_traces(given.out, traces)
    print(f"{given.out}: {len(traces)} sequences")
    return OK


def _reference(given: argparse.Namespace) -> Any:
    from veridifr.references import ReferenceSettings, load

    settings = ReferenceSettings(
        dtype=given.dtype,
        device=given.device,
        threads=given.threads,
        revision=given.revision,
        model_files=given.model_files,
        served_model=given.served_model,
        top_logprobs=given.top_logprobs,
        key_file=given.reference_key_file,
    )
    return load(given.reference, settings)


def _specification(given: argparse.Namespace) -> FingerprintSpec | None:
    """The specification in the file of --fingerprints, None without one."""
    if given.fingerprints is None:
        return None
    from veridifr.fingerprints.spec import from_dict
    from veridifr.traces.strict_json import json_argument

    return from_dict(json_argument("--fingerprints", f"@{given.fingerprints}"))


def _publish(given: argparse.Namespace, findings: Sequence[Finding], title: str, *, text: bool = True) -> None:
    """Write the JSON and the HTML that were asked for, and print the text."""
    from veridifr import report

    if given.json is not None:
        if len(findings) == 1:
            report.write_json(given.json, findings[0])
        else:
            for finding in findings:
                name = stem(Path(finding.provenance.traces[0][0]))
                report.write_json(given.json.with_name(f"{given.json.stem}.{name}.json"), finding)
    if given.report is not None:
        report.write_html(given.report, findings, title=title)
    if text and not given.quiet:
        print("\n".join(report.to_text(finding) for finding in findings))


_BY_OPTION = "with --resume FILE the next run goes on from here"
_RESUMED = {"collect": "the same command goes on from here"}
_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "audit": _audit,
    "compare": lambda given: cli_compare.run(given, _reference),
    "collect": cli_collect.run,
    "plan": cli_plan.run,
    "calibrate": _calibrate,
    "replay": _replay,
    "identify": cli_identify.run,
    "samplers": _samplers,
    "noise": _noise,
    "report": _report,
    "import": _import,
    "seeds": cli_seeds.run,
    "serve-flags": cli_serve.run,
}
