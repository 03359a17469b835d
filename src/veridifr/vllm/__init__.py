"""The provider's side inside vLLM: fingerprints and true engine records of what an engine serves.

    from vllm import LLM
    from veridifr.vllm import EXTENSION, enable

    llm = LLM(model, worker_extension_cls=EXTENSION)
    provider = enable(llm, spec)
    traces = provider.traces(llm.generate(prompts, params))
    provider.close()

Nothing here changes an engine that was not started with the extension, and the extension does nothing until it is
switched on. Importing this package loads neither torch nor vLLM. docs/providers.md is the provider's guide.
"""

from veridifr.vllm.offline import Provider, Record, enable
from veridifr.vllm.options import EXTENSION, CaptureOptions
from veridifr.vllm.support import SUPPORT, Support

__all__ = ["EXTENSION", "SUPPORT", "CaptureOptions", "Provider", "Record", "Support", "enable"]
