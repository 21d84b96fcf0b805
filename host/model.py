"""From what a user names, a model directory or a program file, to a program."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from alula import compiler
from alula.compiler.program import Program, ProgramError, load, save
from alula.compiler.verify import verify
from alula.hw import isa

STAGES = {"check": "check the graph", "fuse": "fuse operations", "place": "place buffers",
          "emit": "emit instructions", "pack": "pack weights", "tables": "write tables",
          "verify": "prove the program safe"}
STEPS = len(STAGES) + 2  # of compiling a directory

Begin = Callable[[str, int], Any]  # told of each step and its size; what it returns, of progress


def _silent(name: str, total: int) -> Any:
    return lambda made: None


def compile_directory(directory: Path, arch: str, options: Any, quantize: str | None,
                      begin: Begin = _silent, near: Path | None = None) -> Program:
    """Compile a model directory.

    Parameters
    ----------
    options
        An :class:`alula.compiler.compile.Options`.
    begin
        Called as each of :data:`STEPS` steps begins, with its name and its size, 0 if unknown.
    near
        Folder on whose disk the images are made.
    """
    from alula.compiler.compile import compile as compile_graph  # these load onnx
    from alula.compiler.importer import import_model
    from alula.host.text import read_files
    from alula.hw.arch import build

    begin("read the model", 0)
    graph, _ = import_model(directory)
    begin("quantize weights" if quantize else "keep the weights' codes", 0)
    if quantize:
        from alula.compiler.quantize import quantize as quantize_graph
        from alula.compiler.recipe import parse

        graph = quantize_graph(graph, parse(quantize))
    return compile_graph(
        graph, build(arch), options, name=directory.resolve().name,
        tokenizer=read_files(directory), near=near,
        stage=lambda name, total: begin(STAGES[name], total))


def compile(directory: str | os.PathLike[str], *, arch: str = "sim", quantize: str | None = None,
            context: int | None = None, sequences: int = 8,
            output: str | os.PathLike[str] | None = None, begin: Begin = _silent) -> Program:
    """Compile a model directory to a program.

    Parameters
    ----------
    directory
        What ONNX Runtime GenAI's model builder, ``torch.onnx.export`` or Optimum writes.
    arch
        The build that is to run it; the bits it computes do not depend on it.
    quantize
        Recipe for float weights, for example ``w4g64`` or ``w4g128+8:16``.
    context
        Longest sequence in tokens; at most what the model supports, which is also the default, up
        to 4096.
    sequences
        Sequences that are held at a time.
    output
        Program file to write; the program is then read from there.
    begin
        Called as each step begins, with its name and its size.

    Raises
    ------
    alula.compiler.importer.Refused
        If a node of the model cannot run.
    ValueError
        If the model or an option is not what it must be.
    """
    from alula.compiler.compile import Options

    path = Path(output).resolve() if output is not None else None
    options = Options(context=context, sequences=sequences)
    program = compile_directory(Path(directory), arch, options, quantize, begin,
                                path.parent if path else None)
    if path is None:
        return program
    save(program, path)
    return load(path, check=False)


def open_program(model: str | os.PathLike[str] | Program, *, arch: str = "sim",
                 quantize: str | None = None, context: int | None = None, sequences: int = 8,
                 cache: bool = True, begin: Begin = _silent) -> Program:
    """Return a proven program of a program, a program file or a model directory.

    A directory is compiled as by :func:`compile`, once: the program is kept in the user's cache
    folder, under a hash of the directory's content, the options and the compiler, unless ``cache``
    is false.
    """
    if isinstance(model, Program):
        return verify(model)
    path = Path(model)
    if not path.is_dir():
        if not path.exists():
            raise ProgramError(f"{path} must be a program file or a model directory; "
                               "there is nothing of this name")
        return verify(load(path))
    if not cache:
        return compile(path, arch=arch, quantize=quantize, context=context, sequences=sequences,
                       begin=begin)
    kept = cache_folder() / f"{_content(path, (arch, quantize, context, sequences))}.alula"
    if kept.is_file():
        try:
            return verify(load(kept))
        except ValueError:  # a damaged file is made anew
            kept.unlink(missing_ok=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    own = kept.with_name(f"{kept.stem}.{os.getpid()}.alula")  # another process may do the same
    try:
        compile(path, arch=arch, quantize=quantize, context=context, sequences=sequences,
                output=own, begin=begin)
        own.replace(kept)
    finally:
        own.unlink(missing_ok=True)
    return load(kept, check=False)


def cache_folder() -> Path:
    """Return the folder of programs that were compiled for :func:`open_program`."""
    return Path(platformdirs.user_cache_dir("alula", appauthor=False)) / "programs"


def _content(directory: Path, options: tuple[object, ...]) -> str:
    """Return a hash of all that a compiled program depends on."""
    whole = hashlib.sha256(repr((directory.resolve().name, options, isa.isa_hash())).encode())
    for folder, pattern in ((directory, "*"), (Path(compiler.__file__).parent, "**/*.py")):
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                whole.update(f"{path.name} {digest}\n".encode())
    return whole.hexdigest()[:32]
