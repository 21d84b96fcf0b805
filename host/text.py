"""Text to tokens and back, with the tokenizer that the model was published with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return a text's tokens; ``special`` adds those that the tokenizer puts around a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """Return the text of tokens, with special ones spelled out if ``special``."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=not special))


BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of an unfinished UTF-8 sequence
UNFINISHED = 3  # most bytes of one, each of which may have become a character
WINDOW = 24  # tokens decoded at a time; some decoders look at what is before a token


class Stream:
    """Turns tokens into text as they come, holding back what a later token may still change."""

    def __init__(self, text: Text, *, special: bool = False) -> None:
        self.text, self.special = text, special
        self.window: list[int] = []
        self.shown = 0  # characters of the window's text

    def push(self, token: int) -> str:
        """Return the text that this token adds, which may be empty."""
        self.window.append(token)
        whole = self.text.decode(self.window, special=self.special)
        ready = whole
        for _ in range(UNFINISHED):
            ready = ready.removesuffix(BROKEN)
        added = ready[self.shown:]
        self.shown = max(self.shown, len(ready))
        if len(self.window) >= 2 * WINDOW and ready == whole:
            del self.window[:-WINDOW]
            self.shown = len(self.text.decode(self.window, special=self.special))
        return added


class Writer:
    """Turns tokens into text up to a stop, holding back what may be the beginning of one.

    ``text`` is what was given out so far. After a stop nothing more is added.

    Parameters
    ----------
    stops
        Texts that end it. The one that is complete first counts, of those the longest.
    keep
        Whether the text keeps its stop.
    """

    def __init__(self, stream: Stream, stops: Sequence[str] = (), *, keep: bool = False) -> None:
        self.stream, self.stops, self.keep = stream, tuple(stops), keep
        self.text = ""
        self.held = ""
        self.stop: str | None = None

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """Return the text that is certain now; ``stop`` tells whether it ended.

        ``may_stop`` is false for a token before which and in which stops are plain text.
        """
        if self.stop is not None:
            return ""
        self.held += self.stream.push(token)
        if not may_stop:
            return self._give(len(self.held))
        found = min(((at + len(stop), at, stop) for stop in self.stops
                     if (at := self.held.find(stop)) >= 0), default=None)
        if found is None:
            return self._give(len(self.held) - self._beginning())
        end, at, self.stop = found
        given = self._give(end if self.keep else at)
        self.held = ""
        return given

    def finish(self) -> str:
        """Return what was held back, but for an unfinished character; no more tokens follow."""
        return self._give(len(self.held))

    def _beginning(self) -> int:
        """Return how many of the last characters may begin a stop."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        return next((count for count in range(min(longest, len(self.held)), 0, -1)
                     if any(stop.startswith(self.held[-count:]) for stop in self.stops)), 0)

    def _give(self, count: int) -> str:
        given, self.held = self.held[:count], self.held[count:]
        self.text += given
        return given
