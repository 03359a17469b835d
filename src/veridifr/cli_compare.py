"""The command `veridifr compare`: several providers of one model, judged together."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from veridifr.errors import InputError
from veridifr.finding import Verdict
from veridifr.paths import check_writable, stem

if TYPE_CHECKING:
    from veridifr.references import Reference

_STATUS = {Verdict.CONSISTENT: 0, Verdict.DIVERGENT: 1, Verdict.UNDECIDED: 3}


def run(given: argparse.Namespace, load: Callable[[argparse.Namespace], Reference]) -> int:
    """Compare and print; the status is that of the whole: 0 if all are consistent, 1 if any is divergent, else 3."""
    from veridifr import report
    from veridifr.auditing import Sources
    from veridifr.calibration_io import read_calibration
    from veridifr.comparing import compare
    from veridifr.traces import digest_file, read_requests, read_trace_files

    check_writable(given.json, given.report)
    if given.resume is not None and not given.resume.is_dir():
        raise InputError(f"{given.resume}: no such folder")
    names = _names(given.traces)
    providers = {name: read_trace_files([path]) for name, path in names.items()}
    asked = _requests(given.requests, list(names))
    calibration, digest = read_calibration(given.calibration)
    found = compare(
        providers,
        load(given),
        calibration,
        given.alpha,
        requests=None if asked is None else {name: read_requests(path) for name, path in asked.items()},
        sources={
            name: Sources(traces=((path.name, digest_file(path)),), calibration=(given.calibration.name, digest))
            for name, path in names.items()
        },
        evidence=given.resume,
        sampler=given.sampler,
        quiet=given.quiet,
    )
    if given.json is not None:
        report.write_comparison_json(given.json, found)
    if given.report is not None:
        report.write_comparison_html(given.report, found, title=given.title)
    if not given.quiet:
        print(report.comparison_to_text(found), end="")
    return _STATUS[found.verdict]


def _names(paths: list[Path]) -> dict[str, Path]:
    """Each file by its name without suffixes, which names the provider."""
    found: dict[str, Path] = {}
    for path in paths:
        name = stem(path)
        if name in found:
            raise InputError(f"{path}: a provider is named by its file, and {name!a} is there already")
        found[name] = path
    return found


def _requests(paths: list[Path] | None, names: list[str]) -> dict[str, Path] | None:
    """The file of requests of each provider."""
    if paths is None:
        return None
    if len(paths) not in (1, len(names)):
        raise InputError(f"--requests: got {len(paths)} files, expected 1, or {len(names)} in the order of the traces")
    return dict(zip(names, paths if len(paths) == len(names) else paths * len(names), strict=True))
