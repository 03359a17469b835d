"""What may be spent: reserved at its worst before a request is sent, settled when its fate is known."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

from veridifr.errors import InputError
from veridifr.trace import check_int, check_number, check_text

_MILLION = 1_000_000
_CURRENCY = 16


class Use(NamedTuple):
    """Tokens of prompts and of outputs."""

    prompt: int = 0
    output: int = 0

    def plus(self, other: Use) -> Use:
        return Use(self.prompt + other.prompt, self.output + other.output)

    def minus(self, other: Use) -> Use:
        return Use(self.prompt - other.prompt, self.output - other.output)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that may be spent, in tokens and in money; None for no limit.

    Prices are for a million tokens each, in `currency` (1 to 16 characters), which is only a name.
    """

    tokens: int | None = None
    money: float | None = None
    price_prompt: float | None = None
    price_output: float | None = None
    currency: str = "USD"

    def __post_init__(self) -> None:
        if self.tokens is not None:
            check_int("budget.tokens", self.tokens, 1, 10**15)
        for name in ("money", "price_prompt", "price_output"):
            if getattr(self, name) is not None:
                check_number(f"budget.{name}", getattr(self, name), 0.0, 1e12)
        if not 0 < len(check_text("budget.currency", self.currency)) <= _CURRENCY:
            raise InputError(f"budget.currency: got {self.currency[:40]!a}, expected 1 to {_CURRENCY} characters")
        if (self.price_prompt is None) != (self.price_output is None):
            raise InputError("budget: got one price, expected those of prompt and output tokens, or none")
        if self.money is not None and self.price_prompt is None:
            raise InputError("budget.money: needs the prices of prompt and output tokens")

    def cost(self, use: Use) -> float | None:
        """What `use` costs, None without prices."""
        if self.price_prompt is None or self.price_output is None:
            return None
        return (use.prompt * self.price_prompt + use.output * self.price_output) / _MILLION

    def covers(self, use: Use) -> bool:
        """Whether `use` in all is within the budget."""
        cost = self.cost(use)
        return (self.tokens is None or sum(use) <= self.tokens) and (
            self.money is None or cost is None or cost <= self.money
        )


class Purse:
    """What is spent and what is reserved of a budget. `spent` and `reserved` together never pass it, unless what an
    earlier run spent already had."""

    def __init__(self, budget: Budget, spent: Use) -> None:
        self.budget = budget
        self.spent = spent
        self.reserved = Use()
        self._open = 0
        self._settled = asyncio.Condition()

    async def reserve(self, worst: Use) -> bool:
        """Set `worst` aside. Waits for open requests where only their reserves are in the way; False: can't be had."""
        async with self._settled:
            while not self.budget.covers(self.spent.plus(self.reserved).plus(worst)):
                if not self._open:
                    return False
                await self._settled.wait()
            self.reserved = self.reserved.plus(worst)
            self._open += 1
            return True

    async def settle(self, worst: Use, charged: Use) -> None:
        """Give `worst` back and spend `charged`, which is at most that."""
        async with self._settled:
            self.reserved = self.reserved.minus(worst)
            self.spent = self.spent.plus(charged)
            self._open -= 1
            self._settled.notify_all()


def charge(worst: Use, claimed: Use | None, counted: int) -> Use:
    """What an answer is charged: what the server claims, at least the `counted` output tokens that it returned, and
    never above the reserve. Without a claim, the whole reserve."""
    if claimed is None:
        return worst
    return Use(min(claimed.prompt, worst.prompt), min(max(claimed.output, counted), worst.output))
