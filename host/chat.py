"""Conversations, in the form that a model was trained on: its tokenizer's chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from alula.host.engine import Chunk
from alula.host.sampling import SamplingParams
from alula.host.text import TextError

if TYPE_CHECKING:
    from alula.host.llm import LLM

Message = Mapping[str, Any]  # role: system, user, assistant, tool; content; more if a template asks

NO_TEMPLATE = ("the model must have a chat template in its tokenizer_config.json or "
               "chat_template.jinja to chat; give one as chat_template, or continue plain text")


class Template:
    """A chat template, in a sandbox: it comes with a model and is no more trusted than that.

    Parameters
    ----------
    files
        The tokenizer's files, as :func:`alula.host.text.read_files` returns them.
    source
        The template's text, if not the model's own.
    """

    def __init__(self, files: Mapping[str, bytes], source: str | None = None) -> None:
        config = _json(files, "tokenizer_config.json")
        source = source if source is not None else _source(files, config)
        if source is None:
            raise TextError(NO_TEMPLATE)
        self.source = source
        special = {**_json(files, "special_tokens_map.json"), **config}
        self.special = {name: _token(value) for name, value in special.items()
                        if name.endswith("_token") and _token(value) is not None}
        self._template = _compiled(source)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True,
               **more: Any) -> str:
        """Return a conversation as text.

        Parameters
        ----------
        add_generation_prompt
            End with the beginning of an answer.
        more
            What the template may ask for, such as ``tools`` or ``enable_thinking``.
        """
        for message in messages:
            if "role" not in message:
                raise ValueError(f"a message must have a role, not only {sorted(message)}")
        given = {"tools": None, "documents": None, **self.special, **more}
        try:
            return str(self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt, **given))
        except Exception as error:  # a template is a program, and may raise anything
            raise TextError(f"the chat template does not take these messages: {error}") from None


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        found = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise TextError(f"{name} must be readable JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _source(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    """Return the template's text: of its own file, or of the configuration, or None."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode(errors="replace")
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in found
                 if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _token(value: object) -> str | None:
    if isinstance(value, dict):  # an AddedToken
        value = value.get("content")
    return value if isinstance(value, str) else None


def _compiled(source: str) -> Any:
    """Compile a template as ``transformers`` does, which is what templates are written for."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks an answer for training; here it is what is inside."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
               separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[loopcontrols, Generation])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise TextError(f"the chat template must be readable by jinja2: {error}") from None


class Conversation:
    """Turns of a user and a model. What the cache still has of earlier turns is not computed again.

    ``messages`` are the turns so far, of roles ``system``, ``user`` and ``assistant``.

    Parameters
    ----------
    system
        What the first message tells the model, if the template has a place for it.
    params
        How answers are made, if a turn does not say.
    template
        What the template may ask for.
    """

    def __init__(self, llm: LLM, system: str | None = None, params: SamplingParams | None = None,
                 **template: Any) -> None:
        self.llm, self.params, self.template = llm, params, template
        self._system = [{"role": "system", "content": system}] if system is not None else []
        self.reset()

    def reset(self) -> None:
        """Forget all turns but what the system message says."""
        self.messages: list[dict[str, Any]] = list(self._system)
        self._seen: tuple[str, list[int]] = "", []  # what the model read and wrote, as both

    def stream(self, content: str, params: SamplingParams | None = None) -> Iterator[Chunk]:
        """Say something; yield the answer as it is made. One cut short counts as far as it is."""
        params = params or self.params or SamplingParams()
        if params.n != 1:
            raise ValueError(f"n must be 1 in a conversation, not {params.n}")
        asked = [*self.messages, {"role": "user", "content": content}]
        prompt = self.llm.template.render(asked, **self.template)
        tokens, answer, made = self._tokens(prompt), "", list[int]()
        chunks = self.llm.stream(tokens, params)
        try:
            for chunk in chunks:
                answer += chunk.text
                made += chunk.token_ids
                yield chunk
        finally:
            chunks.close()
            self.messages = [*asked, {"role": "assistant", "content": answer}]
            if self.llm.text.decode(made, special=True) != answer:
                del made[-1:]  # the end of text is in no answer; the template writes one
            if self.llm.text.decode(made, special=True) == answer:
                self._seen = prompt + answer, [*tokens, *made]

    def say(self, content: str, params: SamplingParams | None = None) -> str:
        """Say something; return the answer."""
        return "".join(chunk.text for chunk in self.stream(content, params))

    def _tokens(self, prompt: str) -> list[int]:
        """Return a prompt's tokens: those of the turns before as they were, if that spells it.

        A tokenizer may cut an answer otherwise than the model made it, and then the cache would
        have nothing of it.
        """
        text, encode = self.llm.text, self.llm.text.encode
        seen, tokens = self._seen
        if tokens and prompt.startswith(seen):
            longer = [*tokens, *encode(prompt[len(seen):], special=False)]
            if text.decode(longer, special=True) == prompt:
                return longer
        return encode(prompt, special=False)
