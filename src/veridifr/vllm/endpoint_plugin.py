"""vLLM's endpoint plugin (from 0.26), entry point ``veridifr`` of the group ``vllm.endpoint_plugins``.

vLLM loads it only where ``VLLM_PLUGINS`` names it, and it acts only in an engine started with the worker extension.
"""

from __future__ import annotations

from typing import Any

from veridifr.vllm.middleware import Middleware
from veridifr.vllm.service import start


class EndpointPlugin:
    """What vLLM asks of an endpoint plugin (vllm/plugins/endpoint_plugins/interface.py)."""

    name = "veridifr"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Called while the server's application is built."""
        app.add_middleware(Middleware)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Called once the engine runs. What it refuses keeps the server from starting, with the reason."""
        await start(engine_client, state, args)
