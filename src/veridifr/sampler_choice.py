"""Which contract an audit scores its tokens under, decided from the request and the record, and from tokens at last.

A provider must not be able to choose the weaker test. So the verifier's own record, where it has one, decides; and what
the tokens may still be tested for is what the verifier's calibration was made for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from veridifr.calibration import Calibration
from veridifr.contracts.base import Contract
from veridifr.contracts.registry import CONTRACTS, infer, without_noise
from veridifr.contracts.unknown import UNKNOWN
from veridifr.errors import TraceError, UndecidedSamplerError, UnsupportedError
from veridifr.honest_traces import SAMPLERS
from veridifr.identification import RISK, identify_planned, presumed
from veridifr.origins import TOKEN_IDS_FROM, from_text
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.trace import EngineRecord, Trace

NO_SPLITS = (
    f"{TOKEN_IDS_FROM}: text, and without known noise nothing tells which of its splits was sampled; ask at "
    "temperature 0, or with seeds of a known engine"
)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The contract of an audit, a trace with its setting, and the sequences as they are scored."""

    head: Trace
    contract: Contract
    planned: tuple[Planned, ...]
    assumptions: tuple[str, ...]
    identified: bool = False
    """Whether the contract is known from the tokens alone."""

    def of(self, planned: Sequence[Planned]) -> Chosen:
        """The same contract for sequences that were planned anew."""
        known = tuple(_presumed(item, self.contract.id) for item in planned) if self.identified else tuple(planned)
        return replace(self, planned=known)


@dataclass(frozen=True, kw_only=True)
class OwnRecords:
    """What the verifier itself says of the engine: the record that it fixed, and those of its requests."""

    engine: EngineRecord | None
    requests: Sequence[Trace]

    def decide(self, trace: Trace, vocab_size: int) -> bool:
        """Whether any of them tells the sampler: then nothing is left to identify, and there is no way out of it."""
        own = {record.identity(): record for record in (request.engine for request in self.requests)}
        records = [*own.values(), *([] if self.engine is None else [self.engine])]
        return any(_tells(record, trace, vocab_size) for record in records)


def _tells(record: EngineRecord, trace: Trace, vocab_size: int) -> bool:
    try:
        infer(record, trace.sampling, vocab_size)
    except UndecidedSamplerError:
        return False
    except UnsupportedError:
        return True
    return True


def choose(
    planned: Sequence[Planned],
    sampler: str,
    own: OwnRecords,
    calibration: Calibration,
    replayer: Replayer,
) -> Chosen | str:
    """The setting that most sequences have and that can be scored, with its contract; or why none has one.

    `sampler` is auto or unknown; `own` is what the verifier itself says of the engine.
    """
    if sampler not in SAMPLERS:
        raise TraceError(f"sampler: got {sampler!r:.40}, expected one of {', '.join(SAMPLERS)}")
    traces = [item.trace for item in planned if item.trace is not None]
    counts = Counter(trace.sampling.distribution() for trace in traces)
    vocab_size = replayer.reference.vocab_size
    refused = next((item.reason for item in planned if item.reason is not None), "no sequence was returned")
    why: str | None = None
    for trace in sorted(traces, key=lambda t: -counts[t.sampling.distribution()]):  # stable: the first of equals
        try:
            if sampler == UNKNOWN.id:
                return _asked_for(trace, planned, vocab_size)
            found = infer(trace.engine, trace.sampling, vocab_size)
        except UndecidedSamplerError as error:
            if own.decide(trace, vocab_size):
                return str(error)
            return _undecided(trace, planned, error, own, calibration, replayer)
        except UnsupportedError as error:
            why = why or str(error)
            continue
        return Chosen(head=trace, contract=found.contract, planned=tuple(planned), assumptions=found.assumptions)
    return why or refused


def _asked_for(trace: Trace, planned: Sequence[Planned], vocab_size: int) -> Chosen:
    found = without_noise(trace.engine, trace.sampling, vocab_size)
    said = (
        ("The sampler was to be taken as unknown: no seed and no engine record is used.",)
        if found.contract is UNKNOWN
        else ()
    )
    assumptions = (*said, *found.assumptions)
    return Chosen(
        head=trace, contract=found.contract, planned=_sampled(planned, found.contract), assumptions=assumptions
    )


def _sampled(planned: Sequence[Planned], contract: Contract) -> tuple[Planned, ...]:
    """The sequences, where noise is not known without those whose ids were made from text.

    Which of a text's splits was sampled is seen from the noise alone; another one holds tokens that are hardly ever
    drawn, and would look like another distribution.
    """
    if contract is not UNKNOWN:
        return tuple(planned)
    return tuple(
        replace(item, trace=None, end=0, reason=NO_SPLITS) if item.trace is not None and from_text(item.trace) else item
        for item in planned
    )


def _undecided(
    trace: Trace,
    planned: Sequence[Planned],
    error: UndecidedSamplerError,
    own: OwnRecords,
    calibration: Calibration,
    replayer: Replayer,
) -> Chosen | str:
    """A contract identified from the tokens; else their distribution, if the calibration was made for that."""
    word = "the provider's word" if own.engine is None else "as the verifier fixed it"
    found = identify_planned(planned, replayer, prefer=calibration.contracts)
    opening = f"The engine record, {word}, does not tell the sampler ({error}). {found.sentence}"
    if calibration.mode == "distribution":
        inference = without_noise(trace.engine, trace.sampling, replayer.reference.vocab_size)
        more = " The seeded test could be made: calibrate for it." if found.contract else ""
        said = f"{opening}{more} The tokens' distribution is tested, as the calibration was made for that."
        assumptions = (said, *inference.assumptions)
        sampled = _sampled(planned, inference.contract)
        return Chosen(head=trace, contract=inference.contract, planned=sampled, assumptions=assumptions)
    if found.contract is None:
        remedy = "To test their distribution alone, calibrate with the sampler taken as unknown."
        return f"{error}. {found.sentence} {remedy}"
    said = f"{opening} With other noise that happens with a probability of at most {RISK:g}."
    contract = CONTRACTS[found.contract]
    return Chosen(head=trace, contract=contract, planned=(), assumptions=(said,), identified=True).of(planned)


def _presumed(item: Planned, contract: str) -> Planned:
    if item.trace is None:
        return item
    return replace(item, trace=replace(item.trace, engine=presumed(item.trace.engine, contract)))
