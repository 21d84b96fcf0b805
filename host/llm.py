"""The Python interface: a model on a device, many texts at a time, from any thread.

Each :class:`LLM` has one thread that runs its device; calls put requests before it and wait, or
read pieces of text as they come.
"""

from __future__ import annotations

import asyncio
import os
import queue
import secrets
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from alula.compiler.program import Program
from alula.host.chat import Conversation, Message, Template
from alula.host.choice import Devices, Wanted
from alula.host.engine import Chunk, Engine, Job, Statistics
from alula.host.generate import writer
from alula.host.model import Begin, open_program
from alula.host.sampling import SamplingParams, TokenLogprob, sample_seed
from alula.host.text import Text, TextError

__all__ = ["LLM", "Chunk", "Completion", "Request", "RequestOutput"]

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Completion:
    """One text that was made.

    ``finish_reason`` is ``length``, ``stop``, ``eos`` or ``cancelled``; ``stop_reason`` the stop or
    the stop token, if it is ``stop``. The last of ``token_ids`` is the token that ended it, which
    is not in ``text``. With ``seed`` the same text is made again.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | int | None
    seed: int
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """What became of a prompt.

    ``num_cached_tokens`` of its tokens were in the cache already. ``outputs`` are its ``n`` texts.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    num_cached_tokens: int
    outputs: tuple[Completion, ...]

    @property
    def text(self) -> str:
        """The first text."""
        return self.outputs[0].text


class Request:
    """A prompt at work. Iterate over it for chunks as they are made, or wait for its result."""

    def __init__(self, llm: LLM, prompt: str | None, tokens: tuple[int, ...],
                 params: SamplingParams, put: Callable[[Chunk | Exception], None] | None) -> None:
        self._llm, self.prompt, self.prompt_token_ids, self.params = llm, prompt, tokens, params
        self._chunks: queue.SimpleQueue[Chunk | Exception] = queue.SimpleQueue()
        self._put = put or self._chunks.put
        self._error: Exception | None = None
        self._done = threading.Event()
        self._left = self._unread = params.n  # texts that have not ended: made, and read
        limit = llm._engine.check(tokens, params)
        seed = params.seed if params.seed is not None else secrets.randbits(62)
        self._jobs = [
            Job(tokens, params, sample_seed(seed, index), limit, index=index, tell=self._tell,
                writer=writer(llm.text, params) if llm.has_text else None)
            for index in range(params.n)]

    def _tell(self, what: Chunk | Exception) -> None:
        """Take what a job says, in the device's thread."""
        if isinstance(what, Exception):
            if self._done.is_set():
                return
            self._error = what
        self._put(what)
        if isinstance(what, Exception) or what.finish_reason is not None:
            self._left -= 1
        if not self._left or self._error:
            self._done.set()

    @property
    def done(self) -> bool:
        """Whether every text has ended."""
        return self._done.is_set()

    def cancel(self) -> None:
        """End it where it is; what was made is its result."""
        if not self._llm.closed:
            for job in self._jobs:
                self._llm._post(partial(Engine.cancel, job=job))

    def __iter__(self) -> Iterator[Chunk]:
        """Yield chunks as they are made, each to one reader; dropping the iterator cancels."""
        try:
            while self._unread:
                chunk = self._chunks.get()
                if isinstance(chunk, Exception):
                    self._unread = 0
                    raise chunk
                self._unread -= chunk.finish_reason is not None
                yield chunk
        finally:
            if self._unread:
                self.cancel()

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the end.

        Raises
        ------
        TimeoutError
            If it has not come after ``timeout`` seconds; the request goes on.
        Exception
            What the last device raised, if it could not go on.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"the request must end within {timeout} s; wait longer, or cancel")
        if self._error is not None:
            raise self._error
        kept = self.params.logprobs is not None
        return RequestOutput(
            self.prompt, self.prompt_token_ids, self._jobs[0].found,
            tuple(Completion(job.index, job.text, tuple(job.made), str(job.finish_reason),
                             job.stop_reason, job.seed, tuple(job.logprobs) if kept else None)
                  for job in self._jobs))


