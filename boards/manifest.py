"""``manifest.json`` beside a bitstream: what it was made from, and whether a program may use it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from alula.hw import isa
from alula.hw.arch import ArchConfig

FILE = "manifest.json"
FORMAT: Final = 1


class ManifestError(ValueError):
    """A manifest cannot be read, or the bundle is not for a program."""


class Manifest(BaseModel):
    """A bundle of files for a board.

    Parameters
    ----------
    isa_hash, arch_hash
        What the hardware obeys and its sizes: a program's must be the same.
    tool, tool_version
        The vendor's tool, and the version that ran; no version until one did.
    utilization
        Share of each resource of the part, after routing; nothing until the tool ran.
    slack_ns
        Least setup slack after routing.
    memory
        The memory behind each AXI master.
    bitstream
        What to load, below the folder; it exists once the tool has run.
    bitstream_bytes, bitstream_hash
        Its size and its SHA-256 when the tool had made it; nothing until then.
    selftest
        Folder of the self-test's vectors, below the folder; None if the bundle has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    alula: str
    board: str
    part: str
    arch: ArchConfig
    arch_hash: str
    isa_hash: str
    clock_hz: int
    memory: dict[str, str]
    tool: str
    tool_version: str | None = None
    utilization: dict[str, float] | None = None
    slack_ns: float | None = None
    bitstream: str
    bitstream_bytes: int | None = None
    bitstream_hash: str | None = None
    selftest: str | None = None


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(manifest: Manifest, folder: Path) -> None:
    """Write a manifest into a folder, whole or not at all."""
    temporary = folder / f".{FILE}"
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
    temporary.replace(folder / FILE)


def load(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises
    ------
    ManifestError
        If there is none, it is of another format, or it contradicts itself.
    """
    path = folder / FILE
    try:
        manifest = Manifest.model_validate_json(path.read_text())
    except OSError:
        raise ManifestError(f"{path} must be a manifest that can be read; "
                            "alula build writes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "text"
        raise ManifestError(f"{path}: {field} must be legal in format {FORMAT}, "
                            f"not {str(first['input'])[:60]!r}: {first['msg']}") from None
    if manifest.arch.hash != manifest.arch_hash:
        raise ManifestError(f"{path}: arch_hash must be {manifest.arch.hash}, which its sizes "
                            f"give, not {manifest.arch_hash}; build it again")
    return manifest


def check(manifest: Manifest, arch: ArchConfig, isa_hash: str | None = None) -> None:
    """Raise ManifestError if a program for a build and instruction set cannot run on a bundle."""
    isa_hash = isa_hash or isa.isa_hash()
    if manifest.isa_hash != isa_hash:
        raise ManifestError(f"bundle's instruction set must be {isa_hash}, as the program's, not "
                            f"{manifest.isa_hash}; build the bundle or compile the program again")
    if manifest.arch_hash != arch.hash:
        raise ManifestError(f"bundle's architecture must be {arch.hash}, as the program's "
                            f"({arch.name}, {arch.lanes} lanes), not {manifest.arch_hash} "
                            f"({manifest.arch.name}, {manifest.arch.lanes} lanes); compile the "
                            "program for the bundle's")
