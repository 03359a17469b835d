"""What each mode of an audit sees of each deviation, and how many tokens it takes.

    PYTHONPATH=tools python benchmarks/_mode_traces.py --models DIR --out TRACES      tokens that the H200's pools lack
    python benchmarks/modes.py --models DIR --traces TRACES --spool FILE --plans CALIBRATIONS    audit and score, then
    python benchmarks/modes.py --plans CALIBRATIONS                     plan with the calibrations that this left
    python benchmarks/modes.py ... --only greedy             one mode again, with --causes nothing but its causes
    python benchmarks/modes.py --check           recompute the figures, and the tables in docs/modes.md, from raw
    python benchmarks/modes.py --write-docs      write those tables

DIR holds the model tb24m; FILE keeps evidence, so that a second run need not replay. The replay of all sequences takes
about twenty minutes on one core, the audits as long again. Results: benchmarks/results/modes.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import _results
from _audit_cases import ROOT, tokens
from _mode_figures import LENGTHS, block, figures
from veridifr.auditing import audit
from veridifr.calibration import Calibration, calibrate
from veridifr.calibration_io import read_calibration, write_calibration
from veridifr.contracts.base import Contract
from veridifr.contracts.registry import Inference, infer, without_noise
from veridifr.diagnosis import diagnose
from veridifr.effects import rounded
from veridifr.finding import Diagnosis
from veridifr.honest_traces import HonestTraces
from veridifr.planning import Aim, plan
from veridifr.references import Reference, ReferenceSettings, load
from veridifr.replay import Replayer
from veridifr.replayed import score_all
from veridifr.requests import Planned
from veridifr.scored import ScoredItem
from veridifr.trace import Trace
from veridifr.traces import read_traces

RESULTS = _results.RESULTS / "modes.json"
DOCS = ROOT / "docs" / "modes.md"
START = "<!-- modes: written by benchmarks/modes.py -->\n"
END = "<!-- end of modes -->"
AUDITED = 66
"""Sequences of one audit, of 300 tokens: 19,800."""
SHARE = 5
"""One request in this many is routed to the smaller model."""
ASKED = {"unknown sampler, filters": 10, "greedy": 20}
"""Honest audits for which a cause is looked for all the same. docs/diagnosis.md has those with known noise, and where
no filter is on one takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One mode: where its honest sequences and those of each deviation come from.

    `sets` gives a deviation's set; sets that end in `@` are changed honest ones.
    """

    name: str
    sampler: str
    calibrate: tuple[tuple[str, int, int], ...]
    honest: tuple[tuple[str, int, int], ...]
    sets: dict[str, str]


H200 = {
    "int4 weights": "int4",
    "fp8 weights": "fp8",
    "fp8 key-value cache": "kv_fp8",
    "temperature": "temp1.1",
    "top-p": "top_p0.85",
    "another model (7 M)": "held.tb7m",
    "seeds ignored": "seeds@",
    "one request in five to the 7 M model": "routed@held.tb7m",
    "a penalty nobody asked for": "cpu:paper.bug",
}
PLANNED = {
    "int4 weights": "int4",
    "fp8 weights": "fp8",
    "fp8 key-value cache": "fp8-kv",
    "temperature": "temperature=1.1",
}


def _cpu(claim: str, *, top_p: bool) -> dict[str, str]:
    found = {
        "int4 weights": f"cpu:{claim}.int4",
        "fp8 weights": f"cpu:{claim}.fp8",
        "fp8 key-value cache": f"cpu:{claim}.kv_fp8",
        "temperature": f"cpu:{claim}.temperature",
        "another model (7 M)": f"cpu:{claim}.tb7m",
        "one request in five to the 7 M model": f"routed@cpu:{claim}.tb7m",
        "a penalty nobody asked for": f"cpu:{claim}.bug",
    }
    return found | ({"top-p": f"cpu:{claim}.top_p", "seeds ignored": "seeds@"} if top_p else {})


_POOLS = (("honest.v1", 0, 240), ("honest.v2", 0, 240))
_REST = (("honest.v1", 240, 360), ("honest.v2", 240, 360))
COLUMNS = (
    Column(name="seeded", sampler="auto", calibrate=_POOLS, honest=_REST, sets=H200),
    Column(name="unknown sampler, filters", sampler="unknown", calibrate=_POOLS, honest=_REST, sets=H200),
    Column(
        name="unknown sampler, no filter",
        sampler="unknown",
        calibrate=(("cpu:plain.honest", 0, 130),),
        honest=(("cpu:plain.honest", 130, 70),),
        sets=_cpu("plain", top_p=True),
    ),
    Column(
        name="greedy",
        sampler="auto",
        calibrate=(("cpu:greedy.honest", 0, 130),),
        honest=(("cpu:greedy.honest", 130, 70),),
        sets=_cpu("greedy", top_p=False),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is fixed for the whole run."""

    reference: Reference
    replayer: Replayer
    folder: Path

    def traces(self, name: str, first: int, count: int) -> list[Trace]:
        """Sequences of a set: of the H200's pools, or made on a CPU (`cpu:`)."""
        if name.startswith("cpu:"):
            return list(read_traces(self.folder / f"{name.removeprefix('cpu:')}.jsonl.gz"))[first : first + count]
        return tokens(name, self.folder, first, count)

    def deviating(self, column: Column, name: str) -> list[Trace]:
        """The sequences of a deviation, as claimed."""
        kind, _, source = column.sets[name].rpartition("@") if "@" in column.sets[name] else ("", "", column.sets[name])
        honest = self.traces(column.honest[0][0], column.honest[0][1], AUDITED)
        if kind == "routed":
            small = self.traces(source, 0, AUDITED)
            return [small[i] if i % SHARE == 0 else trace for i, trace in enumerate(honest)]
        if kind == "seeds":
            rng = np.random.default_rng(5)
            fresh = rng.integers(0, 2**31, size=len(honest)).tolist()
            return [replace(t, sampling=replace(t.sampling, seed=s)) for t, s in zip(honest, fresh, strict=True)]
        return self.traces(source, 0, AUDITED)

    def scores(self, column: Column, traces: Sequence[Trace], calibration: Calibration) -> dict[str, list[float]]:
        """Scores of every sequence at each of `LENGTHS`."""
        return scores_of(self.items(column, traces), calibration)

    def items(self, column: Column, traces: Sequence[Trace]) -> list[ScoredItem]:
        """Every sequence scored as its own record says: honest ones are of two runners."""
        infer_by: Callable[..., Inference] = without_noise if column.sampler == "unknown" else infer
        groups: dict[str, tuple[Contract, list[Planned]]] = {}
        for t in traces:
            contract = infer_by(t.engine, t.sampling, self.reference.vocab_size).contract
            count = len(t.output_token_ids)
            group = groups.setdefault(contract.id, (contract, []))[1]
            group.append(Planned(id=t.id, trace=t, end=count, tokens=count))
        scored = [score_all(asked, contract, self.reference, self.replayer)[0] for contract, asked in groups.values()]
        return [item for group in scored for item in group]


