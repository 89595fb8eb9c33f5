"""localllm: pull a model, run it fast on what you own, and see inside while it runs.

`LLM` and `Tokenizer` load on first use, so that importing a submodule stays cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localllm.runtime.llm import LLM
    from localllm.runtime.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["LLM", "Tokenizer", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from localllm.runtime.llm import LLM

        return LLM
    if name == "Tokenizer":
        from localllm.runtime.tokenizer import Tokenizer

        return Tokenizer
    raise AttributeError(f"module 'localllm' has no attribute {name!r}")
