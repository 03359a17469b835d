"""``python -m veridifr``."""

from __future__ import annotations

import sys

from veridifr.cli import main

sys.exit(main())
