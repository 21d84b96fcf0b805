"""Text to tokens and back, with the tokenizer that the model was published with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "generation_config.json", "chat_template.jinja")  # kept with a program


class TextError(ValueError):
    """A tokenizer that is missing or cannot be read."""


def read_files(directory: Path) -> dict[str, bytes]:
    """Return the tokenizer's files of a model directory, by name; none if it has none."""
    return {name: (directory / name).read_bytes() for name in FILES
            if (directory / name).is_file()}


class Text:
    """A tokenizer.

    Parameters
    ----------
    files
        The files of a model directory, as :func:`read_files` returns them.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        if "tokenizer.json" not in files:
            raise TextError("the model must have a tokenizer.json to work with text; give token "
                            "numbers instead, or put the file beside the model and compile again")
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
        except Exception as error:  # the library raises nothing narrower
            raise TextError(f"tokenizer.json must be readable by `tokenizers`: {error}") from None

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))


class Stream:
    """Turns tokens into text as they come, holding back what a later token may still change."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.tokens: list[int] = []
        self.shown = ""

    def push(self, token: int) -> str:
        """Return the text that this token adds, which may be empty."""
        self.tokens.append(token)
        whole = self.text.decode(self.tokens)
        if whole.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""  # an unfinished UTF-8 sequence
        added, self.shown = whole[len(self.shown):], whole
        return added
