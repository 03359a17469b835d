"""A trusted server as the reference: it is sent the claimed tokens and returns what it thinks of each.

It returns only the likeliest tokens of a position, so settings that keep few tokens are decided exactly, and a token
that an unlisted one could have beaten is a bound. Which weights the server runs is its own word: the digest that a
calibration is tied to names the model, not the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, cast

import numpy as np

from veridifr.contracts.common import PROCESSING, is_set
from veridifr.errors import ReferenceError
from veridifr.evidence import Evidence
from veridifr.references import Reference, ReferenceSettings
from veridifr.references.http_server import Server, read_key
from veridifr.references.logprob_forms import FORMS, Form
from veridifr.references.model_files import read_model_files
from veridifr.references.top_logprobs import evidence_from
from veridifr.trace import MAX_TEXT, MAX_TOKEN_ID, Trace

_IN_FLIGHT = 8
"""Requests that wait for an answer at a time."""
_PROBE = (0, 1, 2, 3)
"""Token ids sent to see in which form the server answers: every vocabulary has them."""


class HttpReference(Reference):
    """A model behind an OpenAI-compatible ``/v1/completions`` that returns log-probabilities of prompts, with ids."""

    def __init__(self, url: str, settings: ReferenceSettings) -> None:
        if settings.model_files is None:
            raise ReferenceError(
                f"reference {url}: needs the folder with the model's config.json and tokenizer.json (--model-files): "
                "a server does not say how large its vocabulary is"
            )
        for name in ("dtype", "device", "threads", "revision"):
            if getattr(settings, name) is not None:
                raise ReferenceError(f"reference {url}: --{name} is the server's own; start the server with it")
        self._count = settings.top_logprobs
        if self._count < 2:
            raise ReferenceError(f"reference {url}: top_logprobs: got {self._count}, expected at least 2")
        self._files = read_model_files(settings.model_files)
        self._server = Server(url, read_key(settings.key_file))
        self.name = url
        self.vocab_size = self._files.vocab_size
        self.eos_ids = self._files.eos_ids
        self._model, root, self._longest = self._served(settings.served_model)
        self._form = self._find_form()
        stated = {"model": self._model, "root": root, "config": self._files.config_digest}
        identity = json.dumps(stated, sort_keys=True).encode()
        self.weights_digest = hashlib.sha256(b"veridifr http reference 1\0" + identity).hexdigest()
        self.settings = {
            "served_model": self._model,
            "served_root": root,
            "weights": "as the server names them; not checked",
            "form": self._form.name,
            "top_logprobs": self._count,
            "vocab_size": self.vocab_size,
        }

    def refuse(self, trace: Trace) -> str | None:
        """See `Reference.refuse`."""
        if (why := self._not_of_this_model(trace)) is not None:
            return why
        if (setting := next((name for name in PROCESSING if is_set(trace.sampling, name)), None)) is not None:
            return f"sampling.{setting}: needs whole rows of logits, and {self.name} lists {self._count} tokens"
        length = len(trace.prompt_token_ids) + len(trace.output_token_ids) + self._form.generated
        if self._longest is not None and length > self._longest:
            return f"{length} tokens, with what the server has to draw, are more than its {self._longest}"
        return None

    def decode(self, ids: Sequence[int]) -> str | None:
        """See `Reference.decode`."""
        if self._files.tokenizer is None:
            return None
        return cast(str, self._files.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def encode(self, text: str) -> list[int] | None:
        """See `Reference.encode`."""
        if self._files.tokenizer is None:
            return None
        return [int(token) for token in self._files.tokenizer.encode(text, add_special_tokens=False).ids]

    def evidence(self, traces: Sequence[Trace]) -> Iterator[Evidence]:
        """See `Reference.evidence`. Several requests are in flight at a time."""
        waiting = iter(traces)
        pool = ThreadPoolExecutor(_IN_FLIGHT)
        flying: set[Future[Evidence]] = set()
        try:
            while True:
                for trace in waiting:
                    flying.add(pool.submit(self._one, trace))
                    if len(flying) == _IN_FLIGHT:
                        break
                if not flying:
                    return
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, trace: Trace) -> Evidence:
        ids = np.concatenate([trace.prompt_token_ids, trace.output_token_ids]).tolist()
        try:
            top = self._form.read(self._ask(self._form, ids), ids, len(trace.output_token_ids), self.vocab_size)
        except ReferenceError as error:
            raise ReferenceError(f"sequence {trace.id!r}: {error}") from error
        return evidence_from(trace, self.vocab_size, top)

    def _ask(self, form: Form, ids: Sequence[int]) -> dict[str, Any]:
        """The one choice that the server returns for `ids`."""
        answer = self._server.post("completions", {"model": self._model, **form.body(ids, self._count)})
        if answer.get("model") != self._model:
            raise ReferenceError(
                f"reference {self.name}: {self._model} was asked, and {_shown(answer.get('model'))} answers"
            )
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise ReferenceError(f"reference {self.name}: choices: expected a list of one object")
        return choices[0]

    def _served(self, wanted: str | None) -> tuple[str, str | None, int | None]:
        """Name, root and longest context of the model, as the server's list of models states them."""
        found = self._server.get("models").get("data")
        if not isinstance(found, list) or not all(isinstance(card, dict) for card in found):
            raise ReferenceError(f"reference {self.name}: models: data: expected a list of objects")
        cards = [card for card in found if wanted is None or card.get("id") == wanted]
        if len(cards) != 1:
            names = ", ".join(_shown(card.get("id")) for card in found[:5])
            what = "no such model" if cards == [] and wanted is not None else f"{len(cards)} models"
            raise ReferenceError(
                f"reference {self.name}: {what} among {len(found)} ({names}); name one with --served-model"
            )
        name, root, longest = (cards[0].get(key) for key in ("id", "root", "max_model_len"))
        for key, text in (("id", name), ("root", root or "")):
            if not isinstance(text, str) or len(text) > MAX_TEXT or not text.isprintable():
                raise ReferenceError(f"reference {self.name}: models: {key}: got {_shown(text)}, expected a short text")
        if longest is not None and (type(longest) is not int or not 1 <= longest <= MAX_TOKEN_ID):
            raise ReferenceError(f"reference {self.name}: models: max_model_len: got {longest!r:.40}")
        return name, root, longest

    def _find_form(self) -> Form:
        """The first form in which the server answers with token ids."""
        ids, refusals = [token for token in _PROBE if token < self.vocab_size], []
        for form in FORMS:
            try:
                form.read(self._ask(form, ids), ids, len(ids) - 1, self.vocab_size)
            except ReferenceError as error:
                refusals.append(f"{form.name}: {str(error).removeprefix(f'reference {self.name}')}")
            else:
                return form
        raise ReferenceError(
            f"reference {self.name}: does not return {self._count} log-probabilities of a prompt with token ids ("
            + "; ".join(refusals)
            + ")"
        )


def _shown(value: object) -> str:
    return ascii(value)[:60] if isinstance(value, str) else type(value).__name__
