"""An HTTP server that speaks OpenAI's protocol: completions and chat, streamed or whole.

Fields that OpenAI does not have (``top_k``, ``min_p``, ``repetition_penalty``, ...) are taken as
vLLM takes them. What is not supported is refused, never ignored in silence, if it would change the
text.
"""

from __future__ import annotations

import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from alula.host.engine import Chunk
from alula.host.llm import LLM, beginning
from alula.host.sampling import SamplingParams, TokenLogprob

NEEDED = "starlette and uvicorn must be installed to serve: pip install 'alula[serve]'"
FINISH = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "stop"}


class _Asked(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    n: int | None = 1
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True

    def likely(self) -> int | None:
        raise NotImplementedError

    def params(self, limit: int | None, room: int) -> SamplingParams:
        """Return the parameters; without a limit, what the context has room for."""
        return SamplingParams(
            max_tokens=limit if limit is not None else max(room, 1),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p, n=self.n or 1,
            stop=self.stop or (), presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0, logit_bias=self.logit_bias,
            seed=self.seed, top_k=self.top_k, min_p=self.min_p, min_tokens=self.min_tokens,
            repetition_penalty=self.repetition_penalty, ignore_eos=self.ignore_eos,
            stop_token_ids=self.stop_token_ids or (), logprobs=self.likely(),
            include_stop_str_in_output=self.include_stop_str_in_output,
            skip_special_tokens=self.skip_special_tokens)


class CompletionAsked(_Asked):
    """``/v1/completions``."""

    prompt: str | list[int] | list[str] | list[list[int]] = ""
    logprobs: int | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None

    def likely(self) -> int | None:
        return self.logprobs


class ChatAsked(_Asked):
    """``/v1/chat/completions``."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    def likely(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class Server:
    """The requests of one model, as functions of what was asked."""

    def __init__(self, llm: LLM, name: str | None = None) -> None:
        self.llm, self.name = llm, name or llm.program.model.name
        self.started = int(time.time())

    def models(self) -> dict[str, Any]:
        """Return the list of models."""
        return {"object": "list", "data": [{
            "id": self.name, "object": "model", "created": self.started, "owned_by": "alula",
            "max_model_len": self.llm.context}]}

    def completion(self, asked: CompletionAsked) -> Answer:
        """Return the answer to a completion, not begun."""
        self._check(asked)
        for name, plain in (("echo", False), ("suffix", None), ("best_of", None)):
            if getattr(asked, name) != plain:
                raise ValueError(f"{name} must be left out: it is not supported")
        prompts = self._prompts(asked.prompt)
        each = []
        for tokens in prompts:
            limit = 16 if asked.max_tokens is None else asked.max_tokens  # OpenAI's
            each.append((tokens, asked.params(limit, 0)))
        return Answer(self, each, asked, chat=False)

    def chat(self, asked: ChatAsked) -> Answer:
        """Return the answer to a conversation, not begun."""
        self._check(asked)
        if asked.tool_choice not in (None, "none", "auto"):
            raise ValueError(f"tool_choice must be none or auto, not {asked.tool_choice!r}")
        if (asked.response_format or {}).get("type", "text") != "text":
            raise ValueError("response_format must be text: others are not supported")
        more = dict(asked.chat_template_kwargs or {})
        messages = [{**message, "content": _content(message.get("content"))}
                    for message in asked.messages]
        prompt = self.llm.template.render(messages, tools=asked.tools, **more)
        tokens = self.llm.text.encode(prompt, special=False)
        limit = asked.max_completion_tokens or asked.max_tokens
        params = asked.params(limit, self.llm.context - len(tokens))
        return Answer(self, [(tokens, params)], asked, chat=True)

    def _check(self, asked: _Asked) -> None:
        if asked.model not in (None, self.name):
            raise LookupError(f"model must be {self.name}, not {asked.model}")

    def _prompts(self, prompt: str | Sequence[Any]) -> list[list[int]]:
        if isinstance(prompt, str):
            prompts: list[Any] = [prompt]
        elif not prompt or isinstance(prompt[0], int):
            prompts = [list(prompt)]
        else:
            prompts = list(prompt)
        encoded = [self.llm.text.encode(one) if isinstance(one, str) else one for one in prompts]
        return [tokens or [beginning(self.llm.program)] for tokens in encoded]


def _content(content: Any) -> Any:
    """Return a message's content as one text, if it came in parts."""
    if not isinstance(content, list):
        return content
    if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
        raise ValueError("a message's content must be text, or parts of type text")
    return "".join(str(part.get("text", "")) for part in content)


class Answer:
    """An answer in the making: several texts, numbered through all prompts."""

    def __init__(self, server: Server, each: list[tuple[list[int], SamplingParams]],
                 asked: _Asked, *, chat: bool) -> None:
        self.server, self.each, self.chat = server, each, chat
        self.streams = bool(asked.stream)
        self.with_usage = bool((asked.stream_options or {}).get("include_usage"))
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.made = 0
        for tokens, params in each:  # refused before anything begins
            server.llm._engine.check(tokens, params)

    async def whole(self) -> dict[str, Any]:
        """Return the answer when all of it is made."""
        count = sum(params.n for _, params in self.each)
        texts: list[list[str]] = [[] for _ in range(count)]
        likely: list[list[TokenLogprob]] = [[] for _ in range(count)]
        reasons: list[str | None] = [None] * count
        async for number, chunk in self._chunks():
            texts[number].append(chunk.text)
            likely[number] += chunk.logprobs
            reasons[number] = chunk.finish_reason
        choices = []
        for number, parts in enumerate(texts):
            text = "".join(parts)
            said = {"message": {"role": "assistant", "content": text}} if self.chat else {
                "text": text}
            choices.append({"index": number, **said, "logprobs": self._likely(likely[number]),
                            "finish_reason": FINISH[reasons[number] or "cancelled"]})
        return {**self._head("chat.completion" if self.chat else "text_completion"),
                "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """Yield the answer in pieces, as server-sent events."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        begun: set[int] = set()
        try:
            async for number, chunk in self._chunks():
                delta: dict[str, Any] = {"content": chunk.text} if chunk.text else {}
                if number not in begun:
                    begun.add(number)
                    delta = {"role": "assistant", "content": chunk.text}
                said = {"delta": delta} if self.chat else {"text": chunk.text}
                reason = FINISH[chunk.finish_reason] if chunk.finish_reason else None
                yield _event({**head, "choices": [{
                    "index": number, **said, "logprobs": self._likely(chunk.logprobs),
                    "finish_reason": reason}]})
            if self.with_usage:
                yield _event({**head, "choices": [], "usage": self._usage()})
        except Exception as error:  # the answer has begun: there is no other way to say it
            yield _event(_error(str(error), "server_error"))
        yield "data: [DONE]\n\n"

    async def _chunks(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Yield the chunks of all texts as they are made."""
        import asyncio

        queue: asyncio.Queue[tuple[int, Chunk] | Exception | None] = asyncio.Queue()
        first = 0
        tasks = []

        async def pump(first: int, tokens: list[int], params: SamplingParams) -> None:
            try:
                async for chunk in self.server.llm.agenerate(tokens, params):
                    await queue.put((first + chunk.index, chunk))
                await queue.put(None)
            except Exception as error:
                await queue.put(error)

        for tokens, params in self.each:
            tasks.append(asyncio.create_task(pump(first, tokens, params)))
            first += params.n
        left = len(tasks)
        try:
            while left:
                found = await queue.get()
                if isinstance(found, Exception):
                    raise found
                if found is None:
                    left -= 1
                else:
                    self.made += len(found[1].token_ids)
                    yield found
        finally:
            for task in tasks:
                task.cancel()

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": int(time.time()),
                "model": self.server.name}

    def _usage(self) -> dict[str, int]:
        given = sum(len(tokens) for tokens, _ in self.each)
        return {"prompt_tokens": given, "completion_tokens": self.made,
                "total_tokens": given + self.made}

    def _likely(self, likely: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not likely:
            return None
        spell = self._spelled
        if self.chat:
            return {"content": [{
                "token": spell(one.token), "logprob": one.logprob,
                "bytes": list(spell(one.token).encode()),
                "top_logprobs": [{"token": spell(token), "logprob": logprob,
                                  "bytes": list(spell(token).encode())}
                                 for token, logprob in one.top.items()]} for one in likely]}
        return {"tokens": [spell(one.token) for one in likely],
                "token_logprobs": [one.logprob for one in likely],
                "top_logprobs": [{spell(token): logprob for token, logprob in one.top.items()}
                                 for one in likely]}

    def _spelled(self, token: int) -> str:
        return self.server.llm.text.decode([token], special=True)


def _event(what: dict[str, Any]) -> str:
    return f"data: {json.dumps(what)}\n\n"


def _error(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def application(llm: LLM, *, name: str | None = None, api_key: str | None = None) -> Any:
    """Return the ASGI application of a model.

    Parameters
    ----------
    name
        What the model is called; the program's name, if not given.
    api_key
        What a client must send as bearer token, if anything.

    Raises
    ------
    ImportError
        If starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import JSONResponse, Response, StreamingResponse
        from starlette.routing import Route
    except ImportError:
        raise ImportError(NEEDED) from None
    server = Server(llm, name)

    def allowed(request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        return api_key is None or hmac.compare_digest(given, api_key.encode())

    def answering(kind: type[_Asked], answer: Callable[[Any], Answer]) -> Any:
        async def endpoint(request: Request) -> Response:
            if not allowed(request):
                return JSONResponse(_error("the API key must be the server's",
                                           "authentication_error"), 401)
            try:
                made = answer(kind.model_validate_json(await request.body()))
            except LookupError as error:
                return JSONResponse(_error(error.args[0], "not_found_error"), 404)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                return JSONResponse(_error(f"{where}: {first['msg']}"), 400)
            except ValueError as error:
                return JSONResponse(_error(str(error)), 400)
            if made.streams:
                return StreamingResponse(made.events(), media_type="text/event-stream")
            try:
                return JSONResponse(await made.whole())
            except Exception as error:
                return JSONResponse(_error(str(error), "server_error"), 500)
        return endpoint

    async def models(request: Request) -> Response:
        if not allowed(request):
            return JSONResponse(_error("the API key must be the server's",
                                       "authentication_error"), 401)
        return JSONResponse(server.models())

    async def health(request: Request) -> Response:
        return JSONResponse({"device": llm.device, **vars(llm.statistics)})

    return Starlette(routes=[
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/completions", answering(CompletionAsked, server.completion), methods=["POST"]),
        Route("/v1/chat/completions", answering(ChatAsked, server.chat), methods=["POST"])])


def serve(llm: LLM, host: str, port: int, *, name: str | None = None,
          api_key: str | None = None) -> None:
    """Serve a model until someone interrupts."""
    app = application(llm, name=name, api_key=api_key)
    try:
        import uvicorn
    except ImportError:
        raise ImportError(NEEDED) from None
    uvicorn.run(app, host=host, port=port, log_level="info")
