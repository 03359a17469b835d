"""The command `veridifr serve-flags`: what a provider adds to its command line and environment."""

from __future__ import annotations

import argparse
import json
import shlex


def run(given: argparse.Namespace) -> int:
    """Print the flags; the exit status."""
    from veridifr.vllm.flags import ENTRY, installed, serve_flags
    from veridifr.vllm.serve_arguments import options_of

    name, version = ("vllm", given.vllm_version) if given.vllm_version else installed()
    flags = serve_flags(name, version, options_of(given))
    if given.json_output:
        found = {"vllm": flags.version, "environment": dict(flags.environment), "arguments": list(flags.arguments)}
        print(json.dumps(found, indent=2))
        return 0
    print(f"# {flags.distribution} {flags.version}")
    for variable, value in flags.environment.items():
        print(f"export {variable}={shlex.quote(value)}")
    print(f"python -m {ENTRY} --model MODEL {shlex.join(flags.arguments)}")
    return 0
