"""Budgets: reserved at the worst, settled at what it was, never passed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from fake_endpoint import Body, FakeServer, Request, Response, as_json
from runs import prompts, run

from veridifr import Limits, read_traces
from veridifr.collecting.budget import Budget, Purse, Use, charge
from veridifr.comparing import cost_of
from veridifr.comparison import Cost
from veridifr.errors import InputError, TraceError
from veridifr.traces import read_requests

PRICES = {"price_prompt": 2.0, "price_output": 10.0}


def test_the_cost_of_a_million() -> None:
    budget = Budget(money=12.0, **PRICES)
    assert budget.cost(Use(1_000_000, 1_000_000)) == 12.0
    assert budget.covers(Use(1_000_000, 1_000_000))
    assert not budget.covers(Use(1_000_001, 1_000_000))
    assert Budget(tokens=5).cost(Use(1, 1)) is None


@pytest.mark.parametrize(
    "fields",
    [{"currency": ""}, {"currency": "x" * 17},
     {"money": 1.0}, {"price_prompt": 1.0}, {"price_output": 1.0}, {"money": 1.0, "price_prompt": 1.0}, {"tokens": 0},
     {"money": -1.0, **PRICES}, {"tokens": 1.5}],
)  # fmt: skip
def test_a_budget_that_cannot_be_kept_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises((InputError, TraceError), match="budget"):
        Budget(**fields)


def test_what_an_answer_is_charged() -> None:
    worst = Use(10, 20)
    assert charge(worst, Use(9, 15), 15) == Use(9, 15)
    assert charge(worst, None, 15) == worst  # no claim: the whole reserve
    assert charge(worst, Use(9, 1), 15) == Use(9, 15)  # more was returned than is claimed
    assert charge(worst, Use(99, 99), 15) == worst  # more is claimed than was asked for


@pytest.mark.parametrize("seed", range(5))
def test_spent_and_reserved_never_pass_the_budget(seed: int) -> None:
    """Many spenders at once, each charged some of its reserve; at the end nothing is reserved and little is left."""
    rng = random.Random(seed)
    budget = Budget(tokens=2000, money=0.012, **PRICES)
    worst = [Use(rng.randrange(1, 40), rng.randrange(1, 60)) for _ in range(100)]

    async def spend(purse: Purse, each: Use) -> bool:
        if not await purse.reserve(each):
            return False
        assert budget.covers(purse.spent.plus(purse.reserved))
        await asyncio.sleep(rng.random() / 1000)
        await purse.settle(each, Use(rng.randrange(each.prompt + 1), rng.randrange(each.output + 1)))
        return True

    async def all_of_them() -> None:
        purse = Purse(budget, Use())
        done = await asyncio.gather(*(spend(purse, each) for each in worst))
        assert purse.reserved == Use()
        assert budget.covers(purse.spent)
        refused = [each for each, fine in zip(worst, done, strict=True) if not fine]
        assert refused  # the budget is too small for all of them
        assert all(done[:10])

    asyncio.run(all_of_them())


def test_a_reserve_waits_for_what_is_under_way() -> None:
    """Two requests of 10 against a budget of 15: the second fits once the first was charged 5."""

    async def check() -> None:
        purse = Purse(Budget(tokens=15), Use())
        assert await purse.reserve(Use(5, 5))
        second = asyncio.create_task(purse.reserve(Use(5, 5)))
        await asyncio.sleep(0.01)
        assert not second.done()
        await purse.settle(Use(5, 5), Use(2, 3))
        assert await second
        await purse.settle(Use(5, 5), Use(5, 5))
        assert not await purse.reserve(Use(1, 0))

    asyncio.run(check())


@pytest.mark.parametrize("claimed", ["honest", "nothing", "too little", "too much"])
def test_a_budget_holds_whatever_the_server_counts(tmp_path: Path, claimed: str) -> None:
    usages = {"nothing": None, "too little": {"prompt_tokens": 0, "completion_tokens": 0},
        "too much": {"prompt_tokens": 10**9, "completion_tokens": 10**9}}  # fmt: skip

    def respond(request: Request, body: Body) -> Body:
        return body if claimed == "honest" else {**body, "usage": usages[claimed]}

    with FakeServer(respond) as server:
        found = run(tmp_path / "t.jsonl", server.url, prompts(20), budget=Budget(tokens=11 * 7 + 5))
    asked = 7 if claimed != "too little" else 9  # 8 output tokens each are seen to be returned, the prompt is not
    assert sum(found.spent) <= 82
    assert len(server.requests) == asked
    assert found.wrong_counts == (asked if claimed.startswith("too") else 0)
    assert found.unscored["not asked: the budget does not reach"] == 20 - asked


def test_each_trace_states_what_its_request_was_charged(tmp_path: Path) -> None:
    """Answered at once; answered after an attempt that may have been paid; refused; out of the budget's reach."""
    tried: set[int] = set()

    def respond(request: Request, body: Body) -> Response | Body:
        number = request.body["prompt"][2] - 7
        if number == 2:
            return as_json({"message": "too long"}, 400)
        if number == 1 and number not in tried:
            tried.add(number)
            return as_json({"error": "gateway"}, 502)
        return body

    budget = Budget(tokens=3 * 11, currency="EUR", **PRICES)
    with FakeServer(respond) as server:
        found = run(tmp_path / "t.jsonl", server.url, prompts(4), budget=budget, limits=Limits(concurrency=1))
    traces = list(read_traces(found.traces))
    one = (3 * 2.0 + 8 * 10.0) / 1e6
    assert [trace.extra["cost"] for trace in traces] == [
        {"currency": "EUR", "amount": pytest.approx(amount)} for amount in (one, 2 * one, 0.0, 0.0)
    ]
    assert found.cost is not None
    assert cost_of(traces) == Cost(currency="EUR", amount=pytest.approx(found.cost))
    assert not any("cost" in request.extra for request in read_requests(found.asked))


def test_without_prices_no_trace_states_a_cost(tmp_path: Path) -> None:
    with FakeServer() as server:
        found = run(tmp_path / "t.jsonl", server.url, prompts(2), budget=Budget(tokens=1000))
    assert found.cost is None
    assert not any("cost" in trace.extra for trace in read_traces(found.traces))


@pytest.mark.parametrize("seed", range(20))
def test_waits_grow_and_are_bounded(seed: int) -> None:
    limits, rng = Limits(first_wait=1.0, longest_wait=60.0), random.Random(seed)
    for attempt in range(50):
        due = min(2.0**attempt, 60.0)
        assert due / 2 <= limits.wait(attempt, None, rng) <= due
    assert limits.wait(0, 30.0, rng) == 30.0
    assert limits.wait(0, 3600.0, rng) == 60.0
