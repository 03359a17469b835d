"""Make real traces with vLLM on a GPU: prompts, one condition, or a whole plan of conditions.

    gpu_traces.py prompts  --model DIR --count N --out prompts.npz
    gpu_traces.py generate --model DIR --prompts prompts.npz --runner v1 --weights int4 --count 40 --out int4.jsonl
    gpu_traces.py plan demo  --models DIR --out DIR      (model tb7m: six sets as trace files)
    gpu_traces.py plan pools --models DIR --out DIR      (model tb24m: large sets as arrays, see trace_pools.py)
    gpu_traces.py plan more  --models DIR --out DIR      (further honest sets of the same kind)
    gpu_traces.py plan unfiltered|hot --models DIR --out DIR   (the same deviations under other sampling settings)

A plan runs each condition in a process of its own, several at a time. A condition that fails does not stop the others:
it is named at the end and in `manifest.json`, and the exit status is 1. After `--deadline` seconds what still runs is
ended, and what is finished is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from process_runner import Runner
from trace_engine import WEIGHTS, Condition, run_condition, write_prompts
from trace_pools import bundle, load_prompts, load_set, save_prompts, save_set, write_jsonl

PAPER = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
PLAIN = {"temperature": 0.7}
UNFILTERED = {"temperature": 1.0}
HOT = {"temperature": 1.3}
MAX_TOKENS = 300


@dataclass(frozen=True)
class Plan:
    """Conditions that share one prompt file, and the seed all of their randomness comes from."""

    name: str
    model: str
    start: int
    conditions: tuple[Condition, ...]


def _laid_out(name: str, model: str, start: int, sets: list[dict[str, Any]], models: Path) -> Plan:
    """Give every set prompts of its own, one after the other. What a set does not name is honest and V1."""
    conditions, first = [], 0
    for entry in sets:
        options = {"claimed": PAPER, "runner": "v1", "model": model, **entry}
        options["model"] = models / options["model"]
        options["used"] = {**options["claimed"], **options.pop("change", {})}
        conditions.append(Condition(claimed_model=model, first=first, **options))
        first += options["count"]
    return Plan(name, model, start, tuple(conditions))


def demo_plan(models: Path) -> Plan:
    """What the packaged demo audits (40 sequences each), and the honest sets its calibration is made from."""
    sets: list[dict[str, Any]] = [
        {"name": "v1", "count": 40},
        {"name": "v2", "count": 40, "runner": "v2"},
        {"name": "int4", "count": 40, "weights": "int4"},
        {"name": "temp1.1", "count": 40, "runner": "v2", "change": {"temperature": 1.1}},
        {"name": "calibration.v1", "count": 120},
        {"name": "calibration.v2", "count": 120, "runner": "v2"},
    ]
    return _laid_out("demo", "tb7m", 1, sets, models)


def pools_plan(models: Path) -> Plan:
    """Large honest and deviating sets. Those named held.* are for judging only: nothing may be fitted on them."""
    deviating: list[dict[str, Any]] = [
        {"name": "int4", "weights": "int4"},
        {"name": "fp8", "weights": "fp8"},
        {"name": "kv_fp8", "kv_cache": "fp8"},
        {"name": "temp1.1", "change": {"temperature": 1.1}},
        {"name": "temp1.02", "change": {"temperature": 1.02}},
        {"name": "top_p0.85", "change": {"top_p": 0.85}},
        {"name": "held.int3", "weights": "int3"},
        {"name": "held.temp0.95", "change": {"temperature": 0.95}},
        {"name": "held.top_p0.9", "change": {"top_p": 0.9}},
        {"name": "held.tb7m", "model": "tb7m"},
        {"name": "held.int8", "weights": "int8"},
    ]
    sets: list[dict[str, Any]] = [
        {"name": "honest.v1", "count": 2400},
        {"name": "honest.v2", "count": 1200, "runner": "v2"},
        {"name": "honest.v2.plain", "count": 600, "runner": "v2", "claimed": PLAIN},
        *({**entry, "count": 1200} for entry in deviating),
    ]
    return _laid_out("pools", "tb24m", 2, sets, models)


def more_plan(models: Path) -> Plan:
    """Further honest sets: long batches, at least a thousand of them, take more sequences than `pools` has."""
    sets: list[dict[str, Any]] = [
        {"name": "more.v1", "count": 2700},
        {"name": "more.v2", "count": 2700, "runner": "v2"},
    ]
    return _laid_out("more", "tb24m", 3, sets, models)


def _setting(name: str, start: int, claimed: dict[str, Any], honest: int, count: int, models: Path) -> Plan:
    """The deviations of `pools` under another claim; so many sequences of each runner, and of each deviation."""
    warm = claimed["temperature"]
    deviating: list[dict[str, Any]] = [
        {"name": "int4", "weights": "int4"},
        {"name": "fp8", "weights": "fp8"},
        {"name": "kv_fp8", "kv_cache": "fp8"},
        {"name": "temp1.1", "change": {"temperature": round(1.1 * warm, 6)}},
        {"name": "top_p0.85", "change": {"top_p": 0.85}},
        {"name": "held.int3", "weights": "int3"},
        {"name": "held.temp0.95", "change": {"temperature": round(0.95 * warm, 6)}},
        {"name": "held.top_p0.9", "change": {"top_p": 0.9}},
        {"name": "held.int8", "weights": "int8"},
    ]
    sets: list[dict[str, Any]] = [
        {"name": "honest.v1", "count": honest},
        {"name": "honest.v2", "count": honest, "runner": "v2"},
        *({**entry, "count": count} for entry in deviating),
    ]
    return _laid_out(name, "tb24m", start, [{"claimed": claimed, **entry} for entry in sets], models)


def unfiltered_plan(models: Path) -> Plan:
    """Temperature 1 without filters, which engines use unless they are told otherwise; not kept in the repository."""
    return _setting("unfiltered", 4, UNFILTERED, 2700, 1000, models)


def hot_plan(models: Path) -> Plan:
    """A higher temperature, for requests that are made only to audit; not kept in the repository."""
    return _setting("hot", 5, HOT, 1400, 600, models)


PLANS = {"demo": demo_plan, "hot": hot_plan, "more": more_plan, "pools": pools_plan, "unfiltered": unfiltered_plan}


def shrunk(plan: Plan, *, count: int | None, only: list[str], runner: str | None) -> Plan:
    """A smaller plan: at most `count` sequences a set, only the sets named, and every set on one runner.

    Without `count` each set keeps the prompts it has in the whole plan, so that sets made later share none with others.
    """
    unknown = set(only) - {c.name for c in plan.conditions}
    if unknown:
        raise SystemExit(f"plan {plan.name} has no set {', '.join(sorted(unknown))}")
    conditions, first = [], 0
    for condition in plan.conditions:
        if only and condition.name not in only:
            continue
        size = min(condition.count, count or condition.count)
        begin = condition.first if count is None else first
        conditions.append(replace(condition, first=begin, count=size, runner=runner or condition.runner))
        first += size
    return replace(plan, conditions=tuple(conditions))


def command(condition: Condition, prompts: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """The command line that generates one condition into a set file."""
    values = {
        "name": condition.name,
        "model": condition.model,
        "claimed-model": condition.claimed_model,
        "runner": condition.runner,
        "weights": condition.weights,
        "kv-cache": condition.kv_cache,
        "claimed": json.dumps(condition.claimed),
        "used": json.dumps(condition.used),
        "first": condition.first,
        "count": condition.count,
        "prompts": prompts,
        "out": out,
        "max-tokens": options.max_tokens,
        "max-num-seqs": options.max_num_seqs,
    }
    flags = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return [sys.executable, __file__, "generate", "--compact", *flags]


def prompts_command(plan: Plan, out: Path, options: argparse.Namespace) -> list[str]:
    """The command line that writes the prompts of a plan. They are short: four times as many run at once."""
    values = {
        "model": options.models / plan.model,
        "count": max(c.first + c.count for c in plan.conditions),
        "start": plan.start,
        "out": out,
        "runner": options.runner or "v2",
        "max-num-seqs": 4 * options.max_num_seqs,
    }
    flags = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return [sys.executable, __file__, "prompts", *flags]


def run_plan(options: argparse.Namespace) -> int:
    """Make the prompts, run every condition, and write what is finished with a manifest; 1 if anything failed."""
    plan = shrunk(PLANS[options.plan](options.models), count=options.count, only=options.only, runner=options.runner)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-traces-") as scratch:
        work = Path(scratch)
        runner, prompts = Runner(work, options.deadline), out / "prompts.npz"
        total = sum(c.count for c in plan.conditions)
        runner.say(f"plan {plan.name}: {len(plan.conditions)} sets, {total} sequences of {options.max_tokens} tokens")
        if options.prompts:
            save_prompts(prompts, load_prompts(options.prompts))
        done: list[str] = []
        if options.prompts or runner.run({"prompts": prompts_command(plan, prompts, options)}, 1):
            commands = {c.name: command(c, prompts, work / f"{c.name}.npz", options) for c in plan.conditions}
            done = runner.run(commands, options.jobs)
        else:
            runner.failed.update({c.name: "not started: there are no prompts" for c in plan.conditions})
        files = _write_out(plan, done, work, out)
        _write_manifest(plan, runner.failed, work, done, files, out)
        runner.say(f"wrote {', '.join(f'{f.name} ({f.stat().st_size / 2**20:.2f} MiB)' for f in files) or 'nothing'}")
    for name, reason in runner.failed.items():
        runner.say(f"FAILED {name}: {reason}")
    runner.say(f"{len(done)} of {len(plan.conditions)} sets made")
    return 0 if len(done) == len(plan.conditions) else 1


def _write_out(plan: Plan, done: list[str], work: Path, out: Path) -> list[Path]:
    if plan.name == "demo":
        for name in done:
            write_jsonl(out / f"{name}.jsonl.gz", name, load_set(work / f"{name}.npz"))
        return [out / f"{name}.jsonl.gz" for name in done]
    return bundle([(name, work / f"{name}.npz") for name in done], out / plan.name)


def _write_manifest(
    plan: Plan, failed: dict[str, str], work: Path, done: list[str], files: list[Path], out: Path
) -> None:
    sets = {}
    for condition in plan.conditions:
        if condition.name in done:
            meta = load_set(work / f"{condition.name}.npz").meta
            sets[condition.name] = {"first": condition.first, "count": condition.count, **meta}
    manifest = {
        "plan": plan.name,
        "command": sys.argv[1:],
        "sets": sets,
        "failed": failed,
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def make_prompts(options: argparse.Namespace) -> int:
    """The subcommand `prompts`."""
    prompts = write_prompts(
        options.model,
        options.runner,
        count=options.count,
        start=options.start,
        shortest=options.shortest,
        longest=options.longest,
        max_num_seqs=options.max_num_seqs,
    )
    save_prompts(options.out, prompts)
    print(f"{len(prompts.prompts)} prompts, {sum(map(len, prompts.prompts))} tokens: {options.out}")
    return 0


def make_set(options: argparse.Namespace) -> int:
    """The subcommand `generate`."""
    claimed = json.loads(options.claimed)
    condition = Condition(
        name=options.name or options.out.name.partition(".")[0],
        model=options.model,
        claimed_model=options.claimed_model or options.model.name,
        runner=options.runner,
        claimed=claimed,
        used=json.loads(options.used) if options.used else claimed,
        first=options.first,
        count=options.count,
        weights=options.weights,
        kv_cache=options.kv_cache,
    )
    traces = run_condition(
        condition, load_prompts(options.prompts), max_tokens=options.max_tokens, max_num_seqs=options.max_num_seqs
    )
    if options.compact:
        save_set(options.out, traces)
    else:
        write_jsonl(options.out, condition.name, traces)
    print(f"{condition.name}: {condition.count} sequences, {traces.meta['seconds']} seconds: {options.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(required=True)
    prompts = verbs.add_parser("prompts", help="let a model write fresh prompts")
    generate = verbs.add_parser("generate", help="one condition")
    plan = verbs.add_parser("plan", help="all conditions of a plan")
    for verb, function in ((prompts, make_prompts), (generate, make_set), (plan, run_plan)):
        verb.set_defaults(function=function)
        verb.add_argument("--out", type=Path, required=True)
        verb.add_argument("--max-num-seqs", type=int, default=256, help="sequences the engine runs at once")
    for verb in (prompts, generate):
        verb.add_argument("--model", type=Path, required=True)
        verb.add_argument("--count", type=int, required=True)
        verb.add_argument("--runner", choices=("v1", "v2"), default="v1")
    prompts.add_argument("--start", type=int, default=0, help="what all randomness comes from")
    prompts.add_argument("--shortest", type=int, default=60)
    prompts.add_argument("--longest", type=int, default=150)
    generate.add_argument("--prompts", type=Path, required=True)
    generate.add_argument("--name", help="of the set (default: the output file's)")
    generate.add_argument("--claimed-model", help="(default: the model directory's name)")
    generate.add_argument("--weights", choices=WEIGHTS, default="bf16")
    generate.add_argument("--kv-cache", choices=("auto", "fp8"), default="auto")
    generate.add_argument("--claimed", default=json.dumps(PAPER), help="sampling settings, as JSON")
    generate.add_argument("--used", help="sampling settings really used (default: as claimed)")
    generate.add_argument("--first", type=int, default=0, help="number of the first prompt")
    generate.add_argument("--compact", action="store_true", help="write arrays (.npz) instead of trace lines")
    plan.add_argument("plan", choices=sorted(PLANS))
    plan.add_argument("--models", type=Path, required=True, help="directory that holds the model directories")
    plan.add_argument("--jobs", type=int, default=4, help="engines at a time on the GPU")
    plan.add_argument("--deadline", type=float, default=480.0, help="seconds after which no set is waited for")
    plan.add_argument("--count", type=int, help="at most so many sequences a set (dry run)")
    plan.add_argument("--only", action="append", default=[], metavar="SET", help="only this set (repeatable)")
    plan.add_argument("--prompts", type=Path, help="the prompts.npz of an earlier run, to make missing sets with")
    plan.add_argument("--runner", choices=("v1", "v2"), help="every set on this runner (dry run)")
    for verb in (generate, plan):
        verb.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="length of every output")
    return top


def main() -> int:
    """Run one subcommand."""
    options = parser().parse_args()
    return int(options.function(options))


if __name__ == "__main__":
    raise SystemExit(main())
