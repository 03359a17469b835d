"""Collecting the traces of one audit: the one call that does it all, and can be repeated until it is done."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veridifr.collecting.asking import Ask, make_asks
from veridifr.collecting.budget import Budget, Use
from veridifr.collecting.endpoint import Endpoint
from veridifr.collecting.ledger import Ledger
from veridifr.collecting.prompts import DEFAULT, Prompt, read_prompts
from veridifr.collecting.running import Limits, Run, answer_of
from veridifr.collecting.tokenizer import Tokenizer
from veridifr.collecting.writing import count_ends, make_trace, missing_trace, request_of, wrong_count
from veridifr.errors import InputError
from veridifr.origins import COST, from_text, why_unscored
from veridifr.seeds import SeedIssuer, generate_secret, read_secret, write_secret
from veridifr.trace import EngineRecord, Sampling, Trace
from veridifr.traces.files import SUFFIXES, write_traces

UNKNOWN_ENGINE = EngineRecord(name="unknown")
NOT_ASKED = "not asked: the budget does not reach"


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a collection has come to. Counts are of requests; `spent` is in tokens, `cost` in `currency` (None without
    prices).

    `unscored` has each reason why a sequence is no evidence, with its number; `unanswered` of them got no answer.
    `ambiguous` were split from text into another number of ids than the server counted. `paid_twice` may have been paid
    for more than once, `paid_twice_killed` of them because a collector was killed. `wrong_counts`: the server counted
    another number of output tokens than it returned. The commitment is to the secret of the seeds.
    """

    requests: int
    answered: int
    unanswered: int
    unscored: Mapping[str, int]
    ambiguous: int
    attempts: int
    paid_twice: int
    paid_twice_killed: int
    wrong_counts: int
    spent: Use
    cost: float | None
    currency: str
    commitment: str
    traces: Path
    asked: Path
    secret: Path

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object, the files by their names."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        files = {name: getattr(self, name).name for name in ("traces", "asked", "secret")}
        return {**value, **files, "spent": self.spent._asdict(), "unscored": dict(self.unscored)}


def collect(  # noqa: PLR0913 (all but three have defaults)
    out: str | Path,
    endpoint: Endpoint,
    sampling: Sampling,
    *,
    prompts: str | Path | Sequence[Prompt] = DEFAULT,
    budget: Budget | None = None,
    limits: Limits | None = None,
    engine: EngineRecord = UNKNOWN_ENGINE,
    tokenizer: str | Path | None = None,
    send: str = "ids",
    chat: bool = False,
    secret_file: str | Path | None = None,
    audit_id: str | None = None,
    quiet: bool = True,
) -> Collected:
    """Ask `endpoint` each prompt once and write the traces to `out`.

    `sampling` holds for all requests, without a seed: seeds are issued from the secret in `secret_file` (default: a new
    one, made beside `out`) for `audit_id` (default: the stem of `out`). `engine` is what the provider is said to run.
    `tokenizer` is the directory of the model's tokenizer, `send` how prompts are then sent (`ids` or `text`), and
    `chat` makes each text a user's message. Beside `out` lie its ledger, what was asked for and, if made here, the
    secret: see docs/collecting.md.

    The same call goes on where a killed one stopped, and asks again what got no answer; what was answered is never
    asked twice. Raises `InputError` for what cannot be read, a ledger of another collection, and refusals that would
    meet every request. Not for use inside a running event loop.
    """
    out = Path(out)
    stem = _stem(out)
    if not out.parent.is_dir() or not out.name.endswith(SUFFIXES):
        raise InputError(f"{out}: cannot be written: no such folder, or a name that does not end in {SUFFIXES[0]}")
    asked, ledger_path = out.with_name(f"{stem}.asked.jsonl"), out.with_name(f"{stem}.ledger")
    given = read_prompts(prompts) if isinstance(prompts, str | Path) else list(prompts)
    chosen = [prompt.as_chat() for prompt in given] if chat else given
    local = None if tokenizer is None else Tokenizer(tokenizer)
    budget, limits = budget or Budget(), limits or Limits()
    secret = out.with_name(f"{stem}.secret") if secret_file is None else Path(secret_file)
    begun = ledger_path.exists()
    ledger = Ledger(ledger_path)
    try:
        if secret_file is None:
            _have_secret(secret, begun=begun)
        issuer = SeedIssuer(read_secret(secret), audit_id or stem)
        asks = make_asks(chosen, sampling, endpoint, issuer, engine, local, send)
        ledger.start(_header(endpoint, issuer, asks))
        asyncio.run(_run(Run(endpoint, ledger, budget, limits, quiet=quiet), ledger, asks))
        traces = _traces(ledger, asks, endpoint, local, budget)
        write_traces(asked, [request_of(trace) for trace in traces])
        write_traces(out, traces)
        return _collected(ledger, traces, budget, (issuer.commitment, out, asked, secret))
    finally:
        ledger.close()


