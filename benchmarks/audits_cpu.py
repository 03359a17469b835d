"""How often audits are right, on a CPU: false alarms, deviations found, and causes named.

    python benchmarks/audits_cpu.py --models DIR --traces DIR --spool FILE
    python benchmarks/audits_cpu.py --models DIR --traces DIR --spool FILE --only "int4 weights"    one row again
    python benchmarks/audits_cpu.py --check         recompute the figures, and the table in docs/diagnosis.md, from raw
    python benchmarks/audits_cpu.py --write-docs    write that table

DIR hold the model tb24m and the trace files; FILE keeps evidence, so that a second run need not replay. Results:
benchmarks/results/audits_cpu.json.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import _results
from _audit_cases import CALIBRATE, HONEST, ROOT, SIZE, Case, cases, runner, tokens
from _audit_figures import STACKS, block, figures
from veridifr import diagnosis
from veridifr.auditing import audit
from veridifr.calibration import Calibration, HonestTraces, calibrate
from veridifr.contracts.registry import infer
from veridifr.finding import Finding
from veridifr.hypotheses import Candidate, ScoredSequence
from veridifr.references import Reference, ReferenceSettings, load
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.scores import Hypothesis
from veridifr.scoring import score
from veridifr.statistic import LikelihoodRatio
from veridifr.trace import Trace

RESULTS = _results.RESULTS / "audits_cpu.json"
DOCS = ROOT / "docs" / "diagnosis.md"
START = "<!-- confusion: written by benchmarks/audits_cpu.py -->\n"
END = "<!-- end of confusion -->"
HONEST_AUDITS = 2
"""Honest audits of each stack in the table; how often honest ones are called divergent is measured on redraws."""
NAMED_DRAWS = 10
"""Honest audits of each stack that are asked for a cause."""


def main() -> int:
    """Exit status: 1 if figures or documents do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--spool", type=Path, default=Path("audits_cpu.evidence"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", metavar="CASE", help="audit this case again, and keep all other results")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    if args.check:
        wrong = _results.check(RESULTS, figures) + _docs(write=False)
        print("\n".join(wrong) or "audits_cpu: figures and docs/diagnosis.md follow from the raw results")
        return 1 if wrong else 0
    if not args.write_docs:
        if not (args.models and args.traces):
            parser.error("--models and --traces are needed, or --check")
        reference = load(f"hf:{args.models / 'tb24m'}", ReferenceSettings(threads=args.threads))
        replayer = Replayer(reference, spool=args.spool)
        if args.only:
            raw = _again(args.only, reference, replayer, args.traces)
        else:
            raw = {"issue": _issue(reference, replayer, args.traces), **_pools(reference, replayer, args.traces)}
        print(_results.write(RESULTS, raw, figures))
    _docs(write=True)
    return 0


def _issue(reference: Reference, replayer: Replayer, folder: Path) -> list[dict[str, Any]]:
    """Prompts 0-59 of two honest files calibrate; prompts 60-119 are audited, at the default alpha of 0.01."""
    stacks = [HonestTraces(name=f"{s}.paper", traces=tokens(f"{s}.paper.jsonl", folder, 0, 60)) for s in STACKS]
    calibration = calibrate(stacks, reference, replayer=replayer)
    audits: list[tuple[str, str, int, Callable[[Trace], Trace]]] = [
        ("v1", "v1.paper", 60, lambda trace: trace),
        ("v2", "v2.paper", 60, lambda trace: trace),
        ("v1_int4", "v1_int4.paper", SIZE, lambda trace: trace),
        ("v1_fp8", "v1_fp8.paper", SIZE, lambda trace: trace),
        ("v1.temp1.1", "v1.temp1.1", SIZE, lambda trace: trace),
        ("v2 relabelled v1", "v2.paper", SIZE, lambda trace: runner(trace, "v1")),
        ("v1_tb7m claimed as tb24m", "v1_tb7m.paper", SIZE, lambda trace: replace(trace, model="tb24m")),
    ]
    found = []
    for name, file, count, change in audits:
        traces = [change(trace) for trace in tokens(f"{file}.jsonl", folder, 60, count)]
        found.append({"case": name, **_row(audit(traces, reference, calibration, replayer=replayer))})
        print(found[-1], flush=True)
    return found


def _row(finding: Finding) -> dict[str, Any]:
    cause, test = finding.diagnosis, finding.test
    return {
        "verdict": finding.verdict.value,
        "p_value": finding.p_value,
        "power": None if test is None else test.power,
        "sequences": finding.sequences,
        "exact_match": finding.exact_match,
        "logit_noise": finding.effective_logit_noise.estimate,
        "code": cause.code,
        "contract": cause.contract,
        "parameter": cause.parameter,
        "estimate": cause.estimate,
        "interval": None if cause.interval is None else list(cause.interval),
        "gains": {a.contract or a.code: round(a.gain, 5) for a in cause.alternatives[:3]},
    }


def _pools(reference: Reference, replayer: Replayer, folder: Path) -> dict[str, Any]:
    honest = {s: tokens(f"honest.{s}", folder, 0, HONEST) for s in STACKS}
    calibration = _calibration(reference, replayer, honest)
    honest_cases = [
        Case(name=f"honest {s}", tokens=f"honest.{s}", right="none", first=CALIBRATE, audits=HONEST_AUDITS)
        for s in STACKS
    ]
    rows = [row for c in [*cases(), *honest_cases] for row in _audits(c, reference, calibration, replayer, folder)]
    return {
        "statistic": _statistic(calibration),
        "audits": rows,
        "honest_scores": _honest_scores(calibration, reference, replayer, honest, folder),
        "honest_causes": _honest_causes(calibration.statistic, reference, replayer, honest),
    }


