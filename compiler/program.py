"""A compiled program: instructions, memory map, weight images, tokenizer; and its file format.

A ``.alula`` file is a safetensors file, read through a memory map. Its tensors are the program,
one image for each lane, the control memory's image, and the tokenizer's files; its metadata is the
manifest. Hashes of every part are in the manifest, so a file that was cut or changed is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from alula.hw import isa
from alula.hw.arch import ArchConfig
from alula.hw.isa import Instruction

FORMAT = 1


class ProgramError(ValueError):
    """A program file is not what it claims to be."""


@dataclass(frozen=True)
class Region:
    """Bytes of a memory: ``start`` to ``start + size``, both multiples of 64."""

    start: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, kw_only=True)
class MemoryMap:
    """Where things are in the control memory, and (alike) in every lane's memory.

    ``weights`` and ``cache`` are in each lane; the others in the control memory. ``cache`` holds
    ``slots`` slots of ``slot_words`` words.
    """

    streams: int  # entries of each lane's stream directory, which comes first in its weights
    weights: Region
    cache: Region
    slots: int
    slot_words: int
    program: Region
    params: Region
    tables: Region
    step: Region
    pages: Region
    page_stride: int  # words from one sequence's page table to the next
    sequences: int
    context: int  # most tokens of a sequence
    logits: Region
    logits_stride: int  # words from one row's logits to the next
    top: Region
    repeats: int  # most greedy steps in one run


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a host needs to know of the model."""

    name: str
    architecture: str
    vocab: int
    positions: int
    eos_tokens: tuple[int, ...]
    bos_token: int | None
    parameters: int
    layers: int
    kv_heads: int
    head_dim: int


@dataclass
class Program:
    """A program and everything it needs in memory.

    ``lanes`` are the images of the lanes' weight regions and ``control`` the image of the control
    memory's program, parameters and tables, which come first in it; both as bytes.
    """

    arch: ArchConfig
    instructions: list[Instruction]
    memory: MemoryMap
    model: ModelInfo
    lanes: list[NDArray[np.uint8]]
    control: NDArray[np.uint8]
    tokenizer: dict[str, bytes] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    folder: TemporaryDirectory[str] | None = None  # where the images' files are, if nowhere else

    @property
    def program_bytes(self) -> int:
        return len(self.instructions) * isa.INSTRUCTION_BYTES


def _digest(data: NDArray[np.uint8]) -> str:
    return hashlib.sha256(memoryview(np.ascontiguousarray(data).data)).hexdigest()


def _parts(program: Program) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    code = isa.assemble(program.instructions)
    yield "program", np.frombuffer(code, np.uint8)
    yield "control", program.control
    for index, lane in enumerate(program.lanes):
        yield f"lane.{index}", lane
    for name, data in program.tokenizer.items():
        yield f"tokenizer.{name}", np.frombuffer(data, np.uint8)


def save(program: Program, path: Path) -> None:
    """Write a program file; nothing is left behind if that fails."""
    parts = {name: data for name, data in _parts(program) if data.size}
    hashes = {name: _digest(data) for name, data in parts.items()}
    manifest = {
        "format": FORMAT,
        "isa": isa.isa_hash(),
        "arch": asdict(program.arch),
        "arch_hash": program.arch.hash,
        "model": asdict(program.model),
        "memory": asdict(program.memory),
        "statistics": program.statistics,
        "hashes": hashes,
        "model_hash": hashlib.sha256("".join(sorted(hashes.values())).encode()).hexdigest()[:16],
        "tool": _tool_version(),
    }
    _write(parts, {"alula": json.dumps(manifest)}, path)


