"""Self-test vectors of a build: a small program, tokens for it, and what the golden model makes.

They are made for the very build, by the compiler and the golden model of the version that builds
it; a card that gives the same bits runs the instruction set, every lane and the memory formats.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from alula.compiler.program import Program, load as load_program, save
from alula.host.device import Device, GoldenDevice
from alula.host.session import Session
from alula.hw import isa
from alula.hw.arch import ArchConfig

FOLDER, PROGRAM, FILE = "selftest", "program.alula", "vectors.json"
FORMAT: Final = 1
CONTEXT = 128
PROMPT = tuple(range(5, 95, 2))  # over a page's end, and of several steps
STEPS = 4  # of one token each, after the prompt


class VectorError(ValueError):
    """Vectors cannot be read, or are for another build."""


class Step(BaseModel):
    """Tokens that are fed together; the last one's best token, and SHA-256 of its logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[int, ...]
    best: int
    logits: str


class Vectors(BaseModel):
    """All steps, on one sequence, for one build."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    arch_hash: str
    isa_hash: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Difference:
    """A step of a device that is not as its vector has it."""

    number: int
    wanted: Step
    found: Step

    def __str__(self) -> str:
        return (f"step {self.number}: logits must hash to {self.wanted.logits[:16]}, with best "
                f"token {self.wanted.best}, not to {self.found.logits[:16]}, with "
                f"{self.found.best}")


def make(arch: ArchConfig) -> tuple[Program, Vectors]:
    """Compile the bundled sparse model for a build, and run it on the golden model."""
    from alula.compiler.compile import Options, compile as compile_graph  # these load onnx
    from alula.compiler.importer import import_model

    graph, _ = import_model(Path(str(files("alula.host.bundled"))) / "sparse")
    program = compile_graph(graph, arch, Options(context=CONTEXT, sequences=1), name="selftest")
    session, steps = _opened(GoldenDevice(program)), [PROMPT]
    made = [_feed(session, PROMPT)]
    for _ in range(STEPS):
        steps.append((made[-1].best,))
        made.append(_feed(session, steps[-1]))
    return program, Vectors(arch_hash=arch.hash, isa_hash=isa.isa_hash(), steps=tuple(made))


def write(arch: ArchConfig, bundle: Path) -> str:
    """Make vectors into a bundle's folder; return the name of theirs in it."""
    program, vectors = make(arch)
    folder = bundle / FOLDER
    folder.mkdir()
    save(program, folder / PROGRAM)
    (folder / FILE).write_text(vectors.model_dump_json(indent=1) + "\n")
    return FOLDER


def read(folder: Path) -> tuple[Program, Vectors]:
    """Read what :func:`write` wrote; raise VectorError or ProgramError if that cannot be."""
    program, path = load_program(folder / PROGRAM), folder / FILE
    try:
        vectors = Vectors.model_validate_json(path.read_text())
    except OSError:
        raise VectorError(f"{path} must be vectors that can be read; alula build makes them") \
            from None
    except ValidationError as error:
        raise VectorError(f"{path} must be vectors of format {FORMAT}: "
                          f"{error.errors()[0]['msg']}") from None
    if vectors.arch_hash != program.arch.hash:
        raise VectorError(f"{path} must be for {program.arch.hash}, the program's architecture, "
                          f"not {vectors.arch_hash}")
    return program, vectors


def differences(device: Device, vectors: Vectors) -> list[Difference]:
    """Run all steps on a device; return those that are not as they must be."""
    session = _opened(device)
    pairs = [(step, _feed(session, step.tokens)) for step in vectors.steps]
    return [Difference(at, wanted, found) for at, (wanted, found) in enumerate(pairs)
            if wanted != found]


def _opened(device: Device) -> Session:
    session = Session(device)
    session.open()
    return session


def _feed(session: Session, tokens: tuple[int, ...]) -> Step:
    logits = session.feed(0, tokens)[-1]
    return Step(tokens=tokens, best=int(np.argmax(logits)), logits=_hash(logits))


def _hash(logits: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits, "<f4").tobytes()).hexdigest()