class LLM:
    """A language model on a device.

    Parameters
    ----------
    model
        A program file, a model directory (compiled once, and kept in the user's cache folder), or
        a :class:`~alula.compiler.program.Program`.
    device
        ``auto``: a board that answers, else a CUDA device, else this CPU. Or a name (``alveo``,
        ``pynq``, ``cuda``, ``cpu``, ``rtl``, ``golden``), a device, or several of them: the next
        one takes over from one that fails. Text does not depend on it.
    chat_template
        Text of a template, if not the tokenizer's own.
    arch, quantize, context, sequences
        For a model directory: see :func:`alula.compile`.
    cache
        Whether compiled directories are kept.
    prefix_cache
        Whether prompts that begin alike share what was computed of them.
    repeats
        Most greedy tokens that the device makes in one run. More than one saves starts of the
        device; they then come together.
    every_logit
        Read all logits from the device, also where the best token is all that is wanted.
    progress
        Show the steps of compiling, and which device was taken and why, on standard error; None:
        if it is a terminal.

    Raises
    ------
    ValueError, OSError
        If the model cannot be read, compiled or proven.
    alula.host.choice.NoDevice
        If no device can run it.

    An LLM is a context manager; :meth:`close` stops its thread. All methods may be called from any
    thread.
    """

    def __init__(self, model: str | os.PathLike[str] | Program, *,
                 device: Wanted | Sequence[Wanted] = "auto", chat_template: str | None = None,
                 arch: str = "sim", quantize: str | None = None, context: int | None = None,
                 sequences: int = 8, cache: bool = True, prefix_cache: bool = True,
                 repeats: int = 1, every_logit: bool = False,
                 progress: bool | None = None) -> None:
        shown = sys.stderr.isatty() if progress is None else progress
        with _steps(shown) as begin:
            self.program = open_program(model, arch=arch, quantize=quantize, context=context,
                                        sequences=sequences, cache=cache, begin=begin)
        self._devices = Devices(self.program, device)
        self._engine = Engine(self._devices, prefix_cache=prefix_cache, repeats=repeats,
                              every_logit=every_logit)
        if shown:
            sys.stderr.write("\n".join(self._devices.report) + "\n")
        self._chat_template = chat_template
        self._inbox: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._engine, self._inbox),
                                        name="alula", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._inbox, self._thread)

    # What it is.

    @property
    def device(self) -> str:
        """The name of the device at work."""
        return self._engine.device

    @property
    def device_report(self) -> tuple[str, ...]:
        """Which devices were asked, and what came of it, in order."""
        return tuple(self._devices.report)

    @property
    def statistics(self) -> Statistics:
        """What was done so far."""
        return self._engine.statistics

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its text together."""
        return self.program.memory.context

    @property
    def has_text(self) -> bool:
        """Whether the program has a tokenizer. Without one, prompts are token numbers."""
        return "tokenizer.json" in self.program.tokenizer

    @cached_property
    def text(self) -> Text:
        """The tokenizer; raises TextError if the program has none."""
        return Text(self.program.tokenizer)

    @cached_property
    def template(self) -> Template:
        """The chat template; raises TextError if there is none."""
        return Template(self.program.tokenizer, self._chat_template)

    # What it does.

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> Request:
        """Put one prompt before the device and return at once.

        Parameters
        ----------
        prompt
            Text, or token numbers. An empty one is the model's beginning of text.
        """
        return self._submit(prompt, params or SamplingParams())

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 params: SamplingParams | Sequence[SamplingParams] | None = None, *,
                 progress: bool = False) -> list[RequestOutput]:
        """Continue prompts, many at a time; return their results in the prompts' order.

        Parameters
        ----------
        prompts
            A text, or one prompt's token numbers, or several of either.
        params
            For all prompts, or one for each.
        progress
            Show a bar on standard error.

        Raises
        ------
        ValueError
            If a prompt or its parameters make no sense; nothing is begun then.
        """
        several = _several(prompts)
        if params is None or isinstance(params, SamplingParams):
            each = [params or SamplingParams()] * len(several)
        else:
            each = list(params)
        if len(each) != len(several):
            raise ValueError(f"params must be one, or one for each of {len(several)} prompts, not "
                             f"{len(each)}")
        made = [self._request(prompt, own) for prompt, own in zip(several, each, strict=True)]
        return self._finish(made, progress)

    def _finish(self, requests: Sequence[Request], progress: bool) -> list[RequestOutput]:
        try:
            for request in requests:
                self._begin(request)
            results = []
            with _steps(progress) as begin:
                advance = begin("generate", len(requests))
                for request in requests:
                    results.append(request.result())
                    advance(1)
            return results
        except BaseException:
            for request in requests:
                request.cancel()
            raise

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> _Stream:
        """Continue a prompt; yield chunks as they are made. Dropping the iterator cancels."""
        return self._stream(self.submit(prompt, params))

    def _stream(self, request: Request) -> _Stream:
        yield from request

    async def agenerate(self, prompt: Prompt,
                        params: SamplingParams | None = None) -> AsyncIterator[Chunk]:
        """Continue a prompt in an asyncio program; yield chunks as they are made."""
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
        request = self._submit(prompt, params or SamplingParams(),
                               lambda what: _call(loop, chunks.put_nowait, what))
        left = request.params.n
        try:
            while left:
                chunk = await chunks.get()
                if isinstance(chunk, Exception):
                    raise chunk
                left -= chunk.finish_reason is not None
                yield chunk
        finally:
            if not request.done:
                request.cancel()

    def chat(self, messages: Sequence[Message] | Sequence[Sequence[Message]],
             params: SamplingParams | None = None, *, add_generation_prompt: bool = True,
             progress: bool = False, **template: Any) -> list[RequestOutput]:
        """Answer a conversation, or several, in the form of the tokenizer's chat template.

        Parameters
        ----------
        messages
            Dictionaries with ``role`` and ``content``; a list of such lists for several.
        template
            What the template may ask for, such as ``tools``.

        Raises
        ------
        TextError
            If there is no chat template, or it does not take these messages.
        """
        alone = not messages or isinstance(messages[0], dict)
        several: Sequence[Any] = [messages] if alone else messages
        made = []
        for one in several:
            prompt = self.template.render(one, add_generation_prompt=add_generation_prompt,
                                          **template)
            made.append(self._request(prompt, params or SamplingParams(), special=False))
        return self._finish(made, progress)

    def conversation(self, system: str | None = None, params: SamplingParams | None = None,
                     **template: Any) -> Conversation:
        """Return a new conversation; turns share what was computed of those before."""
        self.template  # noqa: B018  (raises if there is none)
        return Conversation(self, system, params, **template)

    def reset_prefix_cache(self) -> None:
        """Forget what was computed of texts that have ended."""
        self._post(lambda engine: engine.forget())

    def close(self) -> None:
        """Cancel what is at work and stop the thread. Nothing can be asked for afterwards."""
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return not self._finalizer.alive

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _tokens(self, prompt: Prompt, special: bool) -> tuple[str | None, tuple[int, ...]]:
        text = prompt if isinstance(prompt, str) else None
        tokens = (self.text.encode(prompt, special=special) if isinstance(prompt, str)
                  else [int(token) for token in prompt])
        return text, tuple(tokens or [beginning(self.program)])

    def _request(self, prompt: Prompt, params: SamplingParams, *, special: bool = True,
                 put: Callable[[Chunk | Exception], None] | None = None) -> Request:
        if params.stops and not self.has_text:
            raise TextError("stop must be empty for a program without a tokenizer; give "
                            "stop_token_ids")
        return Request(self, *self._tokens(prompt, special), params, put)

    def _submit(self, prompt: Prompt, params: SamplingParams,
                put: Callable[[Chunk | Exception], None] | None = None) -> Request:
        request = self._request(prompt, params, put=put)
        self._begin(request)
        return request

    def _begin(self, request: Request) -> None:
        for job in request._jobs:
            self._post(partial(Engine.add, job=job))

    def _post(self, command: _Command) -> None:
        if self.closed:
            raise RuntimeError("the LLM must be open; it was closed")
        self._inbox.put(command)


_Stream = Generator[Chunk, None, None]
_Command = Callable[[Engine], object]


def beginning(program: Program) -> int:
    """Return the token that an empty prompt stands for."""
    start = program.model.bos_token
    return start if start is not None else next(iter(program.model.eos_tokens), 0)


def _several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and not isinstance(prompts[0], str | Sequence) and not hasattr(prompts[0], "shape"):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[Any], None], what: object) -> None:
    with suppress(RuntimeError):  # a loop that was closed: nobody waits
        loop.call_soon_threadsafe(function, what)


def _work(engine: Engine, inbox: queue.SimpleQueue[_Command | None]) -> None:
    """Run an engine: do what comes in, between steps, until a None comes."""
    busy = False
    while True:
        try:
            command = inbox.get(block=not busy)
        except queue.Empty:
            try:
                busy = engine.step()
            except Exception:  # every job has been told
                busy = False
            continue
        if command is None:
            break
        command(engine)
        del command  # it holds the LLM, which must be free to go
        busy = True
    while not inbox.empty():  # what came at the same moment
        command = inbox.get()
        if command is not None:
            command(engine)
    for job in [*engine.running, *engine.waiting]:
        engine.cancel(job)
    engine.close()


def _stop(inbox: queue.SimpleQueue[_Command | None], thread: threading.Thread) -> None:
    inbox.put(None)
    if thread is not threading.current_thread():
        thread.join()


@contextmanager
def _steps(shown: bool) -> Iterator[Begin]:
    """Show a bar for each step that is begun, on standard error."""
    if not shown:
        yield lambda name, total: lambda made: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        def begin(name: str, total: int) -> Any:
            task = progress.add_task(name, total=total or None)
            return lambda made: progress.update(task, advance=made)
        yield begin
