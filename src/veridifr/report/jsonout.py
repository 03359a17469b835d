"""A finding as JSON and back. The format is described by ``schema.json``, which ships with the package.

The names are those of the dataclasses in `veridifr.finding`, plus ``schema``, ``coverage`` (derived), and a trace file
written as ``{"file", "sha256"}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any, Never

from veridifr.errors import InputError
from veridifr.finding import DistributionSummary, Finding, FingerprintSummary, SequentialSummary
from veridifr.report.plain import from_plain, to_plain

SCHEMA = "veridifr-finding/1"
MAX_BYTES = 256 * 1024 * 1024
"""Largest finding file that is read."""
_CODES = ("none", "sampler_contract", "temperature", "top_p", "top_k", "seed", "forward_pass", "unexplained")


def to_json(finding: Finding) -> dict[str, Any]:
    """`finding` as JSON values, in the order a reader wants them; None is null.

    Raises ValueError naming the field if a number is not finite.
    """
    plain = to_plain(finding, "finding")
    plain["provenance"]["traces"] = [{"file": name, "sha256": digest} for name, digest in finding.provenance.traces]
    first = ("verdict", "alpha", "p_value", "reason", "next_step")
    head = {"schema": SCHEMA, **{name: plain.pop(name) for name in first}}
    return {**head, "coverage": finding.coverage, **plain}


def write_json(path: str | os.PathLike[str], finding: Finding) -> None:
    """Write `finding` to `path` in one step: readers see the old file or the whole new one. OSError if they cannot."""
    write_atomically(path, json.dumps(to_json(finding), indent=2, allow_nan=False) + "\n")


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at `path` with `text` (UTF-8): a temporary file beside it, flushed, then renamed."""
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)  # mkstemp makes private files; a report has the permissions of any other new file
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # noqa: PTH101
        os.replace(name, target)  # noqa: PTH105
    finally:
        with contextlib.suppress(FileNotFoundError):  # gone if it was renamed; else the attempt failed
            os.unlink(name)  # noqa: PTH108


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a finding file."""
    loaded: dict[str, Any] = json.loads((files("veridifr.report") / "schema.json").read_text("utf-8"))
    return loaded


def read_json(path: str | os.PathLike[str]) -> Finding:
    """The finding in the file at `path`: the strict inverse of `write_json`.

    Raises `InputError` naming file and field for anything that `write_json` would not have written.
    """
    name = Path(path).name
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES} bytes")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{name}:{error.lineno}: not JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, an integer of thousands of digits, or too deep
        raise InputError(f"{name}: not JSON of the expected shape ({type(error).__name__})") from error
    return from_json(value, f"{name}: finding")


def from_json(value: object, where: str = "finding") -> Finding:
    """The finding that `to_json` gave as `value`, or `InputError` naming the field."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: got {type(value).__name__}, expected an object")
    if value.get("schema") != SCHEMA:
        raise InputError(f"{where}.schema: got {str(value.get('schema'))[:60]!r}, expected {SCHEMA!r}")
    body = {key: item for key, item in value.items() if key not in ("schema", "coverage")}
    body["provenance"] = _provenance(value.get("provenance"), f"{where}.provenance")
    finding: Finding = from_plain(Finding, body, where)
    _check_ranges(finding, where)
    if "coverage" not in value or value["coverage"] != finding.coverage:
        raise InputError(f"{where}.coverage: does not follow from tokens_scored and tokens_requested")
    return finding