def scores_of(items: Sequence[ScoredItem], calibration: Calibration) -> dict[str, list[float]]:
    """Scores of scored sequences at each of `LENGTHS`, as an audit compares them."""
    rows = [rounded(calibration.statistic.prefix_scores(item.scores, LENGTHS)).tolist() for item in items]
    return {str(length): [row[place] for row in rows] for place, length in enumerate(LENGTHS)}


def main() -> int:
    """Exit status: 1 if figures or documents do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--spool", type=Path, default=Path("modes.evidence"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plans", type=Path, metavar="DIR", help="calibrations are kept here and taken from here")
    parser.add_argument("--only", choices=[column.name for column in COLUMNS], help="this mode alone")
    parser.add_argument("--causes", action="store_true", help="only name causes again, of one mode")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    if args.check:
        wrong = _results.check(RESULTS, figures) + _docs(write=False)
        print("\n".join(wrong) or "modes: figures and docs/modes.md follow from the raw results")
        return 1 if wrong else 0
    if args.plans and not args.models:
        raw = _results.read(RESULTS)["raw"]
        print(_results.write(RESULTS, raw | {"columns": _planned_again(raw["columns"], args.plans)}, figures))
    elif not args.write_docs:
        if not (args.models and args.traces and args.plans):
            parser.error("--models, --traces and --plans are needed, or --check")
        reference = load(f"hf:{args.models / 'tb24m'}", ReferenceSettings(threads=args.threads))
        bench = Bench(reference=reference, replayer=Replayer(reference, spool=args.spool), folder=args.traces)
        known = _results.read(RESULTS)["raw"]["columns"] if args.only and RESULTS.exists() else {}
        wanted = [column for column in COLUMNS if args.only in (None, column.name)]
        if args.causes:
            measured = known | {column.name: _causes(bench, column, args.plans, known) for column in wanted}
        else:
            measured = known | {column.name: _column(bench, column, args.plans) for column in wanted}
        raw = {"columns": {column.name: measured[column.name] for column in COLUMNS if column.name in measured}}
        print(_results.write(RESULTS, raw, figures))
    _docs(write=True)
    return 0


def _planned_again(columns: dict[str, Any], folder: Path) -> dict[str, Any]:
    for name, column in columns.items():
        calibration, _ = read_calibration(folder / f"{name}.json")
        for deviation, row in column["rows"].items():
            row["planned_tokens"] = _plans(calibration, PLANNED.get(deviation))
    return columns


def _causes(bench: Bench, column: Column, folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The column with the causes of its divergent audits named again."""
    calibration, _ = read_calibration(folder / f"{column.name}.json")
    found: dict[str, Any] = known[column.name]
    for name, row in found["rows"].items():
        if row["verdict"] == "divergent":
            items = [item.scored for item in bench.items(column, bench.deviating(column, name))]
            row |= _cause(diagnose(items, calibration.statistic, np.random.default_rng(0)))
            print(name, row["code"], row["gains"], flush=True)
    return found | {"commit": _results.COMMIT}


