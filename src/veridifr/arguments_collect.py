"""The options of `veridifr collect`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NoReturn


def add(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("--base-url", required=True, metavar="URL", help="of the API, e.g. https://HOST/v1")
    command.add_argument("--model", required=True, metavar="NAME", help="the model to ask for")
    command.add_argument(
        "--prompts", default="default", metavar="P", help="JSON lines of prompts; default: those of the package"
    )
    command.add_argument("--out", required=True, type=Path, metavar="TRACES", help="trace file to write")
    command.add_argument("--chat", action="store_true", help="send each text prompt as a user's message")
    _key(command)
    _sampling(command)
    _server(command)
    _limits(command)
    command.add_argument(
        "--seed-secret-file", type=Path, metavar="F", help="from `veridifr seeds new-secret`; default: a new one"
    )
    command.add_argument("--audit-id", metavar="A", help="a name for the audit, new for each (default: OUT's)")
    command.add_argument("--json", type=Path, metavar="OUT", help="write what came of it as JSON")
    command.add_argument("--quiet", action="store_true", help="no progress bar, no text on standard output")


def _key(command: argparse.ArgumentParser) -> None:
    keys = command.add_mutually_exclusive_group()
    keys.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the key")
    keys.add_argument("--api-key-file", type=Path, metavar="FILE", help="file that holds the key and nothing else")
    keys.add_argument("--api-key", type=_no_key, metavar="", help=argparse.SUPPRESS)


def _sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--temperature", type=_number, metavar="T", help="default 1; 0 is greedy")
    command.add_argument("--top-p", type=_number, metavar="P", help="default: off")
    command.add_argument("--top-k", type=_count, metavar="K", help="default: off")
    command.add_argument("--max-tokens", type=_count, metavar="N", help="of each output (default 256)")
    command.add_argument("--sampling", metavar="JSON", help="further settings of the trace format (JSON, or @FILE)")


def _server(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engine", metavar="JSON", help="what the provider says it runs (JSON, or @FILE); default: unknown"
    )
    command.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="the model's tokenizer, for servers that return no token ids"
    )
    command.add_argument(
        "--send",
        choices=("ids", "text"),
        default="ids",
        help="with --tokenizer: prompts as token ids (default), or as they are",
    )
    command.add_argument(
        "--dialect",
        choices=("vllm", "openai"),
        default="vllm",
        help="vllm (default) asks for token ids and may set all settings; openai has only what that API has",
    )
    command.add_argument("--logprobs", action="store_true", help="ask for log-probabilities, whose strings give ids")
    command.add_argument("--stream", action="store_true", help="have answers streamed")
    command.add_argument(
        "--also-named", action="append", default=[], metavar="NAME", help="another name of the model in answers"
    )


def _limits(command: argparse.ArgumentParser) -> None:
    command.add_argument("--concurrency", type=_count, default=8, metavar="N", help="requests at a time (default 8)")
    command.add_argument("--attempts", type=_count, default=8, metavar="N", help="at each request (default 8)")
    command.add_argument(
        "--timeout", type=_number, default=300.0, metavar="S", help="seconds for one answer (default 300)"
    )
    command.add_argument(
        "--first-wait", type=_number, default=1.0, metavar="S", help="seconds after a failure, then doubled (default 1)"
    )
    command.add_argument("--budget-tokens", type=_count, metavar="N", help="most tokens, of prompts and outputs")
    command.add_argument("--budget-money", type=_number, metavar="M", help="most money; needs both prices")
    command.add_argument("--price-prompt", type=_number, metavar="M", help="for a million prompt tokens")
    command.add_argument("--price-output", type=_number, metavar="M", help="for a million output tokens")
    command.add_argument("--currency", default="USD", metavar="C", help="of the prices, for reports (default USD)")


def _no_key(_: str) -> NoReturn:
    raise argparse.ArgumentTypeError("a key is never taken from the command line: use --api-key-env or --api-key-file")


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,14}", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e12:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of at least 0")
    return value
