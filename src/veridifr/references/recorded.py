"""Evidence read from disk as a reference: audits without a model, and without trusting whoever runs them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from veridifr import evidence_io
from veridifr.errors import EvidenceError
from veridifr.evidence import Evidence, evidence_key, listing_temperature
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.references import Reference
from veridifr.trace import Trace


class RecordedReference(Reference):
    """Replays an evidence file. A trace is found by the digest of its token ids."""

    def __init__(self, path: Path) -> None:
        self._path = path
        header, self._places = evidence_io.scan(path)
        self.name = f"evidence:{path.name}"
        self.vocab_size = header.vocab_size
        self.weights_digest = header.weights
        self.eos_ids = header.eos_ids
        self.settings = {**header.settings, "made_by": header.reference}

    def refuse(self, trace: Trace) -> str | None:
        """See `Reference.refuse`."""
        if evidence_key(trace) not in self._places:
            return "the evidence file does not cover these token ids under these penalties, biases and bans"
        return None

    def measuring(self, spec: FingerprintSpec, *, sensitivity: bool = False) -> Reference | None:
        """See `Reference.measuring`: itself, if the file was made with this specification, and with sensitivities where
        they are asked for."""
        if sensitivity and self.settings.get("sensitivity") is None:
            return None
        return self if self.settings.get("fingerprints") == spec.digest().hex() else None

    def evidence(self, traces: Sequence[Trace]) -> Iterator[Evidence]:
        """See `Reference.evidence`."""
        for trace in traces:
            found = evidence_io.read(self._path, self._places[evidence_key(trace)])
            heat = listing_temperature(trace.sampling)
            if found.tokens != len(trace.output_token_ids) or found.vocab_size != self.vocab_size:
                raise EvidenceError(f"{self._path}: sequence {trace.id!r}: tokens or vocab_size do not fit the trace")
            if found.temperature != heat:
                raise EvidenceError(
                    f"{self._path}: sequence {trace.id!r}: temperature: listed for {found.temperature:g}, "
                    f"the trace claims {heat:g}; replay it again"
                )
            # The file knows token ids; under which name a sequence was recorded says nothing about who claims it.
            yield replace(found, trace_id=trace.id)