def _provenance(value: object, where: str) -> object:
    """The provenance object with its trace files as pairs again."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: missing, or not an object")
    traces = value.get("traces")
    if not isinstance(traces, list):
        raise InputError(f"{where}.traces: missing, or not a list")
    for index, entry in enumerate(traces):
        if not isinstance(entry, dict) or set(entry) != {"file", "sha256"}:
            raise InputError(f"{where}.traces[{index}]: expected an object with file and sha256")
    return {**value, "traces": [[entry["file"], entry["sha256"]] for entry in traces]}


def _check_ranges(finding: Finding, where: str) -> None:
    """What the types do not say: probabilities in [0, 1], counts from 0, ordered intervals, known causes."""
    shares = {
        "alpha": finding.alpha,
        "p_value": finding.p_value,
        "exact_match": finding.exact_match,
        "honest_exact_match": finding.honest_exact_match,
    }
    shares |= {f"results[{i}].exact_match": result.exact_match for i, result in enumerate(finding.results)}
    if finding.test is not None:
        shares["test.power"] = finding.test.power
        shares |= {f"test.stacks[{i}].p_value": stack.p_value for i, stack in enumerate(finding.test.stacks)}
        if finding.test.sequential is not None:
            _check_sequential(finding.test.sequential, f"{where}.test.sequential")
    if finding.fingerprints is not None:
        shares["fingerprints.p_value"] = finding.fingerprints.p_value
        shares["fingerprints.tokens_p_value"] = finding.fingerprints.tokens_p_value
        _check_fingerprints(finding.fingerprints, f"{where}.fingerprints")
    if finding.distribution is not None:
        _check_distribution(finding.distribution, f"{where}.distribution")
    if finding.mode not in _MODES:
        raise InputError(f"{where}.mode: got {finding.mode!r:.40}, expected one of {_MODES}")
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{where}.{name}: got {share}, expected 0 to 1")
    if not 0 < finding.alpha < 1:
        raise InputError(f"{where}.alpha: got {finding.alpha}, expected above 0 and below 1")
    counts = {name: getattr(finding, name) for name in _COUNTS}
    counts |= {f"tokens_by_status.{name[:60]}": count for name, count in finding.tokens_by_status.items()}
    for name, count in counts.items():
        if count < 0:
            raise InputError(f"{where}.{name}: got {count}, expected 0 or more")
    noise, diagnosis = finding.effective_logit_noise, finding.diagnosis
    for name, interval in (("effective_logit_noise", noise.interval), ("diagnosis", diagnosis.interval)):
        if interval is not None and interval[0] > interval[1]:
            raise InputError(f"{where}.{name}.interval: got {list(interval)}, expected the lower end first")
    for name, value in (("estimate", noise.estimate), ("honest", noise.honest)):
        if value is not None and value < 0:
            raise InputError(f"{where}.effective_logit_noise.{name}: got {value}, expected 0 or more")
    if diagnosis.code not in _CODES:
        raise InputError(f"{where}.diagnosis.code: got {diagnosis.code[:60]!r}, expected one of {', '.join(_CODES)}")


def _check_sequential(summary: SequentialSummary, where: str) -> None:
    if summary.status not in _ENDS:
        raise InputError(f"{where}.status: got {summary.status[:60]!r}, expected one of {', '.join(_ENDS)}")
    for name in ("e_value", "n", "ordered", "seed", "floor"):
        if getattr(summary, name) < 0:
            raise InputError(f"{where}.{name}: got {getattr(summary, name)}, expected 0 or more")


def _check_fingerprints(summary: FingerprintSummary, where: str) -> None:
    if summary.speaks not in _SPEAKERS:
        raise InputError(f"{where}.speaks: got {summary.speaks!r:.40}, expected one of {_SPEAKERS}")
    for name in ("sequences", "missing"):
        if getattr(summary, name) < 0:
            raise InputError(f"{where}.{name}: got {getattr(summary, name)}, expected 0 or more")


def _check_distribution(summary: DistributionSummary, where: str) -> None:
    for name in ("excess_p_value", "rank_distance", "rank_p_value"):
        if not 0 <= getattr(summary, name) <= 1:
            raise InputError(f"{where}.{name}: got {getattr(summary, name)}, expected 0 to 1")
    for name in ("tokens_needed", "seeded_tokens"):
        if (getattr(summary, name) or 0) < 0:
            raise InputError(f"{where}.{name}: got {getattr(summary, name)}, expected 0 or more")


_MODES = (None, "seeded", "greedy", "distribution")
_SPEAKERS = (None, "tokens", "fingerprints", "both")
_ENDS = ("rejected", "given up", "spent", "stopped")
_COUNTS = ("sequences", "sequences_unsupported", "tokens_requested", "tokens_scored")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise InputError(f"field {twice[:60]!r} occurs twice")
    return record


def _no_constant(name: str) -> Never:
    raise InputError(f"{name} is not JSON")
