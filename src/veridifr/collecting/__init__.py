"""Asking an OpenAI-compatible server for the sequences of an audit, and keeping each exactly once.

Nothing is sent before a line on disk says that it will be: after a kill the same command goes on, and what may have
been paid for in vain is counted. See `collect`, and docs/collecting.md for what is kept where.
"""

from __future__ import annotations

from veridifr.collecting.budget import Budget
from veridifr.collecting.collect import Collected, collect
from veridifr.collecting.endpoint import ApiKey, Endpoint
from veridifr.collecting.prompts import Prompt, default_prompts, read_prompts
from veridifr.collecting.running import Limits

__all__ = [
    "ApiKey",
    "Budget",
    "Collected",
    "Endpoint",
    "Limits",
    "Prompt",
    "collect",
    "default_prompts",
    "read_prompts",
]
