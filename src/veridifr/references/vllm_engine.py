"""A vLLM engine in this process as the reference: claimed tokens are scored while they are prefilled.

Prompt and output go in as one prompt. The hooks of `vllm_steps` hand over the final hidden states of the claimed
positions as each step makes them; they become logits chunk by chunk, and candidates, on the device. No log-probability
travels through the engine.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from veridifr.errors import FingerprintError, ReferenceError, VeridifrError, require
from veridifr.evidence import Evidence
from veridifr.fingerprints.projector import Projector
from veridifr.fingerprints.spec import FINAL, FingerprintSpec
from veridifr.references import Reference, ReferenceSettings, cuda_rows, vllm_steps
from veridifr.references.heads import head_of
from veridifr.references.listing import Listing, joined
from veridifr.references.rows import RowLister, evidence_of
from veridifr.references.tokenizing import TokenizingReference, first_eos_ids, load_tokenizer
from veridifr.references.vllm_steps import Part
from veridifr.references.weights import digest_model, first_line, resolve
from veridifr.threads import pool, threads
from veridifr.trace import Trace

_BATCH_TOKENS = 8192
_SEQUENCES = 256
_THREADS = 6
"""Threads that work on traces while the engine goes on: more would keep it from Python's lock."""
CPU_TOKENS = 2048
"""Tokens that the engine has before it at a time on a CPU: with more, what a layer makes leaves the cache before the
next one reads it."""
_KEPT = 64
"""Traces that may wait to be taken; of each, a megabyte or so for 500 tokens."""

_T = TypeVar("_T")


@dataclass(eq=False)
class _Replay:
    """One trace on its way: `parts` are listings, made or pending, in the order of their rows."""

    trace: Trace
    kernels: cuda_rows.KernelLister | None
    parts: list[cuda_rows.Pending | list[Listing]] = field(default_factory=list)
    projections: list[torch.Tensor] = field(default_factory=list)
    rows: int = 0


class _Backlog(Generic[_T]):
    """Traces whose rows are all listed, or being listed, and what `finish` makes of them, in the order they came.

    Threads work on them. On a GPU they do so while the engine goes on, each waiting for the device by itself. On a CPU
    the engine needs the cores: it waits (`settle`) until every core has done its share.
    """

    def __init__(self, finish: Callable[[_Replay], _T], *, on_gpu: bool) -> None:
        self._finish = finish
        self._on_gpu = on_gpu
        self._pool = pool(_THREADS if on_gpu else threads(_THREADS))
        self._made: deque[Future[_T]] = deque()

    def add(self, replay: _Replay) -> None:
        """A trace of which nothing more will come."""
        self._made.append(self._pool.submit(self._finish, replay))

    def settle(self) -> None:
        """On a CPU: return when all that was added is finished."""
        if not self._on_gpu:
            wait(self._made)

    def made(self, *, everything: bool = False) -> Iterator[_T]:
        """What is finished; waits for the oldest where too many would be kept, or for all with `everything`."""
        while self._made and (everything or self._made[0].done() or len(self._made) > _KEPT):
            yield self._made.popleft().result()

    def close(self) -> None:
        """Nothing more is wanted."""
        self._pool.shutdown(cancel_futures=True)


