"""Stand-ins for the parts of vLLM's model runners that the hooks read, modelled on the source of 0.24 and 0.32."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

HIDDEN, K = 16, 4


class Params:
    """What of ``vllm.SamplingParams`` decides a token; the defaults are vLLM's."""

    def __init__(self, **fields: Any) -> None:
        self.temperature, self.max_tokens, self.seed, self.n = 1.0, 16, None, 1
        vars(self).update(fields)


def new_request(request_id: str, prompt: list[int], **fields: Any) -> Any:
    """vllm.v1.core.sched.output.NewRequestData."""
    given = {"lora_request": None, "mm_features": [], **fields}
    return SimpleNamespace(
        req_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=given.pop("sampling_params", Params(seed=3)),
        **given,
    )


def hidden_of(rows: list[tuple[int, int]]) -> torch.Tensor:
    """Hidden states that say which request and output they belong to."""
    return torch.stack([torch.linspace(a, a + 0.01 * b, HIDDEN) for a, b in rows]) if rows else torch.zeros(0, HIDDEN)


ExecuteModelState = namedtuple(
    "ExecuteModelState", ["scheduler_output", "logits", "spec_decode_metadata", "hidden_states", "sample_hidden_states"]
)


class V1Runner:
    """The V1 runner between `execute_model` and the end of `sample_tokens`; asynchronous: tokens stay in a tensor."""

    def __init__(self, *, asynchronous: bool) -> None:
        self.use_async_scheduling = asynchronous
        self.execute_model_state: Any = None
        self.discard_request_mask = SimpleNamespace(np=np.zeros(8, dtype=bool))
        self.input_batch = SimpleNamespace(
            req_ids=[],
            num_reqs=0,
            num_tokens_no_spec=np.zeros(8, dtype=np.int32),
            num_prompt_tokens=np.zeros(8, dtype=np.int32),
            prev_sampled_token_ids=None,
        )
        self.sampler = SimpleNamespace(topk_topp_sampler=None)
        self.given: list[list[int]] = []

    def execute(self, rows: list[tuple[str, int, int, int, bool]], new: tuple[Any, ...] = (), **state: Any) -> None:
        """A forward pass: (id, prompt length, outputs so far, token to sample, discarded) of each row."""
        batch = self.input_batch
        batch.req_ids, batch.num_reqs = [r[0] for r in rows], len(rows)
        for i, (_, prompt, outputs, _, discarded) in enumerate(rows):
            batch.num_prompt_tokens[i], batch.num_tokens_no_spec[i] = prompt, prompt + outputs
            self.discard_request_mask.np[i] = discarded
        self.given = [[] if r[4] else [r[3]] for r in rows]
        self._sampled = torch.tensor([[r[3]] for r in rows], dtype=torch.int32)
        numbers = [(int(r[0].split("-")[0].split("_")[-1]), r[2]) for r in rows]
        self.execute_model_state = ExecuteModelState(
            **{
                "scheduler_output": SimpleNamespace(scheduled_new_reqs=list(new)),
                "logits": None,
                "spec_decode_metadata": None,
                "hidden_states": None,
                "sample_hidden_states": hidden_of(numbers),
                **state,
            }
        )

    def sample_tokens(self, grammar_output: Any) -> Any:
        if self.execute_model_state is None:
            return None
        self.execute_model_state = None
        batch = self.input_batch
        batch.num_tokens_no_spec[: batch.num_reqs] += 1  # the bookkeeping that comes with sampling
        if self.use_async_scheduling:
            batch.prev_sampled_token_ids = self._sampled
            return SimpleNamespace(later=True)
        return SimpleNamespace(sampled_token_ids=[list(t) for t in self.given])


class V2Runner:
    """The V2 runner's `add_requests` and `sample`."""

    def __init__(self) -> None:
        self.req_states = SimpleNamespace(prompt_len=SimpleNamespace(np=np.zeros(8, dtype=np.int32)))
        states = SimpleNamespace(seeds=SimpleNamespace(np=np.zeros(8, dtype=np.int64)))
        self.sampler = SimpleNamespace(sampling_states=states, use_fp64_gumbel=False, use_flashinfer=False)
        self.added: list[str] = []

    def add_requests(self, scheduler_output: Any) -> None:
        self.added += [request.req_id for request in scheduler_output.scheduled_new_reqs]

    def sample(self, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        tokens = input_batch.wanted
        return SimpleNamespace(sampled_token_ids=torch.tensor(tokens, dtype=torch.int64).view(-1, 1)), None, None

    def step(self, rows: list[dict[str, Any]], new: tuple[Any, ...] = ()) -> Any:
        """One step over rows of {id, slot, prompt, prefill, computed, scheduled, token}; padding rows in between."""
        self.add_requests(SimpleNamespace(scheduled_new_reqs=list(new)))
        for row in rows:
            self.req_states.prompt_len.np[row["slot"]] = row["prompt"]
            if "seed" in row:
                self.sampler.sampling_states.seeds.np[row["slot"]] = row["seed"]
        counts = np.array([row["scheduled"] for row in rows])
        ends = counts.cumsum() - 1
        hidden = torch.full((int(counts.sum()) + 5, HIDDEN), 99.0)  # padded for a CUDA graph
        numbers = [(int(row["id"].split("-")[0]), row["computed"] + row["scheduled"] - row["prompt"]) for row in rows]
        hidden[torch.from_numpy(ends)] = hidden_of(numbers)
        batch = SimpleNamespace(
            req_ids=[row["id"] for row in rows],
            num_reqs=len(rows),
            idx_mapping_np=np.array([row["slot"] for row in rows]),
            num_scheduled_tokens=counts,
            num_draft_tokens=0,
            num_computed_tokens_np=np.array([row["computed"] for row in rows]),
            prefill_len_np=np.array([row["prefill"] for row in rows]),
            logits_indices=torch.from_numpy(ends),
            wanted=[row["token"] for row in rows],
        )
        return self.sample(hidden, batch, None)
