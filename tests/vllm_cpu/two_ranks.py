"""Run by a test: an engine of two tensor-parallel ranks in processes of their own, with capture on.

Writes the traces to the file named, for the model named.
"""

from __future__ import annotations

import sys

from veridifr.fingerprints import FingerprintSpec
from veridifr.traces import write_traces
from veridifr.vllm import EXTENSION, enable

SPEC = FingerprintSpec(seed=11, hidden_size=256, k=8, encoding="float32")


def main(model: str, out: str) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype="bfloat16",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=128,
        max_num_batched_tokens=8192,
        tensor_parallel_size=2,
        distributed_executor_backend="mp",
        worker_extension_cls=EXTENSION,
    )
    params = [
        SamplingParams(temperature=1.0, seed=n, max_tokens=6 + n, n=1 + n % 2, ignore_eos=True, detokenize=False)
        for n in range(4)
    ]
    with enable(llm, SPEC, model="tb7m") as provider:
        outputs = llm.generate([{"prompt_token_ids": [5, 9, 30 + n]} for n in range(4)], params, use_tqdm=False)
        write_traces(out, provider.traces(outputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