class VllmReference(TokenizingReference):
    """Wraps a ``vllm.LLM`` that runs in this process (`from_llm`), or starts one (`load`)."""

    def __init__(self, llm: Any, tokenizer: Any, name: str, digest: str, settings: ReferenceSettings) -> None:
        engine = llm.llm_engine
        config = engine.vllm_config
        executor = getattr(engine, "model_executor", None)
        if executor is None or config.parallel_config.world_size != 1:
            raise ReferenceError(f"reference {name}: needs VLLM_ENABLE_V1_MULTIPROCESSING=0 and one device")
        if config.cache_config.enable_prefix_caching:
            raise ReferenceError(f"reference {name}: needs enable_prefix_caching=False, or tokens would go unscored")
        self.name = name
        self.weights_digest = digest
        self.vocab_size = int(config.model_config.get_vocab_size())
        self.eos_ids = first_eos_ids(
            config.model_config.try_get_generation_config().get("eos_token_id"),
            getattr(config.model_config.hf_config, "eos_token_id", None),
            getattr(config.model_config.hf_text_config, "eos_token_id", None),
        )
        self._engine = engine
        self._tokenizer = tokenizer
        self._runner = executor.driver_worker.worker.model_runner
        vllm_steps.check(self._runner)
        self._device = self._runner.device
        self._longest = int(config.model_config.max_model_len)
        self._hidden_size = int(config.model_config.get_hidden_size())
        self._head = head_of(self._runner.get_model(), self.vocab_size)
        self._rows = RowLister(self._head, self.vocab_size, self.eos_ids, device=self._device, settings=settings)
        self._spec: FingerprintSpec | None = None
        self._projector: Projector | None = None
        self.settings = {
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "vllm": str(require("vllm", "vllm").__version__),
            "tail_mass": settings.tail_mass,
            "list_bytes": settings.list_bytes,
        }

    @classmethod
    def load(cls, place: str, settings: ReferenceSettings) -> VllmReference:
        """Start an engine for `place`, a directory or a hub id with `settings.revision`; no remote code."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        vllm = require("vllm", "vllm")
        path = resolve(place, settings.revision)
        digest = digest_model(path)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        on_cpu = not torch.cuda.is_available()
        try:
            llm = vllm.LLM(
                model=str(path),
                dtype=settings.dtype or ("float32" if on_cpu else "auto"),
                skip_tokenizer_init=True,
                enable_prefix_caching=False,
                max_num_batched_tokens=settings.batch_tokens or _BATCH_TOKENS,
                max_num_seqs=_SEQUENCES,
                enforce_eager=on_cpu,
                trust_remote_code=False,
                load_format="safetensors",
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ReferenceError(f"reference vllm:{place}: cannot start the engine: {first_line(error)}") from error
        return cls(llm, load_tokenizer(path), f"vllm:{place}", digest, settings)

    @classmethod
    def from_llm(cls, llm: Any, path: Path, *, settings: ReferenceSettings | None = None) -> VllmReference:
        """Wrap an engine that the caller started with the model at `path`."""
        return cls(llm, load_tokenizer(path), f"vllm:{path}", digest_model(path), settings or ReferenceSettings())

    def refuse(self, trace: Trace) -> str | None:
        """See `Reference.refuse`."""
        if (why := self._not_of_this_model(trace)) is not None:
            return why
        length = len(trace.prompt_token_ids) + len(trace.output_token_ids)
        return None if length <= self._longest else f"{length} tokens are more than the engine's {self._longest}"

    def measuring(self, spec: FingerprintSpec, *, sensitivity: bool = False) -> Reference | None:
        """See `Reference.measuring`: the tap after the final norm only, and no sensitivity."""
        if spec.taps != (FINAL,) or sensitivity:
            return None
        if spec.hidden_size != self._hidden_size:
            raise FingerprintError(f"spec.hidden_size: got {spec.hidden_size}, the model's is {self._hidden_size}")
        found = copy.copy(self)
        found._spec = spec
        found._projector = Projector(spec, self._device)
        found.settings = {**self.settings, "fingerprints": spec.digest().hex()}
        return found

    def evidence(self, traces: Sequence[Trace]) -> Iterator[Evidence]:
        """See `Reference.evidence`. The engine batches."""
        return self.map(traces, lambda evidence: evidence)

    def map(self, traces: Sequence[Trace], work: Callable[[Evidence], _T]) -> Iterator[_T]:
        """See `Reference.map`. What one step lists is fetched, and worked on, while the device is at the next one."""
        waiting: dict[str, _Replay] = {}
        backlog = _Backlog(lambda replay: work(self._finished(replay)), on_gpu=self._device.type == "cuda")
        failed: list[Exception] = []

        def take(parts: list[Part]) -> None:  # an error here must not leave the engine in the middle of a step
            try:
                if not failed:
                    self._take([(waiting[part.request_id], part) for part in parts if part.request_id in waiting])
                for name in [part.request_id for part in parts]:
                    if name in waiting and waiting[name].rows == len(waiting[name].trace.output_token_ids):
                        backlog.add(waiting.pop(name))
                backlog.settle()
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, VeridifrError) as error:
                failed.append(error)  # raised as soon as the step is over

        with vllm_steps.listening(self._runner, take):
            try:
                to_come = deque(enumerate(traces))
                while to_come or self._engine.has_unfinished_requests():
                    if to_come:
                        self._add(to_come, waiting)
                    self._engine.step()
                    yield from backlog.made()
                    if failed:
                        raise failed[0]
                yield from backlog.made(everything=True)
            finally:
                if waiting:
                    self._engine.abort_request(list(waiting))
                backlog.close()
        if waiting:
            raise ReferenceError(f"reference {self.name}: {len(waiting)} sequences were never computed")

    def _add(self, to_come: deque[tuple[int, Trace]], waiting: dict[str, _Replay]) -> None:
        """Give the engine traces that are to come: all of them, on a CPU as many as make up `CPU_TOKENS`."""
        sampling = require("vllm", "vllm").SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
        tokens = sum(_length(replay.trace) for replay in waiting.values())
        while to_come:
            number, trace = to_come[0]
            tokens += _length(trace)
            if self._device.type == "cpu" and waiting and tokens > CPU_TOKENS:
                return
            to_come.popleft()
            ids = np.concatenate([trace.prompt_token_ids, trace.output_token_ids[:-1]]).tolist()
            name = self._engine.add_request(f"veridifr{number}", {"prompt_token_ids": ids}, sampling)
            waiting[name] = _Replay(trace, self._kernels(trace))

    def _kernels(self, trace: Trace) -> cuda_rows.KernelLister | None:
        return cuda_rows.KernelLister.of(trace, self.vocab_size) if self._device.type == "cuda" else None

    def _take(self, pairs: Sequence[tuple[_Replay, Part]]) -> None:
        """List the claimed positions among the rows of a step's parts."""
        kernel_spans: list[tuple[_Replay, cuda_rows.Span]] = []
        for replay, part in pairs:
            trace = replay.trace
            first = len(trace.prompt_token_ids) - 1 + replay.rows  # the position whose state is wanted next
            skip = max(first - part.position, 0)
            rows = min(part.end - part.start - skip, len(trace.output_token_ids) - replay.rows)
            if rows <= 0:
                continue
            start = part.start + skip
            hidden_RD = part.hidden_ND[start : start + rows]
            if self._projector is not None and self._spec is not None:  # first: rows that are listed vouch for it
                chosen = range(-replay.rows % self._spec.every, rows, self._spec.every)
                projected = self._projector.project(hidden_RD[chosen.start :: chosen.step])
                replay.projections.append(cuda_rows.to_host(projected))
            if replay.kernels is None:
                replay.parts.append(list(self._rows.listings(trace, hidden_RD, replay.rows)))
            else:
                span = cuda_rows.Span(lister=replay.kernels, start=start, stop=start + rows, first=replay.rows)
                kernel_spans.append((replay, span))
            replay.rows += rows
        if kernel_spans:
            pending = cuda_rows.start(self._head, pairs[0][1].hidden_ND, [span for _, span in kernel_spans])
            for (replay, _), listed in zip(kernel_spans, pending, strict=True):
                replay.parts.append(listed)

    def _finished(self, replay: _Replay) -> Evidence:
        """The evidence of a trace whose rows are all listed, or being listed."""
        listings: list[Listing] = []
        open_O: list[npt.NDArray[np.int64]] = []
        row = 0
        for part in replay.parts:
            pairs = [(x, _NONE) for x in part] if isinstance(part, list) else part.finish()
            for listing, open_rows in pairs:
                listings.append(listing)
                open_O.append(open_rows + row)
                row += len(listing.counts_R)
        found = evidence_of(replay.trace, self.vocab_size, joined(listings, row))
        race = None if replay.kernels is None else replay.kernels.race(np.concatenate(open_O))
        projections = None
        if self._spec is not None:
            projections = torch.cat(replay.projections)[None].numpy()
        return replace(found, race=race, projections_AFK=projections)


def _length(trace: Trace) -> int:
    return len(trace.prompt_token_ids) + len(trace.output_token_ids) - 1


_NONE = np.zeros(0, dtype=np.int64)