def _write(parts: Mapping[str, NDArray[np.uint8]], metadata: dict[str, str], path: Path) -> None:
    """Write a safetensors file part by part: its own writer would hold a copy of every part."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, data in parts.items():
        header[name] = {"dtype": "U8", "shape": [data.size], "data_offsets": [at, at + data.size]}
        at += data.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for data in parts.values():
                file.write(np.ascontiguousarray(data).data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _tool_version() -> str:
    from importlib.metadata import version

    return f"alula {version('alula')}"


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
    """Map a program file; return its manifest and its parts. Raise :class:`ProgramError`."""
    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise ProgramError(f"{path} must be a readable file: {error.strerror}") from None
    if size < 8:
        raise ProgramError(f"{path} must be a program file, not one of {size} bytes; "
                           "make one with `alula compile`")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > size - 8:
        raise ProgramError(f"{path} must hold a header of {length} bytes, but only {size - 8} "
                           "follow: it was cut short or is no program file")
    try:
        header = json.loads(data[8:8 + length].tobytes())
        manifest = json.loads(header.pop("__metadata__")["alula"])
        body = data[8 + length:]
        parts = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            if not 0 <= start <= stop:
                raise ValueError("negative size")
            if stop > len(body):
                raise ProgramError(f"{path} must have {stop} bytes of data, not {len(body)}: "
                                   "it was cut short")
            parts[name] = body[start:stop]
    except ProgramError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProgramError(f"{path} must be a program file; its header cannot be read "
                           f"({type(error).__name__})") from None
    if not isinstance(manifest, dict):
        raise ProgramError(f"{path} must be a program file; its manifest is no object")
    return manifest, parts


def load(path: Path, *, check: bool = True) -> Program:
    """Read a program file through a memory map.

    Parameters
    ----------
    check
        Compare the hash of every part with the manifest's. Without it only sizes are checked.

    Raises
    ------
    ProgramError
        If the file was cut or altered, or made for another instruction set.
    """
    manifest, parts = read_manifest(path)
    if manifest.get("format") != FORMAT:
        raise ProgramError(f"{path} must have format {FORMAT}, not {manifest.get('format')}; "
                           "compile the model again")
    if manifest.get("isa") != isa.isa_hash():
        raise ProgramError(f"{path} must be made for instruction set {isa.isa_hash()}, "
                           f"not {manifest.get('isa')}; compile the model again")
    try:
        hashes = dict(manifest["hashes"])
        if hashes.keys() != parts.keys():
            raise ProgramError(f"{path} must have the parts {sorted(hashes)}, "
                               f"not {sorted(parts)}")
        for name in hashes if check else ():
            if _digest(parts[name]) != hashes[name]:
                raise ProgramError(f"{path}: part {name!r} must have hash {hashes[name][:16]}, not "
                                   f"{_digest(parts[name])[:16]}: the file was altered")
        program = _rebuild(manifest, parts)
    except ProgramError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProgramError(f"{path}: the manifest is not readable: {error}") from None
    if program.arch.hash != manifest.get("arch_hash"):
        raise ProgramError(f"{path}: the build's hash must be {manifest.get('arch_hash')}, "
                           f"not {program.arch.hash}: the file was altered")
    return program


def _rebuild(manifest: dict[str, Any], parts: dict[str, NDArray[np.uint8]]) -> Program:
    arch = _typed(ArchConfig, manifest["arch"])
    empty = np.zeros(0, np.uint8)
    return Program(
        arch=arch, instructions=isa.disassemble(parts["program"].tobytes()),
        memory=_typed(MemoryMap, manifest["memory"]), model=_typed(ModelInfo, manifest["model"]),
        lanes=[parts.get(f"lane.{index}", empty) for index in range(arch.lanes)],
        control=parts.get("control", empty),
        tokenizer={name.removeprefix("tokenizer."): data.tobytes()
                   for name, data in parts.items() if name.startswith("tokenizer.")},
        statistics=manifest["statistics"])


_Record = TypeVar("_Record")


def _typed(kind: type[_Record], value: object) -> _Record:
    """Return a dataclass of exactly the types it declares, its whole numbers of sane size."""
    record = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    for name, number in _numbers(value):
        if not 0 <= number <= _NUMBER_LIMIT:
            raise ValueError(f"{name} must be from 0 to {_NUMBER_LIMIT}, not {number}")
    return record


_NUMBER_LIMIT = 1 << 48


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int):
        yield name, value
