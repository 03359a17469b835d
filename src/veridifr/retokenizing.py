"""Token ids that were made from text, split the way the claimed sampler split them.

One text has many splits into tokens, and a sampler does not always draw the one that a tokenizer makes: at
temperature 1 about a sequence in four has another, some of them with as many tokens. Read as ids it would look like
another model. The reference knows better: where its own choice differs from the id and is a beginning of the text
that is left, that choice is tried, and the rest is tokenized anew. A split is kept if fewer tokens contradict the
claim than before, and a sequence is evidence only if its ids are as many as the server counted.

Ids are only ever changed in favour of the claim, so that no honest provider is called divergent for its tokenizer's
sake; a provider that deviates gains what a few tokens are worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from veridifr.contracts.registry import infer
from veridifr.errors import UnsupportedError
from veridifr.identification import presumed
from veridifr.origins import RETOKENIZATION, TOKEN_IDS_FROM, from_text
from veridifr.references import Reference
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.scores import Hypothesis, Scores
from veridifr.scoring import score
from veridifr.trace import UNSCORED, EngineRecord, Sampling, Trace

NO_TOKENIZER = f"{TOKEN_IDS_FROM}: text, and the reference has no tokenizer to look for other splits of it"
TOO_MANY = f"{RETOKENIZATION}: the text has too many other splits to try them all"
_LEAST_TRIES, _TOKENS_PER_TRY = 16, 32
"""Splits tried for one sequence: honest ones take about one for every 200 tokens."""


@dataclass(eq=False)
class _Search:
    """One sequence being split. `tried` has the positions where the reference's own choice has been tried."""

    trace: Trace
    text: str
    end: list[int]
    scores: Scores
    tried: set[int] = field(default_factory=set)
    tries: int = 0

    @property
    def ids(self) -> list[int]:
        """The ids without the token that ended the output, which is not in the text."""
        ids: list[int] = self.trace.output_token_ids.tolist()
        return ids[: len(ids) - len(self.end)]

    @property
    def spent(self) -> bool:
        return self.tries >= _LEAST_TRIES + len(self.trace.output_token_ids) // _TOKENS_PER_TRY

    def take(self, place: int, trace: Trace, scores: Scores | None) -> None:
        """Keep a split that was tried at `place` if fewer tokens contradict the claim."""
        self.tries += 1
        self.tried.add(place)
        if scores is not None and _misses(scores) < _misses(self.scores):
            self.trace, self.scores = trace, scores
            self.tried = {other for other in self.tried if other <= place}

    def ended(self, proposal: tuple[int, Trace] | None) -> Trace:
        """The sequence as it was split last, unless the search was broken off."""
        extra = dict(self.trace.extra)
        if proposal is not None:
            extra[UNSCORED] = TOO_MANY
        return replace(self.trace, extra=extra)


def retokenized(
    traces: Sequence[Trace], replayer: Replayer, requests: Sequence[Trace] = (), contract: str | None = None
) -> list[Trace]:
    """The traces, those with ids from text split anew where the reference and the claimed sampler say so.

    A sequence is scored by the settings of its request, where there is one, and under `contract`, if that was
    identified. One whose sampler can't be replayed stays as it is; one that cannot be checked for other splits gets its
    reason under the key `unscored`.
    """
    reference = replayer.reference
    asked = {request.id: request.sampling for request in requests}
    claims: dict[str, Hypothesis] = {}
    due: list[Trace] = []
    for trace in traces:
        if from_text(trace) and UNSCORED not in trace.extra and len(trace.output_token_ids):
            engine = trace.engine if contract is None else presumed(trace.engine, contract)
            claim = _claim(engine, asked.get(trace.id, trace.sampling), reference)
            if claim is not None:
                claims[trace.id] = claim
                due.append(trace)
    if not due:
        return list(traces)
    if reference.encode("") is None:
        changed = {trace.id: replace(trace, extra={**trace.extra, UNSCORED: NO_TOKENIZER}) for trace in due}
    else:
        changed = _search(due, claims, replayer)
    return [changed.get(trace.id, trace) for trace in traces]


def _search(traces: Sequence[Trace], claims: Mapping[str, Hypothesis], replayer: Replayer) -> dict[str, Trace]:
    """All searches side by side, with one run of the reference for each round; the traces as split, by id."""
    reference = replayer.reference
    scores = _scored(traces, claims, replayer)
    active = [_begin(trace, scores[trace.id], reference) for trace in traces if trace.id in scores]
    done: dict[str, Trace] = {}
    while active:
        proposals = {}
        for search in active:
            proposal = _next(search, reference)
            if proposal is None or search.spent:
                done[search.trace.id] = search.ended(proposal)
            else:
                proposals[search.trace.id] = proposal
        active = [search for search in active if search.trace.id in proposals]
        scores = _scored([trace for _, trace in proposals.values()], claims, replayer)
        for search in active:
            place, trace = proposals[search.trace.id]
            search.take(place, trace, scores.get(trace.id))
    return done


def _claim(engine: EngineRecord, sampling: Sampling, reference: Reference) -> Hypothesis | None:
    """What a sequence is scored under; None if its sampler cannot be replayed."""
    try:
        contract = infer(engine, sampling, reference.vocab_size).contract
    except UnsupportedError:
        return None
    return Hypothesis(contract=contract, sampling=sampling, seed=sampling.seed)


def _scored(traces: Sequence[Trace], claims: Mapping[str, Hypothesis], replayer: Replayer) -> dict[str, Scores]:
    """Scores by id, of those that the reference can replay."""
    planned = [
        Planned(
            id=trace.id,
            trace=replace(trace, sampling=claims[trace.id].sampling),
            end=len(trace.output_token_ids),
            tokens=len(trace.output_token_ids),
        )
        for trace in traces
    ]
    found = {}
    for item, evidence in replayer.run(planned, label="split"):
        if item.trace is not None and evidence is not None:
            found[item.id] = score(item.trace, evidence, claims[item.id], eos_ids=replayer.reference.eos_ids)
    return found


def _begin(trace: Trace, scores: Scores, reference: Reference) -> _Search:
    ids = trace.output_token_ids.tolist()
    ended = trace.finish_reason == "stop" and ids[-1] in reference.eos_ids
    text = reference.decode(ids[:-1] if ended else ids)
    return _Search(trace=trace, text=text or "", end=ids[-1:] if ended else [], scores=scores)


def _next(search: _Search, reference: Reference) -> tuple[int, Trace] | None:
    """The first position where the reference's own choice can begin what is left of the text, and the split with it."""
    ids = search.ids
    for place in np.flatnonzero(~search.scores.match_T[: len(ids)]).tolist():
        if place in search.tried:
            continue
        head = [*ids[:place], int(search.scores.best_T[place])]
        before, with_choice = reference.decode(ids[:place]) or "", reference.decode(head) or ""
        if len(with_choice) <= len(before) or not search.text.startswith(with_choice):
            continue
        rest = reference.encode(search.text[len(with_choice) :]) or []
        new = [*head, *rest]
        if reference.decode(new) == search.text:
            whole = np.array([*new, *search.end], dtype=np.int32)
            stated = search.trace.extra.get(RETOKENIZATION)
            told = {**(stated if isinstance(stated, Mapping) else {}), "own_count": len(whole)}
            extra = {**search.trace.extra, RETOKENIZATION: told}
            return place, replace(search.trace, output_token_ids=whole, extra=extra)
    return None


def _misses(scores: Scores) -> int:
    return int((~scores.match_T).sum())
