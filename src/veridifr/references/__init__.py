"""Someone we trust, asked to replay: a reference turns traces into evidence.

`load` understands ``hf:PATH`` (a transformers model on this machine), ``vllm:PATH`` (a vLLM engine on this machine),
``http://HOST/v1`` and ``https://HOST/v1`` (a trusted server that returns log-probabilities of prompts) and
``evidence:FILE`` (replayed from disk).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from veridifr.errors import ReferenceError
from veridifr.evidence import LIST_BYTES, TAIL_MASS, Evidence
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.trace import Trace

_T = TypeVar("_T")

TOP_LOGPROBS = 20
"""Default number of tokens that a server lists: the most that vLLM allows unless it is told otherwise."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """How a reference runs. `dtype` None means float32 on a CPU (quieter and faster there) and the model's own on a
    GPU. `logit_elements` bounds the logits held at once (rows times vocabulary).

    The fields from `model_files` on are for servers: the folder with the model's config.json and tokenizer.json, the
    name of the model if the server has several, how many tokens it shall list at each position (vLLM allows 20 unless
    started with ``--max-logprobs``), and a file with its key (default: the variable VERIDIFR_REFERENCE_KEY).
    """

    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    revision: str | None = None
    tail_mass: float = TAIL_MASS
    list_bytes: int = LIST_BYTES
    logit_elements: int = 2**22
    batch_tokens: int | None = None
    model_files: Path | None = None
    served_model: str | None = None
    top_logprobs: int = TOP_LOGPROBS
    key_file: Path | None = None


class Reference(ABC):
    """A trusted copy of the model. Subclasses are final."""

    name: str
    """As the user spelled it, for reports."""
    vocab_size: int
    weights_digest: str
    """SHA-256 (hex) of the weights and the model config; of a server, of what it says about itself."""
    eos_ids: tuple[int, ...]
    settings: Mapping[str, str | int | float | bool | None]

    @abstractmethod
    def evidence(self, traces: Sequence[Trace]) -> Iterator[Evidence]:
        """Evidence for each trace, in any order, as soon as it is known. Only for traces that `refuse` lets pass."""

    def map(self, traces: Sequence[Trace], work: Callable[[Evidence], _T]) -> Iterator[_T]:
        """What `work` makes of the evidence of each trace. The same as calling it on what `evidence` gives, but an
        engine on a GPU calls it on threads of its own while the device computes, several calls at a time."""
        return map(work, self.evidence(traces))

    @abstractmethod
    def refuse(self, trace: Trace) -> str | None:
        """Why this trace cannot be replayed (ids outside the vocabulary, too long, not covered), or None."""

    def _not_of_this_model(self, trace: Trace) -> str | None:
        """Why no reference to this model can score the trace: it is empty, or of another vocabulary; else None."""
        if not len(trace.output_token_ids):
            return "output_token_ids: empty, so there is nothing to score"
        top = max(int(trace.prompt_token_ids.max()), int(trace.output_token_ids.max()))
        if top < self.vocab_size:
            return None
        return f"token id {top} is outside the vocabulary of {self.vocab_size}; was it tokenized with another model?"

    def measuring(self, spec: FingerprintSpec, *, sensitivity: bool = False) -> Reference | None:  # noqa: ARG002
        """This reference, with the projections of `spec` in its evidence and ``fingerprints`` (the hex digest of
        `spec`) in its settings; with `sensitivity` also how far rounding moves each hidden state, which takes a second
        forward pass, and ``sensitivity`` in its settings. None if it cannot. `FingerprintError` if `spec` does not fit
        the model."""
        return None  # (the arguments are for subclasses)

    def decode(self, ids: Sequence[int]) -> str | None:  # noqa: ARG002 (subclasses use it)
        """The text of token ids, or None where no tokenizer is at hand."""
        return None

    def encode(self, text: str) -> list[int] | None:  # noqa: ARG002 (subclasses use it)
        """Token ids of a text, none added, or None where no tokenizer is at hand."""
        return None


def load(name: str, settings: ReferenceSettings | None = None) -> Reference:
    """The reference called `name`: ``hf:PATH``, ``vllm:PATH``, either with ``ORG/MODEL`` and a revision, a URL or
    ``evidence:FILE``."""
    settings = settings or ReferenceSettings()
    kind, _, place = name.partition(":")
    if kind == "hf" and place:
        from veridifr.references.hf import HfReference

        return HfReference.load(place, settings)
    if kind == "vllm" and place:
        from veridifr.references.vllm_engine import VllmReference

        return VllmReference.load(place, settings)
    if kind == "evidence" and place:
        from veridifr.references.recorded import RecordedReference

        return RecordedReference(Path(place))
    if kind in ("http", "https") and place.startswith("//"):
        from veridifr.references.http import HttpReference

        return HttpReference(name, settings)
    raise ReferenceError(
        f"reference {name!r}: expected hf:PATH, hf:ORG/MODEL, vllm:PATH, http://HOST/v1, https://HOST/v1 or "
        "evidence:FILE"
    )
