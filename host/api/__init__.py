"""Alula runs large language models on FPGAs; this is its Python interface.

.. code-block:: python

    import alula

    llm = alula.LLM("model.alula")
    for result in llm.generate(["Once", "The first"], alula.SamplingParams(max_tokens=32)):
        print(result.prompt, result.text)

Names are loaded as they are used: importing the package costs nothing and needs no other one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alula.compiler.program import Program, load
    from alula.host.chat import Conversation
    from alula.host.choice import NoDevice
    from alula.host.llm import LLM, Chunk, Completion, Request, RequestOutput
    from alula.host.model import compile
    from alula.host.sampling import SamplingParams, TokenLogprob
    from alula.host.text import TextError

_HOMES = {
    "Chunk": "host.llm",
    "Completion": "host.llm",
    "Conversation": "host.chat",
    "LLM": "host.llm",
    "NoDevice": "host.choice",
    "Program": "compiler.program",
    "Request": "host.llm",
    "RequestOutput": "host.llm",
    "SamplingParams": "host.sampling",
    "TextError": "host.text",
    "TokenLogprob": "host.sampling",
    "compile": "host.model",
    "load": "compiler.program",
}

__all__ = ["LLM", "Chunk", "Completion", "Conversation", "NoDevice", "Program", "Request",
           "RequestOutput", "SamplingParams", "TextError", "TokenLogprob", "__version__", "compile",
           "load"]

__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("alula")
    if name not in _HOMES:
        raise AttributeError(f"module 'alula' has no attribute {name!r}")
    value = getattr(import_module(f"alula.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