def _again(name: str, reference: Reference, replayer: Replayer, folder: Path) -> dict[str, Any]:
    """The raw results with the audits of one case made anew, and the commit at which they were."""
    (case,) = [case for case in cases() if case.name == name]
    raw: dict[str, Any] = _results.read(RESULTS)["raw"]
    calibration = _calibration(reference, replayer, {s: tokens(f"honest.{s}", folder, 0, CALIBRATE) for s in STACKS})
    found = _statistic(calibration)
    if any(abs(found[key] - raw["statistic"][key]) > 1e-3 * found[key] for key in found):
        raise SystemExit(f"the calibration is another one, so all must be run: {found}, before {raw['statistic']}")
    place = next(i for i, row in enumerate(raw["audits"]) if row["case"] == name)
    others = [row for row in raw["audits"] if row["case"] != name]
    rows = _audits(case, reference, calibration, replayer, folder)
    again = {**raw.get("again", {}), name: _results.COMMIT}
    return {**raw, "audits": [*others[:place], *rows, *others[place:]], "again": again}


def _calibration(reference: Reference, replayer: Replayer, honest: Mapping[str, Sequence[Trace]]) -> Calibration:
    stacks = [HonestTraces(name=s, traces=honest[s][:CALIBRATE]) for s in STACKS]
    return calibrate(stacks, reference, replayer=replayer)


def _statistic(calibration: Calibration) -> dict[str, float]:
    return {"sigma": calibration.statistic.sigma, "epsilon": calibration.statistic.epsilon}


def _audits(
    case: Case, reference: Reference, calibration: Calibration, replayer: Replayer, folder: Path
) -> list[dict[str, Any]]:
    rows, traces = [], case.traces(folder)
    for start in range(0, len(traces), SIZE):
        finding = audit(traces[start : start + SIZE], reference, calibration, replayer=replayer, seed=start)
        rows.append({"case": case.name, "right": case.right, "truth": dict(case.truth), **_row(finding)})
        print({key: rows[-1][key] for key in ("case", "p_value", "code", "contract", "estimate")}, flush=True)
    return rows


def _scored(traces: Sequence[Trace], reference: Reference, replayer: Replayer) -> Iterator[ScoredSequence]:
    length = len(traces[0].output_token_ids)
    planned = [Planned(id=trace.id, trace=trace, end=length, tokens=length) for trace in traces]
    for item, evidence in replayer.run(planned, label="honest"):
        assert item.trace is not None and evidence is not None
        contract = infer(item.trace.engine, item.trace.sampling, reference.vocab_size).contract
        claim = Hypothesis(contract=contract, sampling=item.trace.sampling, seed=item.trace.sampling.seed)
        scores = score(item.trace, evidence, claim, eos_ids=reference.eos_ids)
        yield ScoredSequence(trace=item.trace, evidence=evidence, claim=claim, scores=scores)


def _honest_scores(
    calibration: Calibration,
    reference: Reference,
    replayer: Replayer,
    honest: Mapping[str, Sequence[Trace]],
    folder: Path,
) -> dict[str, list[float]]:
    """Score of each honest sequence that did not calibrate, over its whole length; and of those of another run."""
    sets = {f"pool {s}": honest[s][CALIBRATE:] for s in STACKS}
    sets |= {f"files {s}": tokens(f"{s}.paper.jsonl", folder, 0, 120) for s in STACKS}
    found = {}
    for name, traces in sets.items():
        edge = [len(traces[0].output_token_ids)]
        items = _scored(traces, reference, replayer)
        scores = [float(calibration.statistic.prefix_scores(item.scores, edge)[0]) for item in items]
        found[name] = [round(value, 6) for value in scores]
    return found


def _honest_causes(
    statistic: LikelihoodRatio, reference: Reference, replayer: Replayer, honest: Mapping[str, Sequence[Trace]]
) -> list[dict[str, Any]]:
    """Codes that `diagnose` names for honest audits, which `audit` would never ask: random ones of `SIZE` sequences."""
    found = []
    rng = np.random.default_rng(7)
    for stack in STACKS:
        items = list(_scored(honest[stack][CALIBRATE:], reference, replayer))
        with _remembering():
            for _ in range(NAMED_DRAWS):
                chosen = [items[i] for i in rng.choice(len(items), SIZE, replace=False)]
                cause = diagnosis.diagnose(chosen, statistic, rng)
                gain = cause.alternatives[0].gain if cause.alternatives else None
                found.append({"stack": stack, "code": cause.code, "estimate": cause.estimate, "best_gain": gain})
        print(stack, Counter(row["code"] for row in found), flush=True)
    return found


@contextmanager
def _remembering() -> Iterator[None]:
    """Log-likelihoods of a sequence under a candidate are computed once: many audits share sequences."""
    known: dict[tuple[str, str, str], Any] = {}
    compute = diagnosis.log_likelihood_under

    def remembered(item: ScoredSequence, candidate: Candidate, statistic: LikelihoodRatio) -> Any:
        key = (item.trace.id, candidate.code, candidate.label)
        if key not in known:
            known[key] = compute(item, candidate, statistic)
        return known[key]

    with mock.patch.object(diagnosis, "log_likelihood_under", remembered):
        yield


def _docs(*, write: bool) -> list[str]:
    """Put the tables into docs/diagnosis.md, or say that they are not what the results give."""
    return _results.documented(DOCS, START, END, block(_results.read(RESULTS)["figures"]), write=write)


if __name__ == "__main__":
    sys.exit(main())
