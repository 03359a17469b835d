"""How servers are asked for the log-probabilities of a prompt, and how their answers are read: two forms.

`prompt_logprobs` is vLLM's own field of ``/v1/completions``. `echo` is the older form of hosted APIs, ``echo`` with
``logprobs``; it names tokens by their text, which does not say which ids they are, so it serves only where the server
writes ids instead (``token_id:17``, as vLLM does if asked).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from veridifr.errors import ReferenceError
from veridifr.references.top_logprobs import TopLogprobs

_LEAST = -1e6
"""Lowest log-probability taken as a number; vLLM writes -9999 for minus infinity."""
_ABOVE = 1e-3
"""How far above 0 a log-probability, and the log of the listed mass, may be by rounding."""
_PREFIX = "token_id:"


@dataclass(frozen=True)
class Row:
    """One position: log-probabilities by token id, and the rank of the prompt's token (1 = likeliest) if stated."""

    logprobs: dict[int, float]
    rank: int | None


class Form(ABC):
    """One way to ask. Subclasses are final; they hold no state."""

    name: str
    generated: int
    """Tokens that the server has to draw beside the prompt: they count against its context."""

    @abstractmethod
    def body(self, ids: Sequence[int], count: int) -> dict[str, Any]:
        """The fields of a request for the `count` likeliest tokens at each position of `ids`."""

    @abstractmethod
    def rows(self, choice: Mapping[str, Any], ids: Sequence[int]) -> list[Row]:
        """What a choice of the response lists at each position of `ids` from the second on."""

    def read(self, choice: Mapping[str, Any], ids: Sequence[int], tokens: int, vocab_size: int) -> TopLogprobs:
        """The listing of the last `tokens` positions of `ids`. `ReferenceError` names the field that is wrong."""
        rows = self.rows(choice, ids)[-tokens:]
        first = len(ids) - tokens
        return _joined(
            [_checked(row, ids[first + i], vocab_size, f"{self.name}[{first + i}]") for i, row in enumerate(rows)]
        )


class PromptLogprobs(Form):
    """vLLM's ``prompt_logprobs``: for each position an object of token ids, with log-probability and rank."""

    name = "prompt_logprobs"
    generated = 1

    def body(self, ids: Sequence[int], count: int) -> dict[str, Any]:
        """See `Form.body`."""
        return {"prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": count}

    def rows(self, choice: Mapping[str, Any], ids: Sequence[int]) -> list[Row]:
        """See `Form.rows`."""
        found = _list(choice.get("prompt_logprobs"), "prompt_logprobs", len(ids))
        return [self._row(found[i], ids[i], f"prompt_logprobs[{i}]") for i in range(1, len(ids))]

    @staticmethod
    def _row(entry: object, own: int, where: str) -> Row:
        logprobs, rank = {}, None
        for key, value in _object(entry, where).items():
            token = _id(key, where)
            fields = _object(value, f"{where}.{token}")
            logprobs[token] = _logprob(fields.get("logprob"), f"{where}.{token}.logprob")
            stated = fields.get("rank")
            if token == own and stated is not None:
                rank = _rank(stated, f"{where}.{token}.rank")
        return Row(logprobs, rank)


class Echo(Form):
    """``echo`` with ``logprobs``: lists of tokens, their log-probabilities, and objects of the likeliest ones."""

    name = "echo"
    generated = 0

    def body(self, ids: Sequence[int], count: int) -> dict[str, Any]:
        """See `Form.body`."""
        return {
            "prompt": list(ids),
            "max_tokens": 0,
            "temperature": 0.0,
            "echo": True,
            "logprobs": count,
            "return_tokens_as_token_ids": True,
        }

    def rows(self, choice: Mapping[str, Any], ids: Sequence[int]) -> list[Row]:
        """See `Form.rows`."""
        found = _object(choice.get("logprobs"), "logprobs")
        names, own, top = (
            _list(found.get(name), f"logprobs.{name}", len(ids))
            for name in ("tokens", "token_logprobs", "top_logprobs")
        )
        rows = []
        for i in range(1, len(ids)):
            if _named_id(names[i], f"logprobs.tokens[{i}]") != ids[i]:
                raise ReferenceError(f"logprobs.tokens[{i}]: got {names[i]}, and {ids[i]} was sent")
            where = f"logprobs.top_logprobs[{i}]"
            listed = {
                _named_id(key, where): _logprob(value, f"{where}.{key}")
                for key, value in _object(top[i], where).items()
            }
            listed[ids[i]] = _logprob(own[i], f"logprobs.token_logprobs[{i}]")
            rows.append(Row(listed, None))
        return rows


FORMS: tuple[Form, ...] = (PromptLogprobs(), Echo())
"""In the order in which they are tried: the first one also states ranks."""


def _checked(row: Row, own: int, vocab_size: int, where: str) -> Row:
    if own not in row.logprobs:
        raise ReferenceError(f"{where}: does not list {own}, the token that was sent")
    if not 2 <= len(row.logprobs) <= vocab_size:
        raise ReferenceError(f"{where}: lists {len(row.logprobs)} tokens, expected 2 to {vocab_size}")
    if max(row.logprobs) >= vocab_size:
        raise ReferenceError(f"{where}: token id {max(row.logprobs)} is outside the vocabulary of {vocab_size}")
    if math.fsum(map(math.exp, row.logprobs.values())) > math.exp(_ABOVE):
        raise ReferenceError(
            f"{where}: the listed probabilities add up to more than 1; are they raw log-probabilities?"
        )
    return row


def _joined(rows: Sequence[Row]) -> TopLogprobs:
    pairs = [sorted(row.logprobs.items()) for row in rows]
    stated = [row.rank for row in rows if row.rank is not None]
    return TopLogprobs(
        counts_T=np.array([len(row) for row in pairs], dtype=np.int64),
        ids_N=np.array([token for row in pairs for token, _ in row], dtype=np.int32),
        logprobs_N=np.array([value for row in pairs for _, value in row], dtype=np.float64),
        rank_T=np.array(stated, dtype=np.int64) - 1 if len(stated) == len(rows) else None,
    )


def _list(value: object, where: str, length: int) -> list[Any]:
    if not isinstance(value, list):
        raise ReferenceError(f"{where}: got {_kind(value)}, expected a list")
    if len(value) != length:
        raise ReferenceError(f"{where}: got {len(value)} entries for {length} tokens")
    return value


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReferenceError(f"{where}: got {_kind(value)}, expected an object")
    return value


def _id(key: str, where: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise ReferenceError(f"{where}: got {key[:40]!a}, expected a token id")
    return int(key)


def _named_id(name: object, where: str) -> int:
    if not isinstance(name, str) or not name.startswith(_PREFIX):
        shown = ascii(name[:40]) if isinstance(name, str) else _kind(name)
        raise ReferenceError(
            f"{where}: got {shown}: the server names tokens by their text, and which ids they are cannot be known; "
            f"it would have to write {_PREFIX}N (return_tokens_as_token_ids)"
        )
    return _id(name.removeprefix(_PREFIX), where)


def _logprob(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _LEAST <= value <= _ABOVE:
        shown = value if isinstance(value, int | float) else _kind(value)
        raise ReferenceError(
            f"{where}: got {shown!s:.40}, expected a log-probability of at most 0 (vLLM: --logprobs-mode raw_logprobs)"
        )
    return min(float(value), 0.0)


def _rank(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= 2**31:
        raise ReferenceError(f"{where}: got {value!r:.40}, expected a whole number of at least 1")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
