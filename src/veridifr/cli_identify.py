"""The command `veridifr identify`: which sampler contract tokens fit, as text or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veridifr.identification import Identification

SCHEMA = "veridifr-identification/1"


def run(given: argparse.Namespace) -> int:
    """Replay, compare and print; status 0 if a contract is named, 3 if none fits."""
    from veridifr.identification import identify
    from veridifr.references import ReferenceSettings, load
    from veridifr.replay import Replayer
    from veridifr.traces import read_trace_files

    traces = read_trace_files(given.traces)
    settings = ReferenceSettings(dtype=given.dtype, device=given.device, threads=given.threads, revision=given.revision)
    reference = load(given.reference, settings)
    quiet = given.quiet or given.json_output
    found = identify(traces, reference, replayer=Replayer(reference, spool=given.resume, quiet=quiet))
    if given.json_output:
        print(json.dumps({"schema": SCHEMA, **dataclasses.asdict(found)}, indent=1, allow_nan=False))
    elif not given.quiet:
        print("\n".join(lines(found)))
    return 0 if found.contract is not None else 3


def lines(found: Identification) -> list[str]:
    """The contracts for a terminal, the one that fits best first, and the outcome."""
    width = max(len(one.contract) for one in found.tried)
    text = []
    for one in sorted(found.tried, key=lambda one: -1 if one.matches is None else one.matches, reverse=True):
        about = one.reason
        if one.matches is not None and one.by_chance is not None:
            about = f"{one.matches} of {found.tokens} tokens, {one.by_chance:.0f} by chance"
        text.append(f"{one.contract:<{width}}  {about}")
    return [*text, found.sentence]
