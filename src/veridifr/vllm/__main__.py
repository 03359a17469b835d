"""``python -m veridifr.vllm serve MODEL``: vLLM's OpenAI-compatible server with capture switched on.

python -m veridifr.vllm serve MODEL --fingerprint-seed 7 [--fingerprints SPEC.json] [vLLM's own options]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from veridifr.errors import VeridifrError
from veridifr.vllm.flags import ENTRY, installed, serve_flags
from veridifr.vllm.serve_arguments import parse_serve


def command(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line that serves, and its environment variables beside the present ones."""
    model, options, rest = parse_serve(arguments)
    flags = serve_flags(*installed(), options)
    return [sys.executable, "-m", ENTRY, "--model", model, *flags.arguments, *rest], dict(flags.environment)


def main() -> int:
    """Become the server; an exit status only where that is not possible."""
    try:
        line, environment = command(sys.argv[1:])
    except VeridifrError as error:
        print(f"veridifr: {error}", file=sys.stderr)  # noqa: T201
        return 2
    os.execve(line[0], line, {**os.environ, **environment})


if __name__ == "__main__":
    sys.exit(main())
