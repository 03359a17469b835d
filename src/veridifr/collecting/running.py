"""The requests that are due, each until it has its answer, at a bounded number at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from veridifr.collecting.answers import Answer
from veridifr.collecting.asking import Ask
from veridifr.collecting.budget import Budget, Purse, Use, charge
from veridifr.collecting.endpoint import Endpoint
from veridifr.collecting.ledger import ANSWERED, FAILED, REFUSED, Ledger
from veridifr.collecting.sending import Failure, Sender
from veridifr.errors import InputError
from veridifr.trace import check_int, check_number

_HOPELESS = 8
"""So many requests refused and none answered: it is the settings, not the prompts."""
HOLDS_KEY = "the answer shows the API key, so nothing of it was kept"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How hard to try: requests at a time, attempts at each, and the seconds to wait between attempts.

    The n-th wait is half to all of ``first_wait * 2**n``, drawn at random, and at most `longest_wait`; what a server
    asks for in Retry-After is waited for up to `longest_wait` too, and by all requests where it says 429.
    """

    concurrency: int = 8
    attempts: int = 8
    first_wait: float = 1.0
    longest_wait: float = 120.0

    def __post_init__(self) -> None:
        check_int("concurrency", self.concurrency, 1, 10_000)
        check_int("attempts", self.attempts, 1, 1000)
        check_number("first_wait", self.first_wait, 0.0, 86_400)
        check_number("longest_wait", self.longest_wait, 0.0, 86_400)

    def wait(self, attempt: int, after: float | None, rng: random.Random) -> float:
        """Seconds to wait after the attempt of that number, from 0."""
        drawn = self.first_wait * 2.0 ** min(attempt, 40) * rng.uniform(0.5, 1.0)
        return min(max(drawn, after or 0.0), self.longest_wait)


class Run:
    """One run over the requests that have no answer yet."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger, budget: Budget, limits: Limits, *, quiet: bool) -> None:
        self._endpoint = endpoint
        self._ledger = ledger
        self._budget = budget
        self._limits = limits
        self._quiet = quiet
        self._rng = random.Random()
        self._resume_at = 0.0
        self._fatal: Failure | None = None

    async def ask_all(self, asks: Sequence[Ask]) -> None:
        """Ask what is due. Raises `InputError` where a refusal would meet every request, after those under way."""
        done = self._ledger.answers.keys() | self._ledger.refusals.keys()
        due = [ask for ask in asks if ask.index not in done]
        self._purse = Purse(self._budget, self._ledger.spent)
        self._sender = Sender(self._endpoint, self._limits.concurrency)
        try:
            with tqdm(total=len(asks), initial=len(asks) - len(due), desc="collect", unit="req",
                      disable=self._quiet or None) as bar:  # fmt: skip
                left = iter(due)
                await asyncio.gather(*(self._work(left, bar) for _ in range(min(self._limits.concurrency, len(due)))))
        finally:
            await self._sender.close()
        if self._fatal is not None:
            raise InputError(f"{self._endpoint.host}: {self._fatal.why}")

    async def _work(self, left: Iterator[Ask], bar: tqdm[Any]) -> None:
        for ask in left:
            if self._fatal is not None:
                return
            await self._ask(ask)
            bar.set_postfix_str(self._cost(), refresh=False)
            bar.update()

    def _cost(self) -> str:
        spent = self._purse.spent
        cost = self._budget.cost(spent)
        most = self._budget.money
        limit = "" if most is None else f" of {most:g}"
        return f"{sum(spent):,} tokens" + ("" if cost is None else f", {cost:.4f}{limit} {self._budget.currency}")

    async def _ask(self, ask: Ask) -> None:
        """Attempts at one request until it is answered or refused, attempts are used up or money is."""
        for attempt in range(self._limits.attempts):
            while (pause := self._resume_at - asyncio.get_running_loop().time()) > 0.0:
                await asyncio.sleep(pause)
            if self._fatal is not None or not await self._purse.reserve(ask.worst):
                return
            failure = await self._attempt(ask)
            if failure is None or failure.for_all or not failure.again:
                return
            if attempt + 1 < self._limits.attempts:
                await self._wait(attempt, failure)

    async def _attempt(self, ask: Ask) -> Failure | None:
        """One attempt, with its lines in the ledger before and after it. None: it is answered."""
        number = await self._ledger.intend(ask.index, ask.worst)
        try:
            answer = await self._sender.send(ask.path, ask.body)
        except Failure as failure:
            await self._note(ask, number, failure)
            return failure
        charged = charge(ask.worst, answer.usage, answer.counted)
        key = self._endpoint.key
        if key is not None and any(key.occurs_in(text) for text in answer.strings()):
            await self._ledger.close_attempt(REFUSED, ask.index, number, charged, why=HOLDS_KEY)
        else:
            await self._ledger.close_attempt(ANSWERED, ask.index, number, charged, answer=answer.to_dict())
        await self._purse.settle(ask.worst, charged)
        return None

    async def _note(self, ask: Ask, number: int, failure: Failure) -> None:
        charged = ask.worst if failure.maybe_paid else Use()
        final = not failure.again and not failure.for_all
        await self._ledger.close_attempt(REFUSED if final else FAILED, ask.index, number, charged, why=failure.why)
        await self._purse.settle(ask.worst, charged)
        hopeless = len(self._ledger.refusals) >= _HOPELESS and not self._ledger.answers
        if failure.for_all or (final and hopeless):
            self._fatal = failure

    async def _wait(self, attempt: int, failure: Failure) -> None:
        seconds = self._limits.wait(attempt, failure.after, self._rng)
        if failure.why.startswith("status 429"):
            self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + seconds)
        await asyncio.sleep(seconds)


def answer_of(ledger: Ledger, ask: Ask) -> Answer | None:
    """The answer to a request, None if it has none."""
    record = ledger.answers.get(ask.index)
    return None if record is None else Answer.from_dict(record["answer"])
