"""Collect the English that every Python carries, split into training and validation text.

Three sources, in this order: the language reference in `pydoc_data.topics`; the docstrings of the
standard library, those of its extension modules written in C first; and the comment blocks of its
Python sources that read like prose. Nothing is downloaded. The result is the same each time on one
Python installation; another version, or another platform, has other text.
"""

import ast
import hashlib
import importlib
import io
import re
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from types import ModuleType

END = "<|endoftext|>"
"""Stands between two documents; the tokenizer knows it as one token."""

VALIDATION_PERMILLE = 26
PIECE_CHARS = 4000          # long reference topics are cut at a blank line after about this much
SHORTEST_DOCUMENT = 40      # characters; below it there is nothing to learn
SHORTEST_DUPLICATE = 50     # characters; a paragraph this long is kept only where it comes first
SHARED_WORDS = 20           # in a row from the training text: then a document is not held out
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__", "encodings",
                   "pydoc_data", "lib2to3", "turtledemo", "_distutils_hack"}
C_MODULES = (
    "builtins", "sys", "math", "cmath", "itertools", "functools", "operator", "collections", "io",
    "time", "datetime", "struct", "array", "zlib", "bz2", "lzma", "binascii", "hashlib", "marshal",
    "gc", "weakref", "select", "socket", "ssl", "sqlite3", "decimal", "pickle", "random", "re",
    "unicodedata", "mmap", "errno", "signal", "threading", "ctypes")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Hold the two texts as lists of documents; no run of `SHARED_WORDS` words is in both."""

    train: list[str]
    validation: list[str]

    @property
    def train_text(self) -> str:
        """All training documents, each followed by `END`."""
        return "".join(document + END for document in self.train)

    @property
    def validation_text(self) -> str:
        """All validation documents, each followed by `END`."""
        return "".join(document + END for document in self.validation)


def collect() -> Corpus:
    """Return the corpus of the running Python; the same one each time."""
    train, validation = [], []
    seen: set[str] = set()
    for document in _documents():
        document = _without_repeats(document, seen)
        if len(document) < SHORTEST_DOCUMENT:
            continue
        digest = int.from_bytes(hashlib.sha256(document.encode()).digest()[:4], "big")
        (validation if digest % 1000 < VALIDATION_PERMILLE else train).append(document)
    known = {run for document in train for run in _runs(document)}
    held_out = [document for document in validation if known.isdisjoint(_runs(document))]
    return Corpus(train=train, validation=held_out)


def _documents() -> Iterator[str]:
    for _, topic in sorted(topics.topics.items()):
        yield from _pieces(topic)
    for name in C_MODULES:
        yield from _c_docstrings(importlib.import_module(name))
    sources = list(_stdlib_sources())
    for source in sources:
        yield from _docstrings(source)
    for source in sources:
        yield from _comments(source)


def _stdlib_sources() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_FOLDERS & set(path.relative_to(root).parts):
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:      # a few old modules are in Latin-1 and have no prose
                continue


def _docstrings(source: str) -> Iterator[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
            yield docstring.strip()


def _c_docstrings(module: ModuleType) -> Iterator[str]:
    """Yield what `help` shows of a C module: its functions, its classes and their methods."""
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or isinstance(member, ModuleType):
            continue
        yield from _own_docstring(member)
        if isinstance(member, type):
            for _, method in sorted(vars(member).items()):
                yield from _own_docstring(method)


def _own_docstring(member: object) -> Iterator[str]:
    docstring = getattr(member, "__doc__", None)
    if callable(member) and isinstance(docstring, str):
        yield textwrap.dedent(docstring).strip()


def _comments(source: str) -> Iterator[str]:
    """Yield each run of full-line comments of which most lines are made of words."""
    block: list[str] = []
    previous_row = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line.strip() != token.string:
            continue
        if token.start[0] != previous_row + 1:
            yield from _prose("\n".join(block))
            block = []
        previous_row = token.start[0]
        block.append(re.sub(r"^#+ ?", "", token.string))
    yield from _prose("\n".join(block))


def _prose(text: str) -> Iterator[str]:
    text = text.strip()
    words = re.findall(r"\b[a-z]{2,}\b", text)
    if len(words) >= 12 and sum(map(len, words)) > 0.6 * len(re.sub(r"\s", "", text)):
        yield text


def _runs(document: str) -> Iterator[str]:
    words = document.split()
    for start in range(len(words) - SHARED_WORDS + 1):
        yield " ".join(words[start:start + SHARED_WORDS])


def _pieces(text: str) -> Iterator[str]:
    piece: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) > PIECE_CHARS:
            yield "\n\n".join(piece)
            piece = []
    yield "\n\n".join(piece)


def _without_repeats(document: str, seen: set[str]) -> str:
    """Drop the paragraphs an earlier document has, and remember the others in `seen`."""
    kept = []
    for paragraph in document.split("\n\n"):
        key = " ".join(paragraph.split())
        if key not in seen:
            kept.append(paragraph)
        if len(key) >= SHORTEST_DUPLICATE:
            seen.add(key)
    return "\n\n".join(kept).strip()