def _cause(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "code": diagnosis.code,
        "estimate": diagnosis.estimate,
        "sentence": diagnosis.sentence,
        "gains": [[cause.code, cause.estimate, cause.gain] for cause in diagnosis.alternatives],
    }


def _column(bench: Bench, column: Column, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    kept = folder / f"{column.name}.json"
    if not kept.exists():
        write_calibration(kept, _calibration(bench, column))
    calibration, _ = read_calibration(kept)
    print(column.name, calibration.statistic.sigma, calibration.detect_sigma, calibration.seeded_tokens, flush=True)
    honest = [trace for part in column.honest for trace in bench.traces(*part)]
    rows = {"honest": _row(bench, column, calibration, honest[:AUDITED])}
    rows["honest"]["scores"] = bench.scores(column, honest, calibration)
    rows["honest"]["asked"] = _asked(bench, column, calibration, honest)
    print({key: value for key, value in rows["honest"].items() if key != "scores"}, flush=True)
    for name in column.sets:
        rows[name] = _row(bench, column, calibration, bench.deviating(column, name))
        print({key: value for key, value in rows[name].items() if key != "scores"}, name, flush=True)
    return {
        "sigma": calibration.statistic.sigma,
        "detect_sigma": calibration.detect_sigma,
        "seeded_tokens": calibration.seeded_tokens,
        "null": {stack.name: _null(calibration, index) for index, stack in enumerate(calibration.stacks)},
        "rows": rows,
        "commit": _results.COMMIT,
    }


def _calibration(bench: Bench, column: Column) -> Calibration:
    stacks = [
        HonestTraces(name=name.removeprefix("cpu:"), traces=bench.traces(name, first, count))
        for name, first, count in column.calibrate
    ]
    return calibrate(stacks, bench.reference, replayer=bench.replayer, sampler=column.sampler)


def _null(calibration: Calibration, index: int) -> dict[str, list[float]]:
    places = {length: calibration.edges.index(length) for length in LENGTHS}
    sequences = calibration.stacks[index].sequences
    return {str(length): [s.scores[place] for s in sequences] for length, place in places.items()}


def _asked(bench: Bench, column: Column, calibration: Calibration, honest: Sequence[Trace]) -> list[str]:
    """The codes of honest audits that are asked for a cause as if they had been divergent."""
    if column.name not in ASKED:
        return []
    one_engine = [trace for trace in honest if trace.engine == honest[0].engine]
    scored = [item.scored for item in bench.items(column, one_engine)]
    rng, codes = np.random.default_rng(11), []
    for _ in range(ASKED[column.name]):
        drawn = [scored[i] for i in rng.permutation(len(scored))[:AUDITED]]
        codes.append(diagnose(drawn, calibration.statistic, rng).code)
    return codes


def _row(bench: Bench, column: Column, calibration: Calibration, traces: Sequence[Trace]) -> dict[str, Any]:
    items: list[ScoredItem] = []

    def keep(*arguments: Any) -> tuple[list[ScoredItem], dict[str, str]]:
        found, left_out = score_all(*arguments)
        items.extend(found)
        return found, left_out

    with mock.patch("veridifr.auditing.score_all", keep):  # long listings take long to score: once is enough
        finding = audit(traces, bench.reference, calibration, replayer=bench.replayer, sampler=column.sampler)
    return {
        "scores": scores_of(items, calibration),
        "verdict": finding.verdict.value,
        "p_value": finding.p_value,
        "power": None if finding.test is None else finding.test.power,
        "sequences": finding.sequences,
        "mode": finding.mode,
        **_cause(finding.diagnosis),
        "logit_noise": finding.effective_logit_noise.estimate,
        "planned_tokens": dict.fromkeys(map(str, LENGTHS)),  # `--plans`
    }


def _plans(calibration: Calibration, deviation: str | None) -> dict[str, int | None]:
    return {str(length): _planned(calibration, deviation, length) for length in LENGTHS}


def _planned(calibration: Calibration, deviation: str | None, length: int) -> int | None:
    if deviation is None or (calibration.mode == "greedy" and deviation.startswith("temperature")):
        return None
    best = plan(calibration, deviation, Aim(tokens=length)).best
    return None if best is None else best.fixed_tokens


def _docs(*, write: bool) -> list[str]:
    return _results.documented(DOCS, START, END, block(_results.read(RESULTS)["figures"]), write=write)


if __name__ == "__main__":
    sys.exit(main())
