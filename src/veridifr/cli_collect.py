"""The command `veridifr collect`: asks, and says what came of it. The key is read from where it is named."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import TYPE_CHECKING

from veridifr.errors import InputError
from veridifr.paths import check_writable

if TYPE_CHECKING:
    from veridifr.collecting import ApiKey, Collected
    from veridifr.trace import Sampling

_DONE, _OPEN = 0, 3
"""Exit statuses. 3: some requests got no answer, and the same command asks them again."""
_TOKENS = 256


def run(given: argparse.Namespace) -> int:
    """Collect and print what came of it."""
    from veridifr.collecting import Budget, Endpoint, Limits, collect
    from veridifr.collecting.collect import UNKNOWN_ENGINE
    from veridifr.traces import engine_from_dict
    from veridifr.traces.strict_json import json_argument

    check_writable(given.json)
    endpoint = Endpoint(
        base_url=given.base_url,
        model=given.model,
        key=_key(given),
        dialect=given.dialect,
        stream=given.stream,
        logprobs=given.logprobs,
        also_named=tuple(given.also_named),
        timeout=given.timeout,
    )
    engine = engine_from_dict(json_argument("--engine", given.engine)) if given.engine else UNKNOWN_ENGINE
    found = collect(
        given.out,
        endpoint,
        _sampling(given),
        prompts=given.prompts,
        budget=Budget(
            tokens=given.budget_tokens,
            money=given.budget_money,
            price_prompt=given.price_prompt,
            price_output=given.price_output,
            currency=given.currency,
        ),
        limits=Limits(concurrency=given.concurrency, attempts=given.attempts, first_wait=given.first_wait),
        engine=engine,
        tokenizer=given.tokenizer,
        send=given.send,
        chat=given.chat,
        secret_file=given.seed_secret_file,
        audit_id=given.audit_id,
        quiet=given.quiet,
    )
    if given.json is not None:
        given.json.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    if not given.quiet:
        print("\n".join([*lines(found), *_next(found, engine_known=engine != UNKNOWN_ENGINE)]))
    return _OPEN if found.unanswered else _DONE


def lines(found: Collected) -> list[str]:
    """What came of it, for a terminal."""
    cost = "" if found.cost is None else f", {found.cost:.4f} {found.currency}"
    text = [
        f"{found.traces}: {found.requests} sequences, {found.requests - sum(found.unscored.values())} of them "
        f"evidence; {sum(found.spent):,} tokens charged{cost}, {found.attempts} requests sent"
    ]
    text += [
        f"  {count} no evidence: {why}" for why, count in sorted(found.unscored.items(), key=lambda item: -item[1])[:10]
    ]
    if found.ambiguous:
        text.append(f"{found.ambiguous} were split from their text and may be split otherwise: no evidence either way")
    if found.paid_twice:
        text.append(
            f"{found.paid_twice} requests may have been paid for more than once, {found.paid_twice_killed} of them "
            "because a collector was killed"
        )
    if found.wrong_counts:
        text.append(f"{found.wrong_counts} answers state another number of output tokens than they returned")
    if found.unanswered:
        text.append(f"{found.unanswered} got no answer: the same command asks those that were not refused again")
    text.append(f"commitment to the seeds' secret: {found.commitment}")
    return text


def _next(found: Collected, *, engine_known: bool) -> list[str]:
    """What to do with the traces."""
    text = []
    if not engine_known:
        text.append(
            "no engine is on record, so an audit must find the sampler from the tokens; the same command with --engine "
            "puts it there and sends nothing again"
        )
    files = [str(path) for path in (found.traces, "--requests", found.asked, "--seed-secret-file", found.secret)]
    text.append(f"next: veridifr audit {shlex.join(files)} --reference R --calibration C")
    return text


def _key(given: argparse.Namespace) -> ApiKey | None:
    from veridifr.collecting import ApiKey

    if given.api_key_env is not None:
        return ApiKey.from_environment(given.api_key_env)
    return None if given.api_key_file is None else ApiKey.from_file(given.api_key_file)


def _sampling(given: argparse.Namespace) -> Sampling:
    """The settings of --sampling, with those that have an option of their own."""
    from veridifr.traces import sampling_from_dict
    from veridifr.traces.strict_json import json_argument

    stated = json_argument("--sampling", given.sampling) if given.sampling else {}
    if not isinstance(stated, dict):
        raise InputError("--sampling: expected a JSON object")
    for name in ("temperature", "top_p", "top_k", "max_tokens"):
        value = getattr(given, name)
        if value is not None and name in stated:
            raise InputError(f"--sampling: {name} is given twice")
        if value is not None:
            stated[name] = value
    return sampling_from_dict({"temperature": 1.0, "max_tokens": _TOKENS, **stated})
