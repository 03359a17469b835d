"""The settings that act on single logits before the temperature: masks, bias and penalties, in an engine's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import IndexArray, Stage
from veridifr.errors import UnsupportedError
from veridifr.trace import IntArray, Sampling

Logits = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


def needs_processing(sampling: Sampling) -> bool:
    """Whether any setting changes single logits before the temperature."""
    return bool(
        sampling.logit_bias
        or sampling.allowed_token_ids is not None
        or sampling.bad_words_token_ids
        or sampling.min_tokens is not None
        or sampling.repetition_penalty is not None
        or sampling.frequency_penalty is not None
        or sampling.presence_penalty is not None
    )


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """N (row, token id) pairs of one sequence, and its history."""

    sampling: Sampling
    prompt_ids: IntArray
    output_ids: IntArray
    steps_R: IndexArray
    rows_N: IndexArray
    ids_N: IndexArray
    stop_ids: tuple[int, ...]

    def seen_before(self) -> IndexArray:
        """How often each pair's token stands in the output before its step, int64[N]."""
        span = len(self.output_ids) + 1
        keys = np.sort(self.output_ids.astype(np.int64) * span + np.arange(span - 1))
        start = self.ids_N * span
        steps = np.minimum(self.steps_R[self.rows_N], span - 1)
        return np.searchsorted(keys, start + steps) - np.searchsorted(keys, start)


def process(  # noqa: PLR0913 (one sequence, its pairs and their logits: bundling them would only move the list)
    contract_order: Iterable[Stage],
    sampling: Sampling,
    prompt_ids: IntArray,
    output_ids: IntArray,
    steps_R: IndexArray,
    rows_N: IndexArray,
    ids_N: IndexArray,
    logits_N: Logits,
    eos_ids: Iterable[int],
) -> Logits:
    """Candidate logits as the engine sees them when it divides by the temperature, in the dtype of `logits_N`, [N].

    Pair n is token `ids_N[n]` at output step `steps_R[rows_N[n]]`, whose history is the prompt and the outputs before
    that step. A token that is not allowed gets minus infinity. Without any such setting `logits_N` itself is returned.
    `contract_order` is `Contract.order`; a setting that it lacks raises `UnsupportedError`, naming it. Candidates that
    a bias raises must be among the pairs: this function adds none.
    """
    if not needs_processing(sampling):
        return logits_N
    order = tuple(contract_order)
    _refuse_unlisted(order, sampling)
    pairs = _Pairs(
        sampling=sampling,
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        steps_R=np.asarray(steps_R, dtype=np.int64),
        rows_N=np.asarray(rows_N, dtype=np.int64),
        ids_N=np.asarray(ids_N, dtype=np.int64),
        stop_ids=(*eos_ids, *sampling.stop_token_ids),
    )
    logits = logits_N.copy()
    for stage in order:
        if stage in _STAGES and _is_on(stage, sampling):
            _STAGES[stage](pairs, logits)
    return logits


def _setting_of(stage: Stage) -> str:
    return "bad_words_token_ids" if stage == "bad_words" else stage


def _is_on(stage: Stage, sampling: Sampling) -> bool:
    return getattr(sampling, _setting_of(stage)) not in (None, (), {})


def _refuse_unlisted(order: tuple[Stage, ...], sampling: Sampling) -> None:
    for stage in _STAGES:
        if stage not in order and _is_on(stage, sampling):
            raise UnsupportedError(f"sampling.{_setting_of(stage)}", "the contract's engine has no such stage")


def _mask(logits: Logits, where: BoolArray) -> None:
    logits[where] = -np.inf


def _allowed(pairs: _Pairs, logits: Logits) -> None:
    _mask(logits, ~np.isin(pairs.ids_N, np.array(pairs.sampling.allowed_token_ids, dtype=np.int64)))


def _bad_words(pairs: _Pairs, logits: Logits) -> None:
    """Bans the last token of a word where the outputs so far end with the rest of it (the prompt does not count)."""
    for word in pairs.sampling.bad_words_token_ids:
        prefix = np.array(word[:-1], dtype=np.int64)
        starts = pairs.steps_R - len(prefix)
        complete_R = (starts >= 0) & (pairs.steps_R <= len(pairs.output_ids))
        for offset, token in enumerate(prefix):
            index = np.where(complete_R, starts + offset, 0)
            complete_R &= pairs.output_ids[index] == token if len(pairs.output_ids) else False
        _mask(logits, complete_R[pairs.rows_N] & (pairs.ids_N == word[-1]))


def _min_tokens(pairs: _Pairs, logits: Logits) -> None:
    early_R = pairs.steps_R < (pairs.sampling.min_tokens or 0)
    _mask(logits, early_R[pairs.rows_N] & np.isin(pairs.ids_N, np.array(pairs.stop_ids, dtype=np.int64)))


def _logit_bias(pairs: _Pairs, logits: Logits) -> None:
    bias = sorted(pairs.sampling.logit_bias.items())
    ids = np.array([token for token, _ in bias], dtype=np.int64)
    values = np.array([value for _, value in bias], dtype=logits.dtype)
    index = np.minimum(np.searchsorted(ids, pairs.ids_N), len(ids) - 1)
    logits += np.where(ids[index] == pairs.ids_N, values[index], values.dtype.type(0))


def _repetition(pairs: _Pairs, logits: Logits) -> None:
    """Over prompt and output: a positive logit is divided by the penalty, another multiplied."""
    penalty = logits.dtype.type(pairs.sampling.repetition_penalty or 1.0)
    seen = (pairs.seen_before() > 0) | np.isin(pairs.ids_N, pairs.prompt_ids)
    np.divide(logits, penalty, out=logits, where=seen & (logits > 0))
    np.multiply(logits, penalty, out=logits, where=seen & (logits <= 0))


def _frequency(pairs: _Pairs, logits: Logits) -> None:
    """Output only: the penalty times the number of occurrences is subtracted."""
    logits -= logits.dtype.type(pairs.sampling.frequency_penalty or 0.0) * pairs.seen_before().astype(logits.dtype)


def _presence(pairs: _Pairs, logits: Logits) -> None:
    """Output only: the penalty is subtracted once."""
    logits -= logits.dtype.type(pairs.sampling.presence_penalty or 0.0) * (pairs.seen_before() > 0)


_STAGES: dict[Stage, Callable[[_Pairs, Logits], None]] = {
    "allowed_token_ids": _allowed,
    "bad_words": _bad_words,
    "min_tokens": _min_tokens,
    "logit_bias": _logit_bias,
    "repetition_penalty": _repetition,
    "frequency_penalty": _frequency,
    "presence_penalty": _presence,
}
