"""Running the reference over planned sequences, with a spool that survives a kill and a bar for the waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from veridifr import evidence_io
from veridifr.errors import ReferenceError
from veridifr.evidence import Evidence, evidence_key, listing_temperature
from veridifr.evidence_io import EvidenceHeader, EvidenceWriter
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.references import Reference
from veridifr.requests import Planned
from veridifr.trace import Trace

_T = TypeVar("_T")

_BAR_DELAY = 2.0
"""Seconds before a progress bar shows."""


class Replayer:
    """Gets evidence for planned sequences from `reference`, through the spool file `spool` if one is given.

    What the spool holds is not computed again; what is computed goes into it at once. `quiet` hides the bar.
    """

    def __init__(self, reference: Reference, *, spool: Path | None = None, quiet: bool = True) -> None:
        self.reference = reference
        self.spool = spool
        self.quiet = quiet

    def with_projections(self, spec: FingerprintSpec | None, *, sensitivity: bool = False) -> Replayer:
        """The same with projections by `spec` in its evidence, and with `sensitivity` how far rounding moves them;
        itself for None. `ReferenceError` if it cannot give them."""
        if spec is None:
            return self
        reference = self.reference.measuring(spec, sensitivity=sensitivity)
        if reference is None:
            what, use = ("projections and their sensitivity", " in float32") if sensitivity else ("projections", "")
            raise ReferenceError(
                f"reference {self.reference.name}: cannot give {what} for fingerprints of specification "
                f"{spec.digest().hex()[:16]}; use hf:DIR{use}, or evidence that was made with it"
            )
        return Replayer(reference, spool=self.spool, quiet=self.quiet)

    def run(self, planned: Sequence[Planned], *, label: str) -> Iterator[tuple[Planned, Evidence | None]]:
        """Each planned sequence once, with its evidence; None where it has none, the reason then being set."""
        return self.map(planned, lambda _, evidence: evidence, label=label)

    def map(
        self, planned: Sequence[Planned], work: Callable[[Trace, Evidence], _T], *, label: str
    ) -> Iterator[tuple[Planned, _T | None]]:
        """As `run`, with what `work` makes of each trace and its evidence; see `Reference.map`."""
        ready: list[Planned] = []
        for item in planned:
            why = item.reason
            if item.trace is not None and why is None:
                why = self.reference.refuse(item.trace)
            if item.trace is None or why is not None:
                yield _refused(item, why or "no trace"), None
            else:
                ready.append(item)
        with tqdm(total=len(ready), desc=label, unit="seq", delay=_BAR_DELAY, disable=self.quiet or None) as bar:
            for item, made in self._worked(ready, work):
                bar.update()
                yield item, made

    def _worked(self, ready: Sequence[Planned], work: Callable[[Trace, Evidence], _T]) -> Iterator[tuple[Planned, _T]]:
        by_trace: dict[int, Planned] = {id(item.trace): item for item in ready}
        traces = [item.trace for item in ready if item.trace is not None]
        if self.spool is None:
            for trace, _, made in self._replayed(traces, work):
                yield by_trace[id(trace)], made
            return
        writer = EvidenceWriter(self.spool, header_of(self.reference))
        try:
            places = evidence_io.scan(self.spool)[1]
            rest = []
            for trace in traces:
                place = places.get(evidence_key(trace))
                found = None if place is None else evidence_io.read(self.spool, place)
                if found is None or found.temperature != listing_temperature(trace.sampling):
                    rest.append(trace)
                else:
                    yield by_trace[id(trace)], work(trace, replace(found, trace_id=trace.id))
            for trace, evidence, made in self._replayed(rest, work):
                writer.append(evidence)
                yield by_trace[id(trace)], made
        finally:
            writer.close()

    def _replayed(
        self, traces: Sequence[Trace], work: Callable[[Trace, Evidence], _T]
    ) -> Iterator[tuple[Trace, Evidence, _T]]:
        by_id = {trace.id: trace for trace in traces}

        def worked(evidence: Evidence) -> tuple[Trace, Evidence, _T]:
            trace = by_id[evidence.trace_id]
            return trace, evidence, work(trace, evidence)

        return self.reference.map(traces, worked)


def _refused(item: Planned, why: str) -> Planned:
    return Planned(id=item.id, trace=None, end=0, tokens=item.tokens, forced=item.forced, reason=why)


def header_of(reference: Reference) -> EvidenceHeader:
    """What an evidence file says of the reference that made it."""
    return EvidenceHeader(
        reference=reference.name,
        weights=reference.weights_digest,
        vocab_size=reference.vocab_size,
        eos_ids=reference.eos_ids,
        settings=reference.settings,
    )
