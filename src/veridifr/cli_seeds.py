"""The command `veridifr seeds`, and the check of seeds before an audit. Secrets are read from files, never printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from veridifr.trace import Trace

_HOLDS, _DOES_NOT_HOLD = 0, 3
"""Exit statuses. Not 1: a seed that is not as issued is no verdict about a provider."""


def run(given: argparse.Namespace) -> int:
    """One action of `veridifr seeds`, with its exit status."""
    return {"new-secret": _new_secret, "issue": _issue, "check": _check}[given.action](given)


def commitment_of(secret_file: Path | None, asked: Sequence[Trace]) -> str | None:
    """The commitment that the seeds of `asked` were checked with; None without a secret.

    Raises `TraceError` that names the sequences whose seeds are not as issued.
    """
    from veridifr.seeds import check_seeds, read_secret

    if secret_file is None:
        return None
    found = check_seeds(asked, read_secret(secret_file))
    found.require()
    return found.commitment


def _new_secret(given: argparse.Namespace) -> int:
    from veridifr.seeds import generate_secret, write_secret

    write_secret(given.out, generate_secret())
    print(f"{given.out}: a new secret; use it for one audit, and publish it only afterwards")
    return _HOLDS


def _issue(given: argparse.Namespace) -> int:
    from veridifr.seeds import SeedIssuer, read_secret
    from veridifr.traces import read_requests, write_traces

    issuer = SeedIssuer(read_secret(given.secret_file), given.audit_id, given.bits)
    issued = issuer.issue(read_requests(given.requests))
    write_traces(given.out, issued)
    print(f"{given.out}: {len(issued)} requests with seeds of {issuer.bits} bits")
    print(f"commitment to publish before the audit: {issuer.commitment}")
    return _HOLDS


def _check(given: argparse.Namespace) -> int:
    from veridifr.seed_use import seed_report
    from veridifr.seeds import check_seeds, read_secret
    from veridifr.traces import read_trace_files

    secret = read_secret(given.secret_file)
    traces = read_trace_files(given.traces)
    found = check_seeds(traces, secret)
    for name, reason in found.wrong.items():
        print(f"{name!a}: {reason}")
    print(f"{found.sequences - len(found.wrong)} of {found.sequences} seeds are as issued")
    if found.commitment is not None:
        print(f"stated: commitment {found.commitment}, audit {found.audit_id!a}, {found.bits} bits")
    if found.absent:
        print(f"{found.absent} further requests were issued before the last of these and are not here")
    for sentence in seed_report(traces).sentences:
        print(sentence)
    return _HOLDS if found.holds else _DOES_NOT_HOLD
