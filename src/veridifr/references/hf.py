"""A transformers model as the reference: teacher-forced logits of the claimed positions, listed chunk by chunk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from veridifr.errors import ReferenceError, require
from veridifr.evidence import Evidence
from veridifr.fingerprints.capture import Capture
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.references import Reference, ReferenceSettings
from veridifr.references.rows import RowLister
from veridifr.references.sensitivity import KIND, rounded
from veridifr.references.tokenizing import TokenizingReference, first_eos_ids, load_tokenizer
from veridifr.references.weights import digest_model, digest_parameters, first_line, resolve
from veridifr.trace import Trace

_CPU_BATCH_TOKENS = 512
_GPU_BATCH_TOKENS = 16384
_PROBE = 8
_LEAST_SENSITIVITY = 1e-12
"""In place of none at all: a state of zeros, say."""


class HfReference(TokenizingReference):
    """Wraps a loaded transformers causal language model (`from_model`) or loads one from disk or the hub (`load`)."""

    def __init__(self, model: Any, tokenizer: Any, name: str, digest: str, settings: ReferenceSettings) -> None:
        self.name = name
        self.weights_digest = digest
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._settings = settings
        self._device = next(model.parameters()).device
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        configs = (getattr(model, "generation_config", None), model.config, model.config.get_text_config())
        self.eos_ids = first_eos_ids(*(getattr(config, "eos_token_id", None) for config in configs))
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._longest = int(limit) if limit else None
        self._spec: FingerprintSpec | None = None
        self._sensitivity = False
        self._head = self._find_head()
        self._rows = RowLister(self._head, self.vocab_size, self.eos_ids, device=self._device, settings=settings)
        self.settings = {
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "tail_mass": settings.tail_mass,
            "list_bytes": settings.list_bytes,
        }

    @classmethod
    def load(cls, place: str, settings: ReferenceSettings) -> HfReference:
        """Load `place`, a directory or a hub id with `settings.revision`; safetensors only, no remote code."""
        transformers, safetensors = require("transformers", "hf"), require("safetensors", "hf")
        path = resolve(place, settings.revision)
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        dtype = settings.dtype or ("float32" if device == "cpu" else "auto")
        digest = digest_model(path)
        try:
            transformers.utils.logging.disable_progress_bar()
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
            model = model.to(device)
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError, safetensors.SafetensorError) as error:
            raise ReferenceError(f"reference hf:{place}: cannot load the model: {first_line(error)}") from error
        if missing := sorted(report["missing_keys"]):  # transformers makes such weights up, with a warning
            raise ReferenceError(f"reference hf:{place}: weights: {missing[0]} is missing from the safetensors files")
        found = cls(model, load_tokenizer(path), f"hf:{place}", digest, settings)
        found._check_tokenizer()
        return found

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any = None, *, settings: ReferenceSettings | None = None) -> HfReference:
        """Wrap a model that the caller built; its digest is taken over the parameters in memory."""
        return cls(model, tokenizer, "hf:in-memory", digest_parameters(model), settings or ReferenceSettings())

    def _check_tokenizer(self) -> None:
        """Refuse a tokenizer that makes ids the model does not have (a shorter one is usual: models are padded)."""
        size = 0 if self._tokenizer is None else len(self._tokenizer)
        if size > self.vocab_size:
            raise ReferenceError(
                f"reference {self.name}: the tokenizer beside the model has {size} tokens and the model only "
                f"{self.vocab_size}; they do not belong together"
            )

    def refuse(self, trace: Trace) -> str | None:
        """See `Reference.refuse`."""
        if (why := self._not_of_this_model(trace)) is not None:
            return why
        length = len(trace.prompt_token_ids) + len(trace.output_token_ids)
        if self._longest is not None and length > self._longest:
            return f"{length} tokens are more than the model's {self._longest} positions"
        return None

    def evidence(self, traces: Sequence[Trace]) -> Iterator[Evidence]:
        """See `Reference.evidence`. Sequences are batched by length; logits are made in chunks of rows."""
        cpu = self._device.type == "cpu"
        budget = self._settings.batch_tokens or (_CPU_BATCH_TOKENS if cpu else _GPU_BATCH_TOKENS)
        for batch in _batches(traces, budget):
            with torch.inference_mode():
                hidden_BTD, captured = self._run(batch)
                apart = captured.apart(self._rounded(batch)) if captured is not None and self._sensitivity else None
                for row, trace in enumerate(batch):
                    first, tokens = len(trace.prompt_token_ids) - 1, len(trace.output_token_ids)
                    found = self._rows.evidence(trace, hidden_BTD[row, first : first + tokens])
                    if captured is not None:
                        found = replace(found, projections_AFK=np.stack(captured.values(row, tokens)))
                    if apart is not None:
                        far_AF = np.stack(apart.values(row, tokens))[..., 0]
                        found = replace(found, sensitivity_AF=np.maximum(far_AF, np.float32(_LEAST_SENSITIVITY)))
                    yield found

    def measuring(self, spec: FingerprintSpec, *, sensitivity: bool = False) -> Reference | None:
        """See `Reference.measuring`. The model is shared, not copied. Sensitivity is that of a float32 model."""
        Capture(self._model, spec, starts=[])  # refuses a specification for another model
        if sensitivity and self.settings["dtype"] != "float32":
            return None
        found = copy.copy(self)
        found._spec, found._sensitivity = spec, sensitivity
        found.settings = {**self.settings, "fingerprints": spec.digest().hex()}
        if sensitivity:
            found.settings["sensitivity"] = KIND
        return found

    def _run(self, batch: Sequence[Trace]) -> tuple[torch.Tensor, Capture | None]:
        """Hidden states, and the projections that the same run leaves if a specification was given."""
        if self._spec is None:
            return self._hidden(batch), None
        captured = Capture(
            self._model,
            self._spec,
            starts=[len(trace.prompt_token_ids) - 1 for trace in batch],
            counts=[len(trace.output_token_ids) for trace in batch],
            keep_states=self._sensitivity,
        )
        with captured:
            return self._hidden(batch), captured

    def _rounded(self, batch: Sequence[Trace]) -> Capture:
        """What a second run leaves in which everything is rounded."""
        with rounded(self._model.base_model):
            captured = self._run(batch)[1]
        assert captured is not None  # noqa: S101  (there is a specification; for the type checker)
        return captured

    def _hidden(self, batch: Sequence[Trace]) -> torch.Tensor:
        """Final hidden states (after the last norm) of each sequence, right-padded."""
        ids = [np.concatenate([trace.prompt_token_ids, trace.output_token_ids[:-1]]) for trace in batch]
        width = max(map(len, ids))
        input_ids = torch.zeros((len(ids), width), dtype=torch.long)
        for row, sequence in enumerate(ids):
            input_ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        # Padding stands on the right and attention is causal, so no real token ever sees it: no mask is needed.
        output = self._model.base_model(input_ids=input_ids.to(self._device), use_cache=False)
        return cast(torch.Tensor, output.last_hidden_state)

    def _find_head(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """How this model turns final hidden states into logits; refused unless it reproduces the model's own."""
        head = self._model.get_output_embeddings()
        config = self._model.config.get_text_config()
        if head is None:
            raise ReferenceError(f"reference {self.name}: the model has no output embeddings")
        cap = getattr(config, "final_logit_softcapping", None)
        factors = [getattr(config, key, None) for key in ("logit_scale", "logits_scaling")]
        ways: list[Callable[[torch.Tensor], torch.Tensor]] = [head]
        if cap:
            ways.append(lambda h: torch.tanh(head(h) / cap) * cap)
        if factors[0]:
            ways.append(lambda h: head(h) * factors[0])
        if factors[1]:
            ways.append(lambda h: head(h) / factors[1])
        probe = torch.arange(min(_PROBE, self.vocab_size), device=self._device)[None, :]
        with torch.inference_mode():
            wanted = self._model(input_ids=probe, use_cache=False).logits.float()
            hidden = self._model.base_model(input_ids=probe, use_cache=False).last_hidden_state
            for way in ways:
                if torch.allclose(way(hidden).float(), wanted, rtol=1e-3, atol=1e-3):
                    return way
        raise ReferenceError(
            f"reference {self.name}: the logits are not the output embedding of the final hidden state; "
            "this architecture is not supported yet"
        )


def _batches(traces: Sequence[Trace], budget: int) -> Iterator[list[Trace]]:
    """Sequences of similar length together, at most `budget` padded tokens a batch."""
    batch: list[Trace] = []
    for trace in sorted(traces, key=lambda t: len(t.prompt_token_ids) + len(t.output_token_ids)):
        length = len(trace.prompt_token_ids) + len(trace.output_token_ids)
        if batch and length * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(trace)
    if batch:
        yield batch


__all__ = ["HfReference", "digest_model", "digest_parameters", "load_tokenizer"]
