"""The commands that talk: in a terminal, and over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from alula.host.llm import LLM
from alula.host.options import (
    ApiDevice,
    MinP,
    Quiet,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from alula.host.sampling import SamplingParams
from alula.host.screen import Screen


def chat(file: Annotated[Path, typer.Argument(help="Program file, or a model directory.")],
         system: Annotated[str | None, typer.Option(help="What to tell the model first.")] = None,
         template: Annotated[Path | None, typer.Option(
             help="Chat template, if not the tokenizer's own.")] = None,
         max_new_tokens: Annotated[int | None, typer.Option(
             min=1, help="Most tokens of an answer; what the context has room for if not given.")
             ] = None,
         device: ApiDevice = "auto",
         temperature: Temperature = 0.0, top_k: TopK = 0, top_p: TopP = 1.0, min_p: MinP = 0.0,
         repetition_penalty: RepetitionPenalty = 1.0, seed: Seed = 0,
         quiet: Quiet = False) -> None:
    """Talk with a model. /reset begins anew, /exit ends; lines may come from a pipe."""
    screen = Screen(quiet=quiet)
    params = SamplingParams(max_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                            top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
                            seed=seed)
    source = template.read_text(encoding="utf-8") if template else None
    with LLM(file, device=device, chat_template=source, progress=not quiet) as llm:
        talk = llm.conversation(system, params)
        for line in _lines("> "):
            if line == "/exit":
                return
            if line == "/reset":
                talk.reset()
                continue
            try:
                for chunk in talk.stream(line):
                    screen.text(chunk.text)
            except KeyboardInterrupt:  # ends the answer, not the conversation
                pass
            except ValueError as error:  # most likely the context is full
                screen.note(f"{error}; /reset begins anew")
            screen.text("\n")


def serve(file: Annotated[Path, typer.Argument(help="Program file, or a model directory.")],
          host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
          port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen at.")] = 8000,
          name: Annotated[str | None, typer.Option(
              help="What clients call the model; the program's name if not given.")] = None,
          api_key: Annotated[str | None, typer.Option(
              envvar="ALULA_API_KEY", help="Bearer token that clients must send.")] = None,
          template: Annotated[Path | None, typer.Option(
              help="Chat template, if not the tokenizer's own.")] = None,
          device: ApiDevice = "auto", quiet: Quiet = False) -> None:
    """Serve a model over HTTP, as OpenAI's API does: /v1/completions, /v1/chat/completions."""
    from alula.host.serve import serve as serve_llm

    Screen(quiet=quiet)  # opens the log
    source = template.read_text(encoding="utf-8") if template else None
    with LLM(file, device=device, chat_template=source, progress=not quiet) as llm:
        serve_llm(llm, host, port, name=name, api_key=api_key)


def _lines(prompt: str) -> Iterator[str]:
    """Yield the lines of standard input that are not empty, asking for each at a terminal."""
    asked = prompt if sys.stdin.isatty() else ""
    with suppress(ImportError):  # lines can be edited where it exists
        import readline  # noqa: F401
    while True:
        try:
            line = input(asked)
        except EOFError:
            return
        if line.strip():
            yield line.strip()
