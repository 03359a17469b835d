"""A collector that is killed ten times at an endpoint that fails in every way: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_endpoint import FAULTS, FakeServer, FaultyProxy
from runs import kill_at, lines, start, write_prompts

from veridifr.traces import read_requests, read_traces

KILLS, CONCURRENCY, PROMPTS, TOKENS = 10, 8, 250, 8
BUDGET = 10_000
COMMAND = ("--model", "m", "--out", "t.jsonl", "--max-tokens", str(TOKENS), "--concurrency", str(CONCURRENCY),
    "--attempts", "60", "--first-wait", "0.002", "--timeout", "0.4", "--price-prompt", "100", "--price-output", "200",
    "--budget-tokens", str(BUDGET), "--json", "came.json", "--quiet")  # fmt: skip


@pytest.mark.slow
def test_ten_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults on a fifth of all attempts, kills at ten random moments; then the same command runs to its end."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(20)
    ledger = tmp_path / "t.ledger"
    with FakeServer(seconds=0.01) as server, FaultyProxy(server.port, share=0.2, seed=3) as proxy:
        prompts = write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
        command = ["--base-url", proxy.url, "--prompts", str(prompts), *COMMAND]
        for _ in range(KILLS):
            kill_at(command, ledger, lines(ledger) + rng.randrange(2, 50))
        last = start(*command)
        out, errors = last.communicate(timeout=120)
        assert last.returncode == 0, (out, errors)
    assert set(proxy.seen) == {*FAULTS, "none"}
    traces = list(read_traces("t.jsonl"))
    assert [t.prompt_token_ids.tolist() for t in traces] == [[5, 6, 7 + n] for n in range(PROMPTS)]
    assert len(list(read_requests("t.asked.jsonl"))) == PROMPTS
    seeds = [t.sampling.seed for t in traces]
    assert len(set(seeds)) == PROMPTS
    assert set(server.served) == set(seeds)  # one seed for each request, under whatever number of attempts
    answered = [json.loads(line) for line in ledger.read_text().splitlines() if '"end":"answered"' in line]
    assert Counter(record["index"] for record in answered) == dict.fromkeys(range(PROMPTS), 1)
    came = json.loads(Path("came.json").read_text())
    check_accounts(came, server.served, ledger)


def check_accounts(came: dict[str, object], served: Counter[int], ledger: Path) -> None:
    """What the collector says it paid in vain covers what the server knows that it did."""
    truly_twice = sum(count > 1 for count in served.values())
    killed = [json.loads(line) for line in ledger.read_text().splitlines() if '"end":"lost"' in line]
    assert truly_twice <= came["paid_twice"]
    assert 0 < len(killed) <= KILLS * CONCURRENCY
    assert came["paid_twice_killed"] <= len(killed)
    assert all(record["charged"] == [3, TOKENS] for record in killed)
    spent = came["spent"]
    assert spent["prompt"] + spent["output"] <= BUDGET
    # every token that was served has been charged for, since nothing is charged below what it cost
    assert spent["output"] >= TOKENS * served.total()
    assert came["cost"] == pytest.approx((spent["prompt"] * 100 + spent["output"] * 200) / 1e6)


def test_unknown_fates_are_charged_and_asked_again_under_the_same_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with FakeServer(seconds=0.3) as server:
        prompts = write_prompts(tmp_path / "prompts.jsonl", 12)
        command = ["--base-url", server.url, "--prompts", str(prompts), *COMMAND, "--timeout", "20"]
        kill_at(command, tmp_path / "t.ledger", 1 + CONCURRENCY)
        last = start(*command)
        assert last.wait(60) == 0, last.communicate()
        last.communicate()
    came = json.loads(Path("came.json").read_text())
    asked = Counter(request.body["seed"] for request in server.requests)
    assert len(asked) == 12
    assert came["paid_twice"] == came["paid_twice_killed"] == CONCURRENCY
    assert came["attempts"] == 12 + CONCURRENCY
    assert came["spent"] == {"prompt": 3 * (12 + CONCURRENCY), "output": TOKENS * (12 + CONCURRENCY)}


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with FakeServer(seconds=0.3) as server:
        prompts = write_prompts(tmp_path / "prompts.jsonl", 12)
        command = ["--base-url", server.url, "--prompts", str(prompts), *COMMAND, "--timeout", "20"]
        process = start(*command)
        while lines(tmp_path / "t.ledger") < 1 + CONCURRENCY:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (4, "veridifr: interrupted; the same command goes on from here\n")
        last = start(*command)
        assert last.wait(60) == 0, last.communicate()
        last.communicate()
    assert json.loads(Path("came.json").read_text())["answered"] == 12


def test_the_budget_is_never_passed_even_by_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget for twenty requests: kills use part of it up, and what is left over is not asked."""
    monkeypatch.chdir(tmp_path)
    with FakeServer(seconds=0.05) as server:
        prompts = write_prompts(tmp_path / "prompts.jsonl", 40)
        budget = 20 * (3 + TOKENS)
        command = ["--base-url", server.url, "--prompts", str(prompts), *COMMAND, "--budget-tokens", str(budget)]
        kill_at(command, tmp_path / "t.ledger", 12)
        last = start(*command)
        assert last.wait(60) == 3, last.communicate()
        last.communicate()
    came = json.loads(Path("came.json").read_text())
    assert came["spent"]["prompt"] + came["spent"]["output"] == budget
    assert len(server.requests) <= 20
    assert came["unscored"] == {"not asked: the budget does not reach": came["unanswered"]}
    assert len(list(read_traces("t.jsonl"))) == 40
