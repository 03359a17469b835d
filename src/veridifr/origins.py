"""Keys of a trace that say where its token ids are from, why some sequences cannot be scored, and what one cost.

They are written by the collector, from what a server returned (docs/trace-format.md is the norm).
"""

from __future__ import annotations

from collections.abc import Mapping

from veridifr.trace import UNSCORED, Trace

TOKEN_IDS_FROM = "token_ids_from"
RETOKENIZATION = "retokenization"
SERVER, TOKEN_STRINGS, TEXT = "server", "token_strings", "text"
ORIGINS = (SERVER, TOKEN_STRINGS, TEXT)
COST = "cost"
"""An object with `currency` and `amount`: what the request cost, at most."""


def from_text(trace: Trace) -> bool:
    """Whether the output's ids were made by tokenizing its text again."""
    return trace.extra.get(TOKEN_IDS_FROM) == TEXT


def server_count(trace: Trace) -> int | None:
    """How many output tokens the server counted, None where the trace does not say."""
    stated = trace.extra.get(RETOKENIZATION)
    count = stated.get("server_count") if isinstance(stated, Mapping) else None
    return count if type(count) is int and count >= 0 else None


def why_unscored(trace: Trace) -> str | None:
    """Why a sequence is no evidence, by its own keys; None if nothing speaks against it.

    Ids made from text are taken only where their number is the one that the server counted: anything else is what
    another split of the same text looks like, and that must not pass for another model.
    """
    stated = trace.extra.get(UNSCORED)
    if stated is not None:
        return stated if isinstance(stated, str) and stated else f"{UNSCORED}: the trace says so"
    origin = trace.extra.get(TOKEN_IDS_FROM)
    if origin is not None and origin not in ORIGINS:
        return f"{TOKEN_IDS_FROM}: got {str(origin)[:40]!a}, expected one of {', '.join(ORIGINS)}"
    if origin != TEXT:
        return None
    counted, own = server_count(trace), len(trace.output_token_ids)
    if counted is None:
        return f"{RETOKENIZATION}.server_count: not known, so ids made from the text may not be those sampled"
    if counted != own:
        return f"{RETOKENIZATION}: the text gives {own} token ids and the server counted {counted}"
    return None
