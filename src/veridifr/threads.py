"""How many threads a computation may use: one where several of its kind already run side by side."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

_here = threading.local()


def threads(most: int) -> int:
    """The number of threads to use here, at most `most`: no more than there are processors, and one within `pool`."""
    return 1 if getattr(_here, "within", False) else max(1, min(most, os.cpu_count() or 1))


def pool(count: int) -> ThreadPoolExecutor:
    """An executor of `count` threads in which `threads` gives one."""
    return ThreadPoolExecutor(count, initializer=_enter)


def _enter() -> None:
    _here.within = True