async def _run(run: Run, ledger: Ledger, asks: Sequence[Ask]) -> None:
    await run.ask_all(asks)
    await ledger.settled()


def _header(endpoint: Endpoint, issuer: SeedIssuer, asks: Sequence[Ask]) -> dict[str, Any]:
    """What decides the requests: a ledger that began with another of these is another collection's."""
    digests = hashlib.sha256("".join(ask.digest() for ask in asks).encode("ascii")).hexdigest()
    return {
        "base URL": endpoint.base_url,
        "model": endpoint.model,
        "audit id": issuer.audit_id,
        "secret": issuer.commitment,
        "number of prompts": len(asks),
        "set of prompts or settings": digests,
    }


def _have_secret(path: Path, *, begun: bool) -> None:
    """Make the secret unless this collection has made it before; one that is left from another is not taken."""
    if not path.exists():
        write_secret(path, generate_secret())
    elif not begun:
        raise InputError(
            f"{path}: exists already, and its ledger does not: a secret serves one audit; move it away, or give it as "
            "the secret file if nothing was collected with it"
        )


def _traces(
    ledger: Ledger, asks: Sequence[Ask], endpoint: Endpoint, tokenizer: Tokenizer | None, budget: Budget
) -> list[Trace]:
    """One trace for each request, in order, with what it was charged where there are prices."""
    made = []
    for ask in asks:
        answer, attempts = answer_of(ledger, ask), ledger.attempts[ask.index]
        if answer is not None:
            trace = make_trace(ask, answer, endpoint, tokenizer, attempts)
        else:
            refusal, failure = ledger.refusals.get(ask.index), ledger.failures.get(ask.index)
            why = f"refused: {refusal}" if refusal else f"no answer: {failure}" if failure else NOT_ASKED
            trace = missing_trace(ask, why, attempts)
        amount = budget.cost(ledger.charged.get(ask.index, Use()))
        cost = {} if amount is None else {COST: {"currency": budget.currency, "amount": amount}}
        made.append(replace(trace, extra={**trace.extra, **cost}))
    return count_ends(made)


def _collected(
    ledger: Ledger, traces: Sequence[Trace], budget: Budget, made: tuple[str, Path, Path, Path]
) -> Collected:
    reasons = [why_unscored(trace) for trace in traces]
    twice = [i for i, lost in ledger.maybe_paid.items() if lost + (i in ledger.answers) > 1]
    commitment, out, asked, secret = made
    return Collected(
        requests=len(traces),
        answered=len(ledger.answers),
        unanswered=len(traces) - len(ledger.answers),
        unscored=Counter(why for why in reasons if why is not None),
        ambiguous=sum(why is not None and from_text(t) for why, t in zip(reasons, traces, strict=True)),
        attempts=ledger.attempts.total(),
        paid_twice=len(twice),
        paid_twice_killed=sum(ledger.killed[index] > 0 for index in twice),
        wrong_counts=sum(map(wrong_count, traces)),
        spent=ledger.spent,
        cost=budget.cost(ledger.spent),
        currency=budget.currency,
        commitment=commitment,
        traces=out,
        asked=asked,
        secret=secret,
    )


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", ".jsonl", ".parquet"):
        name = name.removesuffix(suffix)
    return name
